"""Annotations and results as the `COCO` objects that pycocotools and faster-coco-eval score.

Each package has a `COCO` class of its own, with the same fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .ground_truth import KeypointGroundTruth


def index_ground_truth(coco_class: type, ground_truth: KeypointGroundTruth) -> Any:
    """The annotations as a `COCO` object. Each is copied, because scoring marks them."""
    return _indexed(coco_class, ground_truth, [dict(annotation) for annotation in ground_truth.annotations])


def index_results(coco_class: type, ground_truth: KeypointGroundTruth, results: Sequence[Mapping[str, Any]]) -> Any:
    """The results as a `COCO` object, numbered from 1 in their order.

    Takes the place of `COCO.loadRes`, which fails on an empty list and writes into the records it is given. As there,
    the area is that of the box if the results have one, else that of the keypoints' extent. It decides in which size
    range a result without a match counts as an error.
    """
    if results and "bbox" in results[0]:
        boxes = np.asarray([result["bbox"] for result in results], dtype=np.float64)
    elif results:
        points = np.asarray([result["keypoints"] for result in results], dtype=np.float64).reshape(len(results), -1, 3)
        low, high = points[..., :2].min(axis=1), points[..., :2].max(axis=1)
        boxes = np.concatenate([low, high - low], axis=1)
    else:
        boxes = np.zeros((0, 4))
    areas = boxes[:, 2] * boxes[:, 3]
    records = [
        {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "keypoints": result["keypoints"],
            "score": result["score"],
            "bbox": box,
            "area": area,
            "iscrowd": 0,
        }
        for number, (result, box, area) in enumerate(
            zip(results, boxes.tolist(), areas.tolist(), strict=True), start=1
        )
    ]
    return _indexed(coco_class, ground_truth, records)


def _indexed(coco_class: type, ground_truth: KeypointGroundTruth, annotations: list[dict[str, Any]]) -> Any:
    coco = coco_class()
    coco.dataset = {
        "images": list(ground_truth.images),
        "annotations": annotations,
        "categories": list(ground_truth.categories),
    }
    coco.createIndex()
    return coco
