"""The geometry of part attention maps: where they look, and the loss that teaches them to look at keypoints.

But for the sine encoding none of this is in the paper; see `keypoint_coordinates` of [`QueryPoseConfig`]. A map covers
its RoI: places are relative to it, as keypoints are to their box. Its centre is 0, its sides are 1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .boxes_querypose import AREA_OF_BOX
from .rois_querypose import coordinate_dtype


def cell_centers(length: int, like: Tensor) -> Tensor:
    """Where the cells of a map of `length` cells lie, `(length,)`, from -0.5 to 0.5."""
    return (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length - 0.5


def sine_encoding(features: Tensor) -> Tensor:
    """DETR's encoding of the cells of `(..., dim, height, width)`, `(height * width, dim)`: first of y, then of x.

    Cells are placed between 0 and 2 pi. Frequencies fall from 1 to 1/10000; sines and cosines alternate.
    """
    dim, height, width = features.shape[-3:]
    count, device, dtype = dim // 4, features.device, coordinate_dtype(features.dtype)
    frequencies = 10000.0 ** -(torch.arange(count, device=device, dtype=dtype) / count)

    def encode(length: int) -> Tensor:
        places = (torch.arange(length, device=device, dtype=dtype) + 0.5) * (2 * math.pi / length)
        angles = places[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(features.dtype)


def sharpened(maps: Tensor) -> Tensor:
    """The cubes of attention maps `(..., height, width)`; each sums to 1 again.

    The mean of a broad map lies towards the middle of the box; that of its cube stays near the peak. And maps learn
    Gaussians of a cell, which is more than a well-seen keypoint is off.
    """
    maps = maps.to(coordinate_dtype(maps.dtype))
    # divided by the largest value first, so that the cube of a broad map does not underflow
    maps = (maps / maps.detach().amax(dim=(-2, -1), keepdim=True)) ** 3
    return maps / maps.sum(dim=(-2, -1), keepdim=True)


def attention_centers(maps: Tensor) -> Tensor:
    """Where attention maps look: the mean places of their cubes, `(..., 2)` as x and y.

    Args:
        maps (`Tensor` of shape `(..., height, width)`): each sums to 1.
    """
    maps = sharpened(maps)
    height, width = maps.shape[-2:]
    # no matrix products: under autocast they would round places to bfloat16
    x = (maps.sum(dim=-2) * cell_centers(width, maps)).sum(dim=-1)
    y = (maps.sum(dim=-1) * cell_centers(height, maps)).sum(dim=-1)
    return torch.stack([x, y], dim=-1)


@torch.no_grad()
def expected_similarity(maps: Tensor, keypoints: Tensor, rois: Tensor, oks_constants: Tensor) -> Tensor:
    """OKS expected of each keypoint if its true place is distributed as the map's cube, `(R, K)`, in [0, 1].

    Args:
        maps (`Tensor` of shape `(R, K, height, width)`): the map of each keypoint's part; each sums to 1.
        keypoints (`Tensor` of shape `(R, K, 2)`): relative to the RoI.
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels. OKS is scaled by a share of the area.
        oks_constants (`Tensor` of shape `(K,)`): COCO's sigmas.
    """
    maps, keypoints = sharpened(maps).to(rois.dtype), keypoints.to(rois.dtype)
    sides = (rois[:, 3:] - rois[:, 1:3]).clamp(min=torch.finfo(rois.dtype).eps)
    aspect = sides[:, :1] / sides[:, 1:]
    # OKS divides squared pixels by the area: what is left of x is the RoI's aspect ratio, of y its inverse
    scale = 2 * AREA_OF_BOX * (2 * oks_constants.to(rois.dtype)).square()

    def similarity(coordinates: Tensor, length: int, aspect: Tensor) -> Tensor:
        distance = (cell_centers(length, maps) - coordinates[..., None]).square()
        return torch.exp(-distance * (aspect / scale)[..., None])

    height, width = maps.shape[-2:]
    columns = similarity(keypoints[..., 0], width, aspect)
    rows = similarity(keypoints[..., 1], height, 1 / aspect)
    # rounding must not lift a person's score above the class score
    return (torch.matmul(maps, columns[..., None])[..., 0] * rows).sum(dim=-1).clamp(max=1)


def part_attention_loss(
    attention_maps: Tensor, keypoints: Tensor, counts: Tensor, parts: Sequence[Sequence[int]]
) -> Tensor:
    """Cross-entropy of part attention maps to where their parts' keypoints are, summed over people and parts.

    The target of a part is the mean of one normalised Gaussian per keypoint that counts, with a deviation of one cell.
    Parts without any do not count.

    Args:
        attention_maps (`Tensor` of shape `(P, M, height, width)`): each sums to 1.
        keypoints (`Tensor` of shape `(P, K, 2)`): ground truth relative to what the maps cover.
        counts (`BoolTensor` of shape `(P, K)`): which of them count.
        parts (`Sequence[Sequence[int]]`): the keypoints of each part.
    """
    height, width = attention_maps.shape[-2:]

    def gaussian(places: Tensor, length: int) -> Tensor:
        distance = (cell_centers(length, places) - places[..., None]) * length
        values = torch.exp(-distance.square() / 2)
        return values / values.sum(-1, keepdim=True)

    rows, columns = gaussian(keypoints[..., 1], height), gaussian(keypoints[..., 0], width)
    loss = attention_maps.new_zeros(())
    for part, members in enumerate(parts):
        weights = counts[:, members].to(rows.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        target = torch.einsum("rk,rkh,rkw->rhw", weights, rows[:, members], columns[:, members])
        loss = loss - (target * attention_maps[:, part].to(target.dtype).clamp(min=1e-8).log()).sum()
    return loss
