"""Layers that box stages and keypoint stages share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_querypose import QueryPoseConfig
from .initialization_querypose import start_from
from .rois_querypose import coordinate_dtype


def stay_finite(values: Tensor, training: bool) -> Tensor:
    """In inference in float16, limits values to its range, in place; otherwise they stay as they are.

    Infinite features would become NaN in the next layers, and the person would be lost. Training leaves them, for the
    loss scaler to see.
    """
    if training or values.dtype != torch.float16:
        return values
    largest = torch.finfo(torch.float16).max
    return values.clamp_(-largest, largest)


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
    """Multi-head self-attention over the instance queries of an image or the part queries of an instance."""

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
        # fused kernels give no weights, and refuse a batch of no RoIs, as images without people make one
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
    """Filters RoI features with two matrices that each query makes (Sparse R-CNN's dynamic head).

    Args:
        config ([`QueryPoseConfig`])
        num_positions (`int`): positions P of the RoI features.
        query_dim (`int`, *optional*): width of the queries; by default `d_model`.
        over (`str`): what the matrices mix, `"channels"` as in Sparse R-CNN, or `"positions"` (Table 1).
    """

    def __init__(
        self, config: QueryPoseConfig, num_positions: int, query_dim: int | None = None, over: str = "channels"
    ):
        super().__init__()
        query_dim = config.d_model if query_dim is None else query_dim
        self.mixes_positions = over == "positions"
        self.mixed_dim = num_positions if self.mixes_positions else config.d_model
        self.dynamic_dim = config.dynamic_dim
        self.dynamic_layer = nn.Linear(query_dim, 2 * self.mixed_dim * config.dynamic_dim)
        self.dynamic_norm = nn.LayerNorm(config.dynamic_dim)
        self.feature_norm = nn.LayerNorm(self.mixed_dim)
        self.out_layer = nn.Linear(num_positions * config.d_model, query_dim)
        self.out_norm = nn.LayerNorm(query_dim)

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, None]:
        """RoI features `(R, d, height, width)` and queries `(R, T, query_dim)` to `(R, T, query_dim)`; no maps."""
        features = features.flatten(2) if self.mixes_positions else features.flatten(2).transpose(1, 2)
        into, out = self.dynamic_layer(queries).split(self.mixed_dim * self.dynamic_dim, dim=-1)
        features = torch.matmul(features[:, None], into.unflatten(-1, (self.mixed_dim, self.dynamic_dim)))
        features = self.dynamic_norm(stay_finite(features, self.training)).relu_()
        features = torch.matmul(features, out.unflatten(-1, (self.dynamic_dim, self.mixed_dim)))
        features = self.feature_norm(stay_finite(features, self.training)).relu_()
        return self.out_norm(self.out_layer(features.flatten(2))).relu(), None


class QueryPoseCoordinateLinear(nn.Linear):
    """A linear layer whose outputs are coordinates: computed in float32 at least, under autocast too."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = coordinate_dtype(hidden_states.dtype)
        with torch.autocast(device_type=hidden_states.device.type, enabled=False):
            return nn.functional.linear(hidden_states.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
