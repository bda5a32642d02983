"""bfloat16 autocast on CPUs, without the convolutions for which their libraries have no fast backward."""

import torch
from torch import Tensor, nn


def _forward_in_float32(self: nn.Conv2d, input: Tensor) -> Tensor:
    with torch.autocast(device_type=input.device.type, enabled=False):
        return type(self).__base__.forward(self, input.float())  # type: ignore[union-attr]


def keep_strided_depthwise_float32(network: nn.Module) -> int:
    """Lets depthwise convolutions with a stride compute in float32 under autocast.

    The bfloat16 backward of these few layers takes longer on a CPU than that of all other convolutions of a MobileNet.
    Parameters and their names stay as they are.

    Returns:
        `int`: how many convolutions there are of this kind.
    """
    found = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1:
            found += 1
            kind = type(module)
            if kind.forward is _forward_in_float32:  # of an earlier run with the same network
                continue
            module.__class__ = type(f"_Float32{kind.__name__.lstrip('_')}", (kind,), {"forward": _forward_in_float32})
    return found
