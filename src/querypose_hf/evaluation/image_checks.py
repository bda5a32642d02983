"""Checks of image files before a model looks at them: that they are there, and of the size that is recorded."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..data.coco_records import recorded_file_names, recorded_sizes
from ..data.sample import UnusableImageError, check_size, read_image_size
from ..files import find_file
from ..processes import rank
from .image_list import ImageList


def check_images(
    images: ImageList, images_dir: str | os.PathLike, progress: bool = True, skipped: dict[int, str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Looks for the files of images and reads their headers.

    Args:
        images ([`ImageList`]): the images; their records need `file_name`, `width` and `height`.
        images_dir (`str` or `os.PathLike`): the folder that `file_name` is relative to.
        progress (`bool`): show a progress bar.
        skipped (`dict[int, str]`, *optional*): is given the ids of images that cannot be used, and why, in place of an
            error; unless none can be used.

    Returns:
        `tuple[list[str], np.ndarray]`: the files, and the images' widths and heights, (n, 2), in pixels.

    Raises:
        FileNotFoundError: the folder does not exist, or images are not in it; the message names the first of them.
        ValueError: a record is wrong, or an image cannot be read or has another size than its record says.
    """
    folder = Path(images_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"`images_dir` is {os.fspath(images_dir)!r}; there is no such folder.")
    names = recorded_file_names(images.images, images.source)
    sizes = recorded_sizes(images.images, images.source)
    files = [str(find_file(folder, name)) for name in names]
    missing = [name for name, file in zip(names, files, strict=True) if not os.path.isfile(file)]
    if missing and (skipped is None or len(missing) == len(files)):
        raise FileNotFoundError(f"{images.source}: {_counted(missing, len(files))} are not in {folder}")
    recorded = [(width, height) for width, height in sizes.tolist()]
    with ThreadPoolExecutor() as pool:
        faults = tqdm(
            pool.map(_fault, files, recorded),
            desc="Checking images",
            unit="image",
            total=len(files),
            disable=not progress or rank() > 0,
        )
        wrong = {row: fault for row, fault in enumerate(faults) if fault is not None}
    if wrong and (skipped is None or len(wrong) == len(files)):
        raise UnusableImageError(f"{images.source}: {_counted([*wrong.values()], len(files))} cannot be used")
    if skipped is not None:
        skipped |= {images.images[row]["id"]: fault for row, fault in wrong.items()}
    return files, sizes


def _fault(file: str, recorded: tuple[int, int]) -> str | None:
    try:
        check_size(read_image_size(file, file), recorded, file)
    except UnusableImageError as error:
        return str(error).removesuffix(".")
    return None


def _counted(entries: Sequence[str], total: int) -> str:
    first = "; ".join(entries[:3]) + (f"; and {len(entries) - 3} more" if len(entries) > 3 else "")
    return f"{len(entries)} of {total} images ({first})"
