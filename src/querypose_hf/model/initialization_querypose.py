"""How layers start: what a layer is initialised with is noted on the layer itself.

Transformers skips containers that have no parameters of their own when code comes with a checkpoint. So a container
cannot initialise its layers; it notes on each what to start from.
"""

import math
from collections.abc import Iterable

from torch import nn
from transformers import initialization as init


def start_from(layers: Iterable[nn.Module], weight: str | None = None, bias: float | None = None) -> None:
    """Notes on affine layers what they start from, where that is not torch's own start.

    Args:
        layers (`Iterable[nn.Module]`): modules that are not affine are passed over.
        weight (`str`, *optional*): `"xavier"`, or `"kaiming"` with a = 1; both uniform.
        bias (`float`, *optional*): a constant.
    """
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            if weight is not None:
                layer.weight_start = weight
            if bias is not None:
                layer.bias_start = bias


def initialize_affine(layer: nn.Conv2d | nn.Linear | nn.ConvTranspose2d) -> None:
    """Initialises a layer as [`start_from`] noted, else as torch does."""
    fan_in = math.prod(layer.weight.shape[1:])
    weight_start = getattr(layer, "weight_start", "torch")
    if weight_start == "xavier":
        fan_out = len(layer.weight) * math.prod(layer.weight.shape[2:]) // getattr(layer, "num_joined", 1)
        bound = math.sqrt(6 / (fan_in + fan_out))
    else:  # Kaiming uniform with a = 1, or torch's own a = sqrt(5)
        bound = math.sqrt((3 if weight_start == "kaiming" else 1) / fan_in)
    init.uniform_(layer.weight, -bound, bound)
    if layer.bias is None:
        return
    bias_start = getattr(layer, "bias_start", None)
    if bias_start is None:
        init.uniform_(layer.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    else:
        init.constant_(layer.bias, bias_start)


def initialize_norm(norm: nn.LayerNorm | nn.BatchNorm2d) -> None:
    """Scale 1, shift 0 and, of a batch norm, running statistics of mean 0 and variance 1."""
    init.ones_(norm.weight)
    init.zeros_(norm.bias)
    if isinstance(norm, nn.BatchNorm2d):
        init.zeros_(norm.running_mean)
        init.ones_(norm.running_var)
        init.zeros_(norm.num_batches_tracked)
