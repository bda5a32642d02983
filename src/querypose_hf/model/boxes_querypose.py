"""How much boxes overlap: their generalised IoU, which the model is trained with, and which are duplicates."""

import torch
from torch import Tensor


# Boxes are clamped to this many image sizes before areas are formed: far beyond any box that means something, and
# close enough for products of two sides to stay finite in float32 when a diverging model predicts enormous ones.
_LARGEST_COORDINATE = 1e6
#: COCO's people cover about this share of their boxes, by which OKS is scaled where the area is not at hand.
AREA_OF_BOX = 0.53


def box_area(boxes: Tensor) -> Tensor:
    """Areas of boxes x1, y1, x2, y2, 0 where a corner is on the wrong side of the other."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def intersection_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas that boxes x1, y1, x2, y2 share and cover, element by element over broadcast leading dimensions."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    intersection = box_area(torch.cat([low, high], dim=-1))
    return intersection, box_area(boxes) + box_area(others) - intersection


def generalized_box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of boxes x1, y1, x2, y2, element by element over broadcast leading dimensions.

    Boxes without area and boxes so large that their area would overflow give finite values and gradients.
    """
    boxes = boxes.clamp(-_LARGEST_COORDINATE, _LARGEST_COORDINATE)
    tiny = torch.finfo(boxes.dtype).tiny
    intersection, union = intersection_and_union(boxes, others)
    low, high = torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    enclosing = box_area(torch.cat([low, high], dim=-1))
    return intersection / union.clamp(min=tiny) - (enclosing - union) / enclosing.clamp(min=tiny)


def find_duplicates(scores: Tensor, labels: Tensor, boxes: Tensor, threshold: float) -> Tensor:
    """Which boxes overlap one of the same label and a higher score by an IoU above a threshold.

    It does not matter whether that one is a duplicate itself (Fast NMS; Bolya et al., "YOLACT", 2019), so that all are
    judged at once. Of equal scores the first is the higher.

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
