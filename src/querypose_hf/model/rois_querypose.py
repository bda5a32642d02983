"""RoIAlign, and the features of a batch that box stages and keypoint stages pool from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from .backbone_querypose import STRIDES
from .configuration_querypose import QueryPoseConfig
from .lazy_level_querypose import QueryPoseLazyLevel


# RoIAlign's kernels index by the coordinates that they get: boxes of a diverged model must not read out of bounds.
_LARGEST_ROI_COORDINATE = 1e6


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Coordinates are at least float32: bfloat16 cannot tell neighbouring pixels apart beyond 256."""
    return torch.promote_types(dtype, torch.float32)


class QueryPoseRoiPooler:
    """The pyramid of a batch, laid out for RoIAlign, and the sizes of its images.

    Args:
        config ([`QueryPoseConfig`])
        pyramid (`Sequence[Tensor | QueryPoseLazyLevel]`): P2 to P5, `(B, d, height / stride, width / stride)`.
        image_sizes (`Tensor` of shape `(B, 2)`): unpadded heights and widths in pixels.

    Attributes:
        scale (`Tensor` of shape `(B, 1, 4)`): width, height, width, height of each image; boxes in pixels divided by
            it are relative to the image.
    """

    def __init__(self, config: QueryPoseConfig, pyramid: Sequence[Tensor | QueryPoseLazyLevel], image_sizes: Tensor):
        self.config = config
        self.feature_dtype = pyramid[0].dtype
        dtype = coordinate_dtype(self.feature_dtype)
        # RoIAlign takes RoIs and features of one type. Features that are laid out otherwise would be copied each time.
        by_rows = reads_rows(pyramid[0].device)
        layout = torch.channels_last if by_rows else torch.contiguous_format
        if not by_rows:  # the decoder alone is compiled
            pyramid = [level.dense() if isinstance(level, QueryPoseLazyLevel) else level for level in pyramid]
        self.pyramid = [
            level if isinstance(level, QueryPoseLazyLevel) else level.to(dtype).contiguous(memory_format=layout)
            for level in pyramid
        ]
        self.scale = image_sizes.to(dtype).flip(-1).repeat(1, 2)[:, None]

    def rois(self, boxes: Tensor) -> Tensor:
        """Boxes `(B, N, 4)` in pixels as RoIs `(B * N, 5)`: the image's index, then the corners."""
        images = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
        index = images[:, None, None].expand(-1, boxes.shape[1], 1)
        corners = boxes.detach().nan_to_num(nan=0.0).clamp(-_LARGEST_ROI_COORDINATE, _LARGEST_ROI_COORDINATE)
        return torch.cat([index, corners], dim=-1).flatten(0, 1)

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


def align_rois(
    features: Tensor | QueryPoseLazyLevel, rois: Tensor, resolution: int, stride: int, sampling_ratio: int
) -> Tensor:
    """RoIAlign (He et al., 2017), shifted by half a pixel.

    torchvision's CPU kernel walks through one channel after the other. But a bin is a weighted sum of
    `4 * sampling_ratio ** 2` pixels, each a row of `d` numbers in a channels-last tensor. `embedding_bag` computes
    such sums 2.4 to 5 times as fast, forward and backward.

    Args:
        features (`Tensor | QueryPoseLazyLevel` of shape `(B, d, height, width)`): a lazy level where
            [`reads_rows`] is true alone.
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels of the image; no gradient flows into them.
        resolution (`int`): bins per side.
        stride (`int`): pixels per cell of the features.
        sampling_ratio (`int`): samples per bin and direction.

    Returns:
        `Tensor` of shape `(R, d, resolution, resolution)`.
    """
    if not reads_rows(features.device):
        return roi_align(features, rois, resolution, 1 / stride, sampling_ratio=sampling_ratio, aligned=True)
    pixels, weights = pixels_of_bins(rois, grids_of([features], [stride]), resolution, sampling_ratio)
    return sum_pixels(features, pixels, weights)


def grids_of(pyramid: Sequence[Tensor | QueryPoseLazyLevel], strides: Sequence[int]) -> Tensor:
    """Width, height and stride of each level, a `LongTensor` `(levels, 3)`."""
    return torch.tensor(
        [(level.shape[-1], level.shape[-2], stride) for level, stride in zip(pyramid, strides, strict=True)]
    )


@torch.no_grad()
def pixels_of_bins(rois: Tensor, grids: Tensor, resolution: int, sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """The pixels that each bin of RoIAlign is a weighted sum of, and their weights.

    Args:
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels of the image.
        grids (`LongTensor` of shape `(R, 3)` or `(1, 3)`): width, height and stride of the level of each RoI.
        resolution, sampling_ratio (`int`): see [`align_rois`].

    Returns:
        `tuple`: a `LongTensor` and a `Tensor`, `(R, resolution, resolution, 4 * sampling_ratio ** 2)` each. A pixel is
        given as (image * height + y) * width + x.
    """
    samples = resolution * sampling_ratio
    low, high = (rois[:, 1:] / grids[:, 2:] - 0.5).view(-1, 2, 1, 2).unbind(1)  # (R, 1, 2): x and y
    fractions = torch.linspace(0.5 / samples, 1 - 0.5 / samples, samples, dtype=rois.dtype)
    places = torch.lerp(low, high, fractions[:, None])  # (R, samples, 2)
    ends = grids[:, None, :2]
    # up to a pixel beyond the edge the edge counts, further out nothing
    inside = ((places >= -1) & (places <= ends)) / sampling_ratio
    places = torch.minimum(places.clamp(min=0), ends - 1)
    first = places.floor()
    share = places - first
    pixels = torch.stack([first, torch.minimum(first + 1, ends - 1)], dim=2).long()  # (R, samples, 2, 2)
    weights = torch.stack([1 - share, share], dim=2) * inside[:, :, None]
    # a bin's pixels: all of its rows by all of its columns
    columns, rows = pixels.view(-1, resolution, 2 * sampling_ratio, 2).unbind(-1)
    across, down = weights.view(-1, resolution, 2 * sampling_ratio, 2).unbind(-1)
    width, height = grids[:, :2, None, None].unbind(1)
    rows = (rois[:, 0].long()[:, None, None] * height + rows) * width
    pixels = rows[:, :, None, :, None] + columns[:, None, :, None]
    weights = down[:, :, None, :, None] * across[:, None, :, None]
    return pixels.flatten(-2), weights.flatten(-2)


def sum_pixels(features: Tensor | QueryPoseLazyLevel, pixels: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of pixels of `features` `(B, d, height, width)`, as [`pixels_of_bins`] gives them.

    Returns:
        `Tensor` of shape `(R, d, resolution, resolution)`.
    """
    if isinstance(features, QueryPoseLazyLevel):
        rows = features.read(pixels)
    else:
        rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    weights = weights.flatten(0, 2).to(rows.dtype)
    summed = nn.functional.embedding_bag(pixels.flatten(0, 2), rows, mode="sum", per_sample_weights=weights)
    return summed.view(*pixels.shape[:3], rows.shape[1]).permute(0, 3, 1, 2)


def pool_from_pyramid(
    pyramid: Sequence[Tensor | QueryPoseLazyLevel], rois: Tensor, resolution: int, sampling_ratio: int
) -> Tensor:
    """RoIAlign on the level that fits each RoI's size (FPN, equation 1).

    Args:
        pyramid (`Sequence[Tensor | QueryPoseLazyLevel]`): P2 to P5, `(B, d, height / stride, width / stride)`.
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels.
        resolution, sampling_ratio (`int`): see [`align_rois`].

    Returns:
        `Tensor` of shape `(R, d, resolution, resolution)`.
    """
    size = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0)
    level = torch.floor(4 + torch.log2(size.prod(-1).sqrt() / 224 + 1e-8)).clamp(2, 1 + len(pyramid)).long() - 2
    if reads_rows(rois.device):
        # one computation of pixels for all levels, whose RoIs lie one level after the other
        level, order = level.sort()
        grids = grids_of(pyramid, STRIDES[: len(pyramid)])[level]
        pixels, weights = pixels_of_bins(rois[order], grids, resolution, sampling_ratio)
        counts = level.bincount(minlength=len(pyramid)).tolist()
        pooled = torch.cat(
            [sum_pixels(*each) for each in zip(pyramid, pixels.split(counts), weights.split(counts), strict=True)]
        )
        return pooled[order.argsort()]
    # To look up the RoIs of a level would be a host sync. So each level takes all of them: those of other levels are
    # moved off the image, where RoIAlign gives zeros at once.
    away = rois.new_full((4,), -_LARGEST_ROI_COORDINATE)
    corners = [torch.where((level == index)[:, None], rois[:, 1:], away) for index in range(len(pyramid))]
    levels = [
        align_rois(features, torch.cat([rois[:, :1], moved], dim=1), resolution, stride, sampling_ratio)
        for features, moved, stride in zip(pyramid, corners, STRIDES, strict=False)
    ]
    return torch.stack(levels).sum(dim=0)
