"""One annotated image, as every reader gives it, and how its image file is read."""

import contextlib
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import PIL.Image
import PIL.ImageOps

from ..model.image_decoding_querypose import decode_pil_image, refuse_programs


_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


class PoseSample(TypedDict):
    """One annotated image, as readers give it and augmentation and collation take it.

    Attributes:
        image (`PIL.Image.Image`): RGB and upright.
        image_id (`int`): the image's id in its source.
        annotations (`list[dict]`): COCO objects: `bbox` (x, y, width, height in pixels), `keypoints` (3 K numbers: x,
            y as pixel indices and visibility 0, 1 or 2), `area` in pixels, `iscrowd`, `category_id`, `id`.
        exhaustive (`bool`): whether everybody in the image is annotated. If `False`, a person found outside the
            annotations may be right. `True` if left out.
        resized (`bool`): whether augmentation has given the image its final size, so that the image processor must
            not resize it. `False` if left out.
    """

    image: PIL.Image.Image
    image_id: int
    annotations: list[dict[str, Any]]
    exhaustive: NotRequired[bool]
    resized: NotRequired[bool]


class UnusableImageError(ValueError):
    """An image that cannot be read, or has another size than its annotations were made for."""


def read_image(source: Any, name: str) -> PIL.Image.Image:
    """Reads and decodes an image.

    Args:
        source (`str`, `os.PathLike`, `PIL.Image.Image` or `dict`): a file, a PIL image, or an undecoded image of
            `datasets`: `{"bytes": bytes or None, "path": str or None}`.
        name (`str`): the image in error messages.

    Returns:
        `PIL.Image.Image`: RGB, turned upright by its EXIF orientation. Other modes are converted as
        [`~image_decoding_querypose.decode_image`] does, so that training sees what inference sees.

    Raises:
        UnusableImageError: the image cannot be read; the message gives its name and the reason.
    """
    try:
        image = _open(source, everything=True)
        if image is not source:
            refuse_programs(image)
        if image.mode != "RGB":
            return decode_pil_image(image)
        image.load()
        # `exif_transpose` copies images that are upright already
        return PIL.ImageOps.exif_transpose(image) if image.getexif().get(_EXIF_ORIENTATION, 1) != 1 else image
    except Exception as error:  # the readers of damaged files raise errors of any kind
        raise UnusableImageError(f"{name}: the image cannot be read: {error}") from error


def read_image_size(source: Any, name: str) -> tuple[int, int]:
    """Reads the width and height of the upright image from its header, without decoding it.

    Arguments and errors are those of [`read_image`].
    """
    try:
        with contextlib.ExitStack() as stack:
            image = _open(source)
            if image is not source:
                stack.enter_context(image)
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
    except Exception as error:  # the readers of damaged files raise errors of any kind
        raise UnusableImageError(f"{name}: the image cannot be read: {error}") from error
    return (height, width) if turned else (width, height)


def check_size(size: tuple[int, int], annotated: tuple[int, int], name: str) -> None:
    """Raises [`UnusableImageError`] unless an image has the size that its annotations are made for.

    Args:
        size (`tuple[int, int]`): width and height of the upright image.
        annotated (`tuple[int, int]`): those that are recorded with the annotations.
        name (`str`): the image in error messages.
    """
    if size == annotated:
        return
    turned = size == annotated[::-1]
    raise UnusableImageError(
        f"{name}: the upright image has {size[0]} x {size[1]} pixels; expected {annotated[0]} x {annotated[1]}, the "
        "size its annotations are made for."
        + (" They may be for the image as it is before its EXIF orientation turns it upright." if turned else "")
    )


def _open(source: Any, everything: bool = False) -> PIL.Image.Image:
    if isinstance(source, PIL.Image.Image):
        return source
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return PIL.Image.open(BytesIO(source["bytes"]))
        source = source.get("path")
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a file, a PIL image or its bytes, got {type(source).__name__}")
    # the whole file at once: a handle for every image being read could exceed the system's limit of open files
    return PIL.Image.open(BytesIO(Path(source).read_bytes()) if everything else source)
