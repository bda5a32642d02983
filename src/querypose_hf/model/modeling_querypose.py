"""PyTorch QueryPose: the base model and the model for pose estimation.

An image goes through `backbone_querypose`, `rois_querypose`, `box_layer_querypose`, `keypoint_layer_querypose` and
`decoder_querypose`; labels through `targets_querypose`, `matching_querypose` and `loss_querypose`. Sections, figures
and equations are those of Xiao et al., "QueryPose: Sparse Multi-Person Pose Regression via Spatial-Aware Part-Level
Query", NeurIPS 2022.
"""

import itertools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.image_transforms import corners_to_center_format
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .backbone_querypose import NECKS, STRIDES, QueryPoseBackbone
from .configuration_querypose import QueryPoseConfig
from .decoder_querypose import DecoderOutput, QueryPoseDecoder, QuerySelection
from .fusion_querypose import is_batch_norm
from .heatmaps_querypose import QueryPoseHeatmapHead, heatmap_focal_loss, keypoint_heatmaps
from .initialization_querypose import initialize_affine, initialize_norm
from .keypoint_layer_querypose import QueryPoseKeypointLinear
from .lazy_level_querypose import QueryPoseLazyLevel
from .loss_querypose import QueryPoseFlow, QueryPoseLoss, StagePrediction
from .rois_querypose import coordinate_dtype
from .targets_querypose import QueryPoseTargets


logger = logging.get_logger(__name__)


@dataclass
class QueryPoseModelOutput(ModelOutput):
    r"""Output of [`QueryPoseModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_queries, d_model)`):
            Instance queries after the last box layer.
        part_queries (`torch.FloatTensor` of shape `(batch_size, num_queries, num_parts, part_dim)`):
            Part queries, the last ones of each query; the learned table where it was never decoded.
        intermediate_logits (`torch.FloatTensor` of shape `(batch_size, decoder_layers, num_queries, num_labels)`):
            Class logits of every stage.
        intermediate_boxes (`torch.FloatTensor` of shape `(batch_size, decoder_layers, num_queries, 4)`):
            Boxes of every stage, corners x1, y1, x2, y2 relative to each image's unpadded size.
        intermediate_keypoints (`torch.FloatTensor` of shape `(batch_size, decoder_layers, num_queries,
            num_keypoints, 2)`):
            Keypoints of every stage relative to the box of the same stage: its centre is 0, its sides are 1.
        intermediate_sigmas (`torch.FloatTensor` of the same shape):
            Predicted deviations in the same units. (Not `config.keypoint_sigmas`, the OKS constants.)
        intermediate_keypoint_scores (`torch.FloatTensor` of shape `(batch_size, decoder_layers, num_queries,
            num_keypoints)`):
            Confidence of every stage's keypoints, see `keypoint_coordinates` of [`QueryPoseConfig`].
        intermediate_query_mask (`torch.BoolTensor` of shape `(batch_size, decoder_layers, num_queries)`):
            Which queries' keypoints were decoded. Keypoints, deviations and confidence of the others are zero.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            The initial instance queries and those after each stage, with `output_hidden_states`.
        attentions (`tuple(torch.FloatTensor)`, *optional*):
            Self-attention of the instance queries of each stage, `(batch_size, heads, num_queries, num_queries)`, with
            `output_attentions`.
        part_attentions (`tuple(torch.FloatTensor)`, *optional*):
            Spatial attention maps of the parts of each stage over the RoI, `(batch_size, num_queries, num_parts, 28,
            28)`, with `output_attentions` (Figure 5). Only systems with spatial attention have them.
    """

    last_hidden_state: torch.FloatTensor | None = None
    part_queries: torch.FloatTensor | None = None
    intermediate_logits: torch.FloatTensor | None = None
    intermediate_boxes: torch.FloatTensor | None = None
    intermediate_keypoints: torch.FloatTensor | None = None
    intermediate_sigmas: torch.FloatTensor | None = None
    intermediate_keypoint_scores: torch.FloatTensor | None = None
    intermediate_query_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    part_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class QueryPosePoseEstimationOutput(ModelOutput):
    r"""Output of [`QueryPoseForPoseEstimation`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): sum of `loss_dict`, where labels were given.
        loss_dict (`dict[str, torch.FloatTensor]`, *optional*):
            Weighted loss terms: `loss_class`, `loss_bbox`, `loss_giou`, `loss_keypoint` of the last stage. Those of
            earlier stages have the stage's index appended. Options add `loss_heatmap` (auxiliary head)
            and `loss_part_attention`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_queries, num_labels)`):
            Class logits; there is no background class, the score is their sigmoid.
        pred_boxes (`torch.FloatTensor` of shape `(batch_size, num_queries, 4)`):
            Boxes as centre x, centre y, width, height relative to each image's unpadded size; not clipped to it.
        pred_keypoints (`torch.FloatTensor` of shape `(batch_size, num_queries, num_keypoints, 2)`):
            Keypoints x, y relative to each image's unpadded size, in continuous coordinates.
        keypoint_scores (`torch.FloatTensor` of shape `(batch_size, num_queries, num_keypoints)`):
            Confidence: one minus the mean deviation, unless `keypoint_coordinates` of the configuration is
            `"attention"`. 0 for queries that were not decoded.
        keypoint_sigmas (`torch.FloatTensor` of shape `(batch_size, num_queries, num_keypoints, 2)`):
            Predicted deviations relative to the box. (Not `config.keypoint_sigmas`, the OKS constants.)
        keypoint_query_mask (`torch.BoolTensor` of shape `(batch_size, num_queries)`):
            Which queries' keypoints were decoded. In inference all, or those asked for (`keypoint_top_k`,
            `max_people`, `person_threshold`); in training the matched ones, or all with `query_feedback="always"`. In
            the earlier stages of a full model `query_feedback` decides.
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


class QueryPosePreTrainedModel(PreTrainedModel):
    """Weight initialisation and the interface to pretrained checkpoints."""

    config: QueryPoseConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = (
        "QueryPoseBoxLayer",
        "QueryPosePartKeypointLayer",
        "QueryPoseInstanceKeypointLayer",
        "QueryPosePooledKeypointLayer",
    )
    # the loss divides by the number of people itself
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        # weights of a backbone that are missing may be memory that was never written
        new = {key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])}
        require_finite(model, new)
        return (model, info) if output_loading_info else model

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        keys = super().load_state_dict(*args, **kwargs)
        require_finite(self)
        return keys

    def to(self, *args: Any, **kwargs: Any) -> "QueryPosePreTrainedModel":
        return warn_of_overflow(super().to(*args, **kwargs))

    def half(self, *args: Any) -> "QueryPosePreTrainedModel":
        return warn_of_overflow(super().half(*args))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QueryPosePreTrainedModel":
        # batch norms stay in float32, and take and give features of the model's type
        kept: dict[int, Tensor] = {}
        for norm in find_batch_norms(self):
            for tensor in itertools.chain(norm.parameters(recurse=False), norm.buffers(recurse=False)):
                kept |= {id(precise): precise for precise in (tensor, tensor.grad) if precise is not None}

        def apply(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if id(tensor) not in kept or applied.dtype not in (torch.float16, torch.bfloat16):
                return applied
            return tensor.to(applied.device, torch.float32)

        return super()._apply(apply, recurse)

    def get_input_embeddings(self) -> None:
        """`None`: an image has no vocabulary. Quantisers and adapters ask every model for its embeddings."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            initialize_affine(module)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            initialize_norm(module)
        elif isinstance(module, QueryPoseKeypointLinear):
            # a linear layer per part: Xavier over the part's own number of outputs, torch's bias
            part_dim = module.weight.shape[-1]
            bounds = torch.empty(len(module.weight), 1, 1)
            for part in module.parts:
                bounds[part] = math.sqrt(6 / (part_dim + 2 * len(part)))
            init.copy_(module.weight, torch.empty(module.weight.shape).uniform_(-1, 1) * bounds)
            init.uniform_(module.bias, -1 / math.sqrt(part_dim), 1 / math.sqrt(part_dim))
            init.copy_(module.part_of_keypoint, module.find_parts())
        elif isinstance(module, QueryPoseFlow):
            init.copy_(module.mask, module.coupling_masks())
        elif isinstance(module, QueryPoseDecoder):
            init.normal_(module.instance_queries)
            if len(module.part_queries):
                init.normal_(module.part_queries)
            whole_image = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand_as(module.initial_boxes)
            init.copy_(module.initial_boxes, whole_image)
            init.copy_(module.oks_constants, torch.tensor(module.config.keypoint_sigmas, dtype=torch.float32))


def find_batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms: they stay in float32 in half precision, as running variances reach millions and more."""
    return [module for module in model.modules() if is_batch_norm(module)]


def keep_type_of_features(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook: frozen batch norms in float32 would give float32, which the next convolution refuses."""
    return output if torch.is_autocast_enabled(output.device.type) else output.to(args[0].dtype)


def find_lost_weights(model: nn.Module, but: Collection[str] = ()) -> str:
    """Which weights are not finite, in words; empty where all are. With such a model finds nobody or the wrong people.

    Weights without values (on the `meta` device), and quantised ones, which are of types of their own, are left out.
    """
    lost = [
        name
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers())
        if type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point()
        if name not in but and not tensor.is_meta and not tensor.isfinite().all()
    ]
    if not lost:
        return ""
    more = f" (and {len(lost) - 1} more)" if lost[1:] else ""
    return (
        f"{lost[0]}{more} of its weights holds values that are not finite. "
        "Where a cast to float16 has lost them, use bfloat16 or float32."
    )


def require_finite(model: QueryPosePreTrainedModel, but: Collection[str] = ()) -> None:
    """Raises `ValueError` where weights are not finite, except those named in `but`."""
    if lost := find_lost_weights(model, but):
        raise ValueError(f"{model.name_or_path or type(model).__name__}: {lost}")


def warn_of_overflow(model: QueryPosePreTrainedModel) -> QueryPosePreTrainedModel:
    """Warns where weights are not finite, or no longer."""
    if lost := find_lost_weights(model):
        logger.warning(f"The model will find nobody or the wrong people: {lost}")
    return model


class QueryPoseModel(QueryPosePreTrainedModel):
    """QueryPose without loss: backbone, neck, and the stages with their class logits, boxes and keypoints."""

    # of the model for pose estimation, which a checkpoint usually is of
    _keys_to_ignore_on_load_unexpected = (r"^flow\.", r"^heatmap_head\.")

    def __init__(self, config: QueryPoseConfig):
        config.validate()  # fields may have been set since it was made
        super().__init__(config)
        self.backbone = QueryPoseBackbone(config)
        self.neck = NECKS[config.neck_type](config, self.backbone.channels)
        self.decoder = QueryPoseDecoder(config)
        for norm in find_batch_norms(self):
            norm.to(coordinate_dtype(torch.get_default_dtype()))
            if not isinstance(norm, nn.BatchNorm2d):
                norm.register_forward_hook(keep_type_of_features)
        self.post_init()

    def extract_pyramid(self, pixel_values: Tensor, lazily: bool = False) -> list[Tensor | QueryPoseLazyLevel]:
        """The pyramid P2 to P5 of images `(B, 3, height, width)`, `(B, d, height / stride, width / stride)` each.

        Images whose sides are not multiples of 32 are padded with zeros at the right and bottom.

        Args:
            lazily (`bool`): the decoder alone reads the pyramid. Then P2 may be a [`QueryPoseLazyLevel`], in
                inference on a CPU.
        """
        height, width = pixel_values.shape[-2:]
        coarsest = STRIDES[-1]
        padding = (0, -width % coarsest, 0, -height % coarsest)
        if any(padding):
            pixel_values = nn.functional.pad(pixel_values, padding)
        lazily = lazily and not self.training and not self.neck._forward_hooks  # hooks get tensors
        return self.neck(self.backbone(pixel_values), lazily)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        keypoint_top_k: int | None = None,
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
            output_attentions, output_hidden_states (`bool`, *optional*): see the output; default to the configuration.
            keypoint_top_k, max_people, person_threshold (*optional*):
                Decode the keypoints of fewer queries; see [`QueryPoseForPoseEstimation.forward`].

        Raises:
            ValueError: the shapes of images and mask do not agree.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        found = self.decoder(
            self.extract_pyramid(pixel_values, lazily=True),
            image_sizes_from_mask(pixel_values, pixel_mask),
            selection=select_queries(config, keypoint_top_k, max_people, person_threshold),
            output_attentions=bool(output_attentions),
        )
        stages = range(config.decoder_layers)

        def stacked(name: str) -> Tensor:
            return torch.stack([found.by_query(stage, name) for stage in stages], dim=1)

        return QueryPoseModelOutput(
            last_hidden_state=found.queries,
            part_queries=found.part_queries,
            intermediate_logits=torch.stack([stage.logits for stage in found.box_stages], dim=1),
            intermediate_boxes=torch.stack([found.relative_boxes(stage) for stage in stages], dim=1),
            intermediate_keypoints=stacked("keypoints"),
            intermediate_sigmas=stacked("sigmas"),
            intermediate_keypoint_scores=stacked("scores"),
            intermediate_query_mask=torch.stack([found.decoded(stage) for stage in stages], dim=1),
            **attention_outputs(found, bool(output_attentions), bool(output_hidden_states)),
        )


def image_sizes_from_mask(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Unpadded heights and widths `(B, 2)`, as integers and without a host sync."""
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


def select_queries(
    config: QueryPoseConfig, keypoint_top_k: int | None, max_people: int | None, person_threshold: float | None
) -> QuerySelection:
    """The selection that a forward pass asks for; `keypoint_top_k` defaults to the configuration's."""
    top_k = config.keypoint_top_k if keypoint_top_k is None else keypoint_top_k
    return QuerySelection(top_k, max_people, person_threshold)


def attention_outputs(found: DecoderOutput, attentions: bool, hidden_states: bool) -> dict[str, Any]:
    """`hidden_states`, `attentions` and `part_attentions` of the outputs, where they are wanted."""
    outputs: dict[str, Any] = {}
    if hidden_states:
        outputs["hidden_states"] = tuple(found.hidden_states)
    if attentions:
        outputs["attentions"] = tuple(stage.attentions for stage in found.box_stages)
        if found.keypoint_stages[-1].attention_maps is not None:
            outputs["part_attentions"] = tuple(
                found.by_query(stage, "attention_maps") for stage in range(len(found.box_stages))
            )
    return outputs


class QueryPoseForPoseEstimation(QueryPosePreTrainedModel):
    """QueryPose for multi-person pose estimation: boxes, keypoints and their confidence, and the training loss.

    Example:

    ```python
    >>> import torch
    >>> from PIL import Image
    >>> from querypose_hf import QUERYPOSE_NANO, QueryPoseForPoseEstimation, QueryPoseImageProcessor

    >>> processor = QueryPoseImageProcessor.from_pretrained(QUERYPOSE_NANO)
    >>> model = QueryPoseForPoseEstimation.from_pretrained(QUERYPOSE_NANO).eval()
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
                to the image. In evaluation mode they give a validation loss, for which the keypoints of all queries
                are decoded. For training mode see `keypoint_query_mask` of the output.
            output_attentions, output_hidden_states (`bool`, *optional*): see the output; default to the configuration.
            keypoint_top_k (`int`, *optional*):
                Decode the keypoints of only this many queries of each image, those of the highest class score.
                Overrides the configuration's field of the same name.
            max_people (`int`, *optional*), person_threshold (`float`, *optional*):
                Only this many best people of each image, and only people of a higher score, are wanted. No more
                queries are decoded than it takes to find exactly those: a person's score is at most the class score.
                In stages whose keypoints feed back the rule of `query_feedback` decides instead. Without effect with
                `keypoint_top_k`, and in compiled and exported graphs. With labels none of the three has an effect.

        Raises:
            ValueError: the shapes of images, mask and labels do not agree.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        image_sizes = image_sizes_from_mask(pixel_values, pixel_mask)
        targets = None if labels is None else QueryPoseTargets.from_labels(labels, pixel_values, config)
        if targets is not None and config.query_feedback == "training" and self.model.decoder.feeds_back:
            logger.warning_once(
                "`query_feedback` is 'training': this full model feeds matched queries back in training and none in "
                "inference, as the authors' released code does. Its class scores in inference are then far too low. "
                "Set it to 'always', 'selected' or 'never' to train a model that infers as it trains."
            )
        # the loss reads P2, too
        pyramid = self.model.extract_pyramid(pixel_values, lazily=targets is None)
        found: DecoderOutput = self.model.decoder(
            pyramid,
            image_sizes,
            targets=targets,
            selection=select_queries(config, keypoint_top_k, max_people, person_threshold),
            output_attentions=bool(output_attentions),
        )
        loss, loss_dict = None, None
        if targets is not None:
            loss_dict = self.compute_loss(found, targets, image_sizes, pyramid[0])
            loss = torch.stack(list(loss_dict.values())).sum()
        *earlier, last = range(config.decoder_layers)
        return QueryPosePoseEstimationOutput(
            loss=loss,
            loss_dict=loss_dict,
            **stage_outputs(found, last),
            auxiliary_outputs=[stage_outputs(found, stage) for stage in earlier] if config.auxiliary_loss else None,
            last_hidden_state=found.queries,
            part_queries=found.part_queries,
            **attention_outputs(found, bool(output_attentions), bool(output_hidden_states)),
        )

    def compute_loss(
        self, found: DecoderOutput, targets: QueryPoseTargets, image_sizes: Tensor, features: Tensor
    ) -> dict[str, Tensor]:
        """The weighted terms of the training loss; see [`QueryPoseLoss`].

        Args:
            found ([`DecoderOutput`]): of a pass with `targets`.
            targets ([`QueryPoseTargets`])
            image_sizes (`Tensor` of shape `(B, 2)`): unpadded heights and widths in pixels.
            features (`Tensor` of shape `(B, d, height / 4, width / 4)`): P2, for the auxiliary heatmap head.
        """
        stages = [stage_prediction(found, stage) for stage in range(len(found.box_stages))]
        loss_dict = QueryPoseLoss(self.config, self.flow)(stages, targets, image_sizes)
        if self.heatmap_head is not None:
            logits = self.heatmap_head(features).to(targets.boxes.dtype)
            heatmaps = keypoint_heatmaps(targets, image_sizes, *logits.shape[-2:], stride=STRIDES[0])
            loss_dict["loss_heatmap"] = self.config.heatmap_loss_coefficient * heatmap_focal_loss(logits, heatmaps)
        return loss_dict


def stage_prediction(found: DecoderOutput, stage: int) -> StagePrediction:
    """A stage's results as the loss takes them: keypoints of matched queries alone."""
    keypoints, matches = found.keypoint_stages[stage], found.matches[stage]

    def matched(values: Tensor | None) -> Tensor | None:
        return None if values is None else keypoints.among(values, matches.query_rows)

    boxes = found.relative_boxes(stage)
    return StagePrediction(
        found.box_stages[stage].logits,
        boxes,
        boxes.flatten(0, 1)[matches.query_rows],
        matched(keypoints.keypoints),
        matched(keypoints.sigmas),
        matched(keypoints.attention_maps),
        matches,
    )


def stage_outputs(found: DecoderOutput, stage: int) -> dict[str, Tensor]:
    """A stage's results as the model gives them: by query, boxes and keypoints relative to the image."""
    boxes, mask = found.relative_boxes(stage), found.decoded(stage)
    low, size = boxes[..., None, :2], (boxes[..., 2:] - boxes[..., :2])[..., None, :]
    keypoints = (found.by_query(stage, "keypoints") + 0.5) * size + low
    return {
        "logits": found.box_stages[stage].logits,
        "pred_boxes": corners_to_center_format(boxes),
        "pred_keypoints": keypoints * mask[..., None, None],
        "keypoint_scores": found.by_query(stage, "scores"),
        "keypoint_sigmas": found.by_query(stage, "sigmas"),
        "keypoint_query_mask": mask,
    }


__all__ = ["QueryPoseForPoseEstimation", "QueryPoseModel", "QueryPosePreTrainedModel"]
