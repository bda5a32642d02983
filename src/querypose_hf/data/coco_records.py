"""The records of a COCO keypoints file: what they must hold, and the table they become."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import is_identifier, require_numbers, require_records, shown, unique_ids
from ..files import read_json
from .pose_table import PoseTable


Record = Mapping[str, Any]


@dataclass(frozen=True)
class CocoRecords:
    """The three lists of a COCO keypoints file. Errors name file, record, field and value.

    Attributes:
        source (`str`): the file.
        images, annotations, categories (`list[dict]`): its records.
    """

    source: str
    images: Sequence[Record]
    annotations: Sequence[Record]
    categories: Sequence[Record]

    @classmethod
    def read(cls, path: str | os.PathLike) -> "CocoRecords":
        """Reads a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not JSON, or lacks one of the three lists.
        """
        source = os.fspath(path)
        content = read_json(source)
        if not isinstance(content, Mapping):
            raise ValueError(f"{source}: expected an object with `images`, `annotations` and `categories`.")
        lists = {}
        for field, kind in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
            if field not in content:
                raise ValueError(f"{source}: `{field}` is missing; COCO annotations have it.")
            lists[field] = require_records(content[field], f"{source}: `{field}`", kind)
        return cls(source, **lists)

    def choose_categories(self, category_ids: Sequence[int] | None) -> list[Record]:
        """The categories with these ids, in this order; by default those that name keypoints, or all if none does.

        Raises:
            ValueError: ids are unknown or given twice.
        """
        by_id = dict(zip(unique_ids(self.categories, self.source, "category"), self.categories, strict=True))
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
                    "some of them with `category_ids`."
                )
        return skeletons[0]

    def file_names(self) -> list[str]:
        """`file_name` of every image."""
        for index, record in enumerate(self.images):
            if not isinstance(record.get("file_name"), str):
                raise ValueError(
                    f"{self.source}: image {index}: `file_name` is {shown(record.get('file_name'))}; expected the "
                    "name of a file."
                )
        return [record["file_name"] for record in self.images]

    def to_table(
        self, category_ids: Sequence[int], num_keypoints: int | None, area_ratio: float
    ) -> tuple[PoseTable, dict[str, int]]:
        """The objects of some categories.

        Args:
            category_ids (`Sequence[int]`): the categories wanted.
            num_keypoints (`int`, *optional*): K; by default that of the first object with keypoints.
            area_ratio (`float`): share of the box's area that stands in for a missing `area`.

        Returns:
            [`PoseTable`], and how many annotations were left out, by reason.

        Raises:
            ValueError: a field is missing or wrong.
        """
        image_rows = {image_id: row for row, image_id in enumerate(unique_ids(self.images, self.source, "image"))}
        sizes = self._sizes()
        in_image, wanted = self._wanted(image_rows, category_ids)
        boxes = self._numbers(wanted, "bbox", "4 numbers: x, y, width, height", length=4)
        if (boxes[:, 2:] < 0).any():
            index = int(np.flatnonzero(wanted)[(boxes[:, 2:] < 0).any(axis=1).argmax()])
            raise ValueError(
                f"{self.source}: annotation {index}: `bbox` is {self.annotations[index]['bbox']}; expected a width "
                "and a height of at least 0."
            )
        areas = self._numbers(wanted, "area", "a number of pixels", optional=True)
        ids = np.array([self._object_id(index) for index in range(len(self.annotations))], dtype=np.int64)
        chosen = [record for record, keep in zip(self.annotations, wanted, strict=True) if keep]
        without_area = np.array([record.get("area") is None for record in chosen], dtype=bool)
        areas[without_area] = boxes[without_area, 2:].prod(axis=1) * area_ratio
        table = PoseTable.from_rows(
            image_ids=np.array(list(image_rows), dtype=np.int64),
            sizes=sizes,
            image_rows=np.array([image_rows[record["image_id"]] for record in chosen], dtype=np.int64),
            ids=ids[wanted],
            boxes=boxes,
            keypoints=self._keypoints(wanted, num_keypoints),
            areas=areas,
            category_ids=np.array([record["category_id"] for record in chosen], dtype=np.int64),
            iscrowd=np.array([bool(record.get("iscrowd")) for record in chosen], dtype=bool),
        )
        left_out = {
            "annotations_of_unknown_images": int((~in_image).sum()),
            "annotations_of_other_categories": int((in_image & ~wanted).sum()),
        }
        return table, left_out

    def _sizes(self) -> np.ndarray:
        sides = [
            require_numbers(self.images, side, "a number of pixels", self.source, "image")
            for side in ("width", "height")
        ]
        sizes = np.stack(sides, axis=1)
        if not (sizes >= 1).all():
            row = int((sizes < 1).any(axis=1).argmax())
            raise ValueError(
                f"{self.source}: image {row}: width or height is {sizes[row].min():g}; expected at least 1 pixel."
            )
        return sizes.astype(np.int64)

    def _wanted(self, image_rows: Mapping[int, int], category_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the annotations: those of images in the file, and of these the ones of wanted categories."""
        for index, record in enumerate(self.annotations):
            for field in ("image_id", "category_id"):
                if not is_identifier(record.get(field)):
                    raise ValueError(
                        f"{self.source}: annotation {index}: `{field}` is {shown(record.get(field))}; expected a "
                        "whole number."
                    )
        in_image = np.array([record["image_id"] in image_rows for record in self.annotations], dtype=bool)
        of_category = np.array([record["category_id"] in category_ids for record in self.annotations], dtype=bool)
        return in_image, in_image & of_category

    def _object_id(self, index: int) -> int:
        object_id = self.annotations[index].get("id", index)
        if not is_identifier(object_id):
            raise ValueError(
                f"{self.source}: annotation {index}: `id` is {shown(object_id)}; expected a whole number."
            )
        return object_id

    def _keypoints(self, wanted: np.ndarray, num_keypoints: int | None) -> np.ndarray:
        """(m, K, 3): the keypoints of the wanted objects."""
        if num_keypoints is None:
            num_keypoints = self._first_number_of_keypoints(wanted)
        expected = f"{3 * num_keypoints} numbers: x, y and visibility of {num_keypoints} keypoints"
        keypoints = self._numbers(wanted, "keypoints", expected, length=3 * num_keypoints, optional=True)
        keypoints = keypoints.reshape(-1, num_keypoints, 3)
        strange = ~np.isin(keypoints[..., 2], (0, 1, 2))
        if strange.any():
            row, keypoint = np.argwhere(strange)[0].tolist()
            raise ValueError(
                f"{self.source}: annotation {np.flatnonzero(wanted)[row]}: `keypoints` has visibility "
                f"{keypoints[row, keypoint, 2]:g} at keypoint {keypoint}; expected 0 (not labelled), 1 (hidden) or 2 "
                "(visible)."
            )
        return keypoints

    def _first_number_of_keypoints(self, wanted: np.ndarray) -> int:
        first = next((i for i in np.flatnonzero(wanted).tolist() if self.annotations[i].get("keypoints")), None)
        if first is None:
            raise ValueError(
                f"{self.source}: neither a category nor an annotation has `keypoints`; expected keypoint annotations."
            )
        values = self.annotations[first]["keypoints"]
        if not isinstance(values, list) or len(values) % 3:
            raise ValueError(
                f"{self.source}: annotation {first}: `keypoints` is {shown(values)}; expected 3 numbers for each "
                "keypoint."
            )
        return len(values) // 3

    def _numbers(
        self, wanted: np.ndarray, field: str, expected: str, length: int | None = None, optional: bool = False
    ) -> np.ndarray:
        """One field of the wanted objects; zeros where it is `optional` and missing."""
        # unwanted objects keep their places, because messages count by them
        filler = {field: 0 if length is None else [0] * length}
        records = [
            filler if not keep or (optional and record.get(field) in (None, [])) else record
            for record, keep in zip(self.annotations, wanted, strict=True)
        ]
        return require_numbers(records, field, expected, self.source, "annotation", length)[wanted]
