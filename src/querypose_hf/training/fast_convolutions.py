"""Faster convolutions in training on a CPU, with the same results to floating-point tolerance."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..model.backbone_querypose import QueryPoseBackbone
from ..model.fusion_querypose import find_norm_pairs, norm_tail


def speed_up_convolutions(network: nn.Module, bfloat16: bool = False) -> None:
    """Lays out a network's convolutions with channels last and replaces the `forward` of some modules of its backbone.

    A convolution that a frozen batch norm follows scales its own weights and bias by the norm, in every forward, and
    the norm passes its input on: it reads and writes no feature map. Parameters, buffers, their names and gradients
    are as before. Batch norms that learn are left alone, and so are convolutions with a `forward` of their own.
    [`restore_convolutions`] takes back all but the layout.

    A training step of querypose-nano takes 0.87 s in place of 1.56 (8 images of 256x352; one thread of an AMD EPYC,
    medians of 4 in turn, beside other work): 1.24 by the layout alone, 1.10 without it. One with a ResNet-50 takes 7.5
    s in place of 7.7 (2 images of 480x640).

    Args:
        network (`nn.Module`): changed in place. A deep copy is changed, too, and independent of it.
        bfloat16 (`bool`): whether it runs under autocast to bfloat16. Depthwise convolutions with a stride then stay
            in float32: their backward in bfloat16 takes longer than that of all other convolutions of a MobileNet.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for backbone in network.modules():
        if isinstance(backbone, QueryPoseBackbone):
            _merge_frozen_norms(backbone)
    if bfloat16:
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1:
                module.forward = partial(_run_in_float32, module.forward)  # type: ignore[method-assign]


def restore_convolutions(network: nn.Module) -> None:
    """Takes back what [`speed_up_convolutions`] did, in the network or a copy of it."""
    for module in network.modules():
        forward = module.__dict__.get("forward")
        if isinstance(forward, partial) and forward.func in (_run_scaled, _run_tail, _run_in_float32):
            del module.__dict__["forward"]


def _merge_frozen_norms(backbone: QueryPoseBackbone) -> None:
    if not any(_is_frozen(module) for module in backbone.modules()):
        return
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(next(backbone.parameters()))
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        pairs, expected = find_norm_pairs(backbone, image)
        for convolution, _, norm in pairs:
            if type(convolution).forward is nn.Conv2d.forward and _is_frozen(norm):
                convolution.forward = partial(_run_scaled, convolution, norm)  # type: ignore[method-assign]
                norm.forward = partial(_run_tail, norm)
        same = all(
            torch.allclose(before, after, rtol=1e-2, atol=1e-3 * float(before.abs().max()))
            for before, after in zip(expected, backbone(image), strict=True)
        )
    backbone.train(was_training)
    if not same:  # something else reads the output of a convolution
        restore_convolutions(backbone)


def _run_scaled(convolution: nn.Conv2d, norm: Any, input: Tensor) -> Tensor:
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
    return convolution._conv_forward(input, convolution.weight * scale[:, None, None, None], shift)


def _run_tail(norm: Any, input: Tensor) -> Tensor:
    for module in norm_tail(norm):
        input = module(input)
    return input


def _run_in_float32(forward: Any, input: Tensor) -> Tensor:
    with torch.autocast(input.device.type, enabled=False):
        return forward(input.float())


def _is_frozen(module: nn.Module) -> bool:
    # timm and torchvision have one each
    return type(module).__name__.startswith("FrozenBatchNorm")
