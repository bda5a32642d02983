"""Initial boxes of the queries: typical boxes of the training people in place of the whole image."""

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from ..data.pose_dataset import PoseDataset
from ..model.modeling_querypose import QueryPoseForPoseEstimation


# Boxes are chosen among so many of the dataset's, by their overlaps with so many people. Both are enough for hundreds
# of queries, and the table of overlaps stays below 100 MB.
_MOST_CANDIDATES = 1500
_MOST_PEOPLE = 15_000


def typical_boxes(dataset: PoseDataset, count: int, seed: int = 0) -> Tensor:
    """Boxes of a dataset's people that together overlap best with all of its people and their mirror images.

    They are chosen one by one: each adds most to the mean over people of the highest IoU with any chosen box.

    Args:
        dataset ([`PoseDataset`]): its annotations are read, its images are not.
        count (`int`): how many boxes.
        seed (`int`): of the choice among people, where there are very many.

    Returns:
        `Tensor` of shape `(count, 4)`: center x, center y, width and height relative to the image.

    Raises:
        ValueError: the dataset has fewer boxes than `count`.
    """
    boxes = [
        [(x + width / 2) / size[0], (y + height / 2) / size[1], width / size[0], height / size[1]]
        for index, size in enumerate(dataset.sizes.tolist())
        for x, y, width, height in (
            annotation["bbox"] for annotation in dataset.annotations(index) if not annotation["iscrowd"]
        )
    ]
    if len(boxes) < count:
        raise ValueError(f"`dataset` has {len(boxes)} boxes of people; expected at least `count`, which is {count}.")
    known = torch.tensor(boxes)
    people = torch.cat([known, torch.cat([1 - known[:, :1], known[:, 1:]], dim=1)])
    people = people[torch.randperm(len(people), generator=torch.Generator().manual_seed(seed))[:_MOST_PEOPLE]]
    candidates = people[: max(_MOST_CANDIDATES, count)]
    overlaps = box_iou(_corners(candidates), _corners(people))
    highest = torch.zeros(len(people))
    chosen: list[int] = []
    for _ in range(count):
        gains = (overlaps - highest).clamp(min=0).sum(dim=1)
        if chosen:
            gains[chosen] = -1  # no box twice, even where none adds anything
        best = int(gains.argmax())
        chosen.append(best)
        highest = torch.maximum(highest, overlaps[best])
    return candidates[chosen]


@torch.no_grad()
def start_from_typical_boxes(model: QueryPoseForPoseEstimation, dataset: PoseDataset, seed: int = 0) -> None:
    """Sets a model's initial boxes to [`typical_boxes`] of a dataset.

    The paper starts every query at the whole image and learns the boxes. In a short training on little data the
    queries spread out faster from here. Where queries have learned boxes of their own, each new box gets the query
    whose box was nearest (by GIoU).
    """
    decoder = model.model.decoder
    boxes = typical_boxes(dataset, len(decoder.initial_boxes), seed)
    old = decoder.initial_boxes
    if (old != old[0]).any():
        nearest = generalized_box_iou(_corners(boxes), _corners(old)).argmax(dim=1)
        decoder.instance_queries.copy_(decoder.instance_queries[nearest])
    decoder.initial_boxes.copy_(boxes)


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")
