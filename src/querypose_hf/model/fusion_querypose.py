"""Folds batch norms into convolutions, for faster inference."""

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import PreTrainedModel
from transformers.utils import logging


logger = logging.get_logger(__name__)

# pixels a side of the image that shows which batch norm follows which convolution
_PROBE_SIDE = 64


def fuse_for_inference(model: PreTrainedModel, channels_last: bool = True) -> Any:
    """Folds batch norms into the convolutions before them, in place, and lays out convolutions for speed.

    Outputs stay the same to floating-point tolerance. Frozen batch norms are folded too, and so is the one after the
    transposed convolution of each keypoint layer. In a model in half precision, a batch norm stays where the folded
    weights would be lost in the model's type. All of a backbone's stay, with a warning, where something else reads the
    outputs of their convolutions. The model can then neither be trained nor saved: a checkpoint without its batch
    norms could not be loaded.

    Args:
        model: a QueryPose model in evaluation mode, with or without its pose estimation head; it is changed.
        channels_last (`bool`, *optional*, defaults to `True`): lay out convolutions with channels last, weights and
            therefore features. The usual layout is better for export.

    Returns:
        The model itself.

    Raises:
        ValueError: the model is in training mode.

    Example:

    ```python
    >>> model = fuse_for_inference(QueryPoseForPoseEstimation.from_pretrained("path/to/checkpoint"))
    ```
    """
    if model.training:
        raise ValueError("`model` is in training mode; expected `model.eval()`, because batch norms are folded.")
    base: Any = model.base_model
    with torch.no_grad():
        _fuse_network(base.backbone)
        for module in base.modules():
            norm = getattr(module, "upsample_norm", None)  # of the spatial attention
            if norm is not None and not isinstance(norm, nn.Identity) and _fold(module.upsample, norm):
                setattr(module, "upsample_norm", nn.Identity())  # noqa: B010 - of another type than it is declared
    model.requires_grad_(False)
    if channels_last:
        for module in base.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _forbid(model, "train", "trained", lambda mode=True: mode)
    _forbid(model, "save_pretrained", "saved")
    return model


class FusedCopy:
    """A copy of a model for [`fuse_for_inference`], which leaves the model itself as it is.

    The two share the memory of all weights but those of convolutions. Where weights of the model have changed, by
    training, `load_state_dict`, or a move to another device or type, the copy is made anew.

    Args:
        model: a QueryPose model.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._tensors = [
            tensors for module in model.modules() for tensors in (module._parameters, module._buffers) if tensors
        ]
        self._state: list[tuple[int, int]] = []
        self._fused: Any = None
        self.get()

    def get(self) -> Any:
        """The copy, in evaluation mode."""
        state = [
            (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
            for tensors in self._tensors
            for tensor in tensors.values()
            if tensor is not None
        ]
        if state != self._state:
            self._fused = None  # its memory can be used again
            self._fused = fuse_for_inference(share_weights(self.model).eval())
            self._state = state
        return self._fused


def share_weights(model: PreTrainedModel) -> Any:
    """A copy of a model whose parameters and buffers are of the same memory, without gradients."""
    shared: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        alias = tensor.detach()
        shared[id(tensor)] = nn.Parameter(alias, False) if isinstance(tensor, nn.Parameter) else alias
    return copy.deepcopy(model, shared)


def _forbid(model: nn.Module, method: str, what: str, applies: Any = lambda *args, **kwargs: True) -> None:
    """Makes a method of this one model refuse."""
    original = getattr(model, method)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if applies(*args, **kwargs):
            raise ValueError(f"The model's batch norms are folded for inference; it can no longer be {what}.")
        return original(*args, **kwargs)

    object.__setattr__(model, method, refuse)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm, or a frozen one; timm and torchvision have classes of their own for these."""
    names = ("running_mean", "running_var", "weight", "bias")
    return "BatchNorm" in type(module).__name__ and all(
        isinstance(getattr(module, name, None), Tensor) for name in names
    )


def norm_tail(norm: nn.Module) -> list[nn.Module]:
    """What a batch norm's module does after the norm: timm has norms with dropout and an activation."""
    return [module for module in (getattr(norm, "drop", None), getattr(norm, "act", None)) if module is not None]


def _fuse_network(network: nn.Module) -> None:
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, _PROBE_SIDE, _PROBE_SIDE, generator=generator).to(parameter)
    pairs, expected = find_norm_pairs(network, image)
    before = [(convolution, convolution.weight, convolution.bias, name, norm) for convolution, name, norm in pairs]
    for convolution, name, norm in pairs:
        if _fold(convolution, norm):
            rest = norm_tail(norm)
            network.set_submodule(name, nn.Sequential(*rest) if rest else nn.Identity())
    tolerance = 1e-3 if parameter.dtype in (torch.float32, torch.float64) else 0.1
    if all(
        (plain - fused).abs().max() <= tolerance * plain.abs().max().clamp(min=1e-6)
        for plain, fused in zip(expected, network(image), strict=True)
    ):
        return
    for convolution, weight, bias, name, norm in before:
        convolution.weight, convolution.bias = weight, bias
        network.set_submodule(name, norm)
    logger.warning(
        f"The batch norms of {type(network).__name__} are not folded: the outputs of their convolutions are also used "
        "elsewhere. Inference is slower."
    )


def find_norm_pairs(network: nn.Module, image: Tensor) -> tuple[list[tuple[nn.Conv2d, str, nn.Module]], list[Tensor]]:
    """Finds each batch norm that takes the output of a convolution, by running the network once.

    Args:
        network (`nn.Module`): gives a list of feature maps.
        image (`Tensor`): of shape `(1, 3, height, width)`.

    Returns:
        `tuple`: convolution, name of the batch norm and batch norm of each pair; and the network's outputs.
    """
    made_by: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, str, nn.Module]] = []

    def note_output(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made_by.append((output, module))

    def note_input(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            pairs.extend((made, name, module) for output, made in made_by if output is inputs[0])

        return note

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(note_output))
        elif is_batch_norm(module):
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


def survives_cast(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a cast only rounds: nothing finite becomes infinite, and little falls below the range of `dtype`."""
    cast = tensor.to(dtype)
    if not torch.equal(cast.isfinite(), tensor.isfinite()):
        return False
    finite = tensor.isfinite()
    exact = tensor[finite].double()
    # rounding to the nearest loses half of eps at most
    return bool((cast[finite].double() - exact).norm() <= torch.finfo(dtype).eps * exact.norm())


__all__ = ["FusedCopy", "fuse_for_inference"]
