"""From queries to people: scores, clipped boxes, pixel coordinates, NMS.

Post-processing, exported graphs and the decoder's choice of queries all take them from here.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .boxes_querypose import intersection_and_union
from .rois_querypose import coordinate_dtype


class People(NamedTuple):
    """A person for each query, in pixels where sizes are given, else relative to the image.

    Attributes:
        scores (`Tensor` of shape `(B, N)`): class score times mean keypoint confidence.
        labels (`LongTensor` of shape `(B, N)`): index of the best class.
        boxes (`Tensor` of shape `(B, N, 4)`): corners, clipped to the image.
        keypoints (`Tensor` of shape `(B, N, K, 2)`): x, y, not clipped; in pixels they are pixel indices.
        keypoint_scores (`Tensor` of shape `(B, N, K)`)
        counts (`BoolTensor` of shape `(B, N)`): who counts: queries whose keypoints were decoded, whose box is not
            empty, and who is no duplicate.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    keypoints: Tensor
    keypoint_scores: Tensor
    counts: Tensor


def class_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Score and index of the best class, `(B, N)` each, of class logits `(B, N, num_labels)`.

    In float32 at least: in half precision a score could fall on the other side of a threshold.
    """
    best, labels = logits.max(dim=-1)
    return best.to(coordinate_dtype(best.dtype)).sigmoid(), labels


def person_scores(class_scores: Tensor, keypoint_scores: Tensor) -> Tensor:
    """Class scores `(...)` times the mean confidence of the keypoints `(..., K)`; at most the class score."""
    return class_scores * keypoint_scores.mean(dim=-1)


def clip_boxes(boxes: Tensor, limits: Tensor | float) -> Tensor:
    """Corners `(..., 4)` clipped to images that begin at 0 and end at `limits`, widths and heights `(..., 2)`."""
    if not isinstance(limits, Tensor):
        return boxes.clamp(0, limits)
    return torch.minimum(boxes.clamp(min=0), torch.cat([limits, limits], dim=-1).to(boxes.dtype))


def people_of_queries(
    logits: Tensor,
    boxes: Tensor,
    keypoints: Tensor,
    keypoint_scores: Tensor,
    decoded: Tensor | None = None,
    sizes: Tensor | None = None,
    nms_threshold: float | None = None,
) -> People:
    """One person for each query; `counts` says whom to keep.

    Args:
        logits, boxes, keypoints, keypoint_scores, decoded (`Tensor`): `logits`, `pred_boxes`, `pred_keypoints`,
            `keypoint_scores` and `keypoint_query_mask` of [`QueryPosePoseEstimationOutput`]. Without the last every
            query counts as decoded.
        sizes (`Tensor` of shape `(B, 2)`, *optional*): heights and widths in pixels that coordinates are wanted for.
        nms_threshold (`float`, *optional*): see [`find_duplicates`].
    """
    best, labels = class_scores(logits)
    scores = person_scores(best, keypoint_scores.to(best.dtype))
    centers, extents = boxes.split(2, dim=-1)
    corners = torch.cat([centers - extents / 2, centers + extents / 2], dim=-1)
    limits: Tensor | float = 1.0
    if sizes is not None:
        limits = sizes.to(corners.dtype).flip(-1)[:, None]  # (B, 1, 2): width, height
        corners = corners * torch.cat([limits, limits], dim=-1)
        keypoints = keypoints * limits[:, :, None] - 0.5
    corners = clip_boxes(corners, limits)
    counts = (corners[..., 2:] > corners[..., :2]).all(dim=-1)
    if decoded is not None:
        counts = counts & decoded
    if nms_threshold is not None:
        counts = counts & ~find_duplicates(scores.masked_fill(~counts, -1.0), labels, corners, nms_threshold)
    return People(scores, labels, corners, keypoints, keypoint_scores, counts)


def find_duplicates(scores: Tensor, labels: Tensor, boxes: Tensor, threshold: float) -> Tensor:
    """NMS: which boxes overlap one of the same label and a higher score by an IoU above a threshold.

    That one may be a duplicate itself (Fast NMS; Bolya et al., "YOLACT", 2019), so that all are judged at once. Of
    equal scores the first counts as the higher.

    Args:
        scores (`Tensor` of shape `(B, N)`)
        labels (`LongTensor` of shape `(B, N)`)
        boxes (`Tensor` of shape `(B, N, 4)`): corners x1, y1, x2, y2.
        threshold (`float`): between 0 and 1.

    Returns:
        `BoolTensor` of shape `(B, N)`
    """
    intersection, union = intersection_and_union(boxes[:, :, None], boxes[:, None])
    index = torch.arange(scores.shape[1], device=scores.device)
    mine, others = scores[:, :, None], scores[:, None]
    better = (others > mine) | ((others == mine) & (index < index[:, None]))
    same_label = labels[:, :, None] == labels[:, None]
    return (better & same_label & (intersection > threshold * union)).any(dim=-1)
