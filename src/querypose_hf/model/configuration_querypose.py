"""QueryPose model configuration."""

import contextlib
import copy
import difflib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from .code_files_querypose import HUB_ENTRIES, copy_code
from .skeletons import COCO_17, SKELETONS, Skeleton, grouping, warn_of_sides


NECK_TYPES = ("fpn", "hrfpn", "hrfpn_lateral")
POSE_QUERY_INTERACTIONS = ("dynamic", "none")
KEYPOINT_COORDINATES = ("regression", "attention")
CLASS_TARGETS = ("person", "oks")
QUERY_FEEDBACKS = ("always", "selected", "training", "never")
KEYPOINT_QUERIES = ("part", "instance", "none")
KEYPOINT_INTERACTIONS = ("spatial_attention", "self_attention", "dynamic_channel", "dynamic_spatial", "pooling")
PART_ITERATIONS = ("selective", "sum", "concatenation", "none")
#: Fields of earlier versions that are gone, with the only value that can still be computed.
_GONE = {"keypoint_origin": "box", "part_position_encoding": False, "keypoint_confidence": "deviation"}
# Numbers of a damaged or hostile file would otherwise fill the memory, never come to an end, or become infinite.
_MOST_KEYPOINTS = 10_000
_MOST = {
    **dict.fromkeys(("decoder_layers", "num_cls_layers", "num_reg_layers", "num_pose_convs"), 1000),
    **dict.fromkeys(("box_pooler_resolution", "pose_pooler_resolution", "pooler_sampling_ratio"), 1000),
    **dict.fromkeys(("d_model", "decoder_ffn_dim", "dynamic_dim", "part_dim", "num_queries"), 100_000),
    **dict.fromkeys(("class_cost", "bbox_cost", "giou_cost", "focal_gamma"), 1_000_000),
    **{f"{term}_loss_coefficient": 1_000_000 for term in ("class", "bbox", "giou", "keypoint", "heatmap")},
}


def _timm_backbone(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"model_type": "timm_backbone", "backbone": name, "out_indices": [1, 2, 3, 4], **kwargs}


def _swin_backbone(embed_dim: int, depths: list[int], num_heads: list[int]) -> dict[str, Any]:
    return {
        "model_type": "swin",
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": num_heads,
        "window_size": 7,
        "drop_path_rate": 0.2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


#: The published models, as the configuration fields in which they differ from each other.
VARIANTS: dict[str, dict[str, Any]] = {
    "r50": {
        "backbone_config": _timm_backbone("resnet50", freeze_batch_norm_2d=True),
        "neck_type": "fpn",
        "frozen_backbone_stages": 2,
    },
    "hrnet_w32": {
        "backbone_config": _timm_backbone("hrnet_w32"),
        "backbone_kwargs": {"feature_location": ""},
        "neck_type": "hrfpn",
    },
    "hrnet_w48": {
        "backbone_config": _timm_backbone("hrnet_w48"),
        "backbone_kwargs": {"feature_location": ""},
        "neck_type": "hrfpn_lateral",
    },
    "swin_t": {"backbone_config": _swin_backbone(96, [2, 2, 6, 2], [3, 6, 12, 24]), "neck_type": "fpn"},
    "swin_b": {"backbone_config": _swin_backbone(128, [2, 2, 18, 2], [4, 8, 16, 32]), "neck_type": "fpn"},
    "swin_l": {"backbone_config": _swin_backbone(192, [2, 2, 18, 2], [6, 12, 24, 48]), "neck_type": "fpn"},
}


@strict
class QueryPoseConfig(PreTrainedConfig):
    r"""Configuration of [`QueryPoseModel`] and [`QueryPoseForPoseEstimation`].

    The defaults are the published full model with a ResNet-50 backbone, for COCO's 17 keypoints. [`from_variant`]
    gives the other published models.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone that `AutoBackbone` can build and that gives four feature maps of strides 4, 8, 16 and 32.
            Defaults to timm's ResNet-50 with frozen batch norms.
        backbone_kwargs (`dict`, *optional*):
            Further arguments for `AutoBackbone.from_config`, which timm backbones hand to `timm.create_model`. HRNet
            needs `{"feature_location": ""}` to give its branches rather than widened classifier features.
        frozen_backbone_stages (`int`, *optional*):
            How many steps of a timm backbone are not trained, counted from the input: 1 is the stem, 2 the stem and
            the first stage. Defaults to 2 for the default backbone and to 0 for any other.
        neck_type (`str`, defaults to `"fpn"`):
            `"fpn"`, or for HRNet `"hrfpn"` (the paper's W32) or `"hrfpn_lateral"` (W48).
        d_model (`int`, defaults to 256): width d of the pyramid and of the instance queries.
        num_queries (`int`, defaults to 100): number N of instance queries.
        decoder_layers (`int`, defaults to 6): number S of stages, each a box and a keypoint decoder layer.
        decoder_attention_heads (`int`, defaults to 8): heads of both self-attentions.
        decoder_ffn_dim (`int`, defaults to 2048): hidden width of the feed-forward networks.
        activation_function (`str`, defaults to `"relu"`): activation of the feed-forward networks.
        dropout (`float`, defaults to 0.0): dropout in attention, feed-forward networks and their residuals.
        dynamic_dim (`int`, defaults to 64): hidden width of the dynamic interaction.
        num_cls_layers (`int`, defaults to 1): hidden layers of the class branch.
        num_reg_layers (`int`, defaults to 3): hidden layers of the box branch.
        box_pooler_resolution (`int`, defaults to 7): side of the RoI features of the box decoder.
        pose_pooler_resolution (`int`, defaults to 14): side of the RoI features of the keypoint decoder.
        pooler_sampling_ratio (`int`, defaults to 2): RoIAlign samples per bin and direction.
        num_keypoints (`int`, *optional*): number K of keypoints. Defaults to the number of names, else to 17.
        keypoint_names (`list[str]`, *optional*): defaults to COCO's for 17 keypoints.
        keypoint_parts (`list[list[int]]` or `str`, *optional*):
            The paper's parts: groups of keypoint indices, every keypoint in exactly one (Section 3.2), or one of `"a"`
            to `"d"`, the groupings of Figure 4, for COCO's and CrowdPose's keypoints. Defaults to Figure 4(c) for
            these and to one part per keypoint, `"a"`, for other names. Without effect where there are no part queries.
        keypoint_flip_indices (`list[int]`, *optional*):
            Index of each keypoint's mirror image. Derived from left and right in the names where they tell.
        keypoint_sigmas (`list[float]`, *optional*):
            OKS constants, by which keypoints are scored; defaulted with a warning for other skeletons. (Not
            `outputs.keypoint_sigmas`, the deviations that the model predicts.)
        keypoint_edges (`list[list[int]]`, *optional*): limbs to draw, pairs of keypoint indices.
        part_dim (`int`, defaults to 128): width d_p of the part queries; without effect where there are none.
        num_pose_convs (`int`, defaults to 6): 3x3 convolutions of the keypoint decoder, at least 2.
        keypoint_query (`str`, defaults to `"part"`):
            What keypoints are found from: `"part"`, a query for each part; `"instance"`, the instance query, which
            then feeds back; or `"none"`, the mean of the keypoint features, the baseline. This and the next two fields
            choose the systems of the paper's Tables 1 and 2; the defaults are the published model.
        keypoint_interaction (`str`, *optional*, defaults to `"spatial_attention"`):
            How these queries read the keypoint features: `"spatial_attention"` (SPEGM), `"self_attention"`,
            `"dynamic_channel"` or `"dynamic_spatial"`; for `keypoint_query="none"` it is `"pooling"`.
        part_iteration (`str`, defaults to `"selective"`):
            How part queries of the stage before enter: `"selective"` (SIM), `"sum"`, `"concatenation"`, or `"none"`:
            each stage starts from the learned table. Without effect where there are no part queries.
        pose_query_interaction (`str`, defaults to `"dynamic"`):
            `"dynamic"` is the full version, in which the instance query interacts with the keypoint features;
            `"none"` the light one. Without effect where there are no part queries.
        query_feedback (`str`, defaults to `"always"`):
            Which updated instance queries go on to the next stage's box layer. Without effect in the light version
            and with `keypoint_query="none"`, which update none.

            - `"always"`: all, in training and inference (the paper, Figure 3b, and the first published code). Every
              query is decoded in every stage.
            - `"selected"`: those with a class score above `feedback_threshold` in this stage, by the same rule in
              training and inference. Not the paper's.
            - `"training"`: in training those matched to people, in inference none (the released code). Such a model
              trains otherwise than it infers; the converter sets it.
            - `"never"`: none (Figure 3a).
        feedback_threshold (`float`, defaults to 0.1): see `query_feedback="selected"`.
        class_cost, bbox_cost, giou_cost (`float`, defaults to 2.0, 5.0, 2.0): weights of the matching cost.
        class_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient (`float`, defaults to 2.0, 5.0, 2.0):
            weights of the loss terms of the boxes.
        keypoint_loss_coefficient (`float`, defaults to 1.0): weight of the loss term of the keypoints.
        heatmap_loss_coefficient (`float`, defaults to 0.0):
            Weight of the optional auxiliary heatmap head; the head exists where it is above 0 (the authors tried 0.5).
        focal_alpha, focal_gamma (`float`, defaults to 0.25, 2.0): of the focal loss and its matching cost.
        prior_prob (`float`, defaults to 0.01): class probability that a new model starts from.
        auxiliary_loss (`bool`, defaults to `True`): whether the loss covers all stages or the last alone.
        keypoint_top_k (`int`, *optional*):
            In inference, decode the keypoints of only this many queries of each image, those of the highest class
            score. Their results do not change where nothing feeds back (see `query_feedback`).

    Options that are not the paper's. All are off by default. They exist for querypose-nano, which was trained for
    hours rather than days:

        keypoint_coordinates (`str`, defaults to `"regression"`):
            Where coordinates come from: `"regression"`, a linear layer on the query, or `"attention"`, the place
            where the attention map of the keypoint looks ([`attention_centers`]). The latter needs parts of one
            keypoint each. With it a loss term teaches the maps where the keypoints are ([`part_attention_loss`]), and
            the confidence of a keypoint is the OKS expected of it if its true place is distributed as the cube of its
            map ([`expected_similarity`]), not 1 minus its mean predicted deviation (Section 3.4).
        class_target (`str`, defaults to `"person"`):
            What class scores of matched queries learn: `"person"`, 1, or `"oks"`, how good the query's pose is, by
            [`varifocal_loss`].

    Example:

    ```python
    >>> from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation

    >>> config = QueryPoseConfig.from_variant("hrnet_w32", light=True)
    >>> model = QueryPoseForPoseEstimation(config)  # random weights
    ```
    """

    model_type = "querypose"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}
    # what `Trainer` would otherwise carry along through a whole evaluation
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "loss_dict",
        "keypoint_sigmas",
        "auxiliary_outputs",
        "last_hidden_state",
        "part_queries",
        "hidden_states",
        "attentions",
        "part_attentions",
    ]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "decoder_attention_heads",
        "num_hidden_layers": "decoder_layers",
    }

    backbone_config: dict | PreTrainedConfig | None = None
    backbone_kwargs: dict | None = None
    frozen_backbone_stages: int | None = None
    neck_type: str = "fpn"
    d_model: int = 256
    num_queries: int = 100
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    dropout: float | int = 0.0
    dynamic_dim: int = 64
    num_cls_layers: int = 1
    num_reg_layers: int = 3
    box_pooler_resolution: int = 7
    pose_pooler_resolution: int = 14
    pooler_sampling_ratio: int = 2
    num_keypoints: int | None = None
    keypoint_names: list[str] | tuple[str, ...] | None = None
    keypoint_parts: str | list[list[int] | tuple[int, ...]] | tuple[list[int] | tuple[int, ...], ...] | None = None
    keypoint_flip_indices: list[int] | tuple[int, ...] | None = None
    keypoint_sigmas: list[float | int] | tuple[float | int, ...] | None = None
    keypoint_edges: list[list[int] | tuple[int, ...]] | tuple[list[int] | tuple[int, ...], ...] | None = None
    part_dim: int = 128
    num_pose_convs: int = 6
    keypoint_coordinates: str = "regression"
    keypoint_query: str = "part"
    keypoint_interaction: str | None = None
    part_iteration: str = "selective"
    pose_query_interaction: str = "dynamic"
    query_feedback: str = "always"
    feedback_threshold: float | int = 0.1
    class_cost: float | int = 2.0
    bbox_cost: float | int = 5.0
    giou_cost: float | int = 2.0
    class_loss_coefficient: float | int = 2.0
    bbox_loss_coefficient: float | int = 5.0
    giou_loss_coefficient: float | int = 2.0
    keypoint_loss_coefficient: float | int = 1.0
    heatmap_loss_coefficient: float | int = 0.0
    class_target: str = "person"
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    prior_prob: float = 0.01
    auxiliary_loss: bool = True
    keypoint_top_k: int | None = None

    def __post_init__(self, **kwargs):
        self._refuse_misspelt_fields(kwargs)
        if self.backbone_config is None:
            self.backbone_config = copy.deepcopy(VARIANTS["r50"]["backbone_config"])
            if self.frozen_backbone_stages is None:
                self.frozen_backbone_stages = VARIANTS["r50"]["frozen_backbone_stages"]
        if isinstance(self.backbone_config, dict):
            if "model_type" not in self.backbone_config:
                raise ValueError(
                    "`backbone_config` as a dict needs a `model_type`, such as 'timm_backbone' or 'swin', but has "
                    f"only {sorted(self.backbone_config)}."
                )
            try:
                self.backbone_config = AutoConfig.for_model(**self.backbone_config)
            except ValueError as error:
                raise ValueError(f"`backbone_config` describes no backbone of Transformers: {error}") from error
        self.backbone_kwargs = dict(self.backbone_kwargs or {})
        if self.frozen_backbone_stages is None:
            self.frozen_backbone_stages = 0
        self._complete()
        if self.id2label is None and kwargs.get("num_labels") in (None, 1):
            self.id2label = {0: "person"}
            self.label2id = {"person": 0}
        # The package runs its own code for a checkpoint that carries a copy. Only where that copy is what runs do its
        # entries count: `transformers.pipeline` would otherwise insist on trusting them.
        if not type(self).__module__.startswith("transformers_modules"):
            for entry in HUB_ENTRIES:
                kwargs.pop(entry, None)
        super().__post_init__(**kwargs)

    @classmethod
    def _refuse_misspelt_fields(cls, kwargs: dict[str, Any]) -> None:
        # Transformers keeps unknown arguments as attributes, so that `num_query=50` would pass unnoticed.
        ours = [name for name in cls.__dataclass_fields__ if name not in PreTrainedConfig.__dataclass_fields__]
        known = {*PreTrainedConfig.__dataclass_fields__, *cls.attribute_map, "num_labels"}
        for name, value in kwargs.items():
            if name in _GONE and value != _GONE[name]:
                raise ValueError(
                    f"`{name}` is {value!r}, which only earlier versions compute; expected {_GONE[name]!r}. A model "
                    "like it is trained with `keypoint_coordinates='attention'`."
                )
            close = difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
            if close and name not in {*known, *ours}:
                raise ValueError(f"Unknown configuration field `{name}` (value {value!r}): did you mean `{close[0]}`?")

    def _complete(self) -> None:
        if self.keypoint_interaction is None:
            self.keypoint_interaction = "pooling" if self.keypoint_query == "none" else "spatial_attention"
        if isinstance(self.num_keypoints, int) and self.num_keypoints > _MOST_KEYPOINTS:
            raise ValueError(f"`num_keypoints` must be at most {_MOST_KEYPOINTS}, but is {self.num_keypoints}.")
        if self.keypoint_names is not None:
            names: Sequence[str] = self.keypoint_names
        elif self.num_keypoints in (None, COCO_17.num_keypoints):
            names = COCO_17.keypoint_names
        else:
            names = [f"keypoint_{i}" for i in range(self.num_keypoints)]
        if isinstance(self.keypoint_parts, str):
            self.keypoint_parts = grouping(self.keypoint_parts, names)
        default = Skeleton.from_names(names, sigmas=self.keypoint_sigmas)
        if self.num_keypoints is None:
            self.num_keypoints = len(names)
        self.keypoint_names = list(names)
        for field in ("parts", "edges", "flip_indices", "sigmas"):
            value = getattr(self, f"keypoint_{field}")
            value = getattr(default, field) if value is None else value
            if value is not None:  # JSON knows lists alone
                value = [list(item) if isinstance(item, tuple) else item for item in value]
            setattr(self, f"keypoint_{field}", value)
        warn_of_sides(self.keypoint_names, self.keypoint_flip_indices)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from a dict; `kwargs` are overrides.

        See [`~transformers.PreTrainedConfig.from_dict`], which would set overrides one by one without a check.
        """
        cls._refuse_misspelt_fields(kwargs)
        known = {name for name in cls.__dataclass_fields__ if name not in PreTrainedConfig.__dataclass_fields__}
        # overrides of a backbone change single fields of it
        ours = {name: kwargs.pop(name) for name in known & kwargs.keys() if name != "backbone_config"}
        result = super().from_dict({**config_dict, **ours}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        config.validate()
        return result

    def update(self, config_dict: dict[str, Any]) -> None:
        """Sets several fields. If they are wrong, none is set.

        See [`~transformers.PreTrainedConfig.update`].
        """
        with self._all_or_nothing():
            super().update(config_dict)

    def update_from_string(self, update_str: str) -> None:
        """Sets several fields, given as `"num_queries=50,dropout=0.1"`. If they are wrong, none is set.

        See [`~transformers.PreTrainedConfig.update_from_string`].
        """
        with self._all_or_nothing():
            super().update_from_string(update_str)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        before = dict(self.__dict__)
        try:
            yield
            self._complete()
            self.validate()
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves the configuration, and the code that runs its model where this package is not installed.

        See [`~transformers.PreTrainedConfig.save_pretrained`].
        """
        self.validate()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".configuration_") as name:
            super().save_pretrained(name)
            copy_code(folder)  # before the configuration, which asks for the code
            config_file = Path(name) / "config.json"
            content = {**json.loads(config_file.read_text(encoding="utf-8")), **HUB_ENTRIES}
            # code that itself came with a checkpoint came without what was not asked for, such as the pipeline
            if not (folder / "pipeline_querypose.py").exists():
                content.pop("custom_pipelines")
            config_file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            config_file.replace(folder / config_file.name)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def validate_skeleton(self):
        """Checks names, parts, flip indices, sigmas and edges against `num_keypoints`."""
        count = self.num_keypoints
        for field in ("num_keypoints", "keypoint_names", "keypoint_parts", "keypoint_sigmas", "keypoint_edges"):
            if getattr(self, field) is None:
                raise ValueError(f"`{field}` is None, which stands for a default only in a new configuration.")
        if count < 1:
            raise ValueError(f"`num_keypoints` must be at least 1, but is {count}.")
        if len(self.keypoint_names) != count:
            raise ValueError(
                f"`keypoint_names` has {len(self.keypoint_names)} names, but `num_keypoints` is {count}: they must "
                "agree. `QueryPoseConfig.skeleton_fields(names)` gives all fields that other keypoints change."
            )
        if len(set(self.keypoint_names)) != count:
            twice = sorted({name for name in self.keypoint_names if list(self.keypoint_names).count(name) > 1})
            raise ValueError(f"`keypoint_names` must all differ, but {twice} occur more than once.")
        if len(self.keypoint_sigmas) != count or not all(1e-6 <= sigma <= 1e3 for sigma in self.keypoint_sigmas):
            raise ValueError(
                f"`keypoint_sigmas` must be {count} positive numbers, from 1e-06 to 1000, one per keypoint, but is "
                f"{self.keypoint_sigmas}."
            )
        indices = sorted(index for part in self.keypoint_parts for index in part)
        if indices != list(range(count)) or not all(self.keypoint_parts):
            raise ValueError(
                f"`keypoint_parts` must hold every keypoint index from 0 to {count - 1} exactly once and no empty "
                f"part, but is {self.keypoint_parts}."
            )
        if self.keypoint_coordinates == "attention" and len(self.keypoint_parts) < count:
            raise ValueError(
                "`keypoint_coordinates` is 'attention', which needs an attention map for each keypoint; expected "
                f"`keypoint_parts` 'a', one keypoint each, but they are {self.keypoint_parts}."
            )
        flip = self.keypoint_flip_indices
        if flip is not None and (
            sorted(flip) != list(range(count)) or any(flip[flip[index]] != index for index in range(count))
        ):
            raise ValueError(
                f"`keypoint_flip_indices` must name each keypoint's mirror image (an involution of 0..{count - 1}), "
                f"but is {flip}."
            )
        for edge in self.keypoint_edges:
            if len(edge) != 2 or not all(0 <= end < count for end in edge):
                raise ValueError(f"`keypoint_edges` must be pairs of indices from 0 to {count - 1}, but holds {edge}.")

    def validate_neck(self):
        """Checks the neck's type, and that the HRNet necks get an HRNet's branches."""
        if self.neck_type not in NECK_TYPES:
            raise ValueError(f"`neck_type` must be one of {NECK_TYPES}, but is {self.neck_type!r}.")
        if self.neck_type == "fpn":
            return
        name = getattr(self.backbone_config, "backbone", None) or self.backbone_config.model_type
        if "hrnet" not in name:
            raise ValueError(
                f"`neck_type` {self.neck_type!r} joins the branches of an HRNet, but `backbone_config` is {name!r}: "
                "use 'fpn' with it."
            )
        if self.backbone_kwargs.get("feature_location") != "":
            raise ValueError(
                f"`backbone_kwargs` must be {{'feature_location': ''}} for `neck_type` {self.neck_type!r}, so that "
                f"timm gives the HRNet's branches and not classifier features, but is {self.backbone_kwargs}."
            )

    def validate_labels(self):
        """Checks that the classes have names."""
        if not all(isinstance(name, str) for name in self.id2label.values()):
            raise ValueError(f"`id2label` must hold the names of the classes, but is {self.id2label}.")

    def validate_choices(self):
        """Checks the fields that name one of several behaviours."""
        for field, choices in (
            ("keypoint_query", KEYPOINT_QUERIES),
            ("keypoint_interaction", KEYPOINT_INTERACTIONS),
            ("part_iteration", PART_ITERATIONS),
            ("pose_query_interaction", POSE_QUERY_INTERACTIONS),
            ("query_feedback", QUERY_FEEDBACKS),
            ("keypoint_coordinates", KEYPOINT_COORDINATES),
            ("class_target", CLASS_TARGETS),
            ("activation_function", tuple(ACT2FN)),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"`{field}` must be one of {choices}, but is {getattr(self, field)!r}.")
        if (self.keypoint_query == "none") != (self.keypoint_interaction == "pooling"):
            raise ValueError(
                f"`keypoint_interaction` is {self.keypoint_interaction!r} and `keypoint_query` is "
                f"{self.keypoint_query!r}; expected 'pooling' with 'none', and with no other. "
                "`keypoint_interaction=None` stands for the one that fits."
            )
        if self.keypoint_coordinates == "attention" and not self.has_part_attention:
            raise ValueError(
                f"`keypoint_coordinates` is 'attention', which needs part attention maps; expected 'regression' with "
                f"`keypoint_query` {self.keypoint_query!r} and `keypoint_interaction` {self.keypoint_interaction!r}."
            )

    def validate_sizes(self):
        """Checks numbers against their ranges."""
        least = {
            "d_model": 1,
            "num_queries": 1,
            "decoder_layers": 1,
            "decoder_attention_heads": 1,
            "decoder_ffn_dim": 1,
            "dynamic_dim": 1,
            "num_cls_layers": 0,
            "num_reg_layers": 0,
            "box_pooler_resolution": 1,
            "pose_pooler_resolution": 1,
            "pooler_sampling_ratio": 1,
            "part_dim": 1,
            "num_pose_convs": 2,
            "frozen_backbone_stages": 0,
            "num_labels": 1,
            "class_cost": 0,
            "bbox_cost": 0,
            "giou_cost": 0,
            "class_loss_coefficient": 0,
            "bbox_loss_coefficient": 0,
            "giou_loss_coefficient": 0,
            "keypoint_loss_coefficient": 0,
            "heatmap_loss_coefficient": 0,
            "focal_gamma": 0,
        }
        for field, minimum in least.items():
            value = getattr(self, field)
            if value is None or not value >= minimum:
                raise ValueError(f"`{field}` must be at least {minimum}, but is {value}.")
        for field, maximum in _MOST.items():
            if not getattr(self, field) <= maximum:
                raise ValueError(f"`{field}` must be at most {maximum}, but is {getattr(self, field)}.")
        for field in ("d_model", "part_dim"):
            if getattr(self, field) % self.decoder_attention_heads:
                raise ValueError(
                    f"`{field}` ({getattr(self, field)}) must be divisible by `decoder_attention_heads` "
                    f"({self.decoder_attention_heads})."
                )
        if self.keypoint_interaction == "self_attention" and self.d_model % 4:
            raise ValueError(f"`d_model` must be divisible by 4 for a position encoding, but is {self.d_model}.")
        if self.part_dim % 4:
            raise ValueError(f"`part_dim` must be divisible by 4, but is {self.part_dim}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1, but is {self.dropout}.")
        if not 0 <= self.feedback_threshold < 1:
            raise ValueError(f"`feedback_threshold` must be at least 0 and below 1, but is {self.feedback_threshold}.")
        if not 0 <= self.focal_alpha <= 1:
            raise ValueError(f"`focal_alpha` must be from 0 to 1, but is {self.focal_alpha}.")
        if not 0 < self.prior_prob < 1:
            raise ValueError(f"`prior_prob` must be between 0 and 1, but is {self.prior_prob}.")
        if self.keypoint_top_k is not None and self.keypoint_top_k < 1:
            raise ValueError(f"`keypoint_top_k` must be None or at least 1, but is {self.keypoint_top_k}.")

    @property
    def num_parts(self) -> int:
        """Number M of parts."""
        return len(self.keypoint_parts)

    @property
    def has_part_attention(self) -> bool:
        """Whether each part has an attention map over its RoI."""
        return self.keypoint_query == "part" and self.keypoint_interaction == "spatial_attention"

    @property
    def updates_queries(self) -> bool:
        """Whether the keypoint decoder updates the instance queries; `query_feedback` says where they go."""
        if self.keypoint_query == "part":
            return self.pose_query_interaction == "dynamic"
        return self.keypoint_query == "instance"

    def feeds_back(self, training: bool) -> bool:
        """Whether a stage's keypoints change the next stage's instance queries (Figure 3)."""
        return self.updates_queries and (
            self.query_feedback in ("always", "selected") or (self.query_feedback == "training" and training)
        )

    @property
    def skeleton(self) -> Skeleton:
        """The keypoint fields as a [`Skeleton`]."""
        return Skeleton(
            keypoint_names=tuple(self.keypoint_names),
            parts=tuple(tuple(part) for part in self.keypoint_parts),
            edges=tuple((a, b) for a, b in self.keypoint_edges),
            flip_indices=None if self.keypoint_flip_indices is None else tuple(self.keypoint_flip_indices),
            sigmas=tuple(self.keypoint_sigmas),
        )

    @staticmethod
    def skeleton_fields(skeleton: Skeleton | str | Sequence[str]) -> dict[str, Any]:
        """The keypoint fields for a [`Skeleton`], the name of a known one (`"coco"`, `"crowdpose"`) or keypoint names.

        Example:

        ```python
        >>> config = QueryPoseConfig(**QueryPoseConfig.skeleton_fields("crowdpose"))
        >>> config.num_keypoints
        14
        ```
        """
        if isinstance(skeleton, str):
            if skeleton not in SKELETONS:
                raise ValueError(
                    f"`skeleton` must be one of {sorted(SKELETONS)}, a Skeleton or a list of keypoint names, but is "
                    f"{skeleton!r}."
                )
            skeleton = SKELETONS[skeleton]
        elif not isinstance(skeleton, Skeleton):
            skeleton = Skeleton.from_names(skeleton)
        return {
            "num_keypoints": skeleton.num_keypoints,
            "keypoint_names": list(skeleton.keypoint_names),
            "keypoint_parts": [list(part) for part in skeleton.parts],
            "keypoint_edges": [list(edge) for edge in skeleton.edges],
            "keypoint_flip_indices": None if skeleton.flip_indices is None else list(skeleton.flip_indices),
            "keypoint_sigmas": list(skeleton.sigmas),
        }

    @classmethod
    def from_variant(
        cls,
        variant: str,
        *,
        light: bool = False,
        skeleton: Skeleton | str | Sequence[str] = "coco",
        **overrides: Any,
    ) -> "QueryPoseConfig":
        """The configuration of a published model.

        Args:
            variant (`str`): `"r50"`, `"hrnet_w32"`, `"hrnet_w48"`, `"swin_t"`, `"swin_b"` or `"swin_l"`.
            light (`bool`): the light version, whose instance queries do not interact with the keypoint features; the
                one that the authors released checkpoints of.
            skeleton: a [`Skeleton`], `"coco"`, `"crowdpose"`, or a list of keypoint names.
            overrides: any other field.

        Raises:
            ValueError: if the variant or the skeleton is not known.
        """
        if variant not in VARIANTS:
            raise ValueError(f"`variant` must be one of {sorted(VARIANTS)}, but is {variant!r}.")
        fields = {**copy.deepcopy(VARIANTS[variant]), **cls.skeleton_fields(skeleton)}
        if light:
            fields["pose_query_interaction"] = "none"
        return cls(**{**fields, **overrides})


__all__ = ["QueryPoseConfig"]
