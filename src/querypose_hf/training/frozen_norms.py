"""Frozen batch norms at the price of the convolutions before them, in training."""

from typing import Any

import torch
from torch import nn

from ..model.modeling_querypose import QueryPoseBackbone
from ..weights.fusion import find_norm_pairs, norm_tail


class _ScaledConv2d(nn.Conv2d):
    """A convolution that does the work of the frozen batch norm after it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # in a tuple, so that the norm does not become a child; a deep copy of the network takes its own norm along
        (norm,) = self.__dict__["following_norm"]
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        return self._conv_forward(input, self.weight * scale[:, None, None, None], shift)


def _run_tail(norm: Any, features: torch.Tensor) -> torch.Tensor:
    for module in norm_tail(norm):
        features = module(features)
    return features


def fold_frozen_norms(backbone: QueryPoseBackbone) -> int:
    """Lets convolutions scale their weights by the frozen batch norms after them, in every forward.

    A norm then reads and writes no feature map any more. Outputs and gradients stay the same to floating-point
    tolerance, and parameters, buffers and their names stay as they are. Other batch norms are left alone, and so are
    convolutions with a `forward` of their own. [`unfold_frozen_norms`] takes it back.

    Returns:
        `int`: how many norms were folded.
    """
    if not any(_is_frozen(module) for module in backbone.modules()):
        return 0
    parameter = next(backbone.parameters())
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(parameter)
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        pairs, expected = find_norm_pairs(backbone, picture)
        pairs = [pair for pair in pairs if type(pair[0]) is nn.Conv2d and _is_frozen(pair[2])]
        for convolution, _, norm in pairs:
            convolution.__dict__["following_norm"] = (norm,)
            convolution.__class__ = _ScaledConv2d
            kind = type(norm)
            norm.__class__ = type(kind.__name__, (kind,), {"forward": _run_tail, "folded_class": kind})
        same = all(
            torch.allclose(before, after, rtol=1e-2, atol=1e-3 * float(before.abs().max()))
            for before, after in zip(expected, backbone(picture), strict=True)
        )
    backbone.train(was_training)
    if not same:  # something else takes a convolution's output, too
        unfold_frozen_norms(backbone)
        return 0
    return len(pairs)


def unfold_frozen_norms(network: nn.Module) -> None:
    """Takes back what [`fold_frozen_norms`] did, in the network or a copy of it."""
    for module in network.modules():
        if isinstance(module, _ScaledConv2d):
            del module.__dict__["following_norm"]
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
        elif "folded_class" in type(module).__dict__:
            module.__class__ = type(module).__dict__["folded_class"]


def _is_frozen(module: nn.Module) -> bool:
    # timm and torchvision have one each
    return type(module).__name__.startswith("FrozenBatchNorm")
