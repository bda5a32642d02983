"""The people to be found: COCO keypoint annotations, checked and completed for scoring."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import is_identifier, require_numbers, require_records, shown
from ..files import read_json
from .protocols import CROWDPOSE_AREA_RATIO, check_metric, images_by_crowd_group


@dataclass(frozen=True)
class KeypointGroundTruth:
    """Annotations ready to be scored against; build one with [`KeypointGroundTruth.read`].

    Attributes:
        source (`str`): the file, for messages.
        metric (`str`): the protocol the annotations were completed for, `"coco"` or `"crowdpose"`.
        images (`list[dict]`): the images scored.
        annotations (`list[dict]`): their people and crowd regions, with `id`, `image_id`, `category_id`, `bbox`,
            `keypoints` (an array of 3K numbers), `num_keypoints`, `area` and `iscrowd`, and no other field.
        categories (`list[dict]`): as in the file.
        num_keypoints (`int`): K.
        known_image_ids (`frozenset`): ids of all images of the file, whether scored or not.
        crowd_groups (`dict[str, list]`): for CrowdPose the image ids of the groups `easy`, `medium` and `hard`;
            otherwise empty.
    """

    source: str
    metric: str
    images: list[Mapping[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[Mapping[str, Any]]
    num_keypoints: int
    known_image_ids: frozenset[int]
    crowd_groups: dict[str, list[int]]

    @classmethod
    def read(
        cls,
        annotations: str | os.PathLike | Mapping[str, Any],
        metric: str = "coco",
        image_ids: Iterable[int] | None = None,
    ) -> "KeypointGroundTruth":
        """Reads COCO keypoint annotations and checks them before any scoring starts.

        Neither the file nor a mapping that is passed in is changed. A missing `iscrowd` counts as 0, a missing
        `num_keypoints` is counted from the visibilities, a missing `keypoints` means that none is labelled.
        Annotations of images or categories that the file does not list are left out, as the official tools do, and
        annotation ids are numbered anew: pycocotools takes the id 0 for "not found" and would lose that person, and
        ids given twice would count one person twice.

        Args:
            annotations: a COCO keypoints JSON file, or what one holds.
            metric (`str`): `"coco"`, which needs each annotation's `area`, or `"crowdpose"`, which computes it from
                the box and needs each image's `crowdIndex`.
            image_ids (`Iterable`, *optional*): score these images only.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a field is missing or wrong; the message names file, record, field and value.
        """
        check_metric(metric)
        if isinstance(annotations, Mapping):
            source, dataset = "annotations", annotations
        else:
            source, dataset = os.fspath(annotations), read_json(annotations)
        if not isinstance(dataset, Mapping):
            raise ValueError(
                f"{source}: expected COCO annotations, an object with `images`, `annotations`, `categories`"
            )
        for field in ("images", "annotations", "categories"):
            if field not in dataset:
                raise ValueError(f"{source}: `{field}` is missing; COCO annotations have it")
        images = require_records(dataset["images"], f"{source}: `images`", "image")
        records = require_records(dataset["annotations"], f"{source}: `annotations`", "annotation")
        categories = require_records(dataset["categories"], f"{source}: `categories`", "category")
        known_image_ids = frozenset(_unique_ids(images, source, "image"))
        category_ids = set(_unique_ids(categories, source, "category"))

        if image_ids is not None:
            chosen = set(image_ids)
            if unknown := chosen - known_image_ids:
                raise ValueError(
                    f"`image_ids` holds {_some(unknown)}, which {source} does not have; "
                    f"its ids are like {_some(known_image_ids)}"
                )
            images = [image for image in images if image["id"] in chosen]
        if not images:
            raise ValueError(f"{source}: no images to score")

        crowd_groups: dict[str, list[int]] = {}
        if metric == "crowdpose":
            crowd_indices = require_numbers(
                images, "crowdIndex", "a number: metric 'crowdpose' groups images by it", source, "image"
            )
            crowd_groups = images_by_crowd_group(
                dict(zip((image["id"] for image in images), crowd_indices.tolist(), strict=True))
            )

        completed, num_keypoints = _completed(records, metric, source)
        scored_ids = {image["id"] for image in images}
        people = [
            record
            for record in completed
            if record["image_id"] in scored_ids and record["category_id"] in category_ids
        ]
        for number, record in enumerate(people, start=1):
            record["id"] = number
        return cls(source, metric, images, people, categories, num_keypoints, known_image_ids, crowd_groups)

    @property
    def category_ids(self) -> list[int]:
        """Ids of the categories, in the order of the file."""
        return [category["id"] for category in self.categories]

    def results_to_score(self, results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The results on the images that are scored."""
        scored = {image["id"] for image in self.images}
        return [result for result in results if result["image_id"] in scored]

    def people_per_image(self) -> dict[int, int]:
        """For each image the number of people that count: labelled keypoints, no crowd region."""
        counts = Counter(
            record["image_id"] for record in self.annotations if record["num_keypoints"] > 0 and not record["iscrowd"]
        )
        return {image["id"]: counts[image["id"]] for image in self.images}


def _unique_ids(records: list[Mapping[str, Any]], source: str, kind: str) -> list[int]:
    seen: set[int] = set()
    for index, record in enumerate(records):
        if not is_identifier(record.get("id")):
            raise ValueError(f"{source}: {kind} {index}: `id` is {shown(record.get('id'))}; expected a whole number")
        if record["id"] in seen:
            raise ValueError(
                f"{source}: {kind} {index}: `id` {record['id']!r} occurs twice; expected one {kind} per id"
            )
        seen.add(record["id"])
    return list(seen)


def _completed(records: list[Mapping[str, Any]], metric: str, source: str) -> tuple[list[dict[str, Any]], int]:
    """Copies of the annotations with the fields that scoring reads, and the number of keypoints."""
    for index, record in enumerate(records):
        for field in ("image_id", "category_id"):
            if not is_identifier(record.get(field)):
                raise ValueError(
                    f"{source}: annotation {index}: `{field}` is {shown(record.get(field))}; expected a whole number"
                )
    boxes = require_numbers(records, "bbox", "x, y, width, height in pixels", source, "annotation", length=4)
    if metric == "crowdpose":
        areas = boxes[:, 2] * boxes[:, 3] * CROWDPOSE_AREA_RATIO
    else:
        areas = require_numbers(
            records,
            "area",
            "the person's area in pixels, which COCO's OKS divides by (annotations without it can be scored with "
            "metric 'crowdpose', or get `area` from the box before)",
            source,
            "annotation",
        )

    first = next((index for index, record in enumerate(records) if record.get("keypoints")), None)
    if first is None:
        raise ValueError(f"{source}: no annotation has `keypoints`; expected a COCO keypoints file")
    example = records[first]["keypoints"]
    if not isinstance(example, list | tuple) or len(example) % 3:
        raise ValueError(
            f"{source}: annotation {first}: `keypoints` is {shown(example)}; expected a flat list of x, y, visibility "
            "of each keypoint"
        )
    num_keypoints = len(example) // 3
    unlabelled = [0] * len(example)
    labelled = [{"keypoints": record.get("keypoints") or unlabelled} for record in records]
    keypoints = require_numbers(
        labelled,
        "keypoints",
        f"{len(example)} numbers, x, y, visibility for each of {num_keypoints} keypoints as in annotation {first}",
        source,
        "annotation",
        length=len(example),
    )
    counted = np.count_nonzero(keypoints[:, 2::3] > 0, axis=1).tolist()
    counts = require_numbers(
        [
            {"num_keypoints": record.get("num_keypoints", count)}
            for record, count in zip(records, counted, strict=True)
        ],
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
    return completed, num_keypoints


def _some(ids: Iterable[int]) -> str:
    ids = sorted(ids, key=str)
    return ", ".join(map(repr, ids[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
