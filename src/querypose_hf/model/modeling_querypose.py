"""PyTorch QueryPose model.

Reads as data flows: backbone and neck, box decoder layer, keypoint decoder layer, decoder, model, head.
Sections, figures and equations are those of Xiao et al., "QueryPose: Sparse Multi-Person Pose Regression via
Spatial-Aware Part-Level Query", NeurIPS 2022. B is the number of images, N of instance queries, M of parts, K of
keypoints, S of stages, d and d_p the widths of instance and part queries, R the number of RoIs at hand.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align
from transformers import AutoBackbone, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .boxes_querypose import AREA_OF_BOX
from .configuration_querypose import QueryPoseConfig
from .loss_querypose import (
    HungarianMatcher,
    Matches,
    NoisyBoxes,
    QueryPoseFlow,
    Targets,
    heatmap_focal_loss,
    keypoint_heatmaps,
    pose_estimation_loss,
)


STRIDES = (4, 8, 16, 32)
# Scale of a step of the box decoder's deltas, and the greatest logarithmic growth, of Sparse R-CNN's box coder.
_DELTA_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
_MAX_LOG_GROWTH = math.log(100000.0 / 16)
# RoIAlign's kernels index by what they get; a diverged model's boxes must not make them read out of bounds.
_LARGEST_ROI_COORDINATE = 1e6


@dataclass
class QueryPoseModelOutput(ModelOutput):
    r"""Output of [`QueryPoseModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_queries, d_model)`):
            Instance queries after the last stage.
        part_queries (`torch.FloatTensor` of shape `(batch_size, num_queries, num_parts, part_dim)`):
            Part queries after the last stage; those of queries that were not decoded are the learned table.
        intermediate_logits (`torch.FloatTensor` of shape `(batch_size, decoder_layers, num_queries, num_labels)`):
            Class logits of every stage.
        intermediate_boxes (`torch.FloatTensor` of shape `(batch_size, decoder_layers, num_queries, 4)`):
            Boxes of every stage, corners x1, y1, x2, y2 relative to each image's unpadded size.
        intermediate_keypoints (`torch.FloatTensor` of shape `(batch_size, decoder_layers, num_queries,
            num_keypoints, 2)`):
            Keypoints of every stage relative to the box of the same stage: its centre is 0, its sides are 1.
        intermediate_sigmas (`torch.FloatTensor` of the same shape): Predicted deviations in the same units.
        intermediate_keypoint_scores (`torch.FloatTensor` of shape `(batch_size, decoder_layers, num_queries,
            num_keypoints)`):
            Confidence of every stage's keypoints, see `keypoint_confidence` of [`QueryPoseConfig`].
        intermediate_query_mask (`torch.BoolTensor` of shape `(batch_size, decoder_layers, num_queries)`):
            Which queries' keypoints were decoded. Keypoints, deviations and confidence of the others are zero.
        heatmap_features (`torch.FloatTensor` of shape `(batch_size, d_model, height/4, width/4)`, *optional*):
            P2, where the auxiliary heatmap head needs it.
        matches (`list[Matches]`, *optional*): in training, the people that each stage's queries stand for.
        noisy_boxes (`NoisyBoxes`, *optional*): in training with `num_denoising`, people's boxes refined from noise.
        matched_part_attentions (`list[torch.FloatTensor]`, *optional*):
            In training with a loss of them, the part attention maps of each stage's matches, `(num_matches, num_parts,
            28, 28)`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            The initial instance queries and those after each stage, with `output_hidden_states`.
        attentions (`tuple(torch.FloatTensor)`, *optional*):
            Self-attention of the instance queries of each stage, `(batch_size, heads, num_queries, num_queries)`, with
            `output_attentions`.
        part_attentions (`tuple(torch.FloatTensor)`, *optional*):
            Spatial attention maps of the parts of each stage over the RoI, `(batch_size, num_queries, num_parts, 28,
            28)`, with `output_attentions` (Figure 5).
    """

    last_hidden_state: torch.FloatTensor | None = None
    part_queries: torch.FloatTensor | None = None
    intermediate_logits: torch.FloatTensor | None = None
    intermediate_boxes: torch.FloatTensor | None = None
    intermediate_keypoints: torch.FloatTensor | None = None
    intermediate_sigmas: torch.FloatTensor | None = None
    intermediate_keypoint_scores: torch.FloatTensor | None = None
    intermediate_query_mask: torch.BoolTensor | None = None
    heatmap_features: torch.FloatTensor | None = None
    matches: list[Matches] | None = None
    noisy_boxes: NoisyBoxes | None = None
    matched_part_attentions: list[torch.FloatTensor] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    part_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class QueryPosePoseEstimationOutput(ModelOutput):
    r"""Output of [`QueryPoseForPoseEstimation`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): sum of `loss_dict`, where labels were given.
        loss_dict (`dict[str, torch.FloatTensor]`, *optional*):
            Weighted loss terms: `loss_class`, `loss_bbox`, `loss_giou`, `loss_keypoint` of the last stage, with the
            stage's index appended those of the earlier ones, `loss_heatmap` with the auxiliary head,
            `loss_part_attention` where the configuration gives it a weight, and in training with `num_denoising`
            `loss_denoising`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_queries, num_labels)`):
            Class logits; there is no background class, the score is their sigmoid.
        pred_boxes (`torch.FloatTensor` of shape `(batch_size, num_queries, 4)`):
            Boxes as centre x, centre y, width, height relative to each image's unpadded size; not clipped to it.
        pred_keypoints (`torch.FloatTensor` of shape `(batch_size, num_queries, num_keypoints, 2)`):
            Keypoints x, y relative to each image's unpadded size, in continuous coordinates.
        keypoint_scores (`torch.FloatTensor` of shape `(batch_size, num_queries, num_keypoints)`):
            Confidence, one minus the mean deviation unless the configuration's `keypoint_confidence` says otherwise; 0
            for queries that were not decoded.
        keypoint_sigmas (`torch.FloatTensor` of shape `(batch_size, num_queries, num_keypoints, 2)`):
            Predicted deviations relative to the box.
        keypoint_query_mask (`torch.BoolTensor` of shape `(batch_size, num_queries)`):
            Which queries' keypoints were decoded: all, unless in training (matched queries alone) or with
            `keypoint_top_k` or `keypoint_score_threshold`.
        auxiliary_outputs (`list[dict[str, torch.FloatTensor]]`, *optional*):
            `logits`, `pred_boxes`, `pred_keypoints`, `keypoint_scores`, `keypoint_sigmas` and `keypoint_query_mask` of
            the earlier stages, unless `auxiliary_loss` is off.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_queries, d_model)`): instance queries.
        part_queries (`torch.FloatTensor` of shape `(batch_size, num_queries, num_parts, part_dim)`): part queries.
        hidden_states, attentions, part_attentions: see [`QueryPoseModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    pred_keypoints: torch.FloatTensor | None = None
    keypoint_scores: torch.FloatTensor | None = None
    keypoint_sigmas: torch.FloatTensor | None = None
    keypoint_query_mask: torch.BoolTensor | None = None
    auxiliary_outputs: list[dict[str, torch.FloatTensor]] | None = None
    last_hidden_state: torch.FloatTensor | None = None
    part_queries: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    part_attentions: tuple[torch.FloatTensor, ...] | None = None


class QueryPoseBackbone(nn.Module):
    """An `AutoBackbone` with four feature maps, its first steps frozen where the configuration says so."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.model = AutoBackbone.from_config(config.backbone_config, **config.backbone_kwargs)
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

    def forward(self, feature_maps: tuple[Tensor, ...]) -> list[Tensor]:
        levels = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, feature_maps, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = levels[fine] + nn.functional.interpolate(levels[fine + 1], scale_factor=2.0, mode="nearest")
        return [conv(level) for conv, level in zip(self.output_convs, levels, strict=True)]


class QueryPoseHRFPN(nn.Module):
    """Pyramid from an HRNet's branches: joined at the finest size, reduced, then pooled down level by level.

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

    def forward(self, feature_maps: tuple[Tensor, ...]) -> list[Tensor]:
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
        return [conv(level) for conv, level in zip(self.output_convs, levels, strict=True)]


def start_from(layers: Iterable[nn.Module], weight: str | None = None, bias: float | None = None) -> None:
    """Notes on affine layers what they are initialised with where it is not torch's own start.

    Args:
        weight (`str`, *optional*): `"xavier"`, or `"kaiming"` with a = 1; both uniform.
        bias (`float`, *optional*): a constant.
    """
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            if weight is not None:
                layer.weight_start = weight
            if bias is not None:
                layer.bias_start = bias


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Coordinates are at least float32: bfloat16 cannot tell neighbouring pixels apart beyond 256."""
    return torch.promote_types(dtype, torch.float32)


def apply_box_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Moves and scales boxes (Sparse R-CNN): centre by (dx, dy) of their size, size by exp(dw, dh).

    Args:
        boxes (`Tensor` of shape `(..., 4)`): corners.
        deltas (`Tensor` of shape `(..., 4)`): dx, dy, dw, dh, before division by their weights (2, 2, 1, 1).
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    centre = low + 0.5 * size
    centre = centre + deltas[..., :2] / _DELTA_WEIGHTS[0] * size
    size = size * (deltas[..., 2:] / _DELTA_WEIGHTS[2]).clamp(max=_MAX_LOG_GROWTH).exp()
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def boxes_to_rois(boxes: Tensor) -> Tensor:
    """Boxes `(B, N, 4)` in pixels to RoIs `(B * N, 5)` with the image's index in front."""
    batch_size, num_queries = boxes.shape[:2]
    images = torch.arange(batch_size, device=boxes.device, dtype=boxes.dtype).repeat_interleave(num_queries)
    return rois_of_images(images, boxes.flatten(0, 1))


def rois_of_images(images: Tensor, boxes: Tensor) -> Tensor:
    """Boxes `(R, 4)` in pixels of the images of these indices `(R,)` to RoIs `(R, 5)`."""
    boxes = boxes.nan_to_num(nan=0.0).clamp(-_LARGEST_ROI_COORDINATE, _LARGEST_ROI_COORDINATE)
    return torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)


def reads_rows(device: torch.device) -> bool:
    """Whether [`align_rois`] reads features pixel by pixel, for which channels have to lie beside each other."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def align_rois(features: Tensor, rois: Tensor, resolution: int, stride: int, sampling_ratio: int) -> Tensor:
    """RoIAlign (He et al., 2017), with half a pixel's shift, of features `(B, d, height, width)`.

    On a CPU torchvision's kernel goes through the features of one channel after the other. A bin is a weighted sum of
    `4 * sampling_ratio ** 2` pixels, each a row of `d` numbers in a channels-last tensor, and such sums are what
    `embedding_bag` computes, several times as fast forward and backward.

    Args:
        features (`Tensor` of shape `(B, d, height, width)`)
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels of the image; no gradient flows into them.

    Returns:
        `Tensor` of shape `(R, d, resolution, resolution)`.
    """
    if not reads_rows(features.device):
        return roi_align(features, rois, resolution, 1 / stride, sampling_ratio=sampling_ratio, aligned=True)
    height, width = features.shape[-2:]
    with torch.no_grad():
        images = rois[:, 0].long()
        ends = (rois[:, 1:] / stride - 0.5).unflatten(1, (2, 2))  # (R, 2, 2): low and high, x and y
        samples = resolution * sampling_ratio
        fractions = (torch.arange(samples, dtype=rois.dtype) + 0.5) / samples
        places = ends[:, :1] + fractions[:, None] * (ends[:, 1:] - ends[:, :1])  # (R, samples, 2)
        limits = torch.tensor([width, height], dtype=rois.dtype)
        # up to a pixel beyond the edge the edge counts, further out nothing
        inside = ((places >= -1) & (places <= limits)) / sampling_ratio
        places = torch.minimum(places.clamp(min=0), limits - 1)
        low = places.floor()
        share = places - low
        pixels = torch.stack([low, torch.minimum(low + 1, limits - 1)], dim=2).long()  # (R, samples, 2, 2)
        weights = torch.stack([1 - share, share], dim=2) * inside[:, :, None]
        # a bin's pixels: all of its rows by all of its columns
        pixels = pixels.view(len(rois), resolution, 2 * sampling_ratio, 2)
        weights = weights.view(len(rois), resolution, 2 * sampling_ratio, 2)
        rows = (images[:, None, None] * height + pixels[..., 1]) * width
        index = rows[:, :, None, :, None] + pixels[:, None, :, None, :, 0]
        weight = weights[:, :, None, :, None, 1] * weights[:, None, :, None, :, 0]
    bins = len(rois) * resolution**2
    table = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    pooled = nn.functional.embedding_bag(
        index.reshape(bins, (2 * sampling_ratio) ** 2),
        table,
        mode="sum",
        per_sample_weights=weight.reshape(bins, (2 * sampling_ratio) ** 2).to(table.dtype),
    )
    return pooled.view(len(rois), resolution, resolution, features.shape[1]).permute(0, 3, 1, 2)


def pool_from_pyramid(pyramid: list[Tensor], rois: Tensor, resolution: int, sampling_ratio: int) -> Tensor:
    """RoIAlign on the level that fits each RoI's size (FPN, equation 1).

    Args:
        pyramid (`list[Tensor]`): P2 to P5, `(B, d, height / stride, width / stride)`.
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels.

    Returns:
        `Tensor` of shape `(R, d, resolution, resolution)`.
    """
    size = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0)
    level = torch.floor(4 + torch.log2(size.prod(-1).sqrt() / 224 + 1e-8)).clamp(2, 1 + len(pyramid)) - 2

    def pool(index: int, selected: Tensor) -> Tensor:
        return align_rois(pyramid[index], selected, resolution, STRIDES[index], sampling_ratio)

    if reads_rows(rois.device):
        rows = [torch.nonzero(level == index).flatten() for index in range(len(pyramid))]
        pooled = torch.cat([pool(index, rois[selected]) for index, selected in enumerate(rows)])
        return pooled[torch.cat(rows).argsort()]
    # Looking up which RoIs belong to a level would make the host wait for the device. Instead every level takes all of
    # them, those of other levels moved off the picture, where RoIAlign gives zeros at once.
    away = rois.new_full((4,), -_LARGEST_ROI_COORDINATE)
    corners = [torch.where((level == index)[:, None], rois[:, 1:], away) for index in range(len(pyramid))]
    pooled = [pool(index, torch.cat([rois[:, :1], moved], dim=1)) for index, moved in enumerate(corners)]
    return torch.stack(pooled).sum(dim=0)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class QueryPoseSelfAttention(nn.Module):
    """Multi-head self-attention, over the instance queries of an image or the part queries of an instance."""

    def __init__(self, config: QueryPoseConfig, embed_dim: int):
        super().__init__()
        self.config = config
        self.num_heads = config.decoder_attention_heads
        self.head_dim = embed_dim // self.num_heads
        self.dropout = config.dropout
        self.is_causal = False
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        start_from((self.qkv_proj, self.out_proj), bias=0.0)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        """`(batch, sequence, embed_dim)` to the same, and the weights `(batch, heads, sequence, sequence)`."""
        batch_size, length, embed_dim = hidden_states.shape
        query, key, value = (
            self.qkv_proj(hidden_states)
            .view(batch_size, length, 3, self.num_heads, self.head_dim)
            .permute(2, 0, 3, 1, 4)
        )
        attention: Callable = eager_attention_forward
        # fused kernels do not give the weights, and refuse a batch of no RoIs, which an image without people has
        if not output_attentions and batch_size > 0:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
        output, weights = attention(
            self,
            query,
            key,
            value,
            None,
            scaling=self.head_dim**-0.5,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(output.reshape(batch_size, length, embed_dim)), weights


class QueryPoseFeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: QueryPoseConfig, embed_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, embed_dim)
        self.activation = ACT2FN[config.activation_function]
        self.dropout = config.dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.activation(self.fc1(hidden_states))
        return self.fc2(nn.functional.dropout(hidden_states, p=self.dropout, training=self.training))


class QueryPoseDynamicInteraction(nn.Module):
    """Filters each RoI with two matrices made from its own query (Sparse R-CNN's dynamic head)."""

    def __init__(self, config: QueryPoseConfig, num_positions: int):
        super().__init__()
        self.d_model = config.d_model
        self.dynamic_dim = config.dynamic_dim
        self.dynamic_layer = nn.Linear(config.d_model, 2 * config.d_model * config.dynamic_dim)
        self.dynamic_norm = nn.LayerNorm(config.dynamic_dim)
        self.feature_norm = nn.LayerNorm(config.d_model)
        self.out_layer = nn.Linear(num_positions * config.d_model, config.d_model)
        self.out_norm = nn.LayerNorm(config.d_model)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Queries `(R, d)` and RoI features `(R, d, height, width)` to `(R, d)`."""
        features = features.flatten(2).transpose(1, 2)
        into, out = self.dynamic_layer(queries).split(self.d_model * self.dynamic_dim, dim=-1)
        features = torch.bmm(features, into.view(-1, self.d_model, self.dynamic_dim))
        features = self.dynamic_norm(features).relu()
        features = torch.bmm(features, out.view(-1, self.dynamic_dim, self.d_model))
        features = self.feature_norm(features).relu()
        return self.out_norm(self.out_layer(features.flatten(1))).relu()


class QueryPoseCoordinateLinear(nn.Linear):
    """A linear layer whose outputs are coordinates: computed in float32 at least, under autocast too."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = coordinate_dtype(hidden_states.dtype)
        with torch.autocast(device_type=hidden_states.device.type, enabled=False):
            return nn.functional.linear(hidden_states.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class QueryPoseBranch(nn.Sequential):
    """Hidden layers of the class and box branches, each a linear layer without bias, layer norm and ReLU."""

    def __init__(self, config: QueryPoseConfig, num_layers: int):
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            layers += [nn.Linear(config.d_model, config.d_model, bias=False), nn.LayerNorm(config.d_model), nn.ReLU()]
        super().__init__(*layers)


class QueryPoseBoxLayer(GradientCheckpointingLayer):
    """One stage of the box decoder (Section 3.1, Sparse R-CNN)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.dropout = config.dropout
        self.self_attn = QueryPoseSelfAttention(config, config.d_model)
        self.self_attn_norm = nn.LayerNorm(config.d_model)
        self.interaction = QueryPoseDynamicInteraction(config, config.box_pooler_resolution**2)
        self.interaction_norm = nn.LayerNorm(config.d_model)
        self.ffn = QueryPoseFeedForward(config, config.d_model)
        self.ffn_norm = nn.LayerNorm(config.d_model)
        self.class_branch = QueryPoseBranch(config, config.num_cls_layers)
        self.class_head = nn.Linear(config.d_model, config.num_labels)
        start_from([self.class_head], bias=-math.log((1 - config.prior_prob) / config.prior_prob))
        self.box_branch = QueryPoseBranch(config, config.num_reg_layers)
        self.box_head = QueryPoseCoordinateLinear(config.d_model, 4)

    def residual(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)

    def forward(
        self, queries: Tensor, roi_features: Tensor, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """
        Args:
            queries (`Tensor` of shape `(B, N, d)`)
            roi_features (`Tensor` of shape `(B * N, d, resolution, resolution)`)

        Returns:
            `tuple`: queries `(B, N, d)`, class logits `(B, N, num_labels)`, box deltas `(B, N, 4)`, attention weights.
        """
        attended, weights = self.self_attn(queries, output_attentions)
        queries = self.self_attn_norm(queries + self.residual(attended))
        interaction = self.interaction(queries.flatten(0, 1), roi_features).view_as(queries)
        queries = self.interaction_norm(queries + self.residual(interaction))
        queries = self.ffn_norm(queries + self.residual(self.ffn(queries)))
        logits = self.class_head(self.class_branch(queries))
        deltas = self.box_head(self.box_branch(queries))
        return queries, logits, deltas, weights


class QueryPoseConvStack(GradientCheckpointingLayer):
    """The 3x3 convolutions that make the keypoint features from RoI features, d -> 2d -> ... -> 2d -> d."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        wide = 2 * config.d_model
        channels = [config.d_model] + [wide] * (config.num_pose_convs - 1) + [config.d_model]
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in itertools.pairwise(channels)]
        )

    def forward(self, features: Tensor) -> Tensor:
        for conv in self.convs:
            features = nn.functional.relu(conv(features), inplace=True)
        return features


class QueryPosePartBatchNorm(nn.BatchNorm2d):
    """Batch norm over RoIs, of which a batch without people has none: then the statistics stay as they are."""

    def forward(self, features: Tensor) -> Tensor:
        if self.training and features.shape[0] == 0:
            return nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(features)


def sine_encoding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """DETR's encoding of the cells of a map, `(height * width, dim)`: half of it for y, half for x.

    Cells are placed between 0 and 2 pi; frequencies fall from 1 to 1/10000, sines and cosines in turns.
    """
    count = dim // 4
    frequencies = 10000.0 ** -(torch.arange(count, device=device) / count)

    def encode(length: int) -> Tensor:
        places = (torch.arange(length, device=device) + 0.5) * (2 * math.pi / length)
        angles = places[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def attention_centers(maps: Tensor, sharpness: float = 1.0) -> Tensor:
    """Mean places of attention maps `(..., height, width)` that each sum to 1, `(..., 2)` as x and y.

    They are relative to what the maps cover, as keypoints are to their boxes: its centre is 0, its sides are 1. The
    maps are raised to the power `sharpness`, at least 1, before.
    """
    maps = maps.to(coordinate_dtype(maps.dtype))
    if sharpness != 1:
        # by the largest value first, so that no power of a broad map is too small to be told from 0
        maps = (maps / maps.detach().amax(dim=(-2, -1), keepdim=True)) ** sharpness
        maps = maps / maps.sum(dim=(-2, -1), keepdim=True)

    def places(length: int) -> Tensor:
        return (torch.arange(length, device=maps.device, dtype=maps.dtype) + 0.5) / length - 0.5

    height, width = maps.shape[-2:]
    return torch.stack([maps.sum(dim=-2) @ places(width), maps.sum(dim=-1) @ places(height)], dim=-1)


@torch.no_grad()
def expected_similarity(maps: Tensor, keypoints: Tensor, rois: Tensor, oks_constants: Tensor) -> Tensor:
    """OKS expected of each keypoint if the truth is distributed as its attention map is, `(R, K)`, from 0 to 1.

    Args:
        maps (`Tensor` of shape `(R, K, height, width)`): the map of each keypoint's part over the RoI, of sum 1.
        keypoints (`Tensor` of shape `(R, K, 2)`): relative to the RoI, its centre 0, its sides 1.
        rois (`Tensor` of shape `(R, 5)`): image index and corners in pixels, for a share of whose area OKS is scaled.
        oks_constants (`Tensor` of shape `(K,)`): COCO's sigmas.
    """
    maps, keypoints = maps.to(rois.dtype), keypoints.to(rois.dtype)
    sides = (rois[:, 3:] - rois[:, 1:3]).clamp(min=torch.finfo(rois.dtype).eps)
    aspect = sides[:, :1] / sides[:, 1:]
    # OKS has squared pixels over the area of width times height: of x the RoI's aspect remains, of y its inverse
    scale = 2 * AREA_OF_BOX * (2 * oks_constants.to(rois.dtype)).square()

    def similarity(coordinates: Tensor, length: int, aspect: Tensor) -> Tensor:
        places = (torch.arange(length, device=maps.device, dtype=maps.dtype) + 0.5) / length - 0.5
        distance = (places - coordinates[..., None]).square()
        return torch.exp(-distance * (aspect / scale)[..., None])

    height, width = maps.shape[-2:]
    columns = similarity(keypoints[..., 0], width, aspect)
    rows = similarity(keypoints[..., 1], height, 1 / aspect)
    # the bound is for rounding: a person's score must not be above the class score
    return (torch.matmul(maps, columns[..., None])[..., 0] * rows).sum(dim=-1).clamp(max=1)


class SpatialPartEmbedding(nn.Module):
    """SPEGM: gathers each part's embedding from where its attention map looks in the RoI (Section 3.2)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(config.d_model, config.d_model, 4, stride=2, padding=1, bias=False)
        self.upsample_norm = QueryPosePartBatchNorm(config.d_model)
        self.attention_conv = nn.Conv2d(config.d_model, config.num_parts, 3, padding=1)
        start_from([self.attention_conv], bias=0.0)
        self.projection = nn.Linear(config.d_model, config.part_dim)
        self.encodes_position = config.part_position_encoding

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoint features `(R, d, 14, 14)` to part embeddings `(R, M, d_p)` and attention maps `(R, M, 28, 28)`."""
        features = nn.functional.relu(self.upsample_norm(self.upsample(features)), inplace=True)
        maps = self.attention_conv(features)
        attention = maps.flatten(2).softmax(dim=-1)
        embeddings = torch.bmm(attention.to(features.dtype), features.flatten(2).transpose(1, 2))
        if self.encodes_position:
            height, width = maps.shape[-2:]
            positions = sine_encoding(height, width, features.shape[1], maps.device)
            embeddings = embeddings + attention.to(features.dtype) @ positions.to(features.dtype)
        return self.projection(embeddings), attention.view_as(maps)


class QueryPosePartProjection(nn.Module):
    """One linear layer per part, all in one product: `(R, d)` to `(R, M, d_p)`."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.num_parts = config.num_parts
        self.projection = nn.Linear(config.d_model, config.num_parts * config.part_dim)
        self.projection.num_joined = config.num_parts  # each part's layer is initialised as one of its own

    def forward(self, queries: Tensor) -> Tensor:
        return self.projection(queries).unflatten(-1, (self.num_parts, -1))


class SelectiveIteration(nn.Module):
    """SIM: mixes the part queries of the stage before with new part embeddings through two gates (Section 3.3)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.part_dim, config.part_dim // 4, bias=False)
        self.norm = nn.LayerNorm(config.part_dim // 4)
        self.fc2 = nn.Linear(config.part_dim // 4, 2 * config.part_dim)

    def forward(self, embeddings: Tensor, part_queries: Tensor) -> Tensor:
        hidden = self.norm(self.fc1(embeddings + part_queries)).relu()
        embedding_gate, query_gate = self.fc2(hidden).sigmoid().chunk(2, dim=-1)
        return embedding_gate * embeddings + query_gate * part_queries


class QueryPoseKeypointLinear(nn.Module):
    """One linear layer per part from its query to its keypoints' x and y, laid out by keypoint.

    Row (k, c) of the weight makes coordinate c of keypoint k from the query of the part that k belongs to, so that one
    product serves all parts and the output is in keypoint order already.
    """

    def __init__(self, config: QueryPoseConfig, normalize: bool):
        super().__init__()
        self.normalize = normalize
        self.offsets_from_attention = False
        self.parts = [list(part) for part in config.keypoint_parts]
        self.weight = nn.Parameter(torch.empty(config.num_keypoints, 2, config.part_dim))
        self.bias = nn.Parameter(torch.empty(config.num_keypoints, 2))
        self.register_buffer("part_of_keypoint", self.find_parts(), persistent=False)

    def find_parts(self) -> Tensor:
        """Index of the part that each keypoint belongs to."""
        part_of = {keypoint: part for part, keypoints in enumerate(self.parts) for keypoint in keypoints}
        return torch.tensor([part_of[keypoint] for keypoint in range(len(part_of))])

    def forward(self, part_queries: Tensor) -> Tensor:
        """Part queries `(R, M, d_p)` to `(R, K, 2)`."""
        dtype = coordinate_dtype(part_queries.dtype)
        with torch.autocast(device_type=part_queries.device.type, enabled=False):
            part_queries = part_queries.to(dtype)
            if self.normalize:
                # the paper divides by the norm as it is; the bound only keeps a query of zeros from becoming NaN
                part_queries = nn.functional.normalize(part_queries, dim=-1, eps=torch.finfo(dtype).tiny)
            by_keypoint = part_queries[:, self.part_of_keypoint]
            return torch.einsum("rkd,kcd->rkc", by_keypoint, self.weight.to(dtype)) + self.bias.to(dtype)


class QueryPoseKeypointLayer(nn.Module):
    """One stage of the keypoint decoder (Sections 3.2 and 3.3, Figure 2)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.dropout = config.dropout
        self.conv_stack = QueryPoseConvStack(config)
        self.interaction = None
        if config.pose_query_interaction == "dynamic":
            self.interaction = QueryPoseDynamicInteraction(config, config.pose_pooler_resolution**2)
            self.interaction_norm = nn.LayerNorm(config.d_model)
            self.instance_ffn = QueryPoseFeedForward(config, config.d_model)
            self.instance_ffn_norm = nn.LayerNorm(config.d_model)
        self.part_embedding = SpatialPartEmbedding(config)
        self.query_projection = QueryPosePartProjection(config)
        self.iteration = SelectiveIteration(config)
        self.self_attn = QueryPoseSelfAttention(config, config.part_dim)
        self.self_attn_norm = nn.LayerNorm(config.part_dim)
        self.part_ffn = QueryPoseFeedForward(config, config.part_dim)
        self.part_ffn_norm = nn.LayerNorm(config.part_dim)
        self.keypoint_head = QueryPoseKeypointLinear(config, normalize=True)
        self.sigma_head = QueryPoseKeypointLinear(config, normalize=False)
        # then offsets start from 0: before anything is learned, keypoints are where the attention maps look
        self.keypoint_head.offsets_from_attention = config.keypoint_origin == "attention"
        self.attention_sharpness = config.attention_sharpness

    def residual(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)

    def forward(
        self, queries: Tensor, part_queries: Tensor, roi_features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """
        Args:
            queries (`Tensor` of shape `(R, d)`): instance queries.
            part_queries (`Tensor` of shape `(R, M, d_p)`)
            roi_features (`Tensor` of shape `(R, d, 14, 14)`)

        Returns:
            `tuple`: instance queries `(R, d)`, part queries `(R, M, d_p)`, keypoints `(R, K, 2)` relative to the box
            (centre 0, side 1), their deviations `(R, K, 2)`, and attention maps `(R, M, 28, 28)`.
        """
        features = self.conv_stack(roi_features)
        if self.interaction is not None:
            queries = self.interaction_norm(queries + self.residual(self.interaction(queries, features)))
            queries = self.instance_ffn_norm(queries + self.residual(self.instance_ffn(queries)))
        embeddings, attention_maps = self.part_embedding(features)
        embeddings = embeddings + self.query_projection(queries)
        part_queries = self.iteration(embeddings, part_queries)
        attended, _ = self.self_attn(part_queries)
        part_queries = self.self_attn_norm(part_queries + self.residual(attended))
        part_queries = self.part_ffn_norm(part_queries + self.residual(self.part_ffn(part_queries)))
        keypoints = self.keypoint_head(part_queries)
        if self.keypoint_head.offsets_from_attention:
            centers = attention_centers(attention_maps, self.attention_sharpness)
            keypoints = keypoints + centers[:, self.keypoint_head.part_of_keypoint]
        sigmas = self.sigma_head(part_queries).sigmoid()
        return queries, part_queries, keypoints, sigmas, attention_maps


class QueryPoseDecoder(nn.Module):
    """The stages: in each a box decoder layer, then a keypoint decoder layer on its refined boxes (Figure 2).

    Where no keypoint decoder layer changes what the box decoder sees, all box layers run before the keypoint layers:
    then all stages are matched with one transfer to the host in training, and in inference only queries that will
    matter in the end need be decoded. The result is the same.
    """

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.config = config
        self.matcher = HungarianMatcher(config)
        self.instance_queries = nn.Parameter(torch.empty(config.num_queries, config.d_model))
        self.initial_boxes = nn.Parameter(torch.empty(config.num_queries, 4))
        self.part_queries = nn.Parameter(torch.empty(config.num_parts, config.part_dim))
        oks_constants = torch.tensor(config.keypoint_sigmas, dtype=torch.float32)
        self.register_buffer("oks_constants", oks_constants, persistent=False)
        self.box_layers = nn.ModuleList([QueryPoseBoxLayer(config) for _ in range(config.decoder_layers)])
        self.keypoint_layers = nn.ModuleList([QueryPoseKeypointLayer(config) for _ in range(config.decoder_layers)])
        start_from(self.modules(), weight="xavier")

    @property
    def feeds_back(self) -> bool:
        """Whether a stage's keypoint layer changes the next stage's instance queries (Figure 3)."""
        if self.config.pose_query_interaction == "none":
            return False
        return self.config.query_feedback == "always" or (self.config.query_feedback == "training" and self.training)

    def select_queries(self, logits: Tensor, top_k: int | None, threshold: float | None) -> Tensor | None:
        """Rows (image * N + query) of the queries to decode in inference; `None` is all of them.

        With `top_k` alone their number is fixed, and nothing waits for the device.
        """
        if top_k is None and threshold is None:
            return None
        batch_size, num_queries = logits.shape[:2]
        scores = logits.max(dim=-1).values
        offsets = torch.arange(batch_size, device=logits.device)[:, None] * num_queries
        if top_k is None:
            rows = offsets + torch.arange(num_queries, device=logits.device)
        else:
            scores, best = scores.topk(min(top_k, num_queries), dim=-1)
            rows = offsets + best
        if threshold is not None:
            rows = rows[class_probability(scores) > threshold]
        return rows.flatten()

    def forward(
        self,
        pyramid: list[Tensor],
        image_sizes: Tensor,
        targets: Targets | None = None,
        keypoint_top_k: int | None = None,
        keypoint_score_threshold: float | None = None,
        max_people: int | None = None,
        person_threshold: float | None = None,
        output_attentions: bool = False,
        part_attentions_for_loss: bool = False,
        output_hidden_states: bool = False,
    ) -> QueryPoseModelOutput:
        """
        Args:
            pyramid (`list[Tensor]`): P2 to P5.
            image_sizes (`Tensor` of shape `(B, 2)`): unpadded heights and widths.
            targets ([`Targets`], *optional*): in training, keypoints are decoded of the queries matched to them.
            keypoint_top_k, keypoint_score_threshold, max_people, person_threshold: see [`QueryPoseModel.forward`].
        """
        if torch.compiler.is_compiling():  # how many queries may matter is not known to a graph of static shape
            max_people = person_threshold = None
        stages = QueryPoseStages(
            self,
            pyramid,
            image_sizes,
            output_attentions,
            # the loss takes those of matches, which in inference nobody knows yet
            output_part_attentions=output_attentions or (part_attentions_for_loss and targets is None),
            keeps_decoded_maps=part_attentions_for_loss and targets is not None,
        )
        hidden_states = [stages.queries]
        num_layers = len(self.box_layers)
        matches: list[Matches] = []

        def rows_of_stage(stage: int) -> Tensor | None:
            if targets is None:
                return self.select_queries(stages.logits[stage], keypoint_top_k, keypoint_score_threshold)
            if len(matches) <= stage:
                undone = slice(stage, len(stages.logits))
                matches.extend(
                    self.matcher(
                        torch.stack(stages.logits[undone]).detach(),
                        torch.stack(stages.relative_boxes[undone]).detach(),
                        targets,
                    )
                )
            return matches[stage].query_rows

        if self.feeds_back:
            for stage in range(num_layers):
                stages.run_box_layer(stage)
                stages.run_keypoint_layer(stage, rows_of_stage(stage), feed_back=True)
                hidden_states.append(stages.queries)
        else:
            for stage in range(num_layers):
                stages.run_box_layer(stage)
                hidden_states.append(stages.queries)
            if targets is not None:
                for stage in range(num_layers):
                    stages.run_keypoint_layer(stage, rows_of_stage(stage), feed_back=False)
            elif keypoint_top_k is not None:
                stages.decode_keypoints(rows_of_stage(num_layers - 1))
            else:
                thresholds = [x for x in (keypoint_score_threshold, person_threshold) if x is not None]
                threshold = max(thresholds) if thresholds else None
                if max_people is not None and max_people < self.config.num_queries:
                    stages.decode_best_people(max_people, threshold)
                else:
                    stages.decode_keypoints(self.select_queries(stages.logits[-1], None, threshold))

        noisy_boxes = None
        if targets is not None and self.config.num_denoising > 0:
            noisy_boxes = self.refine_noisy_boxes(stages, targets)

        return QueryPoseModelOutput(
            last_hidden_state=stages.queries,
            part_queries=stages.part_queries.unflatten(0, stages.queries.shape[:2]),
            intermediate_logits=torch.stack(stages.logits, dim=1),
            intermediate_boxes=torch.stack(stages.relative_boxes, dim=1),
            intermediate_keypoints=torch.stack(stages.keypoints, dim=1),
            intermediate_sigmas=torch.stack(stages.sigmas, dim=1),
            intermediate_keypoint_scores=torch.stack(stages.confidences, dim=1),
            intermediate_query_mask=torch.stack(stages.query_masks, dim=1),
            matches=matches or None,
            noisy_boxes=noisy_boxes,
            matched_part_attentions=stages.decoded_maps or None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(stages.attentions) if output_attentions else None,
            part_attentions=tuple(stages.part_attentions) or None,
        )

    def refine_noisy_boxes(self, stages: "QueryPoseStages", targets: Targets) -> NoisyBoxes:
        """Takes noisy copies of people's boxes through the box layers, each as the only query of its image.

        The queries are any of the learned ones. Boxes alone are learned from: what is a person, and which of several
        queries stands for it, is for the queries that look at the image together.

        Args:
            stages ([`QueryPoseStages`]): of the same images, for their pyramid and sizes.
            targets ([`Targets`])
        """
        config = self.config
        noisy = NoisyBoxes.from_targets(targets, config.num_denoising, config.box_noise_scale)
        scale = stages.scale[noisy.images, 0]
        chosen = torch.randint(config.num_queries, (len(noisy.images),)).to(scale.device, non_blocking=True)
        queries = self.instance_queries[chosen][:, None]
        boxes, refined = noisy.boxes.to(stages.dtype) * scale, []
        for layer in self.box_layers:
            rois = rois_of_images(noisy.images, boxes)
            features = pool_from_pyramid(
                stages.pyramid, rois, config.box_pooler_resolution, config.pooler_sampling_ratio
            ).to(stages.feature_dtype)
            queries, _, deltas, _ = layer(queries, features)
            boxes = apply_box_deltas(boxes, deltas[:, 0])
            refined.append(boxes / scale)
            boxes = boxes.detach()
        return noisy._replace(refined=torch.stack(refined))


def class_probability(logits: Tensor) -> Tensor:
    """As post-processing computes it: in half precision another value could be on the other side of a threshold."""
    return logits.to(coordinate_dtype(logits.dtype)).sigmoid()


class _Decoded(NamedTuple):
    """What the keypoint layers of all stages found for some of the queries.

    Attributes:
        rows (`LongTensor` of shape `(R,)`): image * N + query.
        part_queries (`Tensor` of shape `(R, M, d_p)`): those of the last stage.
        keypoints, sigmas (`list[Tensor]`): of every stage, `(R, K, 2)`.
        confidences (`list[Tensor]`): of every stage, `(R, K)`.
        attention_maps (`list[Tensor]`): of every stage, `(R, M, height, width)`; none unless they are wanted.
    """

    rows: Tensor
    part_queries: Tensor
    keypoints: list[Tensor]
    sigmas: list[Tensor]
    confidences: list[Tensor]
    attention_maps: list[Tensor]


class QueryPoseStages:
    """What the decoder's stages hand on to each other, and what each of them found."""

    def __init__(
        self,
        decoder: QueryPoseDecoder,
        pyramid: list[Tensor],
        image_sizes: Tensor,
        output_attentions: bool,
        output_part_attentions: bool = False,
        keeps_decoded_maps: bool = False,
    ):
        config = decoder.config
        self.decoder = decoder
        self.output_attentions = output_attentions
        self.output_part_attentions = output_part_attentions
        # RoIAlign wants RoIs and features of one type, and RoIs are coordinates. Features that do not lie as it reads
        # them would be copied at every call.
        self.dtype = coordinate_dtype(pyramid[0].dtype)
        layout = torch.channels_last if reads_rows(pyramid[0].device) else torch.contiguous_format
        self.pyramid = [level.to(self.dtype).contiguous(memory_format=layout) for level in pyramid]
        self.feature_dtype = pyramid[0].dtype
        height_width = image_sizes.to(self.dtype)
        self.scale = height_width.flip(-1).repeat(1, 2)[:, None]  # (B, 1, 4): width, height, width, height
        batch_size = image_sizes.shape[0]
        self.shape = (batch_size, config.num_queries)
        self.queries = decoder.instance_queries.expand(batch_size, -1, -1)
        self.part_queries = decoder.part_queries.expand(batch_size * config.num_queries, -1, -1)
        # the initial boxes are not detached: the table learns through the first stage's update
        self.next_boxes = center_to_corners_format(decoder.initial_boxes.to(self.dtype)) * self.scale
        self.boxes: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.relative_boxes: list[Tensor] = []
        self.stage_queries: list[Tensor] = []
        self.keypoints: list[Tensor] = []
        self.sigmas: list[Tensor] = []
        self.confidences: list[Tensor] = []
        self.query_masks: list[Tensor] = []
        self.attentions: list[Tensor | None] = []
        self.part_attentions: list[Tensor] = []
        # as they were decoded: laid out by query they are large, and most of it zero
        self.keeps_decoded_maps = keeps_decoded_maps
        self.decoded_maps: list[Tensor] = []

    def run_box_layer(self, stage: int) -> None:
        config = self.decoder.config
        roi_features = pool_from_pyramid(
            self.pyramid,
            boxes_to_rois(self.next_boxes.detach()),
            config.box_pooler_resolution,
            config.pooler_sampling_ratio,
        ).to(self.feature_dtype)
        self.queries, logits, deltas, weights = self.decoder.box_layers[stage](
            self.queries, roi_features, self.output_attentions
        )
        boxes = apply_box_deltas(self.next_boxes, deltas)
        self.next_boxes = boxes.detach()
        self.boxes.append(self.next_boxes)
        self.logits.append(logits)
        self.relative_boxes.append(boxes / self.scale)
        self.stage_queries.append(self.queries)
        self.attentions.append(weights)

    def run_keypoint_layer(self, stage: int, rows: Tensor | None, feed_back: bool) -> None:
        """Decodes the keypoints of the queries in `rows` (all for `None`) in a stage's own boxes."""
        part_queries = self.part_queries if rows is None else self.part_queries[rows]
        queries, part_queries, keypoints, sigmas, confidences, attention_maps = self._apply_keypoint_layer(
            stage, rows, part_queries
        )
        self.part_queries = self._put(part_queries, rows, self.part_queries)
        if feed_back:
            updated = self._put(queries, rows, self.stage_queries[stage].flatten(0, 1))
            self.queries = updated.unflatten(0, self.shape)
        self.keypoints.append(self._put(keypoints, rows).unflatten(0, self.shape))
        self.sigmas.append(self._put(sigmas, rows).unflatten(0, self.shape))
        self.confidences.append(self._put(confidences, rows).unflatten(0, self.shape))
        decoded = keypoints.new_ones(keypoints.shape[0], dtype=torch.bool)
        self.query_masks.append(self._put(decoded, rows).unflatten(0, self.shape))
        if self.output_part_attentions:
            self.part_attentions.append(self._put(attention_maps, rows).unflatten(0, self.shape))
        if self.keeps_decoded_maps:
            self.decoded_maps.append(attention_maps)

    def _apply_keypoint_layer(self, stage: int, rows: Tensor | None, part_queries: Tensor) -> tuple[Tensor, ...]:
        """What the keypoint layer gives, see there, with the keypoints' confidence `(R, K)` before the maps."""
        config = self.decoder.config
        rois = boxes_to_rois(self.boxes[stage])
        queries = self.stage_queries[stage].flatten(0, 1)
        if rows is not None:
            rois, queries = rois[rows], queries[rows]
        roi_features = align_rois(
            self.pyramid[0], rois, config.pose_pooler_resolution, STRIDES[0], config.pooler_sampling_ratio
        ).to(self.feature_dtype)
        layer = self.decoder.keypoint_layers[stage]
        queries, part_queries, keypoints, sigmas, maps = layer(queries, part_queries, roi_features)
        if config.keypoint_confidence == "deviation":
            confidences = 1 - sigmas.mean(dim=-1)
        else:
            of_keypoints = maps[:, layer.keypoint_head.part_of_keypoint]
            confidences = expected_similarity(of_keypoints, keypoints, rois, self.decoder.oks_constants)
        return queries, part_queries, keypoints, sigmas, confidences, maps

    def decode_keypoints(self, rows: Tensor | None) -> None:
        """Takes the queries in `rows` (all for `None`) through the keypoint layers of all stages."""
        if rows is None:
            for stage in range(len(self.boxes)):
                self.run_keypoint_layer(stage, None, feed_back=False)
        else:
            self._collect([self._decode(rows)])

    def _decode(self, rows: Tensor) -> _Decoded:
        # part queries go from stage to stage as they are: only what comes out is laid out by query
        part_queries = self.part_queries[rows]
        keypoints, sigmas, confidences, attention_maps = [], [], [], []
        for stage in range(len(self.boxes)):
            _, part_queries, stage_keypoints, stage_sigmas, stage_confidences, stage_maps = self._apply_keypoint_layer(
                stage, rows, part_queries
            )
            keypoints.append(stage_keypoints)
            sigmas.append(stage_sigmas)
            confidences.append(stage_confidences)
            if self.output_part_attentions:
                attention_maps.append(stage_maps)
        return _Decoded(rows, part_queries, keypoints, sigmas, confidences, attention_maps)

    def _collect(self, parts: list[_Decoded]) -> None:
        """Lays out what was found by query; zero, or the learned part queries, where nothing was decoded."""
        rows = torch.cat([part.rows for part in parts])

        def put(name: str) -> list[Tensor]:
            by_stage = zip(*(getattr(part, name) for part in parts), strict=True)
            return [self._put(torch.cat(values), rows).unflatten(0, self.shape) for values in by_stage]

        self.part_queries = self._put(torch.cat([part.part_queries for part in parts]), rows, self.part_queries)
        self.keypoints, self.sigmas, self.confidences = put("keypoints"), put("sigmas"), put("confidences")
        self.part_attentions = put("attention_maps")
        decoded = rows.new_ones(rows.shape[0], dtype=torch.bool)
        self.query_masks = [self._put(decoded, rows).unflatten(0, self.shape)] * len(self.boxes)

    def decode_best_people(self, count: int, threshold: float | None) -> None:
        """Decodes what may be among the `count` best people of each image, and for certain all of them.

        A person's score is the class score times a mean confidence of at most 1. The queries are taken by falling
        class score, some at a time; once the `count`-th best person so far has a higher score than the class scores
        of all that is left, the rest cannot enter. People whose boxes do not reach into the image count for nothing,
        because post-processing drops them. Each round costs one word from the device.
        """
        batch_size, num_queries = self.shape
        class_scores = class_probability(self.logits[-1].amax(dim=-1))
        class_scores, order = class_scores.sort(dim=1, descending=True)
        rows = order + torch.arange(batch_size, device=order.device)[:, None] * num_queries
        corners = self.relative_boxes[-1].detach().clamp(0, 1)
        # a little more than what post-processing asks for, which computes in pixels
        inside = (corners[..., 2:] - corners[..., :2] > 1e-6).all(dim=-1).flatten()
        scores = class_scores.new_full((batch_size * num_queries,), -1.0)
        undecided = torch.ones_like(class_scores, dtype=torch.bool)
        if threshold is not None:
            undecided &= class_scores > threshold
        parts: list[_Decoded] = []
        start, end = 0, count
        while not parts or start < num_queries:
            chosen = undecided[:, start:end].nonzero(as_tuple=True)
            part_rows = rows[:, start:end][chosen]
            if parts and not len(part_rows):
                break
            part = self._decode(part_rows)
            parts.append(part)
            confidence = part.confidences[-1].mean(dim=-1)
            found = (class_scores[:, start:end][chosen] * confidence).masked_fill(~inside[part_rows], -1.0)
            scores[part_rows] = found.to(scores.dtype)
            least = scores.view(batch_size, num_queries).topk(count, dim=1).values[:, -1:]
            # of an equal score the earlier query comes first, so that the last place may still change hands
            undecided &= class_scores >= least
            start, end = end, end + max(count // 2, 4)
        self._collect(parts)

    def _put(self, values: Tensor, rows: Tensor | None, into: Tensor | None = None) -> Tensor:
        """Values of the queries in `rows` among those of all queries, which are `into` or zero elsewhere."""
        if rows is None:
            return values
        if into is None:
            into = values.new_zeros(self.shape[0] * self.shape[1], *values.shape[1:])
        return into.index_put((rows,), values.to(into.dtype))


class QueryPosePreTrainedModel(PreTrainedModel):
    """Weight initialisation and the interface to pretrained checkpoints."""

    config: QueryPoseConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ("QueryPoseBoxLayer", "QueryPoseKeypointLayer")
    # the loss is divided by the number of people itself
    accepts_loss_kwargs = False

    def get_input_embeddings(self) -> None:
        """`None`: images are not embedded from a vocabulary. Quantisers and adapters ask every model for its."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Transformers leaves out modules without parameters of their own, so that layers carry what they start from
        # (see `start_from`) rather than being set by what contains them.
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            self._init_affine(module)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, QueryPoseKeypointLinear):
            # a linear layer per part: Xavier over the part's own number of outputs, torch's bias
            part_dim = module.weight.shape[-1]
            bounds = torch.empty(len(module.weight), 1, 1)
            for part in module.parts:
                bounds[part] = math.sqrt(6 / (part_dim + 2 * len(part)))
            if module.offsets_from_attention:
                init.zeros_(module.weight)
                init.zeros_(module.bias)
            else:
                init.copy_(module.weight, torch.empty(module.weight.shape).uniform_(-1, 1) * bounds)
                init.uniform_(module.bias, -1 / math.sqrt(part_dim), 1 / math.sqrt(part_dim))
            init.copy_(module.part_of_keypoint, module.find_parts())
        elif isinstance(module, QueryPoseFlow):
            init.copy_(module.mask, module.coupling_masks())
        elif isinstance(module, QueryPoseDecoder):
            init.normal_(module.instance_queries)
            init.normal_(module.part_queries)
            whole_image = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand_as(module.initial_boxes)
            init.copy_(module.initial_boxes, whole_image)
            init.copy_(module.oks_constants, torch.tensor(module.config.keypoint_sigmas, dtype=torch.float32))

    def _init_affine(self, module: nn.Conv2d | nn.Linear | nn.ConvTranspose2d) -> None:
        fan_in = math.prod(module.weight.shape[1:])
        weight_start = getattr(module, "weight_start", "torch")
        if weight_start == "xavier":
            fan_out = len(module.weight) * math.prod(module.weight.shape[2:]) // getattr(module, "num_joined", 1)
            bound = math.sqrt(6 / (fan_in + fan_out))
        else:  # Kaiming uniform with a = 1, and with torch's own a = sqrt(5)
            bound = math.sqrt((3 if weight_start == "kaiming" else 1) / fan_in)
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            bias_start = getattr(module, "bias_start", None)
            if bias_start is None:
                init.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
            else:
                init.constant_(module.bias, bias_start)


class QueryPoseModel(QueryPosePreTrainedModel):
    """QueryPose without loss: backbone, neck, and the stages with their class logits, boxes and keypoints."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__(config)
        self.backbone = QueryPoseBackbone(config)
        neck = QueryPoseFPN if config.neck_type == "fpn" else QueryPoseHRFPN
        self.neck = neck(config, self.backbone.channels)
        self.decoder = QueryPoseDecoder(config)
        self.post_init()

    def extract_pyramid(self, pixel_values: Tensor) -> list[Tensor]:
        """The pyramid P2 to P5 of images `(B, 3, height, width)`, `(B, d, height / stride, width / stride)` each.

        Images whose sides are not multiples of 32 are padded with zeros at the right and bottom.
        """
        height, width = pixel_values.shape[-2:]
        coarsest = STRIDES[-1]
        padding = (0, -width % coarsest, 0, -height % coarsest)
        if any(padding):
            pixel_values = nn.functional.pad(pixel_values, padding)
        return self.neck(self.backbone(pixel_values))

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Any]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        keypoint_top_k: int | None = None,
        keypoint_score_threshold: float | None = None,
        max_people: int | None = None,
        person_threshold: float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QueryPoseModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Normalised images, padded at the right and bottom.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 where the image is, 0 where it was padded. Without it every image fills its tensor.
            labels (`list[dict]`, *optional*):
                People per image. In training mode keypoints are decoded of the queries matched to them alone, in
                inference of all queries.
            output_attentions, output_hidden_states (`bool`, *optional*): see the output; default to the configuration.
            keypoint_top_k (`int`, *optional*), keypoint_score_threshold (`float`, *optional*):
                Override the configuration's fields of the same names; without effect where labels are given.
            max_people (`int`, *optional*), person_threshold (`float`, *optional*):
                Only so many best people of each image, and only people of a higher score, are wanted. Keypoints are
                then decoded of no more queries than it takes to find exactly those: a person's score is at most the
                class score. Without effect, since every query matters, where keypoints feed back into the box decoder
                (`query_feedback="always"` with an interaction); where labels are given; with `keypoint_top_k`, whose
                number of queries is fixed; and in compiled and exported graphs.

        Raises:
            ValueError: if the shapes of images, mask and labels do not agree.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        image_sizes = image_sizes_from_mask(pixel_values, pixel_mask)
        targets = None
        if self.training and labels is not None:
            targets = targets_from_labels(labels, pixel_values, config)
        if keypoint_top_k is None:
            keypoint_top_k = config.keypoint_top_k
        if keypoint_score_threshold is None:
            keypoint_score_threshold = config.keypoint_score_threshold
        if labels is not None:  # a loss needs the keypoints of whichever queries are matched
            keypoint_top_k = keypoint_score_threshold = max_people = person_threshold = None
        if max_people is not None and max_people < 1:
            raise ValueError(f"`max_people` must be None or at least 1, but is {max_people}.")
        pyramid = self.extract_pyramid(pixel_values)
        outputs = self.decoder(
            pyramid,
            image_sizes,
            targets=targets,
            keypoint_top_k=keypoint_top_k,
            keypoint_score_threshold=keypoint_score_threshold,
            max_people=max_people,
            person_threshold=person_threshold,
            output_attentions=bool(output_attentions),
            part_attentions_for_loss=labels is not None and config.part_attention_loss_coefficient > 0,
            output_hidden_states=bool(output_hidden_states),
        )
        if config.heatmap_loss_coefficient > 0:
            outputs.heatmap_features = pyramid[0]
        return outputs


def image_sizes_from_mask(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Unpadded heights and widths `(B, 2)`, in a type that holds them exactly and without a word to the host."""
    if pixel_values.ndim != 4:
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, channels, height, width), but has "
            f"{tuple(pixel_values.shape)}."
        )
    batch_size, _, height, width = pixel_values.shape
    if pixel_mask is None:
        sides = [torch.full((batch_size,), side, device=pixel_values.device) for side in (height, width)]
    elif pixel_mask.shape != (batch_size, height, width):
        raise ValueError(
            f"`pixel_mask` must have shape {(batch_size, height, width)} like `pixel_values`, but has "
            f"{tuple(pixel_mask.shape)}."
        )
    else:
        # padding is at the right and bottom, so that the first column and row tell
        sides = [pixel_mask[:, :, 0].sum(dim=1), pixel_mask[:, 0, :].sum(dim=1)]
    return torch.stack(sides, dim=1)


def targets_from_labels(labels: list[dict[str, Any]], pixel_values: Tensor, config: QueryPoseConfig) -> Targets:
    return Targets.from_labels(
        labels,
        batch_size=len(pixel_values),
        num_labels=config.num_labels,
        num_keypoints=config.num_keypoints,
        device=pixel_values.device,
        dtype=coordinate_dtype(pixel_values.dtype),
    )


class QueryPoseHeatmapHead(nn.Module):
    """Auxiliary keypoint heatmaps on P2, trained beside the rest and unused in inference (Section 4.3)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.d_model, config.d_model, 3, padding=1)
        self.predictor = nn.Conv2d(config.d_model, config.num_keypoints, 1)
        start_from([self.predictor], bias=-2.19)

    def forward(self, features: Tensor) -> Tensor:
        return self.predictor(self.conv(features).relu())


class QueryPoseForPoseEstimation(QueryPosePreTrainedModel):
    """QueryPose for multi-person pose estimation: boxes, keypoints and their confidence, and the training loss.

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor

    >>> processor = QueryPoseImageProcessor.from_pretrained("path/to/checkpoint")
    >>> model = QueryPoseForPoseEstimation.from_pretrained("path/to/checkpoint").eval()
    >>> image = Image.open("photo.jpg")
    >>> with torch.no_grad():
    ...     outputs = model(**processor(image, return_tensors="pt"))
    >>> people = processor.post_process_pose_estimation(outputs, target_sizes=[image.size[::-1]])[0]
    ```
    """

    def __init__(self, config: QueryPoseConfig):
        super().__init__(config)
        self.model = QueryPoseModel(config)
        self.flow = QueryPoseFlow()
        self.heatmap_head = QueryPoseHeatmapHead(config) if config.heatmap_loss_coefficient > 0 else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Any]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        keypoint_top_k: int | None = None,
        keypoint_score_threshold: float | None = None,
        max_people: int | None = None,
        person_threshold: float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QueryPosePoseEstimationOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Normalised images, padded at the right and bottom.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 where the image is, 0 where it was padded. Without it every image fills its tensor.
            labels (`list[dict]`, *optional*):
                One dict per image, as the image processor makes them: `class_labels` `(n,)`, `boxes` `(n, 4)` as
                centre x, y, width, height and `keypoints` `(n, num_keypoints, 3)` as x, y, visibility, both relative
                to the image. In inference they give a validation loss, for which the keypoints of all queries are
                decoded; in training mode only those of queries matched to people are.
            output_attentions, output_hidden_states (`bool`, *optional*): see the output; default to the configuration.
            keypoint_top_k (`int`, *optional*), keypoint_score_threshold (`float`, *optional*):
                Override the configuration's fields of the same names; without effect where labels are given.
            max_people (`int`, *optional*), person_threshold (`float`, *optional*):
                Only so many best people of each image, and only people of a higher score, are wanted. Keypoints are
                then decoded of no more queries than it takes to find exactly those: a person's score is at most the
                class score. Without effect, since every query matters, where keypoints feed back into the box decoder
                (`query_feedback="always"` with an interaction); where labels are given; with `keypoint_top_k`, whose
                number of queries is fixed; and in compiled and exported graphs.

        Raises:
            ValueError: if the shapes of images, mask and labels do not agree.
        """
        config = self.config
        targets = None if labels is None else targets_from_labels(labels, pixel_values, config)
        wants_attentions = config.output_attentions if output_attentions is None else output_attentions
        outputs: QueryPoseModelOutput = self.model(
            pixel_values,
            pixel_mask=pixel_mask,
            labels=labels,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            keypoint_top_k=keypoint_top_k,
            keypoint_score_threshold=keypoint_score_threshold,
            max_people=max_people,
            person_threshold=person_threshold,
            return_dict=True,
        )
        stages = [read_stage(outputs, stage) for stage in range(config.decoder_layers)]
        loss, loss_dict = None, None
        if targets is not None:
            loss, loss_dict = self.compute_loss(outputs, targets, image_sizes_from_mask(pixel_values, pixel_mask))
        return QueryPosePoseEstimationOutput(
            loss=loss,
            loss_dict=loss_dict,
            **stages[-1],
            auxiliary_outputs=stages[:-1] if config.auxiliary_loss else None,
            last_hidden_state=outputs.last_hidden_state,
            part_queries=outputs.part_queries,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            part_attentions=outputs.part_attentions if wants_attentions else None,
        )

    def compute_loss(
        self, outputs: QueryPoseModelOutput, targets: Targets, image_sizes: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss and its terms of what the model found; see [`pose_estimation_loss`]."""
        logits = outputs.intermediate_logits.transpose(0, 1)
        boxes = outputs.intermediate_boxes.transpose(0, 1)
        matches = outputs.matches
        if matches is None:
            matches = self.model.decoder.matcher(logits.detach(), boxes.detach(), targets)
        part_attentions = None
        if self.config.part_attention_loss_coefficient > 0:
            part_attentions = outputs.matched_part_attentions
            if part_attentions is None:
                part_attentions = [
                    maps.flatten(0, 1)[rows] for maps, (rows, _) in zip(outputs.part_attentions, matches, strict=True)
                ]
        loss, loss_dict = pose_estimation_loss(
            self.config,
            logits,
            boxes,
            outputs.intermediate_keypoints.transpose(0, 1),
            outputs.intermediate_sigmas.transpose(0, 1),
            matches,
            targets,
            self.flow,
            part_attentions,
            outputs.noisy_boxes,
            image_sizes,
        )
        if self.heatmap_head is not None:
            heatmap_logits = self.heatmap_head(outputs.heatmap_features).to(boxes.dtype)
            heatmaps = keypoint_heatmaps(targets, image_sizes, *heatmap_logits.shape[-2:], stride=STRIDES[0])
            loss_dict["loss_heatmap"] = self.config.heatmap_loss_coefficient * heatmap_focal_loss(
                heatmap_logits, heatmaps
            )
            loss = loss + loss_dict["loss_heatmap"]
        return loss, loss_dict


def read_stage(outputs: QueryPoseModelOutput, stage: int) -> dict[str, Tensor]:
    """One stage's results with boxes and keypoints relative to the image."""
    boxes = outputs.intermediate_boxes[:, stage]
    sigmas = outputs.intermediate_sigmas[:, stage]
    mask = outputs.intermediate_query_mask[:, stage]
    low, size = boxes[..., None, :2], (boxes[..., 2:] - boxes[..., :2])[..., None, :]
    keypoints = (outputs.intermediate_keypoints[:, stage] + 0.5) * size + low
    return {
        "logits": outputs.intermediate_logits[:, stage],
        "pred_boxes": corners_to_center_format(boxes),
        "pred_keypoints": keypoints * mask[..., None, None],
        "keypoint_scores": outputs.intermediate_keypoint_scores[:, stage],
        "keypoint_sigmas": sigmas,
        "keypoint_query_mask": mask,
    }


__all__ = ["QueryPoseForPoseEstimation", "QueryPoseModel", "QueryPosePreTrainedModel"]
