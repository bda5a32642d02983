"""How much boxes overlap: areas, intersections and the generalised IoU."""

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
