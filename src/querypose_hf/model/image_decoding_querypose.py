"""Decoding of images for QueryPose: files, URLs, PIL images of any mode and arrays become upright uint8 or float32."""

import base64
import os
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format


_EXIF_ORIENTATION = 0x0112
# by how much of their range floating-point values may leave it: resizing rounds
_ROUNDING = 1e-3


def decode_image(
    image: Any,
    do_convert_rgb: bool | None = True,
    input_data_format: str | ChannelDimension | None = None,
    timeout: float = 60,
) -> torch.Tensor:
    """Decodes one image into a tensor of shape `(num_channels, height, width)`.

    EXIF orientation is applied. With `do_convert_rgb` transparent images are laid on white and everything becomes RGB.
    Values of 16 bits and of PIL's 32-bit modes `I` and `F` are scaled to 0..255 from the range that [`white_level`]
    tells: 0..255, 0..65535 or, for `F`, 0..1. An array of floating-point numbers keeps its values.

    Args:
        image (`str`, `os.PathLike`, `bytes`, file, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): a path, URL or
            base64 text, the bytes of an image file, a file that is open for reading bytes, such as `io.BytesIO`, a PIL
            image of any mode, or an array of shape `(height, width)`, `(height, width, channels)` or `(channels,
            height, width)`.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): whether to convert to three channels.
        input_data_format (`str` or `ChannelDimension`, *optional*): where the channels of an array are; inferred from
            its shape when not given.
        timeout (`float`, *optional*, defaults to 60): seconds to wait for a URL.

    Returns:
        `torch.Tensor`: uint8, or float32 for arrays of floating-point numbers. It may share the input's memory and may
        be a view of an array that has its channels last.

    Raises:
        `TypeError`: if `image` is no image.
        `ValueError`: if it cannot be decoded or has no pixels.
        `FileNotFoundError`: if a text is neither a file, nor a URL, nor a base64 image.
        `OSError`: if a URL cannot be fetched.
    """
    if isinstance(image, str | os.PathLike):
        image = _open_image(image, timeout)
    elif isinstance(image, bytes | bytearray | memoryview):
        image = _read_image(bytes(image), f"an image of {len(image)} bytes")
    elif is_file(image):
        image = _read_image(read_bytes(image), f"the content of {image!r}")
    if isinstance(image, PIL.Image.Image):
        try:
            pixels = torch.from_numpy(_pil_to_array(image, do_convert_rgb))
        except (OSError, ValueError):
            raise
        except Exception as error:  # an image that was opened, but whose pixels or EXIF data are damaged
            raise ValueError(f"the image cannot be decoded: {error}") from error
        input_data_format = ChannelDimension.LAST
    elif isinstance(image, np.ndarray):
        pixels = _array_to_tensor(image)
    elif isinstance(image, torch.Tensor):
        pixels = image.detach()
    else:
        raise TypeError(
            "expected a PIL image, a numpy array, a torch tensor, a path, a URL, base64 text, bytes or a file opened "
            f"for reading bytes, got {type(image)}."
        )

    if pixels.numel() == 0:
        raise ValueError(f"the image has no pixels: its shape is {tuple(pixels.shape)}.")
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim != 3:
        raise ValueError(f"expected an array of 2 or 3 dimensions, got shape {tuple(pixels.shape)}.")
    elif _channels_are_last(pixels, input_data_format):
        pixels = pixels.permute(2, 0, 1)
    pixels = _to_uint8_or_float32(pixels)
    return _to_rgb(pixels) if do_convert_rgb else pixels


def decode_pil_image(image: Any, timeout: float = 60) -> PIL.Image.Image:
    """Decodes one image into an upright RGB image of PIL; arguments and errors are those of [`decode_image`].

    Floating-point numbers within 0..1 are scaled to 0..255; those of any other range must lie within 0..255.
    """
    pixels = decode_image(image, timeout=timeout)
    if pixels.is_floating_point():
        pixels = (pixels * (255 / white_level(pixels))).round().clamp(0, 255).to(torch.uint8)
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def white_level(pixels: torch.Tensor | np.ndarray, whites: Sequence[float] = (1.0, 255.0)) -> float:
    """The value of white in an image: the first of `whites` that no value is above.

    Numbers that end between 1 and 2 are refused: bicubic resizing took them beyond 0..1, or they are the blackest of
    0..255. Only who made them can tell.

    Raises:
        `ValueError`: the values lie within no such range. Differences that come from rounding are allowed.
    """
    low, high = float(pixels.min()), float(pixels.max())
    for white in whites:
        may_be = white == 1 or not 1 < high < 2
        if may_be and low >= -_ROUNDING * max(1, min(high, white)) and high <= (1 + _ROUNDING) * white:
            return white
    *others, last = [f"0..{white:g}" for white in whites]
    raise ValueError(
        f"the image has values from {low:g} to {high:g}; expected {', '.join(others)} or {last}. Clip what resizing "
        "took beyond that. If they were normalised already, set `do_rescale` and `do_normalize` of the image "
        "processor to False, as in `pipeline.image_processor.do_rescale = False`."
    )


def is_file(value: Any) -> bool:
    """Whether a value is an open file, such as `open(path, "rb")` or `io.BytesIO`; a PIL image is none."""
    return callable(getattr(value, "read", None))


def read_bytes(file: Any) -> bytes:
    """The rest of an open file; raises `TypeError` if it was not opened for reading bytes."""
    content = file.read()
    if not isinstance(content, bytes):
        raise TypeError(f"{file!r} gives {type(content).__name__}; expected a file opened for reading bytes ('rb').")
    return content


def refuse_programs(image: PIL.Image.Image) -> None:
    """Raises `ValueError` for an opened image that Pillow has a program draw: PostScript, run by Ghostscript."""
    if image.format == "EPS":
        raise ValueError("PostScript is a program, which is not run; convert it to an image first")


def _read_image(content: bytes, shown: str) -> PIL.Image.Image:
    try:
        image = PIL.Image.open(BytesIO(content))
        refuse_programs(image)
        image.load()
    except PIL.UnidentifiedImageError as error:  # its message has the address of the buffer
        raise ValueError(f"{shown} cannot be decoded as an image: no format is recognised") from error
    except Exception as error:  # what the readers of damaged files raise has no end: zlib's errors, struct's, KeyError
        raise ValueError(f"{shown} cannot be decoded as an image: {error}") from error
    return image


def _open_image(source: str | os.PathLike, timeout: float) -> PIL.Image.Image:
    text = os.fspath(source)
    shown = repr(text if len(text) <= 100 else f"{text[:100]}...")
    not_found = (
        f"{shown} is neither an existing file, nor a URL that starts with http:// or https://, nor an image as base64 "
        "text."
    )
    is_base64 = False
    if text.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(text, timeout=timeout) as response:
                content = response.read()
        except (OSError, HTTPException) as error:
            raise OSError(f"{shown} cannot be fetched: {error}") from error
    elif os.path.isfile(text):
        content = Path(text).read_bytes()
    else:
        is_base64 = True
        encoded = text.partition("base64,")[2] or text
        try:
            content = base64.b64decode("".join(encoded.split()), validate=True)
        except ValueError as error:
            raise FileNotFoundError(not_found) from error
    try:
        return _read_image(content, shown)
    except ValueError as error:
        # a short file name may happen to be valid base64
        if is_base64 and isinstance(error.__cause__, PIL.UnidentifiedImageError):
            raise FileNotFoundError(not_found) from error
        raise


def _pil_to_array(image: PIL.Image.Image, do_convert_rgb: bool | None) -> np.ndarray:
    if 0 in image.size:
        raise ValueError(f"the image has no pixels: its size is {image.size}.")
    # `exif_transpose` copies images that are upright already
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_to_uint8(_array_to_native_order(np.array(image)))
    if not do_convert_rgb:
        return np.array(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _deep_to_uint8(values: np.ndarray) -> np.ndarray:
    whites = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    return np.rint(values * (255 / white_level(values, whites))).clip(0, 255).astype(np.uint8)


def _array_to_native_order(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _array_to_tensor(array: np.ndarray) -> torch.Tensor:
    array = _array_to_native_order(array)
    # torch takes neither negative strides (`image[..., ::-1]`, the usual way from BGR to RGB) nor read-only memory
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"expected an array of numbers, got one of dtype {array.dtype}.") from error


def _channels_are_last(pixels: torch.Tensor, input_data_format: str | ChannelDimension | None) -> bool:
    if input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(
                f"no dimension of shape {tuple(pixels.shape)} looks like 1, 3 or 4 channels; pass `input_data_format`."
            ) from error
    return ChannelDimension(input_data_format) == ChannelDimension.LAST


def _to_uint8_or_float32(pixels: torch.Tensor) -> torch.Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.is_floating_point():
        if not torch.isfinite(pixels).all():
            raise ValueError("the image has values that are not finite.")
        return pixels.to(torch.float32)
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.is_complex():
        raise TypeError(f"expected an image of real numbers, got {pixels.dtype}.")
    if pixels.dtype == torch.uint16:
        return torch.from_numpy(_deep_to_uint8(pixels.cpu().numpy())).to(pixels.device)
    low, high = (int(value) for value in pixels.to(torch.int64).aminmax())
    if low < 0 or high > 255:
        raise ValueError(
            f"an image of {pixels.dtype} has values from {low} to {high}; expected 0..255, or 16 bits as uint16."
        )
    return pixels.to(torch.uint8)


def _to_rgb(pixels: torch.Tensor) -> torch.Tensor:
    num_channels = pixels.shape[0]
    if num_channels == 3:
        return pixels
    if num_channels == 1:
        return pixels.expand(3, -1, -1)
    if num_channels != 4:
        raise ValueError(f"expected 1, 3 or 4 channels, got shape {tuple(pixels.shape)} (channels first).")
    white = white_level(pixels) if pixels.is_floating_point() else 255.0
    alpha = pixels[3:] / white
    on_white = pixels[:3] * alpha + (1 - alpha) * white
    return on_white if pixels.is_floating_point() else on_white.round().to(torch.uint8)
