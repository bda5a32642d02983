"""The people to be found: COCO keypoint annotations, checked and completed for scoring."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import is_identifier, require_numbers, require_records, shown, unique_ids
from .image_list import ImageList, choose_images, read_coco
from .protocols import KeypointProtocol, protocol_of


@dataclass(frozen=True)
class KeypointGroundTruth(ImageList):
    """Annotations ready to be scored against; made by [`KeypointGroundTruth.read`].

    Attributes:
        source (`str`): the file, for messages.
        images (`list[dict]`): the images to score.
        categories (`list[dict]`): as in the file.
        num_keypoints (`int`): K.
        metric (`str`): the protocol that the annotations were completed for, one of [`PROTOCOLS`].
        annotations (`list[dict]`): the images' people and crowd regions, with `id`, `image_id`, `category_id`, `bbox`,
            `keypoints` (an array of 3 K numbers), `num_keypoints`, `area` and `iscrowd`, and no other field.
        known_image_ids (`frozenset`): ids of all images of the file, whether scored or not.
        image_groups (`dict[str, list]`): ids of the images in each of the protocol's groups; empty if it has none.
    """

    num_keypoints: int
    metric: str
    annotations: list[dict[str, Any]]
    known_image_ids: frozenset[int]
    image_groups: dict[str, list[int]]

    @classmethod
    def read(
        cls,
        annotations: str | os.PathLike | Mapping[str, Any],
        metric: str = "coco",
        image_ids: Iterable[int] | None = None,
    ) -> "KeypointGroundTruth":
        """Reads COCO keypoint annotations and checks them before any scoring starts.

        Neither the file nor a mapping that is passed in is changed. A missing `iscrowd` counts as 0, a missing
        `num_keypoints` is counted from the visibilities, and a missing `keypoints` means that none is labelled.
        Annotations of images or categories that the file does not list are left out, as the official tools do.
        Annotations get new ids: pycocotools takes the id 0 for "not found" and would lose that person, and an id given
        twice would count one person twice.

        Args:
            annotations: a COCO keypoints JSON file, or what one holds.
            metric (`str`): `"coco"`, which needs each annotation's `area`, or `"crowdpose"`, which computes it from
                the box and needs each image's `crowdIndex`.
            image_ids (`Iterable`, *optional*): score these images only.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a field is missing or wrong; the message names file, record, field and value.
        """
        protocol = protocol_of(metric)
        source, dataset = read_coco(annotations, ("images", "annotations", "categories"))
        every_image = require_records(dataset["images"], f"{source}: `images`", "image")
        records = require_records(dataset["annotations"], f"{source}: `annotations`", "annotation")
        categories = require_records(dataset["categories"], f"{source}: `categories`", "category")
        category_ids = unique_ids(categories, source, "category")
        images = choose_images(every_image, image_ids, source)
        groups = _image_groups(images, protocol, source)
        completed, num_keypoints = _completed(records, protocol, source)
        scored_ids = {image["id"] for image in images}
        people = [
            record
            for record in completed
            if record["image_id"] in scored_ids and record["category_id"] in category_ids
        ]
        for number, record in enumerate(people, start=1):
            record["id"] = number
        known_image_ids = frozenset(image["id"] for image in every_image)
        return cls(source, images, categories, num_keypoints, metric, people, known_image_ids, groups)

    @property
    def protocol(self) -> KeypointProtocol:
        return protocol_of(self.metric)

    def results_to_score(self, results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The results on the images that are scored."""
        scored = {image["id"] for image in self.images}
        return [result for result in results if result["image_id"] in scored]

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


def _completed(
    records: list[Mapping[str, Any]], protocol: KeypointProtocol, source: str
) -> tuple[list[dict[str, Any]], int]:
    """Copies of the annotations with the fields that scoring reads, and the number of keypoints."""
    for index, record in enumerate(records):
        for field in ("image_id", "category_id"):
            if not is_identifier(record.get(field)):
                raise ValueError(
                    f"{source}: annotation {index}: `{field}` is {shown(record.get(field))}; expected a whole number"
                )
    boxes = require_numbers(records, "bbox", "x, y, width, height in pixels", source, "annotation", length=4)
    if protocol.box_area_ratio is not None:
        areas = boxes[:, 2] * boxes[:, 3] * protocol.box_area_ratio
    else:
        expected = (
            "the person's area in pixels, which COCO's OKS divides by (annotations without it can be scored with "
            "metric 'crowdpose', or get `area` from the box before)"
        )
        areas = require_numbers(records, "area", expected, source, "annotation")
    keypoints = _keypoints(records, source)
    counted = np.count_nonzero(keypoints[:, 2::3] > 0, axis=1).tolist()
    counts = require_numbers(
        [{"num_keypoints": record.get("num_keypoints", n)} for record, n in zip(records, counted, strict=True)],
        "num_keypoints",
        "the number of labelled keypoints",
        source,
        "annotation",
    )
    crowds = require_numbers(
        [{"iscrowd": record.get("iscrowd", 0)} for record in records], "iscrowd", "0 or 1", source, "annotation"
    )
    completed = [
        {
            "image_id": record["image_id"],
            "category_id": record["category_id"],
            "bbox": box,
            "keypoints": points,
            "num_keypoints": int(count),
            "area": area,
            "iscrowd": int(crowd),
        }
        for record, box, points, count, area, crowd in zip(
            records, boxes.tolist(), keypoints, counts, areas.tolist(), crowds, strict=True
        )
    ]
    return completed, keypoints.shape[1] // 3


def _keypoints(records: list[Mapping[str, Any]], source: str) -> np.ndarray:
    """The keypoints of n annotations, (n, 3 K): x, y and visibility; zeros where an annotation has none."""
    first = next((index for index, record in enumerate(records) if record.get("keypoints")), None)
    if first is None:
        raise ValueError(f"{source}: no annotation has `keypoints`; expected a COCO keypoints file")
    example = records[first]["keypoints"]
    if not isinstance(example, list | tuple) or len(example) % 3:
        raise ValueError(
            f"{source}: annotation {first}: `keypoints` is {shown(example)}; expected a flat list of x, y, visibility "
            "of each keypoint"
        )
    unlabelled = [0] * len(example)
    return require_numbers(
        [{"keypoints": record.get("keypoints") or unlabelled} for record in records],
        "keypoints",
        f"{len(example)} numbers, x, y, visibility for each of {len(example) // 3} keypoints as in annotation {first}",
        source,
        "annotation",
        length=len(example),
    )
