"""Folds batch norms into convolutions, for faster inference."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..model.keypoint_layer_querypose import QueryPoseSpatialAttention
from ..model.modeling_querypose import QueryPoseForPoseEstimation, QueryPoseModel
from .float16_storage import survives_cast


# pixels a side of the image that shows which batch norm follows which convolution
_PROBE_SIDE = 64


def fuse_for_inference(
    model: QueryPoseForPoseEstimation | QueryPoseModel, channels_last: bool = True
) -> QueryPoseForPoseEstimation | QueryPoseModel:
    """Folds batch norms into the convolutions before them, in place, and lays out convolutions for speed.

    Outputs stay the same to floating-point tolerance. Frozen batch norms are folded too, and so is the one after the
    transposed convolution of each keypoint layer. In a model in half precision, a batch norm stays where the folded
    weights would be lost in the model's type. The model can then neither be trained nor saved: a checkpoint without
    its batch norms could not be loaded.

    Args:
        model: a QueryPose model in evaluation mode; it is changed.
        channels_last (`bool`, *optional*, defaults to `True`): lay out convolutions with channels last, weights and
            therefore features. The usual layout is better for export.

    Returns:
        The model itself.

    Raises:
        ValueError: the model is in training mode, or folding would change its outputs.

    Example:

    ```python
    >>> model = fuse_for_inference(QueryPoseForPoseEstimation.from_pretrained("path/to/checkpoint"))
    ```
    """
    if model.training:
        raise ValueError("`model` is in training mode; expected `model.eval()`, because batch norms are folded.")
    base = model.model if isinstance(model, QueryPoseForPoseEstimation) else model
    with torch.no_grad():
        _fuse_network(base.backbone)
        for module in base.modules():
            if not isinstance(module, QueryPoseSpatialAttention) or isinstance(module.upsample_norm, nn.Identity):
                continue
            if _fold(module.upsample, module.upsample_norm):
                setattr(module, "upsample_norm", nn.Identity())  # noqa: B010 - of another type than it is declared
    model.requires_grad_(False)
    if channels_last:
        for module in base.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _forbid(model, "train", "trained", lambda mode=True: mode)
    _forbid(model, "save_pretrained", "saved")
    return model


def _forbid(model: nn.Module, method: str, what: str, applies: Any = lambda *args, **kwargs: True) -> None:
    """Makes a method of this one model refuse."""
    original = getattr(model, method)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if applies(*args, **kwargs):
            raise ValueError(f"The model's batch norms are folded for inference; it can no longer be {what}.")
        return original(*args, **kwargs)

    object.__setattr__(model, method, refuse)


def _is_batch_norm(module: nn.Module) -> bool:
    # timm and torchvision have frozen batch norms of their own
    names = ("running_mean", "running_var", "weight", "bias")
    return "BatchNorm" in type(module).__name__ and all(
        isinstance(getattr(module, name, None), torch.Tensor) for name in names
    )


def norm_tail(norm: nn.Module) -> list[nn.Module]:
    """What a batch norm's module does after the norm: timm has norms with dropout and an activation."""
    return [module for module in (getattr(norm, "drop", None), getattr(norm, "act", None)) if module is not None]


def _fuse_network(network: nn.Module) -> None:
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, _PROBE_SIDE, _PROBE_SIDE, generator=generator).to(parameter)
    pairs, expected = find_norm_pairs(network, image)
    for convolution, name, norm in pairs:
        if not _fold(convolution, norm):
            continue
        rest = norm_tail(norm)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Sequential(*rest) if rest else nn.Identity())
    tolerance = 1e-3 if parameter.dtype in (torch.float32, torch.float64) else 0.1
    for before, after in zip(expected, network(image), strict=True):
        if not (before - after).abs().max() <= tolerance * before.abs().max().clamp(min=1e-6):
            raise ValueError(
                f"`backbone_config` describes a {type(network).__name__} whose batch norms cannot be folded: "
                "the outputs of their convolutions are also used elsewhere."
            )


def find_norm_pairs(
    network: nn.Module, image: torch.Tensor
) -> tuple[list[tuple[nn.Conv2d, str, nn.Module]], list[torch.Tensor]]:
    """Finds each batch norm that takes the output of a convolution, by running the network once.

    Args:
        network (`nn.Module`): gives a list of feature maps.
        image (`torch.Tensor`): of shape `(1, 3, height, width)`.

    Returns:
        `tuple`: convolution, name of the batch norm and batch norm of each pair; and the network's outputs.
    """
    made_by: list[tuple[torch.Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, str, nn.Module]] = []

    def note_output(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made_by.append((output, module))

    def note_input(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            pairs.extend((made, name, module) for output, made in made_by if output is inputs[0])

        return note

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note_output))
        elif _is_batch_norm(module):
            handles.append(module.register_forward_pre_hook(note_input(name)))
    try:
        outputs = list(network(image))
    finally:
        for handle in handles:
            handle.remove()
    # a layer that runs twice cannot be folded
    runs = [id(module) for _, module in made_by]
    norms = [name for _, name, _ in pairs]
    return [pair for pair in pairs if runs.count(id(pair[0])) == 1 and norms.count(pair[1]) == 1], outputs


def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: Any) -> bool:
    """Folds a batch norm into a convolution, unless the convolution's type cannot hold the result."""
    dtype = convolution.weight.dtype
    precise = torch.promote_types(dtype, torch.float32)
    folded = fuse_conv_bn_weights(
        convolution.weight.to(precise),
        None if convolution.bias is None else convolution.bias.to(precise),
        norm.running_mean.to(precise),
        norm.running_var.to(precise),
        norm.eps,
        norm.weight.to(precise),
        norm.bias.to(precise),
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )
    if not all(survives_cast(tensor, dtype) for tensor in folded):
        return False
    convolution.weight, convolution.bias = (nn.Parameter(tensor.detach().to(dtype)) for tensor in folded)
    return True


__all__ = ["fuse_for_inference"]
