"""One stage of the keypoint decoder (Sections 3.2 and 3.3, Figure 2), and the pieces it is made of.

The dicts below name the pieces; the configuration chooses one of each, and so a system of the paper's Tables 1 to 3.
R is the number of RoIs, d and d_p the widths of instance and part queries, M the number of parts, K of keypoints.
F are the keypoint features `(R, d, 14, 14)`, T the number of queries of a RoI (M parts, or 1 instance), w their width.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_maps_querypose import attention_centers, sine_encoding
from .configuration_querypose import QueryPoseConfig
from .initialization_querypose import start_from
from .layers_querypose import QueryPoseDynamicInteraction, QueryPoseFeedForward, QueryPoseSelfAttention, stay_finite
from .rois_querypose import coordinate_dtype


class QueryPoseConvStack(GradientCheckpointingLayer):
    """3x3 convolutions from RoI features to keypoint features, d -> 2d -> ... -> 2d -> d."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        wide = 2 * config.d_model
        channels = [config.d_model] + [wide] * (config.num_pose_convs - 1) + [config.d_model]
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in itertools.pairwise(channels)]
        )

    def forward(self, features: Tensor) -> Tensor:
        for conv in self.convs:
            features = nn.functional.relu(stay_finite(conv(features), self.training), inplace=True)
        return features


class QueryPosePartBatchNorm(nn.BatchNorm2d):
    """Batch norm over RoIs. A batch without people has none: then the running statistics stay as they are."""

    def forward(self, features: Tensor) -> Tensor:
        if self.training and features.shape[0] == 0:
            return nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(features)


class QueryPoseSpatialAttention(nn.Module):
    """SPEGM: each query has an attention map over the RoI, and its embedding is what that map gathers (Section 3.2).

    The maps come from the features alone; the queries that it is given are not read.
    """

    def __init__(self, config: QueryPoseConfig, num_queries: int, query_dim: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(config.d_model, config.d_model, 4, stride=2, padding=1, bias=False)
        self.upsample_norm = QueryPosePartBatchNorm(config.d_model)
        self.attention_conv = nn.Conv2d(config.d_model, num_queries, 3, padding=1)
        start_from([self.attention_conv], bias=0.0)
        self.projection = nn.Linear(config.d_model, query_dim)

    def forward(self, features: Tensor, queries: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """F to embeddings `(R, T, w)` and attention maps `(R, T, 28, 28)`."""
        features = stay_finite(self.upsample(features), self.training)
        features = nn.functional.relu(self.upsample_norm(features), inplace=True)
        maps = self.attention_conv(features)
        attention = maps.flatten(2).softmax(dim=-1)
        embeddings = torch.bmm(attention.to(features.dtype), features.flatten(2).transpose(1, 2))
        return self.projection(embeddings), attention.view_as(maps)


class QueryPoseFeatureSelfAttention(nn.Module):
    """Self-attention over the queries and the features of their RoI together; the queries are kept (Table 1)."""

    def __init__(self, config: QueryPoseConfig, num_queries: int, query_dim: int):
        super().__init__()
        self.projection = nn.Linear(config.d_model, query_dim)
        self.self_attn = QueryPoseSelfAttention(config, query_dim)

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, None]:
        """F and queries `(R, T, w)` to embeddings `(R, T, w)`."""
        tokens = self.projection(features.flatten(2).transpose(1, 2) + sine_encoding(features))
        attended, _ = self.self_attn(torch.cat([queries, tokens], dim=1))
        return attended[:, : queries.shape[1]], None


def _dynamic_interaction(config: QueryPoseConfig, num_queries: int, query_dim: int, over: str) -> nn.Module:
    return QueryPoseDynamicInteraction(config, config.pose_pooler_resolution**2, query_dim, over)


#: How queries read F, by `keypoint_interaction`; `"pooling"`, the baseline's, needs no queries.
KEYPOINT_INTERACTIONS: dict[str, Callable[[QueryPoseConfig, int, int], nn.Module]] = {
    "spatial_attention": QueryPoseSpatialAttention,
    "self_attention": QueryPoseFeatureSelfAttention,
    "dynamic_channel": partial(_dynamic_interaction, over="channels"),
    "dynamic_spatial": partial(_dynamic_interaction, over="positions"),
}


class QueryPosePartProjection(nn.Module):
    """One linear layer per part on the instance query, all in one product: `(R, d)` to `(R, M, d_p)`."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.num_parts = config.num_parts
        self.projection = nn.Linear(config.d_model, config.num_parts * config.part_dim)
        self.projection.num_joined = config.num_parts  # each part's layer starts as a layer of its own

    def forward(self, queries: Tensor) -> Tensor:
        return self.projection(queries).unflatten(-1, (self.num_parts, -1))


class QueryPoseSelectiveIteration(nn.Module):
    """SIM: two gates mix the part queries of the stage before with new part embeddings (Section 3.3)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.part_dim, config.part_dim // 4, bias=False)
        self.norm = nn.LayerNorm(config.part_dim // 4)
        self.fc2 = nn.Linear(config.part_dim // 4, 2 * config.part_dim)

    def forward(self, embeddings: Tensor, part_queries: Tensor) -> Tensor:
        hidden = self.norm(self.fc1(embeddings + part_queries)).relu()
        embedding_gate, query_gate = self.fc2(hidden).sigmoid().chunk(2, dim=-1)
        return embedding_gate * embeddings + query_gate * part_queries


class QueryPoseSumIteration(nn.Module):
    """Adds part queries to new part embeddings (Table 2)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()

    def forward(self, embeddings: Tensor, part_queries: Tensor) -> Tensor:
        return embeddings + part_queries


class QueryPoseConcatenationIteration(nn.Module):
    """A linear layer on part embeddings and part queries beside each other (Table 2)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.projection = nn.Linear(2 * config.part_dim, config.part_dim)

    def forward(self, embeddings: Tensor, part_queries: Tensor) -> Tensor:
        return self.projection(torch.cat([embeddings, part_queries], dim=-1))


#: How a stage mixes part queries with new part embeddings, by `part_iteration`. With `"none"` the part queries are the
#: learned table in each stage: nothing is carried on.
PART_ITERATIONS = {
    "selective": QueryPoseSelectiveIteration,
    "sum": QueryPoseSumIteration,
    "concatenation": QueryPoseConcatenationIteration,
    "none": QueryPoseSumIteration,
}


class QueryPoseKeypointLinear(nn.Module):
    """One linear layer per query of a RoI to its keypoints' x and y, laid out by keypoint.

    Row (k, c) of the weight makes coordinate c of keypoint k from the query that k belongs to, its part's. So one
    product serves all, and the output is in keypoint order.

    Args:
        config ([`QueryPoseConfig`])
        parts (`list[list[int]]`): the keypoints of each query.
        query_dim (`int`): width w of the queries.
    """

    def __init__(self, config: QueryPoseConfig, parts: list[list[int]], query_dim: int):
        super().__init__()
        self.parts = [list(part) for part in parts]
        self.weight = nn.Parameter(torch.empty(config.num_keypoints, 2, query_dim))
        self.bias = nn.Parameter(torch.empty(config.num_keypoints, 2))
        self.register_buffer("part_of_keypoint", self.find_parts(), persistent=False)

    def find_parts(self) -> Tensor:
        """Index of the query that each keypoint belongs to."""
        part_of = {keypoint: part for part, keypoints in enumerate(self.parts) for keypoint in keypoints}
        return torch.tensor([part_of[keypoint] for keypoint in range(len(part_of))])

    def prepare(self, queries: Tensor) -> Tensor:
        """What is done to the queries first: nothing here."""
        return queries

    def forward(self, queries: Tensor) -> Tensor:
        """Queries `(R, T, w)` to `(R, K, 2)`."""
        dtype = coordinate_dtype(queries.dtype)
        with torch.autocast(device_type=queries.device.type, enabled=False):
            by_keypoint = self.prepare(queries.to(dtype))[:, self.part_of_keypoint]
            return torch.einsum("rkd,kcd->rkc", by_keypoint, self.weight.to(dtype)) + self.bias.to(dtype)


class QueryPoseCoordinateHead(QueryPoseKeypointLinear):
    """Keypoints relative to the box: its centre is 0, its sides are 1. Takes L2-normalised queries."""

    def prepare(self, queries: Tensor) -> Tensor:
        # the paper divides by the norm as it is; the bound only keeps a query of zeros from becoming NaN
        return nn.functional.normalize(queries, dim=-1, eps=torch.finfo(queries.dtype).tiny)


class KeypointLayerOutput(NamedTuple):
    """What a keypoint layer makes of R RoIs.

    Attributes:
        queries (`Tensor` of shape `(R, d)`): instance queries, updated where the system does so.
        part_queries (`Tensor` of shape `(R, M, d_p)`): none, M = 0, in systems without part queries.
        keypoints (`Tensor` of shape `(R, K, 2)`): x, y relative to the box: its centre is 0, its sides are 1.
        sigmas (`Tensor` of shape `(R, K, 2)`): predicted deviations in the same units.
        attention_maps (`Tensor` of shape `(R, T, 28, 28)`, *optional*): over the RoI, each sums to 1; with spatial
            attention alone.
    """

    queries: Tensor
    part_queries: Tensor
    keypoints: Tensor
    sigmas: Tensor
    attention_maps: Tensor | None


class QueryPosePartKeypointLayer(nn.Module):
    """Keypoints from part queries, the paper's system; the full version has an `interaction`, the light one none."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.conv_stack = QueryPoseConvStack(config)
        self.interaction = None
        if config.pose_query_interaction == "dynamic":
            self.interaction = QueryPoseDynamicInteraction(config, config.pose_pooler_resolution**2)
            self.interaction_norm = nn.LayerNorm(config.d_model)
            self.instance_ffn = QueryPoseFeedForward(config, config.d_model)
            self.instance_ffn_norm = nn.LayerNorm(config.d_model)
        embedding = KEYPOINT_INTERACTIONS[config.keypoint_interaction]
        self.part_embedding = embedding(config, config.num_parts, config.part_dim)
        self.query_projection = QueryPosePartProjection(config)
        self.iteration = PART_ITERATIONS[config.part_iteration](config)
        self.self_attn = QueryPoseSelfAttention(config, config.part_dim)
        self.self_attn_norm = nn.LayerNorm(config.part_dim)
        self.part_ffn = QueryPoseFeedForward(config, config.part_dim)
        self.part_ffn_norm = nn.LayerNorm(config.part_dim)
        self.keypoint_head = None
        if config.keypoint_coordinates == "regression":
            self.keypoint_head = QueryPoseCoordinateHead(config, config.keypoint_parts, config.part_dim)
        self.sigma_head = QueryPoseKeypointLinear(config, config.keypoint_parts, config.part_dim)

    def forward(self, queries: Tensor, part_queries: Tensor, roi_features: Tensor) -> KeypointLayerOutput:
        """
        Args:
            queries (`Tensor` of shape `(R, d)`): instance queries.
            part_queries (`Tensor` of shape `(R, M, d_p)`): of the stage before.
            roi_features (`Tensor` of shape `(R, d, 14, 14)`)
        """
        features = self.conv_stack(roi_features)
        queries = self.update_queries(queries, features)
        instance = self.query_projection(queries)
        embeddings, attention_maps = self.part_embedding(features, part_queries + instance)
        part_queries = self.iteration(embeddings + instance, part_queries)
        part_queries = self.self_attn_norm(part_queries + self.dropout(self.self_attn(part_queries)[0]))
        part_queries = self.part_ffn_norm(part_queries + self.dropout(self.part_ffn(part_queries)))
        if self.keypoint_head is not None:
            keypoints = self.keypoint_head(part_queries)
        else:
            keypoints = attention_centers(attention_maps)[:, self.sigma_head.part_of_keypoint]
        sigmas = self.sigma_head(part_queries).sigmoid()
        return KeypointLayerOutput(queries, part_queries, keypoints, sigmas, attention_maps)

    def update_queries(self, queries: Tensor, features: Tensor) -> Tensor:
        """Instance queries `(R, d)` after interacting with the keypoint features; in the light version as they are."""
        if self.interaction is None:
            return queries
        embeddings, _ = self.interaction(features, queries[:, None])
        queries = self.interaction_norm(queries + self.dropout(embeddings[:, 0]))
        return self.instance_ffn_norm(queries + self.dropout(self.instance_ffn(queries)))


class QueryPoseInstanceKeypointLayer(nn.Module):
    """Keypoints from the instance query, which reads the keypoint features itself (Table 1)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        everything = [list(range(config.num_keypoints))]
        self.dropout = nn.Dropout(config.dropout)
        self.conv_stack = QueryPoseConvStack(config)
        self.interaction = KEYPOINT_INTERACTIONS[config.keypoint_interaction](config, 1, config.d_model)
        self.interaction_norm = nn.LayerNorm(config.d_model)
        self.instance_ffn = QueryPoseFeedForward(config, config.d_model)
        self.instance_ffn_norm = nn.LayerNorm(config.d_model)
        self.keypoint_head = QueryPoseCoordinateHead(config, everything, config.d_model)
        self.sigma_head = QueryPoseKeypointLinear(config, everything, config.d_model)

    def forward(self, queries: Tensor, part_queries: Tensor, roi_features: Tensor) -> KeypointLayerOutput:
        """See [`QueryPosePartKeypointLayer.forward`]; `part_queries` are none."""
        features = self.conv_stack(roi_features)
        embeddings, attention_maps = self.interaction(features, queries[:, None])
        queries = self.interaction_norm(queries + self.dropout(embeddings[:, 0]))
        queries = self.instance_ffn_norm(queries + self.dropout(self.instance_ffn(queries)))
        keypoints = self.keypoint_head(queries[:, None])
        sigmas = self.sigma_head(queries[:, None]).sigmoid()
        return KeypointLayerOutput(queries, part_queries, keypoints, sigmas, attention_maps)


class QueryPosePooledKeypointLayer(nn.Module):
    """The paper's baseline: keypoints from the mean of the keypoint features, without any query (Table 2)."""

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        everything = [list(range(config.num_keypoints))]
        self.conv_stack = QueryPoseConvStack(config)
        self.keypoint_head = QueryPoseCoordinateHead(config, everything, config.d_model)
        self.sigma_head = QueryPoseKeypointLinear(config, everything, config.d_model)

    def forward(self, queries: Tensor, part_queries: Tensor, roi_features: Tensor) -> KeypointLayerOutput:
        """See [`QueryPosePartKeypointLayer.forward`]; `queries` are handed on, `part_queries` are none."""
        pooled = self.conv_stack(roi_features).mean(dim=(-2, -1))[:, None]
        keypoints, sigmas = self.keypoint_head(pooled), self.sigma_head(pooled).sigmoid()
        return KeypointLayerOutput(queries, part_queries, keypoints, sigmas, None)


#: What keypoints are found from, by `keypoint_query`.
KEYPOINT_LAYERS = {
    "part": QueryPosePartKeypointLayer,
    "instance": QueryPoseInstanceKeypointLayer,
    "none": QueryPosePooledKeypointLayer,
}
