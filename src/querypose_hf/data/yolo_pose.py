"""YOLO pose datasets: a folder of images, one of label files, and a `data.yaml`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..checks import is_identifier, shown
from ..files import find_file, read_text
from ..settings import read_yaml
from .description import DataDescription, check_flip_indices
from .pose_dataset import PoseFileDataset, logger
from .pose_table import PoseTable
from .reading_options import ReadingOptions, find_split
from .sample import UnusableImageError, read_image_size


IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# classes, and keypoints of a person; more are a mistake, and would fill the memory
_MOST = 10_000

_USUAL_SPLITS = ("train", "validation", "val", "valid", "test")

# a box may reach out of the image by a rounding error, a keypoint by as much as a person may be cut off
_BOX_TOLERANCE = 0.01
_KEYPOINT_TOLERANCE = 1.0


class YoloPoseDataset(PoseFileDataset):
    """Images and label files of a YOLO pose dataset.

    `data.yaml` has `path` (the folder of the data, by default its own), for each split a folder of images, several of
    them, or a text file that lists images, `kpt_shape` [K, 2 or 3], `names` of the classes or their number `nc`, and,
    optionally, `flip_idx` and `kpt_names`: the keypoints' names, as a list or as one list for each class. The labels
    of `.../images/a/b.jpg` are in `.../labels/a/b.txt`, one line for each object: class, box centre x and y, box width
    and height, and K times x, y and, with `kpt_shape` [K, 3], visibility. With two numbers a keypoint counts as
    visible unless both are 0. An image without a label file shows nobody; `remarks` counts them.

    Folders are found where ultralytics finds them: `../train/images`, as Roboflow writes it, may be `train/images`
    beside the file.

    Coordinates are relative to the upright image and continuous: a keypoint at x becomes the pixel index
    x * width - 0.5. The class numbers are the category ids, and `area` is the box's.

    Args:
        data (`str` or `os.PathLike`): the `data.yaml`.
        split (`str` or `Sequence[str]`, *optional*, defaults to `"train"`): which of its splits; of several the first
            that it has.
        options ([`ReadingOptions`], *optional*): how images are read.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UnusableImageError: the header of an image cannot be read, and `on_error` is `"raise"`.
        ValueError: a field or line is wrong; the message names file, line or field, value and what is expected.

    Example:

    ```python
    >>> horses = YoloPoseDataset("horses/data.yaml", split="train")
    >>> horses.category_names
    {0: 'horse'}
    ```
    """

    def __init__(
        self,
        data: str | os.PathLike,
        split: str | Sequence[str] = "train",
        *,
        options: ReadingOptions = ReadingOptions(),
    ):
        path = Path(data)
        settings = _read_settings(path)
        num_keypoints, num_values = _keypoint_shape(settings, path)
        category_names = _category_names(settings, path)
        wanted = [split] if isinstance(split, str) else split
        split = find_split(wanted, [name for name in (*_USUAL_SPLITS, *wanted) if settings.get(name)], str(path))
        keypoint_names = _keypoint_names(settings.get("kpt_names"), num_keypoints, path)
        flip_indices = settings.get("flip_idx") or None
        if flip_indices is not None:
            try:
                flip_indices = check_flip_indices(flip_indices, num_keypoints)
            except ValueError as error:
                raise ValueError(f"{path}: `flip_idx`: {error}") from error

        files, sizes, labels = [], [], []
        missing_labels, unusable = 0, 0
        all_files = _image_files(settings, split, path)
        for file in tqdm(all_files, desc=f"reading {split} labels", unit=" images", leave=False):
            try:
                size = read_image_size(file, str(file))
            except UnusableImageError as error:
                if options.on_error == "raise":
                    raise
                logger.warning("skipped: %s", error)
                unusable += 1
                continue
            label_file = _label_file(file)
            missing_labels += not label_file.exists()
            files.append(str(file))
            sizes.append(size)
            labels.append(_read_labels(label_file, num_keypoints, num_values, len(category_names)))
        description = DataDescription(num_keypoints, keypoint_names, (), flip_indices, category_names)
        table = _make_table(sizes, labels, num_keypoints, num_values)
        remarks = {"images_without_label_file": missing_labels} if missing_labels else {}
        super().__init__(table, description, options, {"unusable_images": unusable}, files, remarks)

    def check_sizes(self, most: int = 5000) -> None:
        """Nothing to compare: sizes are from the headers of the images."""


def _read_settings(path: Path) -> Mapping[str, Any]:
    settings = read_yaml(path)
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path}: expected fields such as `train`, `kpt_shape` and `names`, got {shown(settings)}.")
    return settings


def _keypoint_shape(settings: Mapping[str, Any], path: Path) -> tuple[int, int]:
    shape = settings.get("kpt_shape")
    if (
        not isinstance(shape, Sequence)
        or len(shape) != 2
        or not all(map(is_identifier, shape))
        or not 1 <= shape[0] <= _MOST
        or shape[1] not in (2, 3)
    ):
        raise ValueError(
            f"{path}: `kpt_shape` is {shown(shape)}; expected [number of keypoints, at most {_MOST}, 2 or 3]."
        )
    return shape[0], shape[1]


def _category_names(settings: Mapping[str, Any], path: Path) -> dict[int, str]:
    names, count = settings.get("names"), settings.get("nc")
    if count is not None and (not is_identifier(count) or not 1 <= count <= _MOST):
        raise ValueError(f"{path}: `nc` is {shown(count)}; expected the number of classes, at most {_MOST}.")
    if names is None and count is not None:
        names = [f"class_{number}" for number in range(count)]
    if isinstance(names, Sequence) and not isinstance(names, str):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names or set(names) != set(range(len(names))):
        raise ValueError(f"{path}: `names` is {shown(names)}; expected a list of names, or names by numbers from 0.")
    if count not in (None, len(names)):
        raise ValueError(f"{path}: `nc` is {count}, but there are {len(names)} `names`; expected the same number.")
    return {number: str(names[number]) for number in range(len(names))}


def _keypoint_names(names: Any, num_keypoints: int, path: Path) -> list[str] | None:
    # there may be names for each class, but the model has one set of keypoints
    if isinstance(names, Mapping) and names:
        lists = list(names.values())
        if any(value != lists[0] for value in lists):
            raise ValueError(f"{path}: `kpt_names` differ between classes; expected the same keypoints for all.")
        names = lists[0]
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: `kpt_names` is {shown(names)}; expected a list of names.")
    if len(names) != num_keypoints:
        raise ValueError(f"{path}: `kpt_names` has {len(names)} names; expected {num_keypoints}, as `kpt_shape` says.")
    return names


def validation_split(data: str | os.PathLike) -> str | None:
    """The split of a `data.yaml` for validation, `"val"` or `"validation"`; `None` if it has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML with fields.
    """
    settings = _read_settings(Path(data))
    return next((name for name in ("val", "validation") if settings.get(name)), None)


def _image_files(settings: Mapping[str, Any], split: str, path: Path) -> list[Path]:
    places, root = settings[split], _root(settings, path)
    names = [places] if isinstance(places, str) else places
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: `{split}` is {shown(places)}; expected a folder or a text file, or a list of them.")
    files: list[Path] = []
    for name in names:
        place = find_file(root, name)
        if not place.exists() and name.startswith(("../", "..\\")):
            # Roboflow writes paths from a folder that the file is not in; ultralytics does the same
            place = find_file(root, name[3:])
        if place.is_dir():
            files.extend(sorted(file for file in place.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES))
        elif place.is_file():
            files.extend(_listed_files(place, root))
        else:
            raise FileNotFoundError(f"{path}: `{split}` names {name}, which is neither a folder nor a file in {root}.")
    if not files:
        raise ValueError(
            f"{path}: `{split}` has no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return files


def _root(settings: Mapping[str, Any], path: Path) -> Path:
    """The folder that relative paths start at."""
    given = str(settings.get("path") or ".")
    # a relative `path` starts at the file itself, so that the data can be moved as a whole
    beside = find_file(path.parent, given)
    # ultralytics starts at the folder that it runs in
    return beside if beside.exists() or not Path(given).exists() else Path(given)


def _listed_files(listing: Path, root: Path) -> list[Path]:
    """The images that a text file lists, relative to its folder, the data's or the one we run in."""
    files = []
    for line in filter(None, map(str.strip, read_text(listing).splitlines())):
        found = (find_file(folder, line) for folder in (listing.parent, root, Path()))
        files.append(next((file for file in found if file.is_file()), listing.parent / line))
    return files


def _label_file(image_file: Path) -> Path:
    parts = list(image_file.parts)
    # the last folder of that name: one above the data may have it too
    for position in reversed(range(len(parts) - 1)):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_labels(file: Path, num_keypoints: int, num_values: int, num_categories: int) -> np.ndarray:
    """(m, 5 + K * num_values): the lines of one label file, in relative coordinates."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is a folder; expected a file of labels.")
    lines = read_text(file).splitlines() if file.exists() else []
    rows = [
        _read_line(line.split(), f"{file}, line {number}", num_keypoints, num_values, num_categories)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return np.array(rows).reshape(-1, 5 + num_keypoints * num_values)


def _read_line(values: list[str], place: str, num_keypoints: int, num_values: int, num_categories: int) -> np.ndarray:
    length = 5 + num_keypoints * num_values
    if len(values) != length:
        raise ValueError(
            f"{place}: {len(values)} numbers; expected {length}: class, 4 for the box and {num_values} for each "
            f"of {num_keypoints} keypoints."
        )
    try:
        row = np.array(values, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{place}: expected numbers: {error}") from error
    if not np.isfinite(row).all():
        raise ValueError(f"{place}: expected finite numbers, got {values[int((~np.isfinite(row)).argmax())]}.")
    if row[0] not in range(num_categories):
        raise ValueError(f"{place}: class {values[0]}; expected a whole number from 0 to {num_categories - 1}.")
    if row[1:5].min() < -_BOX_TOLERANCE or row[1:5].max() > 1 + _BOX_TOLERANCE:
        raise ValueError(f"{place}: box {' '.join(values[1:5])}; expected numbers from 0 to 1, relative to the image.")
    keypoints = row[5:].reshape(num_keypoints, num_values)
    if num_values == 3:
        strange = ~np.isin(keypoints[:, 2], (0, 1, 2))
        if strange.any():
            first = int(strange.argmax())
            raise ValueError(
                f"{place}: visibility {keypoints[first, 2]:g} of keypoint {first}; expected 0 (not labelled), 1 "
                "(hidden) or 2 (visible)."
            )
        keypoints = keypoints[keypoints[:, 2] > 0]
    if keypoints.size and np.abs(keypoints[:, :2] - 0.5).max() > 0.5 + _KEYPOINT_TOLERANCE:
        raise ValueError(
            f"{place}: a keypoint lies far outside the image; expected coordinates relative to the image."
        )
    return row


def _make_table(
    sizes: Sequence[tuple[int, int]], labels: Sequence[np.ndarray], num_keypoints: int, num_values: int
) -> PoseTable:
    size_array = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    image_rows = np.repeat(np.arange(len(labels)), [len(rows) for rows in labels])
    rows = np.concatenate(labels) if labels else np.zeros((0, 5 + num_keypoints * num_values))
    extent = size_array[image_rows].astype(np.float64)
    boxes = np.concatenate([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 3:5]], axis=1) * np.tile(extent, 2)
    points = rows[:, 5:].reshape(len(rows), num_keypoints, num_values)
    visibility = points[..., 2] if num_values == 3 else 2.0 * (points[..., :2] != 0).any(axis=2)
    keypoints = np.zeros((len(rows), num_keypoints, 3))
    labelled = visibility > 0
    keypoints[..., :2] = np.where(labelled[..., None], points[..., :2] * extent[:, None] - 0.5, 0)
    keypoints[..., 2] = visibility
    return PoseTable.from_rows(
        image_ids=np.arange(len(size_array)),
        sizes=size_array,
        image_rows=image_rows,
        ids=np.arange(len(rows)),
        boxes=boxes,
        keypoints=keypoints,
        areas=boxes[:, 2:].prod(axis=1),
        category_ids=rows[:, 0].astype(np.int64),
        iscrowd=np.zeros(len(rows), dtype=bool),
    )
