"""Backbone and neck: from an image to the pyramid P2 to P5."""

import torch
from torch import Tensor, nn
from transformers import AutoBackbone

from .configuration_querypose import QueryPoseConfig
from .initialization_querypose import start_from
from .lazy_level_querypose import QueryPoseLazyLevel, convolve_lazily
from .timm_networks_querypose import fix_padding


#: Pixels per cell of P2 to P5, horizontally and vertically.
STRIDES = (4, 8, 16, 32)


class QueryPoseBackbone(nn.Module):
    """An `AutoBackbone` that gives four feature maps; its first steps are frozen where the configuration says so."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.model = AutoBackbone.from_config(config.backbone_config, **config.backbone_kwargs)
        self.model.config.return_dict = True  # its parts heed the configuration alone, and outputs are read by name
        fix_padding(self.model)  # images are padded to multiples of 32
        feature_info = getattr(getattr(self.model, "_backbone", None), "feature_info", None)
        strides = tuple(feature_info.reduction()) if feature_info is not None else STRIDES
        if len(self.model.channels) != len(STRIDES) or strides != STRIDES:
            raise ValueError(
                f"`backbone_config` must give {len(STRIDES)} feature maps of strides {STRIDES}, but gives "
                f"{len(self.model.channels)}" + (f" of strides {strides}." if feature_info is not None else ".")
            )
        self.channels = list(self.model.channels)
        self.frozen_modules = self._find_frozen(config.frozen_backbone_stages)
        self.train(self.training)

    def _find_frozen(self, stages: int) -> list[nn.Module]:
        if not stages:
            return []
        network = getattr(self.model, "_backbone", None)
        info = getattr(getattr(network, "feature_info", None), "info", [])
        steps = None
        if network is not None and stages <= len(info):
            path = info[stages - 1]["module"]
            # timm's wrapper around ResNet-like backbones makes one level of modules of several
            steps = steps_up_to(network, [path.replace(".", "_")]) or steps_up_to(network, path.split("."))
        if not steps:
            raise ValueError(
                f"`frozen_backbone_stages` is {stages}, but this backbone has no such sequence of steps to freeze: "
                "use 0, or a timm backbone whose modules follow each other."
            )
        return steps

    def train(self, mode: bool = True) -> "QueryPoseBackbone":
        super().train(mode)
        for module in self.frozen_modules:
            # here as well as at the start, because loading a checkpoint replaces parameters by trainable ones
            module.requires_grad_(False)
            module.eval()  # batch statistics stay as they are, too
        return self

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        # a configuration that asks for the decoder's attentions reaches the backbone too, and timm has none to give
        outputs = self.model(pixel_values, output_attentions=False, output_hidden_states=False, return_dict=True)
        feature_maps = outputs.feature_maps
        for feature_map, stride in zip(feature_maps, STRIDES, strict=True):
            expected = (pixel_values.shape[-2] // stride, pixel_values.shape[-1] // stride)
            if tuple(feature_map.shape[-2:]) != expected:
                raise ValueError(
                    f"`backbone_config` must give feature maps of strides {STRIDES}, but one of "
                    f"{tuple(feature_map.shape)} came where {expected} was expected for stride {stride}."
                )
        return feature_maps


def steps_up_to(network: nn.Module, path: list[str]) -> list[nn.Module]:
    """The modules of a network in their order, up to and with the one at `path`; none if there is no such module."""
    children = dict(network.named_children())
    if path[0] not in children:
        return []
    names = list(children)
    before = [children[name] for name in names[: names.index(path[0])]]
    last = children[path[0]]
    within = steps_up_to(last, path[1:]) if path[1:] else [last]
    return before + within if within else []


class QueryPoseFPN(nn.Module):
    """Feature pyramid network (Lin et al., 2017) with nearest upsampling."""

    def __init__(self, config: QueryPoseConfig, in_channels: list[int]):
        super().__init__()
        self.lateral_convs = nn.ModuleList([nn.Conv2d(channels, config.d_model, 1) for channels in in_channels])
        self.output_convs = nn.ModuleList(
            [nn.Conv2d(config.d_model, config.d_model, 3, padding=1) for _ in in_channels]
        )
        start_from(self.modules(), weight="kaiming", bias=0.0)

    def forward(self, feature_maps: tuple[Tensor, ...], lazily: bool = False) -> list[Tensor | QueryPoseLazyLevel]:
        """P2 to P5; with `lazily` P2 may be convolved where it is read alone, see [`convolve_lazily`]."""
        levels = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, feature_maps, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = add_upsampled(levels[fine], levels[fine + 1])
        return convolve_levels(self.output_convs, levels, lazily)


def add_upsampled(level: Tensor, coarse: Tensor) -> Tensor:
    """A level `(B, d, 2 h, 2 w)` plus a coarser one `(B, d, h, w)`, each cell of which counts for four.

    Without gradients it is added in place, cell by cell: no upsampled map is made.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return level + nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
    height, width = coarse.shape[-2:]
    level.unflatten(3, (width, 2)).unflatten(2, (height, 2)).add_(coarse[:, :, :, None, :, None])
    return level


class QueryPoseHRFPN(nn.Module):
    """Pyramid of an HRNet: its branches are joined at the finest size, reduced, and pooled down level by level.

    With laterals (W48) each level also gets its own branch through a 1x1 convolution.
    """

    def __init__(self, config: QueryPoseConfig, in_channels: list[int]):
        super().__init__()
        self.with_laterals = config.neck_type == "hrfpn_lateral"
        self.reduction_conv = nn.Conv2d(sum(in_channels), config.d_model, 1)
        self.output_convs = nn.ModuleList(
            [nn.Conv2d(config.d_model, config.d_model, 3, padding=1, bias=not self.with_laterals) for _ in in_channels]
        )
        # the finest branch is in the joined map at full size already
        self.lateral_convs = nn.ModuleList(
            [nn.Conv2d(channels, config.d_model, 1, bias=False) for channels in in_channels[1:]]
            if self.with_laterals
            else []
        )

    def forward(self, feature_maps: tuple[Tensor, ...], lazily: bool = False) -> list[Tensor | QueryPoseLazyLevel]:
        """See [`QueryPoseFPN.forward`]."""
        upsampled = [feature_maps[0]]
        for level, feature_map in enumerate(feature_maps[1:], start=1):
            upsampled.append(
                nn.functional.interpolate(
                    feature_map, scale_factor=float(2**level), mode="bilinear", align_corners=False
                )
            )
        joined = self.reduction_conv(torch.cat(upsampled, dim=1))
        if self.with_laterals:
            levels = [joined]
            for lateral_conv, feature_map in zip(self.lateral_convs, feature_maps[1:], strict=True):
                levels.append(nn.functional.avg_pool2d(levels[-1], 2) + lateral_conv(feature_map))
        else:
            levels = [joined] + [nn.functional.avg_pool2d(joined, 2**level) for level in range(1, len(feature_maps))]
        return convolve_levels(self.output_convs, levels, lazily)


def convolve_levels(convs: nn.ModuleList, levels: list[Tensor], lazily: bool) -> list[Tensor | QueryPoseLazyLevel]:
    """The necks' output convolutions."""
    if not lazily:
        return [conv(level) for conv, level in zip(convs, levels, strict=True)]
    others = [conv(level) for conv, level in zip(convs[1:], levels[1:], strict=True)]
    return [convolve_lazily(convs[0], levels[0]), *others]


#: The necks by `neck_type`.
NECKS = {"fpn": QueryPoseFPN, "hrfpn": QueryPoseHRFPN, "hrfpn_lateral": QueryPoseHRFPN}
