"""Test-time augmentation: one set of people from several views of an image, mirrored or at several scales.

This is not in the paper, whose figures are from one view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment


#: People of two views are one person from this similarity on.
SAME_PERSON_SIMILARITY = 0.5

People = dict[str, np.ndarray]

_FIELDS = ("score", "label", "bbox", "keypoints", "scores")


def mirror_images(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
    """A batch with every image mirrored in its own width; padding stays at the right.

    Args:
        pixel_values (`torch.Tensor`): (B, 3, H, W).
        pixel_mask (`torch.Tensor`): (B, H, W), 0 where an image is padded.
    """
    columns = torch.arange(pixel_values.shape[-1], device=pixel_values.device)
    widths = pixel_mask[:, 0].sum(dim=-1, keepdim=True)
    sources = torch.where(columns < widths, widths - 1 - columns, columns)
    return pixel_values.gather(-1, sources[:, None, None].expand_as(pixel_values))


def mirror_people(people: Sequence[Mapping[str, Any]], width: float, flip_indices: Sequence[int]) -> People:
    """People found in a mirrored image, as they are in the image itself.

    Args:
        people (`Sequence[Mapping]`): as `post_process_pose_estimation` returns them for the mirrored image.
        width (`float`): of the image, in pixels.
        flip_indices (`Sequence[int]`): for each keypoint the index of its mirror image.

    Returns:
        `dict[str, np.ndarray]`: the people as [`stack_people`] returns them.
    """
    mirrored = stack_people(people)
    if not len(mirrored["score"]):
        return mirrored
    order = np.asarray(flip_indices)
    left, top, right, bottom = mirrored["bbox"].T
    # boxes are continuous, x to W - x; keypoints are pixel indices, x to W - 1 - x
    mirrored["bbox"] = np.stack([width - right, top, width - left, bottom], axis=1)
    points = mirrored["keypoints"][:, order]
    mirrored["keypoints"] = np.stack([width - 1 - points[..., 0], points[..., 1]], axis=-1)
    mirrored["scores"] = mirrored["scores"][:, order]
    return mirrored


def stack_people(people: Sequence[Mapping[str, Any]]) -> People:
    """n people as arrays: `score` and `label` (n,), `bbox` (n, 4), `keypoints` (n, K, 2), `scores` (n, K)."""
    if not people:
        return {field: np.zeros(0) for field in _FIELDS}
    return {field: torch.stack([person[field] for person in people]).double().numpy() for field in _FIELDS}


def merge_views(views: Sequence[People], sigmas: Sequence[float], top_k: int | None = None) -> list[dict[str, Any]]:
    """Merges the people found in several views of one image.

    The views are merged one after the other. The people of each are matched one to one with those merged so far, so
    that the sum of similarities is highest. A pair is one person if its labels are the same and its similarity is at
    least [`SAME_PERSON_SIMILARITY`]. Similarity is OKS, with the mean area of the two boxes in place of the annotated
    area.

    Of the views that a person was found in, a merged person has the mean keypoints weighted by their scores, the mean
    box weighted by the person's scores, and the mean keypoint scores. Its own score is the sum of its scores divided
    by the number of all views: one found in only one of two views keeps half its score.

    Args:
        views (`Sequence[dict]`): the people of each view, in pixels of the image, as [`stack_people`] returns them.
        sigmas (`Sequence[float]`): OKS sigmas of the K keypoints.
        top_k (`int`, *optional*): at most so many people.

    Returns:
        `list[dict]`: people, best first, with the fields of `post_process_pose_estimation` as arrays and numbers.
    """
    found = [view for view in views if len(view["score"])]
    if not found:
        return []
    constants = (2 * np.asarray(sigmas, dtype=np.float64)) ** 2
    merged = _weighted(found[0])
    for view in found[1:]:
        first, second = _matches(_means(merged), view, constants)
        addition = _weighted(view)
        alone = np.setdiff1d(np.arange(len(view["score"])), second)
        for field, values in merged.items():
            if field != "label":
                values[first] += addition[field][second]
            merged[field] = np.concatenate([values, addition[field][alone]])
    people = _means(merged)
    people["score"] = merged["score"] / len(views)
    order = np.argsort(-people["score"], kind="stable")[:top_k]
    return [{field: people[field][index] for field in _FIELDS} for index in order]


def _weighted(people: People) -> People:
    """Sums over views, here over one: weights, and coordinates times their weights."""
    score = np.maximum(people["score"], 1e-12)
    confidence = np.maximum(people["scores"], 1e-12)
    return {
        "label": people["label"],
        "views": np.ones_like(score),
        "score": score,
        "scores": confidence,
        "bbox": people["bbox"] * score[:, None],
        "keypoints": people["keypoints"] * confidence[..., None],
    }


def _means(sums: People) -> People:
    return {
        "label": sums["label"],
        "bbox": sums["bbox"] / sums["score"][:, None],
        "keypoints": sums["keypoints"] / sums["scores"][..., None],
        "scores": sums["scores"] / sums["views"][:, None],
    }


def _matches(first: People, second: People, constants: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the people that are the same in both."""
    distance = ((first["keypoints"][:, None] - second["keypoints"][None]) ** 2).sum(axis=-1)
    areas = [np.prod(people["bbox"][:, 2:] - people["bbox"][:, :2], axis=1) for people in (first, second)]
    area = np.maximum((areas[0][:, None] + areas[1][None]) / 2, 1e-9)
    similarity = np.exp(-distance / (2 * constants * area[..., None])).mean(axis=-1)
    similarity[first["label"][:, None] != second["label"][None]] = 0
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    same = similarity[rows, columns] >= SAME_PERSON_SIMILARITY
    return rows[same], columns[same]
