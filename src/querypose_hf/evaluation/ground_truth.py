"""The people to be found: COCO keypoint annotations, checked and completed for scoring."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import require_numbers
from ..data.coco_records import CocoObjects, CocoRecords
from ..model.annotations_querypose import usable_boxes
from .image_list import ImageList, choose_images
from .protocols import KeypointProtocol, protocol_of


@dataclass(frozen=True)
class KeypointGroundTruth(ImageList):
    """Annotations ready to be scored against; made by [`KeypointGroundTruth.read`].

    Attributes:
        source (`str`): the file, for messages.
        images (`list[dict]`): the images to score.
        categories (`list[dict]`): those that are scored.
        num_keypoints (`int`): K.
        metric (`str`): the protocol that the annotations were completed for, one of [`PROTOCOLS`].
        annotations (`list[dict]`): the images' people and crowd regions, with `id`, `image_id`, `category_id`, `bbox`,
            `keypoints` (an array of 3 K numbers), `num_keypoints`, `area` and `iscrowd`, and no other field.
        known_image_ids (`frozenset`): ids of all images of the file, whether scored or not.
        known_category_ids (`frozenset`): ids of all categories of the file.
        image_groups (`dict[str, list]`): ids of the images in each of the protocol's groups; empty if it has none.
        area_ratio (`float`, *optional*): share of the box's area that stands in for a missing `area`.
    """

    num_keypoints: int
    metric: str
    annotations: list[dict[str, Any]]
    known_image_ids: frozenset[int]
    known_category_ids: frozenset[int]
    image_groups: dict[str, list[int]]
    area_ratio: float | None = None

    @classmethod
    def read(
        cls,
        annotations: str | os.PathLike | Mapping[str, Any],
        metric: str = "coco",
        image_ids: Iterable[int] | None = None,
        *,
        category_ids: Sequence[int] | None = None,
        area_ratio: float | None = None,
    ) -> "KeypointGroundTruth":
        """Reads COCO keypoint annotations, as training does, and checks them before any scoring starts.

        Neither the file nor a mapping that is passed in is changed. See [`CocoRecords`] for how fields are read.
        Annotations of images that the file does not list, or of other categories, are left out, as the official tools
        do. Annotations get new ids: pycocotools takes the id 0 for "not found" and would lose that person.

        Args:
            annotations: a COCO keypoints JSON file, or what one holds.
            metric (`str`): `"coco"`, which needs each annotation's `area`, or `"crowdpose"`, which computes it from
                the box and needs each image's `crowdIndex`.
            image_ids (`Iterable`, *optional*): score these images only.
            category_ids (`Sequence[int]`, *optional*): score these categories only; by default those that name
                keypoints, or all if none does.
            area_ratio (`float`, *optional*): share of the box's area that stands in for a missing `area`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a field is missing or wrong; the message names file, record, field and value.
        """
        protocol = protocol_of(metric)
        records = CocoRecords.read(annotations)
        images = choose_images(records, image_ids)
        groups = _image_groups(images, protocol, records.source)
        categories = records.choose_categories(category_ids)
        names, _ = records.skeleton_of(categories)
        objects = records.objects([one["id"] for one in categories], None if names is None else len(names))
        areas = _areas(objects, protocol, area_ratio, records.source)
        num_keypoints = objects.keypoints.shape[1]
        scored = frozenset(image["id"] for image in images)
        columns = (
            objects.image_ids.tolist(),
            objects.category_ids.tolist(),
            objects.boxes.tolist(),
            objects.keypoints.reshape(-1, 3 * num_keypoints),
            objects.counts.tolist(),
            areas.tolist(),
            objects.iscrowd.astype(int).tolist(),
        )
        rows = [row for row in zip(*columns, strict=True) if row[0] in scored]
        fields = ("image_id", "category_id", "bbox", "keypoints", "num_keypoints", "area", "iscrowd")
        people = [{"id": number, **dict(zip(fields, row, strict=True))} for number, row in enumerate(rows, start=1)]
        known = frozenset(image["id"] for image in records.images)
        known_categories = frozenset(category["id"] for category in records.categories)
        return cls(
            *(records.source, images, categories, num_keypoints, metric, people, known, known_categories, groups),
            area_ratio=area_ratio,
        )

    def remarks(self) -> list[str]:
        """Sentences about people whom no result can match, because of what their annotations say."""
        people = [person for person in self.annotations if not person["iscrowd"]]
        labelled = [person for person in people if (person["keypoints"][2::3] > 0).any()]
        uncounted = sum(person["num_keypoints"] == 0 for person in labelled)
        to_find = [person for person in people if person["num_keypoints"] > 0]
        without_area = sum(person["area"] == 0 for person in to_find)
        found = []
        if uncounted:
            found.append(
                f"{self.source}: {uncounted} of {len(labelled)} people with labelled keypoints have `num_keypoints` "
                "0. They are not scored, as in pycocotools; without that field their labelled keypoints are counted."
            )
        if without_area:
            field, advice = "a box of area 0", "draw their boxes anew"
            if self.protocol.box_area_ratio is None:
                field, advice = "`area` 0", "leave out that field, and take the area from the box by `--area-ratio`"
            found.append(
                f"{self.source}: {without_area} of {len(to_find)} people to be found have {field}. OKS divides by the "
                f"area, so that no result matches them; {advice}."
            )
        if not to_find:
            found.append(f"{self.source}: nobody is to be found in the images that are scored, so there is no AP.")
        return found

    @property
    def protocol(self) -> KeypointProtocol:
        return protocol_of(self.metric)

    def results_to_score(self, results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The results of the images and categories that are scored."""
        images, categories = {image["id"] for image in self.images}, set(self.category_ids)
        return [one for one in results if one["image_id"] in images and one["category_id"] in categories]

    def people_per_image(self) -> dict[int, int]:
        """For each image scored the number of people to be found: with labelled keypoints, in no crowd region."""
        counts = Counter(
            record["image_id"] for record in self.annotations if record["num_keypoints"] > 0 and not record["iscrowd"]
        )
        return {image["id"]: counts[image["id"]] for image in self.images}


def _image_groups(images: list[Mapping[str, Any]], protocol: KeypointProtocol, source: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {name: [] for name in protocol.image_groups}
    if protocol.image_field is not None:
        expected = "a number: the protocol groups images by it"
        values = require_numbers(images, protocol.image_field, expected, source, "image")
        for image, value in zip(images, values.tolist(), strict=True):
            groups[protocol.image_group(value)].append(image["id"])
    return groups


def _areas(objects: CocoObjects, protocol: KeypointProtocol, area_ratio: float | None, source: str) -> np.ndarray:
    """(m,): the areas that OKS divides by."""
    if protocol.box_area_ratio is not None:
        return objects.boxes[:, 2:].prod(axis=1) * protocol.box_area_ratio
    missing = np.isnan(objects.areas)
    if missing.any() and area_ratio is None:
        raise ValueError(
            f"{source}: annotation {objects.places[missing.argmax()]}: `area` is missing, as in {missing.sum()} of "
            f"{len(missing)}; expected the person's area in pixels, which COCO's OKS divides by. A share of the box's "
            "area can stand in for it: `--area-ratio 0.53`, and in training `--set data.validation.area_ratio=0.53`."
        )
    usable, _, _ = usable_boxes(objects.boxes, objects.keypoints, np.full(2, np.inf))
    return np.where(missing, usable[:, 2:].prod(axis=1) * (area_ratio or 0), objects.areas)
