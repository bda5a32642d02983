"""Where queries start to look: boxes of the training people in place of the whole picture."""

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from ..data.pose_dataset import PoseDataset
from ..modeling_querypose import QueryPoseForPoseEstimation


def typical_boxes(dataset: PoseDataset, count: int, seed: int = 0) -> Tensor:
    """Centres of k-means clusters of a data set's boxes and their mirror images.

    Args:
        dataset ([`PoseDataset`]): its annotations are read, its pictures are not.
        count (`int`): how many boxes.
        seed (`int`): of the clustering.

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
    known = np.array(boxes)
    mirrored = np.column_stack([1 - known[:, 0], known[:, 1:]])
    centres, _ = kmeans2(np.concatenate([known, mirrored]), count, iter=50, minit="++", seed=seed)
    return torch.tensor(centres, dtype=torch.float32)


@torch.no_grad()
def start_from_typical_boxes(model: QueryPoseForPoseEstimation, dataset: PoseDataset, seed: int = 0) -> None:
    """Sets the table of initial boxes to [`typical_boxes`] of a data set.

    The paper starts every query at the whole picture and lets the table learn. In a short training on little data the
    queries spread out faster from here.
    """
    table = model.model.decoder.initial_boxes
    table.copy_(typical_boxes(dataset, len(table), seed))
