"""Image processor of QueryPose that works on torch tensors, on any device, with torchvision."""

from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import TensorType, requires_backends

from .image_decoding_querypose import decode_image
from .image_processing_base_querypose import (
    QueryPoseImageProcessingMixin,
    QueryPoseImageProcessorKwargs,
    get_resized_size,
)


class QueryPoseImageProcessor(QueryPoseImageProcessingMixin, TorchvisionBackend):
    """Prepares images and COCO annotations for QueryPose, and turns its outputs into people.

    The defaults are the paper's: the short side becomes 800 pixels, but the long side at most 1333 (bilinear, with
    antialiasing), pixels are normalised with ImageNet's mean and standard deviation, and a batch is padded at the
    right and bottom to a multiple of 32.

    Args:
        kwargs ([`QueryPoseImageProcessorKwargs`]): `size_divisor`, `category_ids`, `num_keypoints`, and the settings
            that all of transformers' image processors have (`do_resize`, `size`, `image_mean`, ...).

    Example:

    ```python
    >>> image_processor = QueryPoseImageProcessor()
    >>> inputs = image_processor("people.jpg", return_tensors="pt")
    ```
    """

    valid_kwargs = QueryPoseImageProcessorKwargs

    def __init__(self, **kwargs: Unpack[QueryPoseImageProcessorKwargs]) -> None:
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)  # type: ignore[misc]

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Decodes one image, see [`decode_image`], and moves it to `device` if one is given."""
        # the channels-last memory of decoded images is left as it is: torch resizes it faster
        pixels = decode_image(image, do_convert_rgb, input_data_format)
        return pixels if device is None else pixels.to(device)

    def resize(
        self,
        image: torch.Tensor,
        size: SizeDict,
        resample: PILImageResampling | int | None = None,
        antialias: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Resizes images of shape `(..., height, width)` to the size that [`get_resized_size`] gives."""
        height, width = get_resized_size(image.shape[-2], image.shape[-1], size)
        return super().resize(image, SizeDict(height=height, width=width), resample, antialias, **kwargs)

    def _preprocess(  # type: ignore[override]
        self,
        images: list[torch.Tensor],
        do_resize: bool | None,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        do_pad: bool | None,
        pad_size: SizeDict | None,
        size_divisor: int | None,
        disable_grouping: bool | None,
        return_tensors: str | TensorType | None,
        **kwargs: Any,
    ) -> BatchFeature:
        grouped_images, order = group_images_by_shape(images, disable_grouping=disable_grouping)
        for shape, stacked_images in grouped_images.items():
            if do_resize:
                stacked_images = self.resize(stacked_images, size, resample)
            grouped_images[shape] = self.rescale_and_normalize(
                stacked_images, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
        processed = reorder_images(grouped_images, order)
        batch = self._make_batch(list(processed), do_pad, pad_size, size_divisor, return_tensors)
        return BatchFeature(batch, tensor_type=return_tensors)

    def _label_feature(
        self,
        label: dict[str, np.ndarray],
        return_tensors: str | TensorType | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        # as `pixel_values`, labels are tensors unless arrays are asked for
        feature = BatchFeature(label, tensor_type=TensorType.PYTORCH if return_tensors is None else return_tensors)
        return feature if device is None else feature.to(device)
