"""What both image processors of QueryPose share: decoding, sizes, labels, saving and post-processing.

Nothing here needs torchvision. The two backends, which resize and normalise, are in `image_processing_querypose` and
`image_processing_pil_querypose`.
"""

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import reduce
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .annotations_querypose import labels_from_annotations
from .code_files_querypose import copy_code
from .image_decoding_querypose import white_level
from .people_querypose import People, people_of_queries


_BACKEND_MODULES = {
    "torchvision": ("image_processing_querypose", "QueryPoseImageProcessor"),
    "pil": ("image_processing_pil_querypose", "QueryPoseImageProcessorPil"),
}
_FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb", "do_center_crop", "default_to_square")
# of an image in pixels; more would fill the memory
_MOST_SIDE = 65_536
# beyond these no image is left: the model would find nobody
_RANGES = {"rescale_factor": (1e-6, 1e3), "image_mean": (-1e4, 1e4), "image_std": (1e-3, 1e4)}


class QueryPoseImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*, defaults to 32):
        Height and width of a padded batch are rounded up to a multiple of this, the largest stride of the backbone.
    category_ids (`list[int]`, *optional*, defaults to `[1]`):
        The dataset's category ids in the order of the model's classes: the id at position `i` becomes class label `i`.
        The default is COCO's person.
    num_keypoints (`int`, *optional*):
        Number of keypoints of every person. Taken from the annotations when not given, and 17 when none of them tells.
    score_threshold (`float`, *optional*, defaults to 0.3):
        In post-processing, people with a higher score than this are returned, unless another threshold is asked for.
        Training replaces it by the one that has the best F1 on the validation images: how high scores are differs from
        model to model.
    nms_threshold (`float`, *optional*):
        In post-processing, people whose box overlaps a better one's by an IoU above this are left out, for models that
        were trained too little to give each person once. Off by default, as in the paper.
    """

    size_divisor: int | None
    category_ids: list[int] | tuple[int, ...]
    num_keypoints: int | None
    score_threshold: float
    nms_threshold: float | None


def get_resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """Height and width that an image of `height` x `width` pixels is resized to.

    With `shortest_edge` and `longest_edge` the aspect ratio is kept and sizes are rounded half up, as detectron2's
    `ResizeShortestEdge` does, which the published checkpoints were trained and measured with. transformers'
    `get_size_with_aspect_ratio` truncates: it turns 480x640 into 800x1066 where detectron2 says 800x1067.

    Args:
        height (`int`): height of the image in pixels.
        width (`int`): width of the image in pixels.
        size (`SizeDict`): `shortest_edge` with or without `longest_edge`; or `height` and `width`; or `max_height`
            and `max_width`.

    Example:

    ```python
    >>> get_resized_size(480, 640, SizeDict(shortest_edge=800, longest_edge=1333))
    (800, 1067)
    ```
    """
    if size.height and size.width:
        return size.height, size.width
    if size.max_height and size.max_width:
        new_height, new_width = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    else:
        assert size.shortest_edge is not None, size
        scale = size.shortest_edge / min(height, width)
        # not both sides times `scale`: the short one has to come out exact for the next rounding to agree
        exact = np.array(
            [size.shortest_edge, width * scale] if height < width else [height * scale, size.shortest_edge]
        )
        if size.longest_edge and exact.max() > size.longest_edge:
            exact *= size.longest_edge / exact.max()
        new_height, new_width = (int(length + 0.5) for length in exact)
    return max(new_height, 1), max(new_width, 1)


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return [image for entry in images for image in _flatten(entry)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


class QueryPoseImageProcessingMixin(BaseImageProcessor):
    """The part of QueryPose's image processors that does not depend on the backend.

    A backend class comes after it in the list of bases and supplies `_preprocess`.
    """

    valid_kwargs = QueryPoseImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 800, "longest_edge": 1333}  # noqa: RUF012 - read and copied by BaseImageProcessor
    pad_size: SizeDict | None = None
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    size_divisor = 32
    category_ids = (1,)
    num_keypoints = None
    score_threshold = 0.3
    nms_threshold = None
    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012 - a list in BaseImageProcessor

    def preprocess(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Unpack[QueryPoseImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepares images, and their annotations in training, for the model.

        Images are decoded, made upright, converted to RGB, resized, normalised, and padded with zeros at the right and
        bottom to one size, a multiple of `size_divisor`. Floating-point numbers within 0..1 count as rescaled already,
        as those of torchvision's `ToTensor` are; with `do_rescale` all others must lie within 0..255.

        Args:
            images (`ImageInput`, `str`, `os.PathLike`, or a list of them): what [`decode_image`] accepts, or an array
                of four dimensions that holds a batch.
            annotations (`dict` or `list[dict]`, *optional*): one for each image: `{"image_id": int, "annotations":
                [COCO objects]}`, see [`labels_from_annotations`]. They refer to the upright image, that is after the
                EXIF orientation was applied (COCO's own images have none).
            kwargs: any of the processor's settings, for this call only.

        Returns:
            `BatchFeature`: `pixel_values` (batch, 3, height, width) and `pixel_mask` (batch, height, width), int64, 1
            where there is image and 0 where there is padding. With `do_pad=False` there is no mask, and images of
            different sizes come as a list. With annotations also `labels`, a list of one `BatchFeature` for each image
            with `class_labels`, `boxes`, `keypoints`, `area`, `size`, `orig_size` and `image_id`.

        Raises:
            `TypeError`, `ValueError`, `FileNotFoundError`, `OSError`: naming the image or the field that is wrong.

        Example:

        ```python
        >>> image_processor = QueryPoseImageProcessor()
        >>> person = {"bbox": [20, 30, 40, 90], "keypoints": [39, 40, 2] + 16 * [0, 0, 0]}
        >>> inputs = image_processor(
        ...     PIL.Image.new("RGB", (640, 480)), {"image_id": 7, "annotations": [person]}, return_tensors="pt"
        ... )
        >>> inputs["pixel_values"].shape, inputs["labels"][0]["keypoints"].shape
        (torch.Size([1, 3, 800, 1088]), torch.Size([1, 17, 3]))
        ```
        """
        return super().preprocess(images, annotations, **kwargs)

    def _set_attributes(self, **kwargs: Any) -> None:
        self._refuse_misspelt_settings(kwargs)
        super()._set_attributes(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds an image processor from a dict; `kwargs` are overrides.

        See [`~transformers.ImageProcessingMixin.from_dict`], which would leave out those that it does not know.
        """
        cls._refuse_misspelt_settings(kwargs)
        return super().from_dict(image_processor_dict, **kwargs)

    @classmethod
    def _refuse_misspelt_settings(cls, kwargs: Mapping[str, Any]) -> None:
        # Transformers keeps unknown settings as attributes, so that `score_treshold` would pass unnoticed
        known = cls.valid_kwargs.__annotations__
        for name in kwargs.keys() - known.keys():
            if close := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
                raise ValueError(f"Unknown setting `{name}` (value {kwargs[name]!r}): did you mean `{close[0]}`?")

    def _standardize_kwargs(self, *args: Any, **kwargs: Any) -> dict:
        kwargs = super()._standardize_kwargs(*args, **kwargs)
        _check_size(kwargs["size"])
        pad_size = dict(kwargs["pad_size"] or {})
        if not all(map(_is_side, pad_size.values())):
            raise ValueError(f"`pad_size` is {pad_size}; expected positive integers of at most {_MOST_SIDE}.")
        for field in _FLAGS:
            if (value := kwargs.get(field)) is not None and not isinstance(value, bool | np.bool_):
                raise ValueError(f"`{field}` is {value!r}; expected True or False.")
        for field, (least, most) in _RANGES.items():
            value = kwargs.get(field)
            several = isinstance(value, list | tuple) and field != "rescale_factor" and len(value) > 0
            numbers: Any = value if several else [value]
            if value is not None and not all(_is_number(one) and least <= one <= most for one in numbers):
                each = "" if field == "rescale_factor" else ", or one for each channel"
                raise ValueError(f"`{field}` is {value!r}; expected a number from {least:g} to {most:g}{each}.")
        for field in ("size_divisor", "num_keypoints"):
            value = kwargs.get(field)
            if value is not None and not _is_side(value):
                raise ValueError(f"`{field}` is {value!r}; expected a positive integer of at most {_MOST_SIDE}.")
        _check_nms_threshold(kwargs.get("nms_threshold"))
        if "score_threshold" in kwargs:
            _check_score_threshold(kwargs["score_threshold"])
        resample = kwargs.get("resample")
        if resample is not None and not isinstance(resample, Enum) and resample not in list(PILImageResampling):
            filters = [int(each) for each in PILImageResampling]
            raise ValueError(f"`resample` is {resample!r}; expected one of {filters}.")
        category_ids = kwargs.get("category_ids")
        if category_ids is not None:
            if (
                not isinstance(category_ids, list | tuple)
                or not category_ids
                or not all(isinstance(value, Integral) and not isinstance(value, bool) for value in category_ids)
                or len(set(category_ids)) != len(category_ids)
            ):
                raise ValueError(
                    f"`category_ids` is {category_ids!r}; expected a list of different integers, one for each class."
                )
            kwargs["category_ids"] = [int(value) for value in category_ids]
        return kwargs

    def _validate_preprocess_kwargs(self, *args: Any, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(*args, **kwargs)
        if kwargs.get("do_center_crop"):
            raise ValueError("`do_center_crop` is True; a QueryPose image processor does not crop.")
        data_format = kwargs.get("data_format")
        if data_format is not None and ChannelDimension(data_format) != ChannelDimension.FIRST:
            raise ValueError(f"`data_format` is {data_format!r}; the model takes `channels_first` only.")

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        entries = _flatten(images)
        if not entries:
            raise ValueError("`images` is empty; expected at least one image.")
        if annotations is not None:
            annotations = [annotations] if isinstance(annotations, Mapping) else annotations
            if not isinstance(annotations, list | tuple):
                raise TypeError(f"`annotations` is of {type(annotations)}; expected a dict or a list of dicts.")
            # `labels_from_annotations` says this too, but only once all images are decoded
            if len(annotations) != len(entries):
                raise ValueError(
                    f"`annotations` has {len(annotations)} entries for {len(entries)} images; expected one for each."
                )
        decoded = [self._decode_entry(index, entry, **kwargs) for index, entry in enumerate(entries)]
        labels = None
        if annotations is not None:
            sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in decoded]
            resized = [get_resized_size(*size, kwargs["size"]) for size in sizes] if kwargs["do_resize"] else sizes
            labels = labels_from_annotations(
                annotations, sizes, resized, kwargs["category_ids"], kwargs["num_keypoints"]
            )
        batch = self._preprocess(decoded, **kwargs)
        if labels is not None:
            batch["labels"] = [self._label_feature(label, **kwargs) for label in labels]
        return batch

    def _decode_entry(
        self,
        index: int,
        entry: Any,
        do_rescale: bool | None,
        rescale_factor: float,
        do_normalize: bool | None,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        **kwargs: Any,
    ) -> Any:
        try:
            image = self.process_image(entry, **kwargs)
            num_channels = image.shape[0]
            for name, value in (("image_mean", image_mean), ("image_std", image_std)):
                if do_normalize and isinstance(value, list | tuple) and len(value) not in (1, num_channels):
                    raise ValueError(
                        f"the image has {num_channels} channels and `{name}` {len(value)} values; set "
                        "`do_convert_rgb` to True, or give a mean and a standard deviation for each channel."
                    )
            if do_rescale and image.dtype in (torch.float32, np.float32) and white_level(image) == 1:
                image = image * float(1 / rescale_factor)  # rescaled already: undone here, done again later
        except (OSError, TypeError, ValueError) as error:
            kinds = (FileNotFoundError, OSError, TypeError, ValueError)
            kind = next(kind for kind in kinds if isinstance(error, kind))
            raise kind(f"images[{index}]: {error}") from error
        return image

    def _label_feature(
        self, label: dict[str, np.ndarray], return_tensors: str | TensorType | None = None, **kwargs: Any
    ) -> BatchFeature:
        return BatchFeature(label, tensor_type=return_tensors)

    def _make_batch(
        self,
        images: Sequence[torch.Tensor],
        do_pad: bool | None,
        pad_size: SizeDict | None,
        size_divisor: int | None,
        return_tensors: str | TensorType | None,
    ) -> dict[str, Any]:
        if do_pad:
            return dict(self.pad_to_batch(images, pad_size=pad_size, size_divisor=size_divisor))
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) == 1:
            return {"pixel_values": torch.stack(list(images))}
        if return_tensors is None:
            return {"pixel_values": list(images)}
        raise ValueError(
            f"images of different sizes {sorted(shapes)} do not fit into one tensor; set `do_pad` to True or "
            "`return_tensors` to None."
        )

    def pad_to_batch(
        self,
        images: Sequence[torch.Tensor],
        pad_size: Mapping[str, int] | SizeDict | None = None,
        size_divisor: int | None = None,
    ) -> BatchFeature:
        """Pads processed images of different sizes at the right and bottom and puts them into one batch.

        Args:
            images (`Sequence[torch.Tensor]`): images of shape `(channels, height, width)`, on one device.
            pad_size (`dict[str, int]` or `SizeDict`, *optional*, defaults to `self.pad_size`): `height` and `width` of
                the batch.
            size_divisor (`int`, *optional*, defaults to `self.size_divisor`): without a `pad_size` the batch is as
                large as the largest height and width among the images, rounded up to a multiple of this.

        Returns:
            `BatchFeature`: `pixel_values` (batch, channels, height, width) and `pixel_mask` (batch, height, width),
            int64, 1 where there is image, both on the device of the images.

        Raises:
            `ValueError`: if there is no image, or one has another number of dimensions or channels, or is larger than
                `pad_size`.

        Example:

        ```python
        >>> batch = image_processor.pad_to_batch([torch.rand(3, 800, 1067), torch.rand(3, 1201, 800)])
        >>> batch["pixel_values"].shape
        torch.Size([2, 3, 1216, 1088])
        ```
        """
        if len(images) == 0:
            raise ValueError("`images` is empty; expected at least one image.")
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != images[0].shape[0]:
                raise ValueError(
                    f"images[{index}] has shape {tuple(image.shape)}; expected (channels, height, width) with "
                    f"{images[0].shape[0]} channels, as the first image has."
                )
        largest = (max(image.shape[1] for image in images), max(image.shape[2] for image in images))
        pad_size = self.pad_size if pad_size is None else pad_size
        if pad_size is None:
            divisor = size_divisor or self.size_divisor or 1
            height, width = (math.ceil(length / divisor) * divisor for length in largest)
        else:
            wanted_height, wanted_width = pad_size.get("height"), pad_size.get("width")
            if not (wanted_height and wanted_width and wanted_height >= largest[0] and wanted_width >= largest[1]):
                raise ValueError(
                    f"`pad_size` is {dict(pad_size)}; expected `height` and `width` of at least {largest[0]} and "
                    f"{largest[1]}, the largest among the images."
                )
            height, width = wanted_height, wanted_width
        dtype = reduce(torch.promote_types, (image.dtype for image in images))
        pixel_values = images[0].new_zeros((len(images), images[0].shape[0], height, width), dtype=dtype)
        pixel_mask = images[0].new_zeros((len(images), height, width), dtype=torch.int64)
        for index, image in enumerate(images):
            pixel_values[index, :, : image.shape[1], : image.shape[2]] = image
            pixel_mask[index, : image.shape[1], : image.shape[2]] = 1
        return BatchFeature({"pixel_values": pixel_values, "pixel_mask": pixel_mask})

    def post_process_pose_estimation(
        self,
        outputs: Any,
        threshold: float | None = None,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        top_k: int | None = None,
        nms_threshold: float | None = None,
    ) -> list[list[dict[str, torch.Tensor]]]:
        """Turns the model's outputs into people, best first.

        A person's score is the probability of the best class times the mean confidence of the keypoints. There is no
        non-maximum suppression unless it is asked for: the model is trained to give each person once. Queries whose
        keypoints were not decoded are left out, and so are people whose box is empty once clipped to the image.

        Args:
            outputs (`QueryPosePoseEstimationOutput` or `dict`): `logits` (batch, queries, classes), `pred_boxes`
                (batch, queries, 4) and `pred_keypoints` (batch, queries, K, 2), relative to each image's unpadded
                size, `keypoint_scores` (batch, queries, K) and, if not every query was decoded, `keypoint_query_mask`
                (batch, queries).
            threshold (`float`, *optional*, defaults to the processor's `score_threshold`): people with a higher score
                are returned.
            target_sizes (`torch.Tensor` of shape `(batch, 2)` or list of pairs, *optional*): height and width of each
                image that coordinates are wanted for, usually those of the original. Without them coordinates stay
                relative to the image.
            top_k (`int`, *optional*): at most so many people for each image. COCO scores the best 20.
            nms_threshold (`float`, *optional*): in place of the processor's own, see
                [`QueryPoseImageProcessorKwargs`]; 1 leaves out nobody. Whoever is judged by it has to be in `outputs`:
                do not give the model `max_people` then.

        Returns:
            `list[list[dict[str, torch.Tensor]]]`: per image a list of people, on the CPU, in float32 (float64 if the
                model ran in it). Each has
                - `score` (): the person's score;
                - `label` (), int64: index of the class;
                - `bbox` (4,): x and y of two corners, clipped to the image;
                - `keypoints` (K, 2): x and y, not clipped. With `target_sizes` they are pixel indices as COCO has them
                  (continuous coordinate minus 0.5);
                - `scores` (K,): confidence of each keypoint;
                - `labels` (K,), int64: index of each keypoint.

                `supervision.KeyPoints.from_transformers` takes the list of one image as it is.

        Raises:
            `ValueError`: if a field is missing or shapes do not go together, or `target_sizes`, `top_k`,
                `score_threshold` or `nms_threshold` is wrong.

        Example:

        ```python
        >>> outputs = model(**image_processor(image, return_tensors="pt"))
        >>> people = image_processor.post_process_pose_estimation(
        ...     outputs, target_sizes=[(image.height, image.width)]
        ... )[0]
        ```
        """
        if top_k is not None and (not isinstance(top_k, Integral) or isinstance(top_k, bool) or top_k < 0):
            raise ValueError(f"`top_k` is {top_k!r}; expected None or an integer of at least 0.")
        threshold = self._threshold_or_own(threshold)
        nms_threshold = self.nms_threshold if nms_threshold is None else nms_threshold
        _check_nms_threshold(nms_threshold)
        logits, boxes, keypoints, keypoint_scores, decoded = _on_host(_read_outputs(outputs))
        sizes = None
        if target_sizes is not None:
            sizes = _check_target_sizes(target_sizes, len(logits)).to(logits.dtype)
        people = people_of_queries(logits, boxes, keypoints, keypoint_scores, decoded, sizes, nms_threshold)
        kept = people.counts & (people.scores > threshold)
        order = people.scores.masked_fill(~kept, -math.inf).argsort(dim=-1, descending=True, stable=True)
        return [
            _describe_people(people, image, ranking[: count if top_k is None else min(count, top_k)])
            for image, (ranking, count) in enumerate(zip(order, kept.sum(dim=-1).tolist(), strict=True))
        ]

    def query_selection(self, threshold: float | None = None, top_k: int | None = None) -> dict[str, Any]:
        """What to tell the model when [`post_process_pose_estimation`] will be called with these arguments.

        Returns:
            `dict`: `person_threshold` and `max_people` of [`QueryPoseForPoseEstimation.forward`]. With NMS every
            candidate is needed, so that then there is no `max_people`.
        """
        threshold = self._threshold_or_own(threshold)
        return {
            "person_threshold": threshold if threshold > 0 else None,
            "max_people": top_k if self.nms_threshold is None else None,
        }

    def _threshold_or_own(self, threshold: float | None) -> float:
        if threshold is None:
            _check_score_threshold(self.score_threshold)
            return self.score_threshold
        return threshold

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the `auto_map` that lets `AutoImageProcessor` load this code from the saved folder."""
        settings = super().to_dict()
        settings["auto_map"] = {
            **settings.get("auto_map", {}),
            "AutoImageProcessor": {
                backend: f"{module}.{name}"
                for backend, (module, name) in _BACKEND_MODULES.items()
                if Path(__file__).with_name(f"{module}.py").is_file()
            },
        }
        return settings

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Saves the settings to a JSON file, which is replaced as a whole."""
        _replace_file(Path(json_file_path), self.to_json_string().encode("utf-8"))

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Saves the settings, and the code with them.

        `AutoImageProcessor.from_pretrained(save_directory, trust_remote_code=True)` then works where this package is
        not installed.

        Args:
            save_directory (`str` or `os.PathLike`): the folder; made if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`): whether to upload the folder's image processor too.
            kwargs: `repo_id` (the folder's name when not given) and further arguments of `push_to_hub`.

        Returns:
            `list[str]`: the files written, the settings first.
        """
        files = super().save_pretrained(save_directory)
        files += [str(path) for path in copy_code(save_directory)]
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return files


def _check_size(size: SizeDict | None) -> None:
    if size is None:
        return
    given = dict(size)
    accepted = (
        {"shortest_edge", "longest_edge"},
        {"shortest_edge"},
        {"height", "width"},
        {"max_height", "max_width"},
    )
    if set(given) not in accepted or not all(map(_is_side, given.values())):
        raise ValueError(
            f"`size` is {given}; expected positive integers of at most {_MOST_SIDE} for `shortest_edge` with or "
            "without `longest_edge`, for `height` and `width`, or for `max_height` and `max_width`."
        )


def _is_side(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= _MOST_SIDE


def _read_outputs(outputs: Any) -> list[Any]:
    """The fields of the model's outputs that people are made of, their shapes checked."""
    logits = _output_field(outputs, "logits", 3)
    queries = tuple(logits.shape[:2])
    boxes = _output_field(outputs, "pred_boxes", 3, (*queries, 4))
    keypoints = _output_field(outputs, "pred_keypoints", 4, (*queries, None, 2))
    keypoint_scores = _output_field(outputs, "keypoint_scores", 3, (*queries, keypoints.shape[2]))
    decoded = _output_field(outputs, "keypoint_query_mask", 2, queries, required=False)
    return [logits, boxes, keypoints, keypoint_scores, decoded]


def _output_field(
    outputs: Any, name: str, ndim: int, shape: tuple[int | None, ...] | None = None, required: bool = True
) -> Any:
    tensor = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    if tensor is None:
        if not required:
            return None
        raise ValueError(
            f"`outputs` has no `{name}`; expected the outputs of a QueryPose model with its pose estimation head."
        )
    fits = tensor.ndim == ndim and (
        shape is None or all(want is None or have == want for have, want in zip(tensor.shape, shape, strict=True))
    )
    if not fits:
        expectation = f"{ndim} dimensions" if shape is None else f"{shape}".replace("None", "K")
        raise ValueError(f"`outputs.{name}` has shape {tuple(tensor.shape)}; expected {expectation}.")
    return tensor


def _on_host(tensors: list[Any]) -> list[Any]:
    """The tensors on the CPU, in float32 at least; one host sync for all of them."""
    given = [tensor.detach() for tensor in tensors if tensor is not None]
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in given), torch.float32)
    flat = [tensor.to(dtype).flatten(2) if tensor.ndim > 2 else tensor.to(dtype)[..., None] for tensor in given]
    packed = torch.cat(flat, dim=-1).cpu().split([part.shape[-1] for part in flat], dim=-1)
    found = iter(part.reshape(tensor.shape) for part, tensor in zip(packed, given, strict=True))
    moved = [None if tensor is None else next(found) for tensor in tensors]
    return [*moved[:-1], None if moved[-1] is None else moved[-1] > 0]


def _describe_people(people: People, image: int, queries: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The people of some queries of an image as [`post_process_pose_estimation`] returns them."""
    keypoint_labels = torch.arange(people.keypoints.shape[2])
    fields = (people.scores, people.labels, people.boxes, people.keypoints, people.keypoint_scores)
    names = ("score", "label", "bbox", "keypoints", "scores")
    return [
        {**dict(zip(names, person, strict=True)), "labels": keypoint_labels}
        for person in zip(*(field[image, queries] for field in fields), strict=True)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_score_threshold(value: Any) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`score_threshold` is {value!r}; expected a number from 0 to 1.")


def _check_nms_threshold(value: Any) -> None:
    if value is None:
        return
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"`nms_threshold` is {value!r}; expected None or a number above 0 and at most 1.")


def _check_target_sizes(target_sizes: Any, batch_size: int) -> torch.Tensor:
    if len(target_sizes) != batch_size:
        raise ValueError(
            f"`target_sizes` has {len(target_sizes)} entries for a batch of {batch_size} images; expected one each."
        )
    if not isinstance(target_sizes, torch.Tensor):
        try:
            target_sizes = torch.tensor([[float(length) for length in size] for size in target_sizes])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`target_sizes` is {target_sizes!r}; expected a height and a width per image."
            ) from error
    target_sizes = target_sizes.detach().cpu().double()
    if target_sizes.shape != (batch_size, 2) or not ((target_sizes > 0) & target_sizes.isfinite()).all():
        raise ValueError(
            f"`target_sizes` is {target_sizes.tolist()}; expected a positive height and width for each image."
        )
    return target_sizes


def _replace_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
