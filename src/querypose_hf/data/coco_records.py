"""The records of a COCO keypoints file: the one reader of them, for training, checks and scoring.

A field means what pycocotools takes it for; where that has no meaning, an error names file, record, field and value.
The same rules hold for the objects of datasets of the `datasets` library, and for those that
[`labels_from_annotations`] reads. Null is as good as a missing field. Text and truth values are no numbers.

| field | read as |
|---|---|
| `id`, `image_id`, `category_id` | whole numbers, also written 5.0; no `id` twice; an annotation may lack its `id` |
| `bbox` | 4 numbers of at most [`MOST_PIXELS`]; width and height of at least 0 |
| `keypoints` | 3 K numbers, no farther; visibility 0, 1 or 2; where missing or an empty list, none is labelled |
| `iscrowd` | 0 or 1, false or true; where missing, 0 |
| `num_keypoints` | a whole number, by which scoring leaves people out; where missing, the labelled keypoints count |
| `area` | a number of at least 0; where missing, a share of the box's if the reader gives one |
| `width`, `height` of images | whole numbers, at least 1 |
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import (
    check_unique,
    is_identifier,
    require_flags,
    require_numbers,
    require_records,
    require_whole_numbers,
    shown,
    unique_ids,
)
from ..files import read_json
from ..model.annotations_querypose import MOST_PIXELS
from .pose_table import PoseTable


Record = Mapping[str, Any]

_LISTS = {"images": "image", "annotations": "annotation", "categories": "category"}


@dataclass(frozen=True)
class CocoObjects:
    """The annotations of some categories as columns, in the order of the file.

    Attributes:
        places (`np.ndarray`): (m,) int64, their places in the file.
        image_rows (`np.ndarray`): (m,) int64, the places of their images in the file.
        ids, image_ids, category_ids (`np.ndarray`): (m,) int64.
        boxes (`np.ndarray`): (m, 4) float64, x, y, width, height in pixels.
        keypoints (`np.ndarray`): (m, K, 3) float64, x and y as pixel indices and visibility.
        areas (`np.ndarray`): (m,) float64, in pixels; NaN where missing.
        counts (`np.ndarray`): (m,) int64, `num_keypoints`; the number of labelled keypoints where missing.
        iscrowd (`np.ndarray`): (m,) bool.
        left_out (`dict[str, int]`): how many annotations of the file are not among them, by reason.
    """

    places: np.ndarray
    image_rows: np.ndarray
    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    areas: np.ndarray
    counts: np.ndarray
    iscrowd: np.ndarray
    left_out: dict[str, int]

    def remarks(self, without_area: bool = True) -> dict[str, int]:
        """As [`PoseTable.remarks`], of what a table does not have.

        Args:
            without_area (`bool`): a missing `area` is among them.
        """
        people = (self.keypoints[..., 2] > 0).any(axis=1) & ~self.iscrowd
        kinds = {
            "people_with_num_keypoints_0": self.counts == 0,
            "people_without_area": np.isnan(self.areas) & without_area,
        }
        found = {name: int((people & mask).sum()) for name, mask in kinds.items()}
        return {name: count for name, count in found.items() if count}


@dataclass(frozen=True)
class CocoRecords:
    """The three lists of a COCO keypoints file, their ids whole numbers. Errors name file, record, field and value.

    Attributes:
        source (`str`): the file.
        images, annotations, categories (`list[dict]`): its records.
    """

    source: str
    images: Sequence[Record]
    annotations: Sequence[Record]
    categories: Sequence[Record]

    @classmethod
    def read(
        cls, annotations: str | os.PathLike | Mapping[str, Any], needed: Collection[str] = tuple(_LISTS)
    ) -> "CocoRecords":
        """Reads a file.

        Args:
            annotations: the file, or what one holds; neither is changed.
            needed (`Collection[str]`): the lists that must be there; others are empty where they are missing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not JSON, lacks a list, or an id of an image or category is wrong.
        """
        if isinstance(annotations, Mapping):
            source, content = "annotations", annotations
        else:
            source, content = os.fspath(annotations), read_json(annotations)
        if not isinstance(content, Mapping):
            raise ValueError(
                f"{source}: expected COCO annotations, an object with `images`, `annotations` and `categories`."
            )
        lists: dict[str, list[Record]] = {name: [] for name in _LISTS}
        for name, kind in _LISTS.items():
            if name in needed and name not in content:
                raise ValueError(f"{source}: `{name}` is missing; COCO annotations have it.")
            if name in needed or content.get(name):
                lists[name] = require_records(content[name], f"{source}: `{name}`", kind)
            if name != "annotations":
                ids = unique_ids(lists[name], source, kind)
                lists[name] = [
                    record if type(record["id"]) is int else {**record, "id": number}
                    for record, number in zip(lists[name], ids, strict=True)
                ]
        return cls(source, **lists)

    def choose_categories(self, category_ids: Sequence[int] | None) -> list[Record]:
        """The categories with these ids, in this order; by default those that name keypoints, or all if none does.

        Raises:
            ValueError: ids are unknown or given twice.
        """
        by_id = {category["id"]: category for category in self.categories}
        if not by_id:
            raise ValueError(f"{self.source}: `categories` is empty; expected at least one category.")
        if category_ids is None:
            return [category for category in self.categories if category.get("keypoints")] or list(self.categories)
        if not category_ids or len(set(category_ids)) != len(category_ids) or not set(category_ids) <= by_id.keys():
            raise ValueError(
                f"`category_ids` is {category_ids!r}; {self.source} has {shown(list(by_id))}, expected some of them."
            )
        return [by_id[category_id] for category_id in category_ids]

    def skeleton_of(self, categories: Sequence[Record]) -> tuple[tuple[str, ...] | None, list[tuple[int, int]]]:
        """Keypoint names, or `None` if the categories have none, and limbs as pairs of indices from 0.

        Raises:
            ValueError: names or limbs have another form, or the categories differ in their names.
        """
        skeletons = []
        for category in categories:
            place = f"{self.source}: category {category['id']}"
            names, limbs = category.get("keypoints") or None, category.get("skeleton") or []
            if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(f"{place}: `keypoints` is {shown(names)}; expected a list of names.")
            if not isinstance(limbs, list) or not all(
                isinstance(limb, list) and len(limb) == 2 and all(map(is_identifier, limb)) for limb in limbs
            ):
                raise ValueError(
                    f"{place}: `skeleton` is {shown(limbs)}; expected pairs of keypoint numbers, counted from 1."
                )
            skeletons.append((None if names is None else tuple(names), [(a - 1, b - 1) for a, b in limbs]))
        for category, skeleton in zip(categories, skeletons, strict=True):
            if skeleton[0] != skeletons[0][0]:
                raise ValueError(
                    f"{self.source}: category {category['id']} has the keypoints {shown(skeleton[0])} and category "
                    f"{categories[0]['id']} {shown(skeletons[0][0])}; expected the same for all categories. Choose "
                    "some of them with `category_ids` (`--category` on the command line)."
                )
        return skeletons[0]

    def objects(self, category_ids: Collection[int], num_keypoints: int | None) -> CocoObjects:
        """The annotations of some categories.

        Args:
            category_ids (`Collection[int]`): the categories wanted. Of others only the ids are checked.
            num_keypoints (`int`, *optional*): K; by default that of the first object with keypoints.

        Raises:
            ValueError: a field is missing or wrong.
        """
        image_ids = self._column("image_id")
        of_category = self._column("category_id")
        ids = self._object_ids()
        rows = {image["id"]: row for row, image in enumerate(self.images)}
        in_image = np.array([image_id in rows for image_id in image_ids.tolist()], dtype=bool)
        wanted = in_image & np.isin(of_category, list(category_ids))
        # unwanted objects keep their places, because messages count by them
        nobody: Record = {"bbox": [0, 0, 0, 0]}
        people = [record if keep else nobody for record, keep in zip(self.annotations, wanted, strict=True)]
        if num_keypoints is None:
            num_keypoints = self._first_number_of_keypoints(people)
        place = (self.source, "annotation")
        keypoints = read_keypoints(people, "keypoints", num_keypoints, *place)
        return CocoObjects(
            places=np.flatnonzero(wanted),
            image_rows=np.array([rows[image_id] for image_id in image_ids[wanted].tolist()], dtype=np.int64),
            ids=ids[wanted],
            image_ids=image_ids[wanted],
            category_ids=of_category[wanted],
            boxes=read_boxes(people, "bbox", *place)[wanted],
            keypoints=keypoints[wanted],
            areas=read_areas(people, "area", *place)[wanted],
            counts=_counts(people, (keypoints[..., 2] > 0).sum(axis=1), *place)[wanted],
            iscrowd=require_flags(people, "iscrowd", *place)[wanted],
            left_out={
                "annotations_of_unknown_images": int((~in_image).sum()),
                "annotations_of_other_categories": int((in_image & ~wanted).sum()),
            },
        )

    def to_table(self, objects: CocoObjects, area_ratio: float) -> PoseTable:
        """The images of the file with objects of it.

        Args:
            objects ([`CocoObjects`]): from [`objects`].
            area_ratio (`float`): share of the box's area that stands in for a missing `area`.

        Raises:
            ValueError: the size of an image is missing or wrong.
        """
        box_areas = objects.boxes[:, 2:].prod(axis=1) * area_ratio
        return PoseTable.from_rows(
            image_ids=np.array([image["id"] for image in self.images], dtype=np.int64),
            sizes=recorded_sizes(self.images, self.source),
            image_rows=objects.image_rows,
            ids=objects.ids,
            boxes=objects.boxes,
            keypoints=objects.keypoints,
            areas=np.where(np.isnan(objects.areas), box_areas, objects.areas),
            category_ids=objects.category_ids,
            iscrowd=objects.iscrowd,
        )

    def _column(self, field: str) -> np.ndarray:
        return require_whole_numbers(self.annotations, field, self.source, "annotation")

    def _object_ids(self) -> np.ndarray:
        """(n,): `id` of every annotation, its place in the file where missing."""
        given = [index for index, record in enumerate(self.annotations) if record.get("id") is not None]
        ids = np.arange(len(self.annotations))
        filled = [record if record.get("id") is not None else {"id": 0} for record in self.annotations]
        ids[given] = require_whole_numbers(filled, "id", self.source, "annotation")[given]
        check_unique(ids[given].tolist(), given, self.source, "annotation")
        return ids

    def _first_number_of_keypoints(self, people: Sequence[Record]) -> int:
        for index, record in enumerate(people):
            if not _is_missing(record.get("keypoints")):
                return number_of_keypoints(record["keypoints"], f"{self.source}: annotation {index}: `keypoints`")
        raise ValueError(
            f"{self.source}: neither a category nor an annotation has `keypoints`; expected keypoint annotations."
        )


def read_boxes(records: Sequence[Record], field: str, source: str, kind: str, corners: bool = False) -> np.ndarray:
    """(m, 4): x, y, width and height in pixels, of two corners with `corners`.

    Arguments of this and the next functions are those of [`require_numbers`].

    Raises:
        ValueError: a box is missing or wrong.
    """
    expected = "4 numbers: x, y and x, y" if corners else "4 numbers: x, y, width, height"
    limits = {"least": -MOST_PIXELS, "most": MOST_PIXELS}
    boxes = require_numbers(records, field, expected, source, kind, 4, **limits)
    if corners:
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    if (negative := (boxes[:, 2:] < 0).any(axis=1)).any():
        index = int(negative.argmax())
        raise ValueError(
            f"{source}: {kind} {index}: `{field}` is {shown(records[index][field])}; expected a width and a height of "
            "at least 0" + (" between two corners." if corners else ".")
        )
    return boxes


def read_areas(records: Sequence[Record], field: str, source: str, kind: str) -> np.ndarray:
    """(m,): areas in pixels, NaN where missing.

    Raises:
        ValueError: an area is wrong.
    """
    limits = {"missing": 0, "least": 0, "most": MOST_PIXELS**2}
    areas = require_numbers(records, field, "a number of pixels", source, kind, **limits)
    return np.where([record.get(field) is None for record in records], np.nan, areas)


def read_keypoints(records: Sequence[Record], field: str, num_keypoints: int, source: str, kind: str) -> np.ndarray:
    """(m, K, 3): x, y and visibility of `num_keypoints` keypoints, zeros where missing or an empty list.

    Raises:
        ValueError: keypoints are wrong.
    """
    expected = f"{3 * num_keypoints} numbers: x, y and visibility of {num_keypoints} keypoints"
    zeros = {field: [0] * (3 * num_keypoints)}
    records = [zeros if _is_missing(record.get(field)) else record for record in records]
    limits = {"least": -MOST_PIXELS, "most": MOST_PIXELS}
    keypoints = require_numbers(records, field, expected, source, kind, 3 * num_keypoints, **limits)
    keypoints = keypoints.reshape(-1, num_keypoints, 3)
    if (strange := ~np.isin(keypoints[..., 2], (0, 1, 2))).any():
        row, keypoint = np.argwhere(strange)[0].tolist()
        raise ValueError(
            f"{source}: {kind} {row}: `{field}` has visibility {keypoints[row, keypoint, 2]:g} at keypoint "
            f"{keypoint}; expected 0 (not labelled), 1 (hidden) or 2 (visible)."
        )
    return keypoints


def number_of_keypoints(values: Any, place: str) -> int:
    """K, of the `keypoints` of one object; `place` names them in messages.

    Raises:
        ValueError: they are not 3 K numbers.
    """
    if not isinstance(values, list | tuple) or len(values) % 3 or not values:
        raise ValueError(f"{place} is {shown(values)}; expected 3 numbers for each keypoint.")
    return len(values) // 3


def _counts(records: Sequence[Record], labelled: np.ndarray, source: str, kind: str) -> np.ndarray:
    """(m,): `num_keypoints`, the number of labelled ones where it is missing."""
    field, expected = "num_keypoints", "the number of labelled keypoints"
    filled = [
        {field: count} if record.get(field) is None else record
        for record, count in zip(records, labelled.tolist(), strict=True)
    ]
    return require_whole_numbers(filled, field, source, kind, expected, least=0, most=MOST_PIXELS)


def _is_missing(keypoints: Any) -> bool:
    return keypoints is None or (isinstance(keypoints, list | tuple) and not keypoints)


def recorded_file_names(images: Sequence[Record], source: str) -> list[str]:
    """`file_name` of every image; `source` names the file in messages.

    Raises:
        ValueError: one is missing or not text.
    """
    for index, record in enumerate(images):
        if not isinstance(record.get("file_name"), str):
            raise ValueError(
                f"{source}: image {index}: `file_name` is {shown(record.get('file_name'))}; expected the name of a "
                "file."
            )
    return [record["file_name"] for record in images]


def recorded_sizes(images: Sequence[Record], source: str, kind: str = "image") -> np.ndarray:
    """Width and height of every image in pixels, (n, 2) int64; `source` names the file in messages.

    Raises:
        ValueError: one is missing or wrong.
    """
    expected, limits = "a whole number of pixels, at least 1", {"least": 1, "most": MOST_PIXELS}
    sides = [require_whole_numbers(images, side, source, kind, expected, **limits) for side in ("width", "height")]
    return np.stack(sides, axis=1)
