"""The decoder: stages of a box layer and a keypoint layer each (Figure 2), and which queries they decode.

B is the number of images, N of instance queries, M of parts, K of keypoints, R of queries at hand. Queries at hand are
given as rows: image * N + query.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.image_transforms import center_to_corners_format

from .attention_maps_querypose import expected_similarity
from .box_layer_querypose import QueryPoseBoxLayer, apply_box_deltas
from .configuration_querypose import QueryPoseConfig
from .initialization_querypose import start_from
from .keypoint_layer_querypose import KEYPOINT_LAYERS
from .lazy_level_querypose import QueryPoseLazyLevel
from .matching_querypose import Matches, QueryPoseHungarianMatcher
from .people_querypose import class_scores, clip_boxes, person_scores
from .rois_querypose import QueryPoseRoiPooler
from .targets_querypose import QueryPoseTargets


@dataclass(frozen=True)
class QuerySelection:
    """Which queries' keypoints are wanted in inference; by default all.

    Attributes:
        top_k (`int`, *optional*): this many of each image, those of the highest class score. Their number is fixed:
            graphs of static shape can do it, and it needs no host sync.
        max_people (`int`, *optional*): as many as are needed to be sure of the best `max_people` of each image.
        person_threshold (`float`, *optional*): those whose person may have a higher score.
    """

    top_k: int | None = None
    max_people: int | None = None
    person_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "max_people"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be None or at least 1, but is {value}.")


class BoxStage(NamedTuple):
    """What a box stage found.

    Attributes:
        queries (`Tensor` of shape `(B, N, d)`): instance queries.
        logits (`Tensor` of shape `(B, N, num_labels)`): class logits.
        boxes (`Tensor` of shape `(B, N, 4)`): refined boxes, corners in pixels.
        attentions (`Tensor` of shape `(B, heads, N, N)`, *optional*): self-attention of the queries.
    """

    queries: Tensor
    logits: Tensor
    boxes: Tensor
    attentions: Tensor | None


class KeypointStage(NamedTuple):
    """What a keypoint stage found for some of the queries.

    Attributes:
        rows (`LongTensor` of shape `(R,)`, *optional*): which queries; `None` is all of them.
        queries (`Tensor` of shape `(R, d)`): instance queries, updated in the full version.
        part_queries (`Tensor` of shape `(R, M, d_p)`)
        keypoints, sigmas (`Tensor` of shape `(R, K, 2)`): places relative to the box, whose centre is 0 and whose
            sides are 1, and their predicted deviations.
        scores (`Tensor` of shape `(R, K)`): confidence of the keypoints.
        attention_maps (`Tensor` of shape `(R, M, 28, 28)`, *optional*): of the parts, where they are wanted.
    """

    rows: Tensor | None
    queries: Tensor
    part_queries: Tensor
    keypoints: Tensor
    sigmas: Tensor
    scores: Tensor
    attention_maps: Tensor | None

    def among(self, values: Tensor, rows: Tensor) -> Tensor:
        """Of `values`, one for each query of this stage, those of the queries in `rows`.

        The stage has to have decoded them all. Both rows have to be in rising order; those of matches are.
        """
        if self.rows is None:
            return values[rows]
        return values if self.rows is rows else values[torch.searchsorted(self.rows, rows)]


def take_rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """The entries of `values`, one for each query of the batch, of the queries in `rows`; all for `None`."""
    return values if rows is None else values[rows]


def lay_out(values: Tensor, rows: Tensor | None, into: Tensor, only: Tensor | None = None) -> Tensor:
    """Lays out values of the queries in `rows` by query: `into` `(B * N, ...)` with these entries replaced.

    Args:
        only (`BoolTensor` of shape `(B * N,)`, *optional*): replace the entries of these queries alone.
    """
    values = values.to(into.dtype)
    laid_out = values if rows is None else into.index_put((rows,), values)
    if only is None:
        return laid_out
    return torch.where(only.view(-1, *([1] * (into.ndim - 1))), laid_out, into)


@dataclass
class DecoderOutput:
    """What the decoder found.

    Attributes:
        box_stages (`list[BoxStage]`), keypoint_stages (`list[KeypointStage]`): one per stage.
        part_queries (`Tensor` of shape `(B, N, M, d_p)`): the last ones of each query; the learned table where it was
            never decoded.
        hidden_states (`list[Tensor]`): the initial instance queries and those after each stage.
        scale (`Tensor` of shape `(B, 1, 4)`): see [`QueryPoseRoiPooler`].
        matches (`list[Matches]`): with targets, which query stands for which person in each stage.
    """

    box_stages: list[BoxStage]
    keypoint_stages: list[KeypointStage]
    part_queries: Tensor
    hidden_states: list[Tensor]
    scale: Tensor
    matches: list[Matches]

    @property
    def queries(self) -> Tensor:
        """Instance queries `(B, N, d)` after the last stage."""
        return self.hidden_states[-1]

    def relative_boxes(self, stage: int) -> Tensor:
        """Boxes `(B, N, 4)` of a stage, corners relative to each image's unpadded size."""
        return self.box_stages[stage].boxes / self.scale

    def by_query(self, stage: int, name: str) -> Tensor:
        """A field of a keypoint stage by query, `(B, N, ...)`; zero for queries that were not decoded."""
        found = self.keypoint_stages[stage]
        values = getattr(found, name)
        batch_size, num_queries = self.queries.shape[:2]
        if found.rows is not None:
            values = lay_out(values, found.rows, values.new_zeros(batch_size * num_queries, *values.shape[1:]))
        return values.reshape(batch_size, num_queries, *values.shape[1:])

    def decoded(self, stage: int) -> Tensor:
        """Which queries' keypoints a stage decoded, a `BoolTensor` `(B, N)`."""
        rows = self.keypoint_stages[stage].rows
        batch_size, num_queries = self.queries.shape[:2]
        if rows is None:
            return self.queries.new_ones(batch_size, num_queries, dtype=torch.bool)
        mask = self.queries.new_zeros(batch_size * num_queries, dtype=torch.bool)
        return mask.index_fill(0, rows, True).view(batch_size, num_queries)


class QueryPoseDecoder(nn.Module):
    """The stages: each refines boxes with a box layer, then finds keypoints in them with a keypoint layer.

    A stage whose keypoints feed back runs both in turn. The others run all box layers before the keypoint layers: one
    host sync then matches all of them in training, and in inference only queries that matter in the end are decoded.
    The result is the same.
    """

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        self.config = config
        self.matcher = QueryPoseHungarianMatcher(config)
        self.instance_queries = nn.Parameter(torch.empty(config.num_queries, config.d_model))
        self.initial_boxes = nn.Parameter(torch.empty(config.num_queries, 4))
        if config.keypoint_query == "part":
            self.part_queries = nn.Parameter(torch.empty(config.num_parts, config.part_dim))
        else:  # none to learn
            self.register_buffer("part_queries", torch.empty(0, config.part_dim), persistent=False)
        oks_constants = torch.tensor(config.keypoint_sigmas, dtype=torch.float32)
        self.register_buffer("oks_constants", oks_constants, persistent=False)
        self.box_layers = nn.ModuleList([QueryPoseBoxLayer(config) for _ in range(config.decoder_layers)])
        keypoint_layer = KEYPOINT_LAYERS[config.keypoint_query]
        self.keypoint_layers = nn.ModuleList([keypoint_layer(config) for _ in range(config.decoder_layers)])
        start_from(self.modules(), weight="xavier")

    @property
    def feeds_back(self) -> bool:
        """Whether a stage's keypoint layer changes the next stage's instance queries (Figure 3)."""
        return self.config.feeds_back(self.training)

    def forward(
        self,
        pyramid: Sequence[Tensor | QueryPoseLazyLevel],
        image_sizes: Tensor,
        targets: QueryPoseTargets | None = None,
        selection: QuerySelection | None = None,
        output_attentions: bool = False,
    ) -> DecoderOutput:
        """
        Args:
            pyramid (`Sequence[Tensor | QueryPoseLazyLevel]`): P2 to P5.
            image_sizes (`Tensor` of shape `(B, 2)`): unpadded heights and widths.
            targets ([`QueryPoseTargets`], *optional*): people to match queries to. In training only matched queries
                are decoded, besides those that feed back.
            selection ([`QuerySelection`], *optional*): without effect where there are targets.
            output_attentions (`bool`): keep self-attentions and part attention maps.
        """
        if targets is not None or selection is None:
            selection = QuerySelection()
        keeps_maps = output_attentions or (targets is not None and self.config.keypoint_coordinates == "attention")
        pooler = QueryPoseRoiPooler(self.config, pyramid, image_sizes)
        queries, boxes = self.initial_queries(pooler)
        part_queries = self.part_queries.expand(queries.shape[0] * queries.shape[1], -1, -1)
        hidden_states = [queries]
        box_stages: list[BoxStage] = []
        keypoint_stages: list[KeypointStage] = []
        matches: list[Matches] = []
        # what the last stage feeds back nobody reads
        stages_in_turn = len(self.box_layers) - 1 if self.feeds_back else 0

        for stage in range(len(self.box_layers)):
            found = self.box_stage(stage, pooler, queries, boxes, output_attentions=output_attentions)
            box_stages.append(found)
            queries, boxes = found.queries, found.boxes.detach()
            if stage < stages_in_turn:
                if targets is not None and self.config.query_feedback != "always":
                    matches += self.match([found], pooler, targets)
                rows, fed_back = self.rows_to_feed_back(found, matches)
                decoded = self.keypoint_stage(stage, pooler, found, take_rows(part_queries, rows), rows, keeps_maps)
                keypoint_stages.append(decoded)
                queries, part_queries = self.feed_back(decoded, queries, part_queries, fed_back)
            hidden_states.append(queries)

        if targets is not None:
            matches += self.match(box_stages[len(matches) :], pooler, targets)
        rest = list(enumerate(box_stages))[stages_in_turn:]
        if targets is not None and self.training and not (self.feeds_back and self.config.query_feedback == "always"):
            rows_of_stages: list[Tensor | None] = [matches[stage].query_rows for stage, _ in rest]
            keypoint_stages += self.keypoint_stages(pooler, rest, rows_of_stages, part_queries, keeps_maps)
        else:
            keypoint_stages += self.decode(pooler, rest, selection, part_queries, keeps_maps)
        for found in keypoint_stages[stages_in_turn:]:
            part_queries = lay_out(found.part_queries, found.rows, part_queries)
        return DecoderOutput(
            box_stages=box_stages,
            keypoint_stages=keypoint_stages,
            part_queries=part_queries.reshape(*queries.shape[:2], *part_queries.shape[1:]),
            hidden_states=hidden_states,
            scale=pooler.scale,
            matches=matches,
        )

    def feed_back(
        self, found: KeypointStage, queries: Tensor, part_queries: Tensor, fed_back: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Instance queries `(B, N, d)` and part queries `(B * N, M, d_p)` as the next stage gets them.

        Args:
            found ([`KeypointStage`])
            queries (`Tensor` of shape `(B, N, d)`), part_queries (`Tensor` of shape `(B * N, M, d_p)`): before.
            fed_back (`BoolTensor` of shape `(B * N,)`, *optional*): which queries feed back; by default all in
                `found`.
        """
        updated = lay_out(found.queries, found.rows, queries.flatten(0, 1), fed_back)
        if self.config.part_iteration != "none":
            part_queries = lay_out(found.part_queries, found.rows, part_queries, fed_back)
        return updated.view_as(queries), part_queries

    def rows_to_feed_back(self, found: BoxStage, matches: Sequence[Matches]) -> tuple[Tensor | None, Tensor | None]:
        """The rows that a stage decodes before the next stage runs, and which queries feed back.

        Args:
            found ([`BoxStage`])
            matches (`Sequence[Matches]`): up to this stage; none without targets, or where all queries feed back.

        Returns:
            `tuple`: rows, all for `None`, and a `BoolTensor` `(B * N,)`, all of the rows for `None`.
        """
        if self.config.query_feedback != "selected":
            return (matches[-1].query_rows if matches else None), None
        fed_back = (class_scores(found.logits)[0] > self.config.feedback_threshold).flatten()
        if torch.compiler.is_compiling():
            return None, fed_back
        # matched queries outside the rule are decoded for the loss alone
        decoded = fed_back.index_fill(0, matches[-1].query_rows, True) if matches else fed_back
        return decoded.nonzero()[:, 0], fed_back

    def initial_queries(self, pooler: QueryPoseRoiPooler) -> tuple[Tensor, Tensor]:
        """The learned instance queries `(B, N, d)` and their boxes `(B, N, 4)`, corners in pixels."""
        queries = self.instance_queries.expand(pooler.scale.shape[0], -1, -1)
        boxes: Tensor = center_to_corners_format(self.initial_boxes.to(pooler.scale.dtype))
        return queries, boxes * pooler.scale  # not detached: the table learns through the first stage's update

    def box_stage(
        self,
        stage: int,
        pooler: QueryPoseRoiPooler,
        queries: Tensor,
        boxes: Tensor,
        output_attentions: bool = False,
    ) -> BoxStage:
        """Refines boxes `(B, N, 4)` in pixels with queries `(B, N, d)`."""
        features = pooler.box_features(pooler.rois(boxes))
        queries, logits, deltas, attentions = self.box_layers[stage](queries, features, output_attentions)
        return BoxStage(queries, logits, apply_box_deltas(boxes, deltas), attentions)

    def keypoint_stage(
        self,
        stage: int,
        pooler: QueryPoseRoiPooler,
        boxes: BoxStage,
        part_queries: Tensor,
        rows: Tensor | None,
        keeps_maps: bool = False,
    ) -> KeypointStage:
        """Finds the keypoints of the queries in `rows` (all for `None`) in the boxes of the same stage.

        Args:
            boxes ([`BoxStage`])
            part_queries (`Tensor` of shape `(R, M, d_p)`): of the queries in `rows`.
            keeps_maps (`bool`): keep the part attention maps.
        """
        rois = take_rows(pooler.rois(boxes.boxes), rows)
        queries = take_rows(boxes.queries.flatten(0, 1), rows)
        layer = self.keypoint_layers[stage]
        found = layer(queries, part_queries, pooler.keypoint_features(rois))
        if self.config.keypoint_coordinates == "regression":
            scores = 1 - found.sigmas.mean(dim=-1)
        else:
            maps = found.attention_maps[:, layer.sigma_head.part_of_keypoint]
            scores = expected_similarity(maps, found.keypoints, rois, self.oks_constants)
        return KeypointStage(
            rows,
            found.queries,
            found.part_queries,
            found.keypoints,
            found.sigmas,
            scores,
            found.attention_maps if keeps_maps else None,
        )

    def keypoint_stages(
        self,
        pooler: QueryPoseRoiPooler,
        box_stages: Sequence[tuple[int, BoxStage]],
        rows_of_stages: Sequence[Tensor | None],
        part_queries: Tensor,
        keeps_maps: bool,
    ) -> list[KeypointStage]:
        """Keypoint stages after all box stages, each for its own rows. Part queries follow their query.

        Args:
            box_stages (`Sequence[tuple[int, BoxStage]]`): with the number of each stage.
            rows_of_stages (`Sequence[Tensor | None]`): what each decodes; all queries for `None`.
            part_queries (`Tensor` of shape `(B * N, M, d_p)`): of the stage before the first.
            keeps_maps (`bool`): keep the part attention maps.
        """
        stages: list[KeypointStage] = []
        carries = self.config.part_iteration != "none"
        for (number, boxes), rows in zip(box_stages, rows_of_stages, strict=True):
            if stages and carries and stages[-1].rows is rows:  # the same queries as before: nothing to lay out
                chosen = stages[-1].part_queries
            else:
                if stages and carries:
                    part_queries = lay_out(stages[-1].part_queries, stages[-1].rows, part_queries)
                chosen = take_rows(part_queries, rows)
            stages.append(self.keypoint_stage(number, pooler, boxes, chosen, rows, keeps_maps))
        return stages

    def decode(
        self,
        pooler: QueryPoseRoiPooler,
        box_stages: Sequence[tuple[int, BoxStage]],
        selection: QuerySelection,
        part_queries: Tensor,
        keeps_maps: bool = False,
    ) -> list[KeypointStage]:
        """Keypoint stages of the queries that `selection` asks for; nothing here feeds back."""

        def stages_of(rows: Tensor | None) -> list[KeypointStage]:
            return self.keypoint_stages(pooler, box_stages, [rows] * len(box_stages), part_queries, keeps_maps)

        last = box_stages[-1][1]
        count, threshold = selection.max_people, selection.person_threshold
        if selection.top_k is not None:
            return stages_of(self.best_rows(last.logits, selection))
        if count is not None and count >= last.logits.shape[1]:
            count = None
        if (count is None and threshold is None) or torch.compiler.is_compiling():
            return stages_of(None)  # a graph of static shape cannot know how many queries are wanted
        scores, _ = class_scores(last.logits)
        # a person's score is at most the class score
        undecided = scores > (-1.0 if threshold is None else threshold)
        if count is None:
            return stages_of(undecided.flatten().nonzero()[:, 0])
        return self.decode_best_people(last, pooler, undecided, count, stages_of)

    def decode_best_people(
        self,
        boxes: BoxStage,
        pooler: QueryPoseRoiPooler,
        undecided: Tensor,
        count: int,
        stages_of: Callable[[Tensor], list[KeypointStage]],
    ) -> list[KeypointStage]:
        """Decodes what may be among the `count` best people of each image, and all of them for certain.

        First the `count` best class scores are decoded. A person's score is at most the class score, so that then only
        queries matter whose class score reaches the `count`-th best person score so far. People whose box does not
        reach into the image count for nothing, since post-processing drops them. Each of the two rounds is a host
        sync.

        Args:
            boxes ([`BoxStage`]): of the last stage.
            undecided (`BoolTensor` of shape `(B, N)`): the queries that may be wanted.
            count (`int`): below N.
            stages_of (`Callable`): decodes the queries in some rows.
        """
        scores, _ = class_scores(boxes.logits)
        threshold = scores.topk(count, dim=1).values[:, -1:]
        first = (undecided & (scores >= threshold)).flatten()
        rows = first.nonzero()[:, 0]
        stages = stages_of(rows)
        corners = clip_boxes(boxes.boxes.detach() / pooler.scale, 1.0)
        # a little more than post-processing asks for, which computes in pixels of the target size
        inside = (corners[..., 2:] - corners[..., :2] > 1e-6).all(dim=-1).flatten()
        found = person_scores(scores.flatten()[rows], stages[-1].scores.to(scores.dtype))
        found = scores.new_full(scores.shape, -1.0).flatten().index_put((rows,), found)
        found = found.masked_fill(~inside, -1.0).view_as(scores)
        least = found.topk(count, dim=1).values[:, -1:]
        # at an equal score the earlier query comes first: it may still take the last place
        more = (undecided & (scores >= least)).flatten() & ~first
        if not len(rest := more.nonzero()[:, 0]):
            return stages
        return [join_stages(*both) for both in zip(stages, stages_of(rest), strict=True)]

    def best_rows(self, logits: Tensor, selection: QuerySelection) -> Tensor | None:
        """Rows of the `top_k` best class scores of each image; `None`, which is all queries, without a `top_k`."""
        if selection.top_k is None:
            return None
        batch_size, num_queries = logits.shape[:2]
        best = logits.max(dim=-1).values.topk(min(selection.top_k, num_queries), dim=-1).indices
        return (torch.arange(batch_size, device=logits.device)[:, None] * num_queries + best).flatten()

    def match(
        self, box_stages: Sequence[BoxStage], pooler: QueryPoseRoiPooler, targets: QueryPoseTargets
    ) -> list[Matches]:
        """Matches people to the queries of each stage; one host sync for all of them."""
        logits = torch.stack([stage.logits.detach() for stage in box_stages])
        boxes = torch.stack([stage.boxes.detach() / pooler.scale for stage in box_stages])
        return self.matcher(logits, boxes, targets)


def join_stages(first: KeypointStage, second: KeypointStage) -> KeypointStage:
    """What a keypoint stage found for two groups of queries as one."""
    joined = (None if a is None or b is None else torch.cat([a, b]) for a, b in zip(first, second, strict=True))
    return KeypointStage(*joined)
