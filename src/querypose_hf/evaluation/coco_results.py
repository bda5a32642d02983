"""COCO keypoint results: made from a model's people, written to a file, and read from one with checks."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..checks import is_identifier, require_numbers, require_records, shown
from ..files import read_json, write_json


def coco_results_from_people(
    people: Sequence[Mapping[str, Any]], image_id: int, category_ids: Sequence[int] = (1,)
) -> list[dict[str, Any]]:
    """COCO results of one image from the people that `post_process_pose_estimation` returns for it.

    Coordinates are rounded to 1/10,000 of a pixel and keypoint scores to six digits, which halves the file. A person's
    score keeps all its digits: rounded, it could change the order of people.

    Args:
        people (`Sequence[Mapping]`): each with `score`, `label`, `bbox` (4,) xyxy, `keypoints` (K, 2) as pixel indices
            and `scores` (K,), as tensors, arrays or numbers.
        image_id (`int`): the image's id in the annotations.
        category_ids (`Sequence[int]`): the category id of each label.

    Returns:
        `list[dict]`: `image_id`, `category_id`, `keypoints` (x, y and score of each keypoint, flat), `score` and
        `bbox` (x, y, width, height).

    Raises:
        ValueError: a label has no category id, or a person's arrays do not fit together or hold NaN or infinity.

    Example:

    ```python
    >>> person = {"score": 0.9, "label": 0, "bbox": [0, 0, 8, 9], "keypoints": [[3.5, 4.0]], "scores": [0.75]}
    >>> coco_results_from_people([person], image_id=7)[0]["keypoints"]
    [3.5, 4.0, 0.75]
    ```
    """
    if not people:
        return []
    keypoints, keypoint_scores, boxes, scores, labels = (
        _stacked([person[field] for person in people]) for field in ("keypoints", "scores", "bbox", "score", "label")
    )
    if keypoints.ndim != 3 or keypoints.shape[2] != 2 or keypoint_scores.shape != keypoints.shape[:2]:
        raise ValueError(
            f"image {image_id!r}: `keypoints` has shape {tuple(keypoints.shape[1:])} and `scores` "
            f"{tuple(keypoint_scores.shape[1:])}; expected (K, 2) and (K,)"
        )
    if boxes.shape[1:] != (4,):
        raise ValueError(f"image {image_id!r}: `bbox` has shape {tuple(boxes.shape[1:])}; expected (4,), xyxy")
    for field, values in (("keypoints", keypoints), ("scores", keypoint_scores), ("bbox", boxes), ("score", scores)):
        wrong = ~torch.isfinite(values).reshape(len(people), -1).all(dim=1)
        if wrong.any():
            raise ValueError(f"image {image_id!r}: person {int(wrong.nonzero()[0])}: `{field}` holds NaN or infinity")
    for index, label in enumerate(labels.tolist()):
        if not 0 <= label < len(category_ids):
            raise ValueError(
                f"image {image_id!r}: person {index}: `label` is {int(label)}; expected one of the "
                f"{len(category_ids)} that `category_ids` has, counted from 0"
            )
    triples = torch.cat([keypoints.round(decimals=4), keypoint_scores[..., None].round(decimals=6)], dim=2)
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).round(decimals=4)
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[int(label)]),
            "keypoints": flat,
            "score": score,
            "bbox": box,
        }
        for label, flat, score, box in zip(
            labels.tolist(), triples.flatten(1).tolist(), scores.tolist(), boxes.tolist(), strict=True
        )
    ]


def _stacked(values: Sequence[Any]) -> torch.Tensor:
    """What each person has, in one float64 tensor on the CPU; one copy from the device."""
    if isinstance(values[0], torch.Tensor):
        return torch.stack(list(values)).detach().cpu().double()
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def write_coco_results(results: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes COCO results to a JSON file, whole or not at all; missing folders are made.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    write_json(list(results), path)


def read_coco_results(
    results: str | os.PathLike | Sequence[Mapping[str, Any]],
    num_keypoints: int,
    image_ids: Collection[int],
    category_ids: Collection[int],
    scored_category_ids: Collection[int] | None = None,
) -> list[Mapping[str, Any]]:
    """Reads COCO keypoint results and checks every record.

    Args:
        results: a JSON file, or the list that one holds.
        num_keypoints (`int`): K of the annotations.
        image_ids (`Collection`): the ids of the annotations' images.
        category_ids (`Collection`): the ids of the annotations' categories.
        scored_category_ids (`Collection`, *optional*): leave out results of other categories, which may have other
            keypoints.

    Returns:
        `list[Mapping]`: the records as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record is wrong; the message names the file, the record's index from 0, the field and its value.
            Either every record has a `bbox` or none: COCO takes a person's size from it, or else from the keypoints.
    """
    if isinstance(results, str | os.PathLike):
        source, records = os.fspath(results), read_json(results)
    else:
        source, records = "results", results
    checked = require_records(records, source, "result")
    for field, known in (("image_id", frozenset(image_ids)), ("category_id", frozenset(category_ids))):
        for index, record in enumerate(checked):
            value = record.get(field)
            if not is_identifier(value) or value not in known:
                found = f"is {shown(value)}" if field in record else "is missing"
                raise ValueError(
                    f"{source}: result {index}: `{field}` {found}; "
                    f"expected one of the annotations' {len(known)} ids, such as {shown(min(known, key=str))}"
                )
    if scored_category_ids is not None:
        checked = [record for record in checked if record["category_id"] in scored_category_ids]
    require_numbers(
        checked,
        "keypoints",
        f"{3 * num_keypoints} numbers, x, y, score for each of {num_keypoints} keypoints",
        source,
        "result",
        length=3 * num_keypoints,
    )
    require_numbers(checked, "score", "a number", source, "result")
    if any("bbox" in record for record in checked):
        require_numbers(
            checked,
            "bbox",
            "x, y, width, height in every record or in none",
            source,
            "result",
            length=4,
        )
    return checked
