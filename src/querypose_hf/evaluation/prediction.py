"""The people that a model finds in the images of an annotation file, as COCO results."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForPoseEstimation
from transformers.image_utils import SizeDict

from ..checks import is_finite_number, require_numbers, require_records, shown
from ..data.sample import UnusableImageError, read_image, read_image_size
from ..files import read_json
from ..model.image_processing_base_querypose import get_resized_size
from ..processes import ProcessGroup, own_device, process_group, rank
from .coco_results import coco_results_from_people
from .ground_truth import KeypointGroundTruth
from .partial_results import PartialResults, Results
from .test_time_augmentation import merge_views, mirror_people, stack_people


def predict_dataset(
    model: str | os.PathLike | torch.nn.Module,
    annotations: str | os.PathLike | Mapping[str, Any] | KeypointGroundTruth,
    images_dir: str | os.PathLike,
    *,
    metric: str | None = "coco",
    image_processor: Any = None,
    image_ids: Iterable[int] | None = None,
    batch_size: int = 8,
    top_k: int = 20,
    flip_test: bool = False,
    scales: Sequence[float] | None = None,
    undo_squeeze: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    num_workers: int = 2,
    output_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Finds the people of all images of an annotation file.

    Of each image the `top_k` best people are kept, whatever their score, as COCO's protocol asks. Images are read and
    prepared ahead by worker processes, in batches of similar aspect ratio. Which images share a batch depends on the
    file and `batch_size` alone: several processes, or a run that was taken up again, give the results of one process.

    Under `torchrun` or `accelerate launch` the processes share the batches, and the first one returns all results.

    With `flip_test` the mirrored image counts as another view, and so does every further scale; [`merge_views`] makes
    one set of people of them. Neither is in the paper.

    Args:
        model: a checkpoint's folder or Hub id, or a QueryPose model with its pose estimation head. A model that is
            passed in is put into evaluation mode for the time being.
        annotations: a COCO keypoints JSON file or what one holds, whose images need `file_name`, `width` and `height`,
            or the [`KeypointGroundTruth`] read from it.
        images_dir (`str` or `os.PathLike`): the folder that `file_name` is relative to.
        metric (`str` or `None`, *optional*, defaults to `"coco"`): the protocol that the annotations are checked for,
            see [`KeypointGroundTruth.read`]. With `None` only `images` and `categories` are read, which is all that
            COCO publishes of its test sets.
        image_processor (*optional*): needed with a model that is passed in; by default the checkpoint's.
        image_ids (`Iterable[int]`, *optional*): look at these images only.
        batch_size (`int`, *optional*, defaults to 8): images per forward pass.
        top_k (`int`, *optional*, defaults to 20): at most so many people per image.
        flip_test (`bool`, *optional*, defaults to `False`): whether to look at each image mirrored, too.
        scales (`Sequence[float]`, *optional*): factors of the image processor's `size`, such as `(0.75, 1, 1.25)`.
        undo_squeeze (`bool`, *optional*, defaults to `False`): whether images that were squeezed to another aspect
            ratio are given their own again, see [`unsqueeze_annotations`]. Results are in pixels of that size.
        device (`str` or `torch.device`, *optional*): by default the accelerator, one for each process, or the CPU; a
            model that is passed in stays where it is.
        dtype (`torch.dtype`, *optional*): by default float32, in which the paper's figures were measured; a model that
            is passed in stays as it is.
        num_workers (`int`, *optional*, defaults to 2): processes that read ahead; 0 reads in this one.
        output_dir (`str` or `os.PathLike`, *optional*): where finished images are kept, in `predictions.part*.jsonl`.
            A run with the same arguments takes up from there.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Returns:
        `list[dict]`: COCO results in the order of the file's images, best first within each; empty in all processes
        but the first.

    Raises:
        FileNotFoundError: the file, the folder or images are missing.
        ValueError: an argument or a field of the annotations is wrong, an image is unreadable or of another size than
            its record says, or model and annotations have different keypoints or categories. All of this is found
            before the first forward pass, but for damage inside an image file.

    Example:

    ```python
    >>> results = predict_dataset("path/to/checkpoint", "person_keypoints_val2017.json", "val2017", batch_size=16)
    >>> write_coco_results(results, "keypoints.json")
    ```
    """
    check_prediction_options(batch_size, top_k, scales, num_workers)
    source, records, num_keypoints, categories = _read_annotations(annotations, metric, image_ids, undo_squeeze)
    files, sizes = check_images(records, images_dir, source, undo_squeeze, progress)
    loaded, image_processor = load_model(model, image_processor, device, dtype)
    check_model(loaded, image_processor, source, num_keypoints, categories, flip_test, scales)

    was_training = loaded.training
    loaded.eval()
    try:
        with process_group() as group:
            partial, finished = None, {}
            if output_dir is not None:
                settings = {
                    "model": _fingerprint(loaded),
                    "image_processor": json.loads(image_processor.to_json_string()),
                    "images": str(Path(images_dir).resolve()),
                    "top_k": top_k,
                    "flip_test": flip_test,
                    "scales": None if scales is None else list(scales),
                    "undo_squeeze": undo_squeeze,
                }
                partial = PartialResults(output_dir, settings, group.rank)
                finished = _read_finished(partial, group)
            image_ids = [record["id"] for record in records]
            batches = [
                batch
                for batch in _batches(sizes, image_processor, batch_size)
                if not all(image_ids[row] in finished for row in batch)
            ][group.rank :: group.size]
            bar = tqdm(
                total=sum(map(len, batches)),
                desc="Finding people" if group.size == 1 else f"Finding people, process 1 of {group.size}",
                unit="image",
                disable=not progress or group.rank > 0,
            )
            pictures = _PictureBatches(batches, files, sizes, image_processor, scales or (1.0,))
            loader = DataLoader(pictures, batch_size=None, num_workers=num_workers, pin_memory=_is_cuda(loaded))
            own: Results = {}
            with bar:
                for rows, views in loader:
                    people = _find_people(loaded, image_processor, views, sizes[rows], top_k, flip_test)
                    done = {
                        image_ids[row]: coco_results_from_people(
                            group_of_people, image_ids[row], image_processor.category_ids
                        )
                        for row, group_of_people in zip(rows, people, strict=True)
                    }
                    if partial is not None:
                        partial.append(done)
                    own.update(done)
                    bar.update(len(rows))
            for part in group.gather(own):
                finished.update(part)
            return [result for image_id in image_ids for result in finished[image_id]] if group.rank == 0 else []
    finally:
        loaded.train(was_training)


def unsqueeze_annotations(
    annotations: str | os.PathLike | Mapping[str, Any],
) -> dict[str, Any]:
    """COCO annotations of squeezed images, as they are in images of the original aspect ratio.

    Data sets of small images are often squeezed to squares. Here every image is given its `orig_width` and
    `orig_height`; boxes, keypoint indices and areas are multiplied along.

    Args:
        annotations: a COCO keypoints JSON file or what one holds, which is not changed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an image lacks a size; the message names the record and the field.
    """
    source, dataset = _content(annotations)
    images = require_records(dataset.get("images"), f"{source}: `images`", "image")
    lengths = {
        field: require_numbers(images, field, "a number of pixels above 0", source, "image")
        for field in ("width", "height", "orig_width", "orig_height")
    }
    for field, values in lengths.items():
        if (values <= 0).any():
            index = int((values <= 0).argmax())
            raise ValueError(f"{source}: image {index}: `{field}` is {images[index][field]}; expected more than 0.")
    factors = np.stack(
        [lengths["orig_width"] / lengths["width"], lengths["orig_height"] / lengths["height"]], axis=1
    ).tolist()
    factor_of_image = {image.get("id"): factor for image, factor in zip(images, factors, strict=True)}
    resized = []
    for record in require_records(dataset.get("annotations"), f"{source}: `annotations`", "annotation"):
        x, y = factor_of_image.get(record.get("image_id"), (1.0, 1.0))
        changed = dict(record)
        if isinstance(record.get("bbox"), list) and len(record["bbox"]) == 4:  # others are reported when checked
            changed["bbox"] = [value * factor for value, factor in zip(record["bbox"], (x, y, x, y), strict=True)]
        if isinstance(record.get("keypoints"), list):
            changed["keypoints"] = [
                value * (x, y, 1)[index % 3] if index % 3 < 2 else value
                for index, value in enumerate(record["keypoints"])
            ]
        if is_finite_number(record.get("area")):
            changed["area"] = record["area"] * x * y
        resized.append(changed)
    return {
        **dataset,
        "images": [{**image, "width": image["orig_width"], "height": image["orig_height"]} for image in images],
        "annotations": resized,
    }


def check_prediction_options(
    batch_size: int, top_k: int, scales: Sequence[float] | None = None, num_workers: int = 0
) -> None:
    """Raises `ValueError` if one of these arguments of [`predict_dataset`] is out of range."""
    for name, value, least in (("batch_size", batch_size, 1), ("top_k", top_k, 1), ("num_workers", num_workers, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"`{name}` is {value!r}; expected a whole number of at least {least}.")
    if scales is not None and (not len(scales) or not all(is_finite_number(scale) and scale > 0 for scale in scales)):
        raise ValueError(f"`scales` is {scales!r}; expected one or more numbers above 0.")


def check_images(
    records: Sequence[Mapping[str, Any]],
    images_dir: str | os.PathLike,
    source: str,
    undo_squeeze: bool = False,
    progress: bool = True,
) -> tuple[list[str], np.ndarray]:
    """Looks for the images of COCO records and reads their headers.

    Args:
        records (`Sequence[Mapping]`): the annotations' images.
        images_dir (`str` or `os.PathLike`): the folder that `file_name` is relative to.
        source (`str`): the file the records come from, for messages.
        undo_squeeze (`bool`): whether images may have another size than the records say.
        progress (`bool`): show a progress bar.

    Returns:
        `tuple[list[str], np.ndarray]`: their files, and their widths and heights as the records have them, (n, 2).

    Raises:
        FileNotFoundError: the folder does not exist or images are not in it; the first of them are named.
        ValueError: a record is wrong, an image cannot be read or has another size than its record says.
    """
    folder = Path(images_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"`images_dir` is {os.fspath(images_dir)!r}; there is no such folder.")
    for index, record in enumerate(records):
        if not isinstance(record.get("file_name"), str):
            raise ValueError(
                f"{source}: image {index}: `file_name` is {shown(record.get('file_name'))}; expected a file's name."
            )
    lengths = [require_numbers(records, side, "a number of pixels", source, "image") for side in ("width", "height")]
    sizes = np.stack(lengths, axis=1).astype(np.int64)
    if (sizes < 1).any():
        index = int((sizes < 1).any(axis=1).argmax())
        raise ValueError(f"{source}: image {index}: its size is {sizes[index].tolist()}; expected at least 1 pixel.")
    files = [str(folder / record["file_name"]) for record in records]
    missing = [record["file_name"] for record, file in zip(records, files, strict=True) if not os.path.isfile(file)]
    if missing:
        raise FileNotFoundError(f"{source}: {_counted(missing, len(files))} are not in {folder}")
    with ThreadPoolExecutor() as pool:
        found = list(
            tqdm(
                pool.map(_size_or_error, files),
                desc="Checking images",
                unit="image",
                total=len(files),
                disable=not progress or rank() > 0,
            )
        )
    wrong = [str(error) for error in found if isinstance(error, UnusableImageError)]
    actual_sizes = [size for size in found if not isinstance(size, UnusableImageError)]
    if not wrong and not undo_squeeze:
        wrong = [
            f"{file}: has {actual[0]} x {actual[1]} pixels where its record says {size[0]} x {size[1]}"
            for file, actual, size in zip(files, actual_sizes, sizes.tolist(), strict=True)
            if tuple(size) != actual
        ]
    if wrong:
        raise UnusableImageError(f"{source}: {_counted(wrong, len(files))} cannot be used")
    return files, sizes


def load_model(
    model: str | os.PathLike | torch.nn.Module,
    image_processor: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Any, Any]:
    """The model and its image processor, on their device; arguments are those of [`predict_dataset`].

    Raises:
        ValueError: it is no QueryPose checkpoint, or a model was passed in without an image processor.
    """
    if isinstance(model, torch.nn.Module):
        if image_processor is None:
            raise ValueError("`image_processor` is None; a model that is passed in needs its image processor.")
        loaded = model
    else:
        try:
            loaded = AutoModelForPoseEstimation.from_pretrained(os.fspath(model), dtype=dtype or torch.float32)
            image_processor = image_processor or AutoImageProcessor.from_pretrained(os.fspath(model))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`model` is {os.fspath(model)!r}; expected the folder or Hub id of a QueryPose checkpoint: {error}"
            ) from error
        if device is None:
            device = own_device()
    model_type = getattr(getattr(loaded, "config", None), "model_type", None)
    if model_type != "querypose":
        raise ValueError(f"`model` is of type {model_type or type(loaded).__name__!r}; expected a QueryPose model.")
    if device is not None or dtype is not None:
        loaded = loaded.to(device=device, dtype=dtype)
    return loaded, image_processor


def _read_finished(partial: PartialResults, group: ProcessGroup) -> Results:
    """What earlier runs finished. Processes other than the first get the ids alone, which is all they need."""
    finished: Results = {}
    answer: tuple[dict[int, list], str | None] = ({}, None)
    if group.rank == 0:
        try:
            finished = partial.read()
            answer = ({image_id: [] for image_id in finished}, None)
        except (OSError, ValueError) as error:  # the others must hear of it, or they would wait
            answer = ({}, str(error))
    # nobody writes before the files have been read
    ids, message = group.broadcast(answer)
    if message is not None:
        raise ValueError(message)
    return finished if group.rank == 0 else ids


def _content(annotations: str | os.PathLike | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if isinstance(annotations, Mapping):
        source, dataset = "annotations", annotations
    else:
        source, dataset = os.fspath(annotations), read_json(annotations)
    if not isinstance(dataset, Mapping) or "images" not in dataset:
        raise ValueError(f"{source}: `images` is missing; COCO annotations have it.")
    return source, dataset


def _read_annotations(
    annotations: str | os.PathLike | Mapping[str, Any] | KeypointGroundTruth,
    metric: str | None,
    image_ids: Iterable[int] | None,
    undo_squeeze: bool,
) -> tuple[str, list[Mapping[str, Any]], int | None, set[int] | None]:
    """Where the annotations are from, the images' records, the number of keypoints and the categories, where told."""
    if metric is not None and not isinstance(annotations, KeypointGroundTruth):
        source = "annotations" if isinstance(annotations, Mapping) else os.fspath(annotations)
        content = unsqueeze_annotations(annotations) if undo_squeeze else annotations
        annotations = KeypointGroundTruth.read(content, metric, image_ids)
    elif isinstance(annotations, KeypointGroundTruth):
        source = annotations.source
        if image_ids is not None:
            raise ValueError("`image_ids` is given beside a `KeypointGroundTruth`, which has chosen its images.")
    if isinstance(annotations, KeypointGroundTruth):
        return source, annotations.images, annotations.num_keypoints, set(annotations.category_ids)
    if undo_squeeze:
        raise ValueError("`undo_squeeze` needs annotations; without a `metric` there are none.")
    source, content = _content(annotations)
    records = require_records(content["images"], f"{source}: `images`", "image")
    known = {record.get("id") for record in records}
    if len(known) < len(records) or not all(isinstance(image_id, int) for image_id in known):
        raise ValueError(f"{source}: `images`: `id` must be a different whole number in each.")
    if image_ids is not None:
        chosen = set(image_ids)
        if unknown := sorted(chosen - known):
            raise ValueError(f"`image_ids` holds {unknown[0]!r}, which {source} does not have.")
        records = [record for record in records if record["id"] in chosen]
    if not records:
        raise ValueError(f"{source}: there are no images.")
    categories = content.get("categories") or []
    names = next((entry["keypoints"] for entry in categories if entry.get("keypoints")), None)
    ids = {entry.get("id") for entry in categories}
    return source, records, None if names is None else len(names), ids or None


def check_model(
    model: Any,
    image_processor: Any,
    source: str,
    num_keypoints: int | None,
    categories: set[int] | None,
    flip_test: bool,
    scales: Sequence[float] | None,
) -> None:
    """Raises `ValueError` unless a model finds the keypoints and categories of annotations, as the options ask.

    Args:
        model, image_processor, flip_test, scales: see [`predict_dataset`].
        source (`str`): where the annotations are from, for messages.
        num_keypoints (`int` or `None`), categories (`set[int]` or `None`): the annotations', where they tell.
    """
    config = model.config
    if num_keypoints is not None and config.num_keypoints != num_keypoints:
        raise ValueError(
            f"`model` finds {config.num_keypoints} keypoints; {source} has {num_keypoints}. Expected the same."
        )
    category_ids = list(image_processor.category_ids)
    if len(category_ids) != config.num_labels:
        raise ValueError(
            f"`image_processor.category_ids` is {category_ids}; expected {config.num_labels}, one for each class of "
            "the model."
        )
    if categories is not None and not set(category_ids) <= categories:
        raise ValueError(
            f"`image_processor.category_ids` is {category_ids}; {source} has the categories {sorted(categories)}, "
            "expected some of them."
        )
    if flip_test and config.keypoint_flip_indices is None:
        raise ValueError(
            "`flip_test` is True, but the model's `keypoint_flip_indices` are None: it is not known which keypoints "
            "are each other's mirror image."
        )
    if scales is not None and not image_processor.do_resize:
        raise ValueError(f"`scales` is {scales!r}, but the image processor's `do_resize` is False.")


def _fingerprint(model: torch.nn.Module) -> str:
    """A digest of configuration, weights and precision: of all by which a model's results differ."""
    settings: Any = model.config
    fields = {name: value for name, value in settings.to_dict().items() if not name.startswith(("_", "transformers"))}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _batches(sizes: np.ndarray, image_processor: Any, batch_size: int) -> list[list[int]]:
    """Rows of images by aspect ratio, so that little of a batch is padding."""
    resized = sizes[:, ::-1].astype(np.float64)
    if image_processor.do_resize:
        size = SizeDict(**dict(image_processor.size))
        resized = np.array([get_resized_size(height, width, size) for height, width in resized.tolist()])
    order = np.lexsort((resized[:, 0], resized[:, 1] / resized[:, 0]))
    return [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]


class _PictureBatches(Dataset):
    """Whole batches, each prepared by one worker: the rows of the images, and their pixels at every scale."""

    def __init__(
        self,
        batches: Sequence[Sequence[int]],
        files: Sequence[str],
        sizes: np.ndarray,
        image_processor: Any,
        scales: Sequence[float],
    ):
        self.batches = batches
        self.files = files
        self.sizes = sizes
        self.image_processor = image_processor
        self.scales = scales

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Sequence[int], list[tuple[torch.Tensor, torch.Tensor]]]:
        rows = self.batches[index]
        images = [self._read(row) for row in rows]
        views = []
        for scale in self.scales:
            scaled = {} if scale == 1 else {"size": self._scaled_size(scale)}
            batch = self.image_processor(images, return_tensors="pt", do_pad=True, **scaled)
            views.append((batch["pixel_values"], batch["pixel_mask"]))
        return rows, views

    def _read(self, row: int) -> PIL.Image.Image:
        image = read_image(self.files[row], self.files[row])
        width, height = self.sizes[row].tolist()
        if image.size == (width, height):
            return image
        return image.resize((width, height), PIL.Image.Resampling.BILINEAR)

    def _scaled_size(self, scale: float) -> dict[str, int]:
        sides = dict(self.image_processor.size)
        return {side: max(1, math.floor(length * scale + 0.5)) for side, length in sides.items() if length}


@torch.inference_mode()
def _find_people(
    model: Any,
    image_processor: Any,
    views: Sequence[tuple[torch.Tensor, torch.Tensor]],
    sizes: np.ndarray,
    top_k: int,
    flip_test: bool,
) -> list[list[dict[str, Any]]]:
    """For each image of a batch its people, best first."""
    config = model.config
    target_sizes = torch.from_numpy(sizes[:, ::-1].copy())

    def look(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> list[list[dict[str, Any]]]:
        # keypoints of no more queries than it takes to find exactly the best, unless some of these are left out
        max_people = top_k if image_processor.nms_threshold is None else None
        outputs = model(pixel_values=pixel_values, pixel_mask=pixel_mask, max_people=max_people)
        return image_processor.post_process_pose_estimation(
            outputs, threshold=0.0, target_sizes=target_sizes, top_k=top_k
        )

    found: list[list[Any]] = []  # for each view the people of each image
    for pixel_values, pixel_mask in views:
        pixel_values = pixel_values.to(model.device, model.dtype, non_blocking=True)
        pixel_mask = pixel_mask.to(model.device, non_blocking=True)
        people = look(pixel_values, pixel_mask)
        if len(views) == 1 and not flip_test:
            return people
        found.append([stack_people(group) for group in people])
        if flip_test:
            people = look(_mirrored(pixel_values, pixel_mask), pixel_mask)
            found.append(
                [
                    mirror_people(group, width, config.keypoint_flip_indices)
                    for group, width in zip(people, sizes[:, 0].tolist(), strict=True)
                ]
            )
    return [merge_views(group, config.keypoint_sigmas, top_k) for group in zip(*found, strict=True)]


def _mirrored(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
    """The batch with every image mirrored in its own width; padding stays at the right."""
    columns = torch.arange(pixel_values.shape[-1], device=pixel_values.device)
    widths = pixel_mask[:, 0].sum(dim=-1, keepdim=True)
    sources = torch.where(columns < widths, widths - 1 - columns, columns)
    return pixel_values.gather(-1, sources[:, None, None].expand_as(pixel_values))


def _is_cuda(model: Any) -> bool:
    return model.device.type == "cuda"


def _size_or_error(file: str) -> tuple[int, int] | UnusableImageError:
    try:
        return read_image_size(file, file)
    except UnusableImageError as error:
        return error


def _counted(entries: Sequence[str], total: int) -> str:
    first = "; ".join(entries[:3]) + (f"; and {len(entries) - 3} more" if len(entries) > 3 else "")
    return f"{len(entries)} of {total} images ({first})"
