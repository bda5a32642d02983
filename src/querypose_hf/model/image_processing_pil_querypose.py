"""Image processor of QueryPose that resizes with PIL and needs no torchvision."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.utils import TensorType

from .image_decoding_querypose import decode_image
from .image_processing_base_querypose import (
    QueryPoseImageProcessingMixin,
    QueryPoseImageProcessorKwargs,
    get_resized_size,
)


class QueryPoseImageProcessorPil(QueryPoseImageProcessingMixin, PilBackend):
    """[`QueryPoseImageProcessor`] for machines without torchvision, and with the very resizing of the original.

    It takes the same settings and arguments, works on the CPU, and returns numpy arrays unless `return_tensors="pt"`.
    Pixels differ from the other backend's by at most one level of 255.

    Args:
        kwargs ([`QueryPoseImageProcessorKwargs`]): as for [`QueryPoseImageProcessor`].

    Example:

    ```python
    >>> image_processor = QueryPoseImageProcessorPil(category_ids=[1], num_keypoints=17)
    >>> inputs = image_processor(["one.jpg", "two.jpg"], return_tensors="pt")
    ```
    """

    valid_kwargs = QueryPoseImageProcessorKwargs

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Decodes one image, see [`decode_image`], into an array of shape `(channels, height, width)`."""
        return decode_image(image, do_convert_rgb, input_data_format).cpu().numpy()

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        resample: PILImageResampling | int | None = None,
        reducing_gap: int | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Resizes an image of shape `(channels, height, width)` to the size that [`get_resized_size`] gives."""
        height, width = get_resized_size(image.shape[-2], image.shape[-1], size)
        if image.shape[-2:] == (height, width):
            return image
        resample = PILImageResampling.BILINEAR if resample is None else resample
        if image.dtype == np.uint8 and image.shape[0] == 3:
            picture = PIL.Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1)))
            return np.moveaxis(np.asarray(picture.resize((width, height), resample, reducing_gap=reducing_gap)), -1, 0)
        # channel by channel: PIL has no multi-channel images of floating-point numbers, and weighs RGBA by its alpha
        channels = (PIL.Image.fromarray(np.ascontiguousarray(channel)) for channel in image)
        return np.stack(
            [np.asarray(channel.resize((width, height), resample, reducing_gap=reducing_gap)) for channel in channels]
        )

    def _preprocess(  # type: ignore[override]
        self,
        images: list[np.ndarray],
        do_resize: bool | None,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_rescale: bool | None,
        rescale_factor: float,
        do_normalize: bool | None,
        image_mean: float | tuple[float, ...],
        image_std: float | tuple[float, ...],
        do_pad: bool | None,
        pad_size: SizeDict | None,
        size_divisor: int | None,
        return_tensors: str | TensorType | None,
        **kwargs: Any,
    ) -> BatchFeature:
        # one subtraction and one division, in the order that the other backend has them, give the same numbers
        level = np.float32(1 / rescale_factor) if do_rescale else np.float32(1)
        processed = []
        for image in images:
            if do_resize:
                image = self.resize(image, size, resample)
            if do_normalize:
                mean, std = (np.array(value, dtype=np.float32).reshape(-1, 1, 1) for value in (image_mean, image_std))
                image = image.astype(np.float32)
                image -= mean * level
                image /= std * level
            elif do_rescale:
                image = image * np.float32(rescale_factor)
            processed.append(torch.from_numpy(image if image.flags.writeable else image.copy()))
        batch = self._make_batch(processed, do_pad, pad_size, size_divisor, return_tensors)
        arrays = {
            name: [image.numpy() for image in value] if isinstance(value, list) else value.numpy()
            for name, value in batch.items()
        }
        return BatchFeature(arrays, tensor_type=return_tensors)
