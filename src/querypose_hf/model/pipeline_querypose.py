"""The `pose-estimation` pipeline."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.image_utils import ChannelDimension
from transformers.pipelines.pt_utils import KeyDataset

from .fusion_querypose import FusedCopy
from .image_decoding_querypose import decode_image, is_file, read_bytes


# What post-processing needs of the model's output; the rest stays where it is.
_USED_OUTPUTS = ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores", "keypoint_query_mask")


class _Items(Dataset):
    """A sequence, such as a column of a dataset, whose images are read one at a time as they are asked for."""

    def __init__(self, items: Sequence[Any] | KeyDataset):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class _Numbered(NamedTuple):
    """One of many images, with its place among them."""

    index: int
    image: Any


class _NumberedItems(Dataset):
    """The images of a dataset or list with their places. Errors of reading one name its place."""

    def __init__(self, items: Any, order: Sequence[int] | None = None):
        self.items = items
        self.order = order

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _Numbered:
        index = index if self.order is None else self.order[index]
        with _naming(index):
            return _Numbered(index, self.items[index])


@contextlib.contextmanager
def _naming(index: int) -> Iterator[None]:
    """Makes an error in the block one about this image among many."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        kinds = (FileNotFoundError, OSError, TypeError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"images[{index}]: {error}") from error


def _aspect_ratio(image: Any) -> float:
    """Width over height as far as it can be told without decoding; 1 where it cannot, as of an image in the web."""
    if isinstance(image, (str, os.PathLike)):
        try:
            with PIL.Image.open(image) as opened:
                return _aspect_ratio(opened)
        except Exception:  # of any kind in a damaged file; told about where it is decoded
            return 1.0
    if isinstance(image, PIL.Image.Image):
        width, height = image.size
        turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return height / max(width, 1) if turned else width / max(height, 1)
    shape = getattr(image, "shape", ())
    if len(shape) != 3:
        return 1.0
    height, width = shape[:2] if shape[-1] in (1, 3, 4) else shape[1:]
    return width / max(height, 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class PoseEstimationPipeline(Pipeline):
    """Finds people in images, each with a box and keypoints.

    Args:
        optimize (`bool`, *optional*, defaults to `False`): run a [`FusedCopy`] of the model, which is faster and gives
            the same to floating-point tolerance. `pipeline.model` can still be trained and saved. The copy is made
            anew once weights of the model have changed, or its device or type; not if its layers are replaced.
        kwargs: of [`~transformers.Pipeline`], and any argument of a call but `inputs`.

    Example:

    ```python
    >>> import querypose_hf
    >>> from transformers import pipeline

    >>> pose_estimator = pipeline("pose-estimation", model="path/to/checkpoint", optimize=True)
    >>> pose_estimator("photo.jpg")
    [{'score': 0.93, 'label': 'person', 'box': {'xmin': 52.1, 'ymin': 20.9, 'xmax': 180.4, 'ymax': 431.0},
      'keypoints': [{'name': 'nose', 'x': 114.2, 'y': 61.7, 'score': 0.97}, ...]}, ...]
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, optimize: bool = False, **kwargs: Any):
        if not isinstance(optimize, bool):
            raise ValueError(f"`optimize` must be True or False, but is {optimize!r}.")
        super().__init__(*args, **kwargs)
        if optimize and not hasattr(self.model.base_model, "backbone"):
            raise ValueError(f"`optimize` is True, but {type(self.model).__name__} has no batch norms to fold.")
        self._fused = FusedCopy(self.model) if optimize else None

    def _sanitize_parameters(
        self,
        threshold: float | None = None,
        top_k: int | None = None,
        timeout: float | None = None,
        keypoint_top_k: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"the pose-estimation pipeline has no argument {next(iter(unknown))!r}; expected threshold, top_k, "
                "batch_size, num_workers, timeout or keypoint_top_k."
            )
        if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
            raise ValueError(f"`threshold` must be a number from 0 to 1, but is {threshold!r}.")
        for name, count in (("top_k", top_k), ("keypoint_top_k", keypoint_top_k)):
            if count is not None and not (_is_number(count) and isinstance(count, Integral) and count >= 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, but is {count!r}.")
        if timeout is not None and not (_is_number(timeout) and timeout > 0):
            raise ValueError(f"`timeout` must be a positive number of seconds, but is {timeout!r}.")

        def given(**values: Any) -> dict[str, Any]:
            return {name: value for name, value in values.items() if value is not None}

        wanted = given(threshold=threshold, top_k=top_k)
        return given(timeout=timeout), {**wanted, **given(keypoint_top_k=keypoint_top_k)}, wanted

    @property
    def score_threshold(self) -> float:
        """The score threshold where none is asked for: the image processor's, unless the pipeline has one."""
        processor: Any = self.image_processor
        return self._postprocess_params.get("threshold", processor.score_threshold)

    def __call__(self, inputs: Any, **kwargs: Any) -> list[dict[str, Any]] | list[list[dict[str, Any]]] | Iterator:
        """Finds people in one or many images.

        Args:
            inputs: one image (path, URL, base64, PIL image, array, tensor, bytes of a file, or a file opened for
                reading bytes), a list of images, or a dataset, a column of a dataset or a generator of images. Their
                order is kept; the latter three are read as the results are asked for.
            threshold (`float`, *optional*): people with a higher score are reported; by default [`score_threshold`].
            top_k (`int`, *optional*): at most so many people per image.
            batch_size (`int`, *optional*, defaults to 1): images per forward pass; they are padded to a common size,
                for which those of a list are sorted by aspect ratio.
            num_workers (`int`, *optional*, defaults to 0): processes that decode and resize while the model runs.
            timeout (`float`, *optional*): seconds to wait for an image from the web (60 by default).
            keypoint_top_k (`int`, *optional*): decode the keypoints of only this many queries, see
                [`QueryPoseConfig`].

        Returns:
            Per image a list of people, best first: `score`, `label`, `box` with `xmin`, `ymin`, `xmax`, `ymax`, and
            `keypoints` with `name`, `x`, `y`, `score`, all in pixels of the image. Boxes are continuous and clipped to
            the image, keypoints are pixel indices as in COCO: continuous coordinates minus 0.5. For many images a list
            of such lists, for a dataset, a column or a generator an iterator over them.

        Raises:
            FileNotFoundError, OSError, TypeError, ValueError: an image cannot be read. Of many images the message
                begins with the place of the first that cannot, such as `images[3]: `. No image is skipped: a list
                gives no results then, and an iterator those before it (with `batch_size`, those of whole batches). The
                call itself raises a `TypeError` if `inputs` is none of the above or an argument is unknown.
        """
        if isinstance(inputs, Path):
            inputs = str(inputs)
        elif isinstance(inputs, tuple):
            inputs = list(inputs)
        elif isinstance(inputs, KeyDataset):
            # Transformers looks into the first item for chat messages: read twice, and an error where there is none
            inputs = _Items(inputs)
        elif isinstance(inputs, (bytearray, memoryview)):
            inputs = bytes(inputs)
        elif is_file(inputs):
            inputs = read_bytes(inputs)
        elif isinstance(inputs, (str, list, bytes, np.ndarray, Tensor, PIL.Image.Image, Dataset)):
            pass
        elif isinstance(inputs, Sequence):
            inputs = _Items(inputs)
        elif isinstance(inputs, Iterable) and not isinstance(inputs, Mapping):
            inputs = (item for item in inputs)
        else:
            decode_image(inputs)  # it is no image: says what is expected
        if isinstance(inputs, list) and not inputs:
            return []
        batch_size = kwargs.get("batch_size") or self._batch_size or 1
        if isinstance(inputs, list) and 1 < batch_size < len(inputs):
            # images of similar shape share a batch, so that little of it is padding
            order = sorted(range(len(inputs)), key=[_aspect_ratio(item) for item in inputs].__getitem__)
            found = super().__call__(_NumberedItems(inputs, order), **kwargs)
            people_of = dict(zip(order, found, strict=True))
            return [people_of[index] for index in range(len(inputs))]
        if isinstance(inputs, list):
            return list(super().__call__(_NumberedItems(inputs), **kwargs))
        if isinstance(inputs, Dataset) and isinstance(inputs, Sized):
            inputs = _NumberedItems(inputs)
        elif isinstance(inputs, Iterator):
            inputs = (_Numbered(index, image) for index, image in enumerate(inputs))
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model, image processor and the code of all three, see [`~transformers.Pipeline.save_pretrained`]."""
        # Transformers saves a pipeline's code where the pipeline is registered, which one loaded with
        # `trust_remote_code` is not; and its model, of whose code a copy runs, does not have the pipeline's file.
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory)
        super().save_pretrained(save_directory, **kwargs)

    def preprocess(self, image: Any, timeout: float = 60) -> dict[str, Any]:
        if isinstance(image, _Numbered):
            with _naming(image.index):
                return self.preprocess(image.image, timeout)
        pixels = decode_image(image, self.image_processor.do_convert_rgb, timeout=timeout)
        height, width = pixels.shape[-2:]
        pixel_values = self.image_processor(
            pixels, do_pad=False, input_data_format=ChannelDimension.FIRST, return_tensors="pt"
        )["pixel_values"][0]
        # Transformers joins tensors along their first dimension before they are padded; a list it leaves alone.
        return {"images": [pixel_values], "target_size": torch.tensor([[height, width]])}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        threshold: float | None = None,
        top_k: int | None = None,
        keypoint_top_k: int | None = None,
    ) -> dict[str, Tensor]:
        images = model_inputs["images"]
        if isinstance(images[0], list):
            images = [image for [image] in images]
        batch = self.image_processor.pad_to_batch(images)
        model: Any = self.model if self._fused is None else self._fused.get()
        outputs = model(
            batch["pixel_values"].to(model.dtype),
            pixel_mask=batch["pixel_mask"],
            keypoint_top_k=keypoint_top_k,
            # nobody below the threshold or beyond the number is reported: they need no keypoints
            **self.image_processor.query_selection(threshold, top_k),
        )
        return {**{name: outputs[name] for name in _USED_OUTPUTS}, "target_size": model_inputs["target_size"]}

    def postprocess(
        self, model_outputs: dict[str, Tensor], threshold: float | None = None, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        people = self.image_processor.post_process_pose_estimation(
            model_outputs, threshold=threshold, target_sizes=model_outputs["target_size"], top_k=top_k
        )[0]
        return [self._describe(person) for person in people]

    def _describe(self, person: dict[str, Tensor]) -> dict[str, Any]:
        config = self.model.config
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), person["bbox"].tolist(), strict=True))
        points = torch.cat([person["keypoints"], person["scores"][:, None]], dim=1)
        if not (points.isfinite().all() and person["bbox"].isfinite().all()):
            name = self.model.name_or_path or type(self.model).__name__
            raise ValueError(
                f"{name}: it gives keypoints or boxes that are not finite: weights are damaged, or features too large "
                "for this precision."
            )
        return {
            "score": person["score"].item(),
            "label": config.id2label[person["label"].item()],
            "box": box,
            "keypoints": [
                {"name": name, "x": x, "y": y, "score": score}
                for name, (x, y, score) in zip(config.keypoint_names, points.tolist(), strict=True)
            ],
        }


__all__ = ["PoseEstimationPipeline"]
