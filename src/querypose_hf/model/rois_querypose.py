"""RoIAlign, and the features of a batch that box stages and keypoint stages pool from."""

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from .backbone_querypose import STRIDES
from .configuration_querypose import QueryPoseConfig


# RoIAlign's kernels index by the coordinates that they get: boxes of a diverged model must not read out of bounds.
_LARGEST_ROI_COORDINATE = 1e6


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Coordinates are at least float32: bfloat16 cannot tell neighbouring pixels apart beyond 256."""
    return torch.promote_types(dtype, torch.float32)


class QueryPoseRoiPooler:
    """The pyramid of a batch, laid out for RoIAlign, and the sizes of its images.

    Args:
        config ([`QueryPoseConfig`])
        pyramid (`list[Tensor]`): P2 to P5, `(B, d, height / stride, width / stride)`.
        image_sizes (`Tensor` of shape `(B, 2)`): unpadded heights and widths in pixels.

    Attributes:
        scale (`Tensor` of shape `(B, 1, 4)`): width, height, width, height of each image; boxes in pixels divided by
            it are relative to the image.
    """

    def __init__(self, config: QueryPoseConfig, pyramid: list[Tensor], image_sizes: Tensor):
        self.config = config
        self.feature_dtype = pyramid[0].dtype
        dtype = coordinate_dtype(self.feature_dtype)
        # RoIAlign takes RoIs and features of one type. Features that are laid out otherwise would be copied each time.
        layout = torch.channels_last if reads_rows(pyramid[0].device) else torch.contiguous_format
        self.pyramid = [level.to(dtype).contiguous(memory_format=layout) for level in pyramid]
        self.scale = image_sizes.to(dtype).flip(-1).repeat(1, 2)[:, None]

    def rois(self, boxes: Tensor, images: Tensor | None = None) -> Tensor:
        """Boxes `(B, N, 4)` in pixels as RoIs `(B * N, 5)`: the image's index, then the corners.

        Args:
            boxes (`Tensor` of shape `(B, N, 4)`)
            images (`Tensor` of shape `(B,)`, *optional*): the image of each row of `boxes`; by default row i is of
                image i.
        """
        if images is None:
            images = torch.arange(boxes.shape[0], device=boxes.device)
        index = images.to(boxes.dtype).repeat_interleave(boxes.shape[1])
        corners = boxes.detach().flatten(0, 1).nan_to_num(nan=0.0)
        return torch.cat([index[:, None], corners.clamp(-_LARGEST_ROI_COORDINATE, _LARGEST_ROI_COORDINATE)], dim=1)

    def box_features(self, rois: Tensor) -> Tensor:
        """`(R, d, 7, 7)`: RoIAlign on the level that fits each RoI's size."""
        config = self.config
        features = pool_from_pyramid(self.pyramid, rois, config.box_pooler_resolution, config.pooler_sampling_ratio)
        return features.to(self.feature_dtype)

    def keypoint_features(self, rois: Tensor) -> Tensor:
        """`(R, d, 14, 14)`: RoIAlign on P2."""
        config = self.config
        features = align_rois(
            self.pyramid[0], rois, config.pose_pooler_resolution, STRIDES[0], config.pooler_sampling_ratio
        )
        return features.to(self.feature_dtype)


def reads_rows(device: torch.device) -> bool:
    """Whether [`align_rois`] reads features pixel by pixel, which wants them in channels-last layout."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def align_rois(features: Tensor, rois: Tensor, resolution: int, stride: int, sampling_ratio: int) -> Tensor:
    """RoIAlign (He et al., 2017), shifted by half a pixel.

    torchvision's CPU kernel walks through one channel after the other. But a bin is a weighted sum of
    `4 * sampling_ratio ** 2` pixels, each a row of `d` numbers in a channels-last tensor. `embedding_bag` computes
    such sums 2.4 to 5 times as fast, forward and backward.

    Args:
        features (`Tensor` of shape `(B, d, height, width)`)
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels of the image; no gradient flows into them.
        resolution (`int`): bins per side.
        stride (`int`): pixels per cell of the features.
        sampling_ratio (`int`): samples per bin and direction.

    Returns:
        `Tensor` of shape `(R, d, resolution, resolution)`.
    """
    if not reads_rows(features.device):
        return roi_align(features, rois, resolution, 1 / stride, sampling_ratio=sampling_ratio, aligned=True)
    height, width = features.shape[-2:]
    with torch.no_grad():
        images = rois[:, 0].long()
        ends = (rois[:, 1:] / stride - 0.5).unflatten(1, (2, 2))  # (R, 2, 2): low and high, x and y
        samples = resolution * sampling_ratio
        fractions = (torch.arange(samples, dtype=rois.dtype) + 0.5) / samples
        places = ends[:, :1] + fractions[:, None] * (ends[:, 1:] - ends[:, :1])  # (R, samples, 2)
        limits = torch.tensor([width, height], dtype=rois.dtype)
        # up to a pixel beyond the edge the edge counts, further out nothing
        inside = ((places >= -1) & (places <= limits)) / sampling_ratio
        places = torch.minimum(places.clamp(min=0), limits - 1)
        low = places.floor()
        share = places - low
        pixels = torch.stack([low, torch.minimum(low + 1, limits - 1)], dim=2).long()  # (R, samples, 2, 2)
        weights = torch.stack([1 - share, share], dim=2) * inside[:, :, None]
        # a bin's pixels: all of its rows by all of its columns
        pixels = pixels.view(len(rois), resolution, 2 * sampling_ratio, 2)
        weights = weights.view(len(rois), resolution, 2 * sampling_ratio, 2)
        rows = (images[:, None, None] * height + pixels[..., 1]) * width
        index = rows[:, :, None, :, None] + pixels[:, None, :, None, :, 0]
        weight = weights[:, :, None, :, None, 1] * weights[:, None, :, None, :, 0]
    bins = len(rois) * resolution**2
    table = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    pooled = nn.functional.embedding_bag(
        index.reshape(bins, (2 * sampling_ratio) ** 2),
        table,
        mode="sum",
        per_sample_weights=weight.reshape(bins, (2 * sampling_ratio) ** 2).to(table.dtype),
    )
    return pooled.view(len(rois), resolution, resolution, features.shape[1]).permute(0, 3, 1, 2)


def pool_from_pyramid(pyramid: list[Tensor], rois: Tensor, resolution: int, sampling_ratio: int) -> Tensor:
    """RoIAlign on the level that fits each RoI's size (FPN, equation 1).

    Args:
        pyramid (`list[Tensor]`): P2 to P5, `(B, d, height / stride, width / stride)`.
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels.
        resolution, sampling_ratio (`int`): see [`align_rois`].

    Returns:
        `Tensor` of shape `(R, d, resolution, resolution)`.
    """
    size = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0)
    level = torch.floor(4 + torch.log2(size.prod(-1).sqrt() / 224 + 1e-8)).clamp(2, 1 + len(pyramid)) - 2

    def pool(index: int, selected: Tensor) -> Tensor:
        return align_rois(pyramid[index], selected, resolution, STRIDES[index], sampling_ratio)

    if reads_rows(rois.device):
        rows = [torch.nonzero(level == index).flatten() for index in range(len(pyramid))]
        pooled = torch.cat([pool(index, rois[selected]) for index, selected in enumerate(rows)])
        return pooled[torch.cat(rows).argsort()]
    # To look up the RoIs of a level would be a host sync. So each level takes all of them: those of other levels are
    # moved off the image, where RoIAlign gives zeros at once.
    away = rois.new_full((4,), -_LARGEST_ROI_COORDINATE)
    corners = [torch.where((level == index)[:, None], rois[:, 1:], away) for index in range(len(pyramid))]
    levels = [pool(index, torch.cat([rois[:, :1], moved], dim=1)) for index, moved in enumerate(corners)]
    return torch.stack(levels).sum(dim=0)
