"""One stage of the box decoder (Section 3.1; Sparse R-CNN)."""

import math

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_querypose import QueryPoseConfig
from .initialization_querypose import start_from
from .layers_querypose import (
    QueryPoseCoordinateLinear,
    QueryPoseDynamicInteraction,
    QueryPoseFeedForward,
    QueryPoseSelfAttention,
)


# Sparse R-CNN's box coder divides deltas by these, and limits the logarithm of the growth.
_DELTA_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
_MAX_LOG_GROWTH = math.log(100000.0 / 16)


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
        self.dropout = nn.Dropout(config.dropout)
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

    def forward(
        self, queries: Tensor, roi_features: Tensor, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """
        Args:
            queries (`Tensor` of shape `(B, N, d)`)
            roi_features (`Tensor` of shape `(B * N, d, resolution, resolution)`)

        Returns:
            `tuple`: queries `(B, N, d)`, class logits `(B, N, num_labels)`, box deltas `(B, N, 4)`, and attention
            weights `(B, heads, N, N)` where they are asked for.
        """
        attended, weights = self.self_attn(queries, output_attentions)
        queries = self.self_attn_norm(queries + self.dropout(attended))
        embeddings, _ = self.interaction(roi_features, queries.flatten(0, 1)[:, None])
        queries = self.interaction_norm(queries + self.dropout(embeddings.view_as(queries)))
        queries = self.ffn_norm(queries + self.dropout(self.ffn(queries)))
        logits = self.class_head(self.class_branch(queries))
        deltas = self.box_head(self.box_branch(queries))
        return queries, logits, deltas, weights


def apply_box_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Moves boxes by (dx, dy) times their size and scales them by exp(dw, dh), as Sparse R-CNN does.

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
