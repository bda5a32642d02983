"""Reads where real people stand in pictures and how they hold themselves: COCO keypoints as compact arrays."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .synthetic_poses import NUM_KEYPOINTS


@dataclass
class Layouts:
    """Keypoints of all people of many pictures, as compact arrays.

    Attributes:
        size (`np.ndarray` of shape (n, 2)): width and height of each picture in pixels.
        offset (`np.ndarray` of shape (n + 1,)): the people of picture i are `offset[i]:offset[i + 1]`.
        bbox (`np.ndarray` of shape (m, 4)): boxes as x, y, width, height.
        keypoints (`np.ndarray` of shape (m, 17, 3)): pixel indices x, y and visibility, as COCO has them.
    """

    size: np.ndarray
    offset: np.ndarray
    bbox: np.ndarray
    keypoints: np.ndarray

    def __len__(self) -> int:
        return len(self.size)


def read_layouts(path: str | Path) -> Layouts:
    """Reads layouts from a COCO keypoints JSON file or from an `.npz` file of compact arrays.

    People without a labelled keypoint, crowd regions and pictures that are left without people are dropped.

    Args:
        path (`str` or `Path`): a `.json` file with `images` (`id`, `width`, `height`) and `annotations` (`image_id`,
            `bbox`, 17 `keypoints`); or an `.npz` file with `size` (n, 2), `offset` (n + 1,), `bbox` (m, 4) and
            `keypoints` (m, 17, 3).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file, or one of its fields, is not what is described above; the message names it.

    Example:

    ```python
    >>> layouts = read_layouts("person_keypoints_val2017.json")
    ```
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"layouts file {path} does not exist")
    if path.suffix == ".npz":
        layouts = _read_npz(path)
    elif path.suffix == ".json":
        layouts = _read_json(path)
    else:
        raise ValueError(f"layouts file {path}: expected a .json or .npz file, got the suffix {path.suffix!r}")
    layouts = _with_people(layouts)
    if len(layouts) == 0:
        raise ValueError(f"layouts file {path}: field `keypoints` holds no person with a labelled keypoint")
    return layouts


def _read_npz(path: Path) -> Layouts:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("size", "offset", "bbox", "keypoints") if name in file}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ValueError(f"layouts file {path}: not a readable .npz file of plain arrays: {error}") from error
    for name in ("size", "offset", "bbox", "keypoints"):
        if name not in arrays:
            raise ValueError(f"layouts file {path}: field `{name}` is missing")
        if arrays[name].dtype.kind not in "iuf":
            raise ValueError(f"layouts file {path}: field `{name}` has type {arrays[name].dtype}, expected numbers")
    images, people = len(arrays["size"]), len(arrays["keypoints"])
    expected = {"size": (images, 2), "offset": (images + 1,), "bbox": (people, 4), "keypoints": (people, 17, 3)}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ValueError(f"layouts file {path}: field `{name}` has shape {arrays[name].shape}, expected {shape}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"layouts file {path}: field `{name}` holds values that are not finite")
    offset = arrays["offset"].astype(np.int64)
    if offset[0] != 0 or offset[-1] != people or (np.diff(offset) < 0).any():
        raise ValueError(
            f"layouts file {path}: field `offset` must rise from 0 to the number of people {people}, "
            f"got {offset[0]} to {offset[-1]}"
        )
    layouts = Layouts(arrays["size"], offset, arrays["bbox"], arrays["keypoints"])
    _check_values(layouts, path)
    return layouts


def _read_json(path: Path) -> Layouts:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"layouts file {path}: not readable as JSON: {error}") from error
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(f"layouts file {path}: field `{name}` must be a list, as in COCO keypoints files")
    sizes: dict = {}
    for i, image in enumerate(content["images"]):
        for name in ("id", "width", "height"):
            if not isinstance(image, dict) or name not in image:
                raise ValueError(f"layouts file {path}: field `images[{i}].{name}` is missing")
        sizes[image["id"]] = (image["width"], image["height"])
    people: dict = {image_id: [] for image_id in sizes}
    for i, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict):
            raise ValueError(
                f"layouts file {path}: field `annotations[{i}]` must be an object, got {annotation!r:.60}"
            )
        if annotation.get("iscrowd") or "keypoints" not in annotation:
            continue
        for name, length in (("keypoints", 3 * NUM_KEYPOINTS), ("bbox", 4)):
            value = annotation.get(name)
            if not isinstance(value, list) or len(value) != length or not _are_numbers(value):
                raise ValueError(
                    f"layouts file {path}: field `annotations[{i}].{name}` must be a list of {length} finite numbers, "
                    f"got {value!r:.80}"
                )
        if annotation.get("image_id") not in people:
            raise ValueError(
                f"layouts file {path}: field `annotations[{i}].image_id` is {annotation.get('image_id')!r}, "
                "which is the `id` of no image"
            )
        people[annotation["image_id"]].append((annotation["bbox"], annotation["keypoints"]))
    for i, (width, height) in enumerate(sizes.values()):
        if not _are_numbers([width, height]):
            raise ValueError(f"layouts file {path}: field `images[{i}].width` or `.height` is not a finite number")
    everyone = [person for group in people.values() for person in group]
    layouts = Layouts(
        size=np.array(list(sizes.values()), dtype=np.float64).reshape(-1, 2),
        offset=np.cumsum([0, *(len(group) for group in people.values())]),
        bbox=np.array([bbox for bbox, _ in everyone], dtype=np.float64).reshape(-1, 4),
        keypoints=np.array([k for _, k in everyone], dtype=np.float64).reshape(-1, NUM_KEYPOINTS, 3),
    )
    _check_values(layouts, path)
    return layouts


def _are_numbers(values: list) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in values)


def _check_values(layouts: Layouts, path: Path) -> None:
    if len(layouts.size) and layouts.size.min() < 1:
        raise ValueError(
            f"layouts file {path}: field `size` (width, height) must be positive, got {layouts.size.min()}"
        )
    visibility = layouts.keypoints[..., 2]
    if not np.isin(visibility, (0, 1, 2)).all():
        wrong = visibility[~np.isin(visibility, (0, 1, 2))][0]
        raise ValueError(f"layouts file {path}: field `keypoints` holds visibility {wrong}, expected 0, 1 or 2")


def _with_people(layouts: Layouts) -> Layouts:
    labelled = (layouts.keypoints[..., 2] > 0).any(axis=1)
    image_of = np.repeat(np.arange(len(layouts)), np.diff(layouts.offset))[labelled]
    counts = np.bincount(image_of, minlength=len(layouts))
    return Layouts(
        size=layouts.size[counts > 0],
        offset=np.concatenate([[0], np.cumsum(counts[counts > 0])]),
        bbox=layouts.bbox[labelled],
        keypoints=layouts.keypoints[labelled],
    )
