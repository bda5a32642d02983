"""Backbones that timm can build but has no name for, and its TensorFlow padding in a form that exports.

Importing this file registers the names, so that `AutoBackbone` finds them, also where a saved model's code runs.
"""

from typing import Any

from timm.layers import Conv2dSame
from timm.models import generate_default_cfgs, is_model, register_model
from timm.models.efficientnet import _gen_mobilenet_v2
from torch import Tensor, nn


#: What timm wants to know of a network with a name; it has no weights for these.
default_cfgs = generate_default_cfgs({"querypose_mobilenetv2_150": {"first_conv": "conv_stem", "num_classes": 1000}})


def querypose_mobilenetv2_150(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 (Sandler et al., 2018) of width 1.5, as in MoveNet MultiPose; timm names widths up to 1.4.

    Raises:
        ValueError: pretrained weights are asked for.
    """
    if pretrained:
        raise ValueError(
            "`pretrained` is True, but timm has no weights of 'querypose_mobilenetv2_150'; expected a file of weights."
        )
    return _gen_mobilenet_v2("querypose_mobilenetv2_150", 1.5, **kwargs)


if not is_model("querypose_mobilenetv2_150"):  # the package and the code of a saved model may both be imported
    register_model(querypose_mobilenetv2_150)


class EndPaddedConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, for inputs whose sides are multiples of its stride.

    For these the padding is fixed: `kernel_size - stride` in all, where what is odd goes to the right and the bottom.
    timm's module computes it from the input, which does not export with sides that may change.

    Args:
        like (`nn.Conv2d`): the convolution whose sizes and parameters it takes.
    """

    def __init__(self, like: nn.Conv2d):
        super().__init__(
            like.in_channels,
            like.out_channels,
            like.kernel_size,  # type: ignore[arg-type]
            like.stride,  # type: ignore[arg-type]
            dilation=like.dilation,  # type: ignore[arg-type]
            groups=like.groups,
            bias=like.bias is not None,
            device="meta",
        )
        self.weight, self.bias = like.weight, like.bias
        # Padding both sides alike copies nothing. Where one side is to have a pixel less, it gets a stride more, and
        # the first row or column of outputs is dropped.
        totals = [
            max(dilation * (kernel - 1) + 1 - stride, 0)
            for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        self.dropped = [total % 2 for total in totals]
        self.padding = tuple(
            total // 2 + odd * stride for total, odd, stride in zip(totals, self.dropped, self.stride, strict=True)
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = self.dropped
        return super()._conv_forward(input, weight, bias)[..., rows:, columns:]


def fix_padding(network: nn.Module) -> None:
    """Replaces timm's convolutions with dynamic padding by [`EndPaddedConv2d`], in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Conv2dSame):
            network.set_submodule(name, EndPaddedConv2d(module))
