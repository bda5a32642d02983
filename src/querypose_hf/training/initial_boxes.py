"""Where queries start to look: boxes of the training people in place of the whole picture."""

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from ..data.pose_dataset import PoseDataset
from ..model.modeling_querypose import QueryPoseForPoseEstimation


# Among so many of the data set's boxes the best are looked for, and on so many they are tried: both are enough for
# hundreds of queries, and the table of their overlaps stays below 100 MB.
_MOST_CANDIDATES = 1500
_MOST_PEOPLE = 15_000


def typical_boxes(dataset: PoseDataset, count: int, seed: int = 0) -> Tensor:
    """Boxes of a data set's people that together overlap best with all of them and their mirror images.

    Each is the one that adds most to the mean over people of the highest IoU, given those before it.

    Args:
        dataset ([`PoseDataset`]): its annotations are read, its pictures are not.
        count (`int`): how many boxes.
        seed (`int`): of the choice of people that are looked at, where there are very many.

    Returns:
        `Tensor` of shape `(count, 4)`: centre x, centre y, width and height relative to the picture.

    Raises:
        ValueError: the data set has fewer boxes than `count`.
    """
    boxes = [
        [(x + width / 2) / size[0], (y + height / 2) / size[1], width / size[0], height / size[1]]
        for index, size in enumerate(dataset.sizes.tolist())
        for x, y, width, height in (
            annotation["bbox"] for annotation in dataset.annotations(index) if not annotation["iscrowd"]
        )
    ]
    if len(boxes) < count:
        raise ValueError(f"`dataset` has {len(boxes)} boxes of people; expected at least {count}, the boxes wanted.")
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
    """Sets the table of initial boxes to [`typical_boxes`] of a data set.

    The paper starts every query at the whole picture and lets the table learn. In a short training on little data the
    queries spread out faster from here. Where queries have learned boxes of their own, each new box gets the query
    whose box was nearest.
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
