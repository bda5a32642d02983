"""The people that a model finds in many images, as COCO results."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.image_utils import SizeDict

from ..data.sample import UnusableImageError, read_image
from ..inference.loading import fingerprint, load_model
from ..model.image_processing_base_querypose import get_resized_size
from ..processes import ProcessGroup, process_group
from .coco_results import coco_results_from_people
from .image_checks import check_images
from .image_list import ImageList, read_image_list
from .options import PredictionOptions
from .partial_results import PartialResults, Results
from .test_time_augmentation import merge_views, mirror_images, mirror_people, stack_people
from .time_spent import TimeSpent


def predict_dataset(
    model: str | os.PathLike | torch.nn.Module,
    annotations: str | os.PathLike | Mapping[str, Any] | ImageList,
    images_dir: str | os.PathLike,
    options: PredictionOptions = PredictionOptions(),
    *,
    image_processor: Any = None,
    output_dir: str | os.PathLike | None = None,
    skipped: dict[int, str] | None = None,
    spent: TimeSpent | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Finds the people of all images of an annotation file.

    Of each image the `top_k` best people are kept, whatever their score, as COCO's protocol asks. Worker processes
    read and prepare images ahead, in batches of similar aspect ratio. Which images share a batch depends on the file
    and `batch_size` alone: several processes, or a run that was taken up again, give the results of one process.

    Under `torchrun` or `accelerate launch` the processes share the batches, and the first one returns all results.

    With `flip_test` the mirrored image is another view, and so is every further scale; [`merge_views`] makes one set
    of people of all views. Neither is in the paper.

    Args:
        model: a checkpoint's folder or Hub id, or a QueryPose model with its pose estimation head. A model that is
            passed in is in evaluation mode meanwhile.
        annotations: a COCO JSON file or what one holds, of which `images` (with `file_name`, `width` and `height`) and
            `categories` are read; or the [`ImageList`] or [`KeypointGroundTruth`] read from it.
        images_dir (`str` or `os.PathLike`): the folder that `file_name` is relative to.
        options ([`PredictionOptions`]): how people are found.
        image_processor (*optional*): by default the checkpoint's; needed with a model that is passed in.
        output_dir (`str` or `os.PathLike`, *optional*): where finished images are kept, in `predictions.part*.jsonl`.
            A run with the same arguments takes up from there.
        skipped (`dict[int, str]`, *optional*): is given the ids of images that cannot be used, and why, in the first
            process. They have no results, and a run that takes up from here tries them again. Without it, and where no
            image can be used, that is an error.
        spent ([`TimeSpent`], *optional*): is given where this process's time went.
        progress (`bool`): show a progress bar.

    Returns:
        `list[dict]`: COCO results in the order of the file's images, best first within each; empty in all processes
        but the first.

    Raises:
        FileNotFoundError: the file, the folder or images are missing.
        ValueError: a field of the annotations is wrong, an image is unreadable or of another size than its record
            says, or model and annotations have different keypoints or categories. All of this is found before the
            first forward pass, but for damage inside an image file.

    Example:

    ```python
    >>> options = PredictionOptions(batch_size=16, flip_test=True)
    >>> results = predict_dataset("path/to/checkpoint", "person_keypoints_val2017.json", "val2017", options)
    >>> write_coco_results(results, "keypoints.json")
    ```
    """
    images = annotations if isinstance(annotations, ImageList) else read_image_list(annotations)
    unusable: dict[int, str] = {}
    spent = spent or TimeSpent()
    with spent.of("reading"):
        files, sizes = check_images(images, images_dir, progress, None if skipped is None else unusable)
    loaded, image_processor = load_model(model, image_processor, options.device, options.dtype)
    check_model(loaded, image_processor, images, options)
    image_ids = [record["id"] for record in images.images]
    with process_group() as group, _evaluation_mode(loaded):
        partial, finished = None, {}
        if output_dir is not None:
            with spent.of("loading"):
                settings = _settings_of_results(loaded, image_processor, images_dir, options)
                partial = PartialResults(output_dir, settings, group.rank)
                finished = _read_finished(partial, group)
        batches = [
            [row for row in batch if image_ids[row] not in unusable]
            for batch in _batches(sizes, image_processor, options.batch_size)
            if not all(image_ids[row] in finished or image_ids[row] in unusable for row in batch)
        ][group.rank :: group.size]
        loader = DataLoader(
            _ImageBatches(batches, files, image_processor, options.scales or (1.0,), skip=skipped is not None),
            batch_size=None,
            num_workers=options.num_workers,
            pin_memory=loaded.device.type == "cuda",
        )
        bar = tqdm(
            leave=None,  # not below another bar, such as that of training
            total=sum(map(len, batches)),
            desc="Finding people" if group.size == 1 else f"Finding people, process 1 of {group.size}",
            unit="image",
            disable=not progress or group.rank > 0,
        )
        own: Results = {}
        with bar:
            for rows, views, broken in spent.reading(loader):
                unusable |= {image_ids[row]: reason for row, reason in broken.items()}
                with spent.of("model"):
                    people = _find_people(loaded, image_processor, views, sizes[rows], options) if rows else []
                spent.images += len(rows)
                with spent.of("writing"):
                    done = {
                        image_ids[row]: coco_results_from_people(found, image_ids[row], image_processor.category_ids)
                        for row, found in zip(rows, people, strict=True)
                    }
                    if partial is not None:
                        partial.append(done)
                    own |= done
                bar.update(len(rows) + len(broken))
        for part, reasons in group.gather((own, unusable)):
            finished |= part
            unusable |= reasons
        if group.rank > 0:
            return []
        if skipped is not None:
            skipped |= {image_id: reason for image_id, reason in unusable.items() if image_id not in finished}
        if not finished:
            raise UnusableImageError(f"{images.source}: no image can be used: {next(iter(unusable.values()))}")
        return [result for image_id in image_ids for result in finished.get(image_id, [])]


def check_model(model: Any, image_processor: Any, images: ImageList, options: PredictionOptions) -> None:
    """Raises `ValueError` unless a model finds the keypoints and categories of annotations, as the options ask."""
    config = model.config
    if images.num_keypoints is not None and config.num_keypoints != images.num_keypoints:
        raise ValueError(
            f"`model` finds {config.num_keypoints} keypoints; {images.source} has {images.num_keypoints}. Expected "
            "the same."
        )
    category_ids = list(image_processor.category_ids)
    if len(category_ids) != config.num_labels:
        raise ValueError(
            f"`image_processor.category_ids` is {category_ids}; expected {config.num_labels}, one for each class of "
            "the model."
        )
    if images.categories and not set(category_ids) <= set(images.category_ids):
        raise ValueError(
            f"`image_processor.category_ids` is {category_ids}; {images.source} has the categories "
            f"{sorted(images.category_ids)}, expected some of them."
        )
    if options.flip_test and config.keypoint_flip_indices is None:
        raise ValueError(
            "`flip_test` is True, but the model's `keypoint_flip_indices` are None: it is not known which keypoints "
            "are each other's mirror image."
        )
    if options.scales is not None and not image_processor.do_resize:
        raise ValueError(f"`scales` is {options.scales!r}, but the image processor's `do_resize` is False.")


@contextlib.contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _settings_of_results(
    model: Any, image_processor: Any, images_dir: str | os.PathLike, options: PredictionOptions
) -> dict[str, Any]:
    """All that results depend on: a run is taken up again only with the same settings."""
    return {
        "model": fingerprint(model),
        "image_processor": json.loads(image_processor.to_json_string()),
        "images": str(Path(images_dir).resolve()),
        "top_k": options.top_k,
        "flip_test": options.flip_test,
        "scales": None if options.scales is None else list(options.scales),
    }


def _read_finished(partial: PartialResults, group: ProcessGroup) -> Results:
    """What earlier runs finished. Processes other than the first get the ids alone, which is all they need."""
    finished: Results = {}
    answer: tuple[Results, str | None] = ({}, None)
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


def _batches(sizes: np.ndarray, image_processor: Any, batch_size: int) -> list[list[int]]:
    """Rows of images in batches of similar aspect ratio, so that little of a batch is padding."""
    resized = sizes[:, ::-1].astype(np.float64)
    if image_processor.do_resize:
        size = SizeDict(**dict(image_processor.size))
        resized = np.array([get_resized_size(height, width, size) for height, width in resized.tolist()])
    order = np.lexsort((resized[:, 0], resized[:, 1] / resized[:, 0]))
    return [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]


class _ImageBatches(Dataset):
    """Whole batches, each prepared by one worker.

    A batch is the rows of its images, their pixels and mask at every scale, and with `skip` the rows of images that
    cannot be read, with the reasons.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[int]],
        files: Sequence[str],
        image_processor: Any,
        scales: Sequence[float],
        skip: bool,
    ):
        self.skip = skip
        self.batches = batches
        self.files = files
        self.image_processor = image_processor
        self.scales = scales

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[list[int], list[tuple[torch.Tensor, torch.Tensor]], dict[int, str]]:
        images: dict[int, PIL.Image.Image] = {}
        broken: dict[int, str] = {}
        for row in self.batches[index]:
            try:
                images[row] = read_image(self.files[row], self.files[row])
            except UnusableImageError as error:
                if not self.skip:
                    raise
                broken[row] = str(error)
        views = []
        for scale in self.scales if images else ():
            scaled = {} if scale == 1 else {"size": self._scaled_size(scale)}
            batch = self.image_processor([*images.values()], return_tensors="pt", do_pad=True, **scaled)
            views.append((batch["pixel_values"], batch["pixel_mask"]))
        return [*images], views, broken

    def _scaled_size(self, scale: float) -> dict[str, int]:
        sides = dict(self.image_processor.size)
        return {side: max(1, math.floor(length * scale + 0.5)) for side, length in sides.items() if length}


@torch.inference_mode()
def _find_people(
    model: Any,
    image_processor: Any,
    views: Sequence[tuple[torch.Tensor, torch.Tensor]],
    sizes: np.ndarray,
    options: PredictionOptions,
) -> list[list[dict[str, Any]]]:
    """For each image of a batch its people, best first."""
    config = model.config
    target_sizes = torch.from_numpy(sizes[:, ::-1].copy())

    def look(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> list[list[dict[str, Any]]]:
        # keypoints of no more queries than it takes to find exactly the best, unless some of these are left out
        selection = image_processor.query_selection(threshold=0.0, top_k=options.top_k)
        outputs = model(pixel_values=pixel_values, pixel_mask=pixel_mask, **selection)
        return image_processor.post_process_pose_estimation(
            outputs, threshold=0.0, target_sizes=target_sizes, top_k=options.top_k
        )

    found: list[list[Any]] = []  # for each view the people of each image
    for pixel_values, pixel_mask in views:
        pixel_values = pixel_values.to(model.device, model.dtype, non_blocking=True)
        pixel_mask = pixel_mask.to(model.device, non_blocking=True)
        people = look(pixel_values, pixel_mask)
        if len(views) == 1 and not options.flip_test:
            return people
        found.append([stack_people(group) for group in people])
        if options.flip_test:
            people = look(mirror_images(pixel_values, pixel_mask), pixel_mask)
            found.append(
                [
                    mirror_people(group, width, config.keypoint_flip_indices)
                    for group, width in zip(people, sizes[:, 0].tolist(), strict=True)
                ]
            )
    return [merge_views(group, config.keypoint_sigmas, options.top_k) for group in zip(*found, strict=True)]
