"""The optional auxiliary heatmap head on P2 (Section 4.3): its head, target and loss, those of CenterNet."""

import torch
from torch import Tensor, nn

from .configuration_querypose import QueryPoseConfig
from .initialization_querypose import start_from
from .targets_querypose import QueryPoseTargets


class QueryPoseHeatmapHead(nn.Module):
    """Keypoint heatmaps of P2, trained beside the rest and unused in inference."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.d_model, config.d_model, 3, padding=1)
        self.predictor = nn.Conv2d(config.d_model, config.num_keypoints, 1)
        start_from([self.predictor], bias=-2.19)

    def forward(self, features: Tensor) -> Tensor:
        return self.predictor(self.conv(features).relu())


def centernet_radius(width: Tensor, height: Tensor, min_overlap: float = 0.7) -> Tensor:
    """Radius by which both corners of a box may move for it to keep `min_overlap` IoU (Law and Deng, 2018; CenterNet).

    The smallest of the three cases: both corners inwards, both outwards, one of each, each the root of a quadratic as
    CenterNet's released code takes it.
    """

    def root(a: float, b: Tensor, c: Tensor) -> Tensor:
        return (b + (b.square() - 4 * a * c).clamp(min=0).sqrt()) / 2

    one_of_each = root(1, height + width, width * height * (1 - min_overlap) / (1 + min_overlap))
    inwards = root(4, 2 * (height + width), (1 - min_overlap) * width * height)
    outwards = root(4 * min_overlap, -2 * min_overlap * (height + width), (min_overlap - 1) * width * height)
    return torch.minimum(torch.minimum(one_of_each, inwards), outwards)


def keypoint_heatmaps(targets: QueryPoseTargets, image_sizes: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Target heatmaps of the auxiliary head: a Gaussian around every labelled keypoint, maxima merged.

    Args:
        targets ([`QueryPoseTargets`])
        image_sizes (`Tensor` of shape `(batch_size, 2)`): unpadded heights and widths in pixels.
        height, width (`int`): size of the maps.
        stride (`int`): pixels per map cell.

    Returns:
        `Tensor` of shape `(batch_size, num_keypoints, height, width)`, 1 at the peaks.
    """
    num_people, num_keypoints = targets.keypoints.shape[:2]
    batch_size = len(image_sizes)
    maps = targets.keypoints.new_zeros(batch_size * num_keypoints * height * width)
    if not num_people:
        return maps.view(batch_size, num_keypoints, height, width)
    device = maps.device
    image_index = targets.image_of_person()
    size = image_sizes[image_index].flip(-1).to(maps.dtype)  # width, height
    cells = (targets.keypoints[..., :2] * size[:, None] / stride).floor().long()
    box_sides = (targets.boxes[:, 2:] - targets.boxes[:, :2]) * size / stride
    radius = centernet_radius(box_sides[:, 0], box_sides[:, 1]).clamp(min=0).floor().long()
    sigma = (2 * radius + 1).to(maps.dtype) / 6

    reach = int(radius.max())
    offset = torch.arange(-reach, reach + 1, device=device)
    offset_y, offset_x = torch.meshgrid(offset, offset, indexing="ij")
    x = cells[..., 0, None, None] + offset_x
    y = cells[..., 1, None, None] + offset_y
    value = torch.exp(-(offset_x**2 + offset_y**2) / (2 * sigma[:, None, None] ** 2)).to(maps.dtype)
    within = (offset_x.abs() <= radius[:, None, None]) & (offset_y.abs() <= radius[:, None, None])
    # a keypoint whose own cell is off the map has no peak there, and then no Gaussian either
    on_map = (cells >= 0).all(-1) & (cells[..., 0] < width) & (cells[..., 1] < height)
    labelled = (targets.keypoints[..., 2] > 0) & on_map
    keep = within[:, None] & labelled[..., None, None] & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    channel = image_index[:, None] * num_keypoints + torch.arange(num_keypoints, device=device)
    index = (channel[..., None, None] * height + y) * width + x
    value = value[:, None].expand_as(index)
    maps.scatter_reduce_(0, index[keep], value[keep], reduce="amax")
    return maps.view(batch_size, num_keypoints, height, width)


def heatmap_focal_loss(logits: Tensor, heatmaps: Tensor) -> Tensor:
    """CenterNet's penalty-reduced focal loss with exponents 2 and 4, over the number of peaks."""
    probability = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    peaks = heatmaps == 1
    positive = torch.where(peaks, probability.log() * (1 - probability) ** 2, 0)
    negative = torch.where(peaks, 0, (1 - probability).log() * probability**2 * (1 - heatmaps) ** 4)
    return -(positive.sum() + negative.sum()) / peaks.sum().clamp(min=1)
