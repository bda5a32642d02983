"""The description of a training experiment: model, data, augmentation, image processor and training settings.

The YAML files of `querypose train` hold it. Nothing here reads an image or builds a model.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import PreTrainedConfig

from ..assets import resolve_checkpoint
from ..checks import shown
from ..data.augmentation import AugmentationRecipe
from ..data.formats import FORMATS, SourceSettings
from ..data.reading_options import ReadingOptions
from ..evaluation.options import PredictionOptions, check_area_ratio
from ..evaluation.protocols import Metric
from ..model.configuration_querypose import VARIANTS, QueryPoseConfig
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..settings import build, plain_mapping, read_yaml, require, with_assignments
from .recipe import FINE_TUNING_SIZES, TrainingConfig


#: The configuration fields that a description of a model may set.
MODEL_FIELDS = frozenset(
    {part.name for part in dataclasses.fields(QueryPoseConfig)}
    - {part.name for part in dataclasses.fields(PreTrainedConfig)}
    | {"id2label"}
)

#: The settings of the image processor that a description may set. The data sets those about keypoints and categories.
PROCESSOR_FIELDS = frozenset(
    {
        "do_convert_rgb",
        "do_normalize",
        "do_pad",
        "do_rescale",
        "do_resize",
        "image_mean",
        "image_std",
        "nms_threshold",
        "pad_size",
        "resample",
        "rescale_factor",
        "score_threshold",
        "size",
        "size_divisor",
    }
)


@dataclass(frozen=True)
class ModelSettings:
    """The model to train and its weights at the start. Exactly one of the first three fields chooses the model.

    Args:
        checkpoint (`str`, *optional*): folder or Hub id of a QueryPose checkpoint to start from, or `querypose-nano`.
            If the data has other keypoints, weights are carried over by the names of keypoints, see
            [`transfer_weights`].
        fresh (`str`, *optional*): a regular expression; tensors in whose names it is found are newly initialised,
            not carried over from the checkpoint, such as `"keypoint_layers"`.
        variant (`str`, *optional*): a published model, `"r50"`, `"hrnet_w32"`, ..., with new weights.
        config (`dict`, *optional*): any fields of [`QueryPoseConfig`], with new weights.
        light (`bool`): the light version of `variant`.
        overrides (`dict`): fields of [`QueryPoseConfig`] that differ from the checkpoint's or the variant's.
        backbone_weights (`str`): `"none"`; `"imagenet"`, timm's default weights of the backbone, downloaded; a file
            (`.safetensors`, `.pth`); or the name of weights to download.
        heatmap_pretrained (`str`, *optional*): the file of an HRNet pretrained on keypoint heatmaps.
        initial_boxes (`str`): the boxes that queries start from: `"whole_image"`, as in the paper, or
            `"training_people"`, typical boxes of the first source that has annotations.
    """

    checkpoint: str | None = None
    fresh: str | None = None
    variant: str | None = None
    config: dict[str, Any] | None = None
    light: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str = "none"
    heatmap_pretrained: str | None = None
    initial_boxes: Literal["whole_image", "training_people"] = "whole_image"

    def __post_init__(self) -> None:
        given = [name for name in ("checkpoint", "variant", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"`checkpoint`, `variant` and `config`: {' and '.join(given) or 'none'} given; expected exactly one."
            )
        if self.variant is not None:
            require(self, "variant", self.variant in VARIANTS, f"one of {sorted(VARIANTS)}")
        if self.fresh is not None:
            require(self, "fresh", self.checkpoint is not None, "nothing without `checkpoint`")
            try:
                re.compile(self.fresh)
            except re.error as error:
                raise ValueError(f"`fresh` is {self.fresh!r}; expected a regular expression: {error}.") from None
        if self.light and self.variant is None:
            raise ValueError("`light` is True; expected it with `variant` only.")
        for place in ("config", "overrides"):
            for name, value in (getattr(self, place) or {}).items():
                if name not in MODEL_FIELDS:
                    raise ValueError(
                        f"unknown field `{name}` (value {shown(value)}) of `{place}`; expected fields of "
                        f"QueryPoseConfig: {sorted(MODEL_FIELDS)}."
                    )
        if self.config is not None and self.overrides:
            raise ValueError(f"`overrides` has {sorted(self.overrides)} beside `config`; expected them in `config`.")

    @property
    def start(self) -> str | None:
        """The checkpoint as `from_pretrained` takes it; `None` without one."""
        return None if self.checkpoint is None else resolve_checkpoint(self.checkpoint)

    @property
    def backbone_weights_are_a_file(self) -> bool:
        """Whether `backbone_weights` names a file rather than weights to download."""
        return self.backbone_weights.endswith((".safetensors", ".pth", ".pt", ".bin"))


@dataclass(frozen=True)
class TrainingSource(ReadingOptions, SourceSettings):
    """A source of images to train on: a [`SourceSettings`] with its [`ReadingOptions`].

    Args:
        only_with_people (`bool`): leave out images without a person, as the paper does.
        repeat (`float`): how often its images come in an epoch, see [`JoinedPoseDataset`]; may be a fraction.
    """

    only_with_people: bool = True
    repeat: float = 1.0

    def __post_init__(self) -> None:
        SourceSettings.__post_init__(self)
        ReadingOptions.__post_init__(self)
        require(self, "repeat", self.repeat > 0, "above 0")
        if self.streaming:
            require(self, "repeat", self.repeat == 1, "1 with `streaming`: a stream is the only source")
            require(self, "max_images", self.max_images is None, "nothing with `streaming`, which reads everything")


@dataclass(frozen=True)
class ValidationSource(PredictionOptions, SourceSettings):
    """The images that the model is scored on while it is trained, and how it finds people in them.

    The fields of [`PredictionOptions`] may be set, too, but for `device` and `dtype`, which are the training's.

    Args:
        metric (`str`, *optional*): one of [`PROTOCOLS`]; by default the format's.
        sigmas (`tuple[float, ...]`, *optional*): OKS sigmas; by default the protocol's if the model has its keypoints,
            and else the model's.
        category_ids (`tuple[int, ...]`, *optional*): the categories that are scored; by default those trained on.
        area_ratio (`float`, *optional*): share of the box's area that stands in for a missing `area`.
    """

    metric: Metric | None = None
    sigmas: tuple[float, ...] | None = None
    area_ratio: float | None = None

    def __post_init__(self) -> None:
        SourceSettings.__post_init__(self)
        PredictionOptions.__post_init__(self)
        check_area_ratio(self)
        for name in ("device", "dtype"):
            require(self, name, getattr(self, name) is None, "nothing: a model is scored where and as it is trained")
        if self.metric not in (None, "coco"):
            require(self, "metric", self.metric == FORMATS[self.format].metric, "'coco' for this format")
        require(self, "streaming", not self.streaming, "False: all images that a model is scored on are known before")

    @property
    def splits(self) -> Sequence[str]:
        return (self.split,) if self.split is not None else ("validation", "val", "test")

    @property
    def protocol(self) -> str:
        """The metric, `"coco"` or `"crowdpose"`."""
        return self.metric or FORMATS[self.format].metric


@dataclass(frozen=True)
class DataSettings:
    """The images: joined sources to train on, or one that is streamed, and what to score on, if anything."""

    train: tuple[TrainingSource, ...]
    validation: ValidationSource | None = None

    def __post_init__(self) -> None:
        require(self, "train", len(self.train) > 0, "at least one source")
        if self.streams and len(self.train) > 1:
            raise ValueError(f"`train` has {len(self.train)} sources, one with `streaming`; expected it alone.")

    @property
    def streams(self) -> bool:
        """Whether the images to train on are streamed."""
        return any(source.streaming for source in self.train)


@dataclass(frozen=True)
class Experiment:
    """A training experiment.

    Attributes:
        model ([`ModelSettings`]): in YAML, fields of [`QueryPoseConfig`] among its own belong to `config` where that
            is given, else to `overrides`.
        data ([`DataSettings`]): what to train and to score on.
        augmentation ([`AugmentationRecipe`]): the paper's by default; with the recipe `fine_tuning`, sizes around
            those of the image processor ([`FINE_TUNING_SIZES`]).
        image_processor (`dict`): settings of [`QueryPoseImageProcessor`] for inference, saved with the model; by
            default the checkpoint's or the paper's. Training uses only mean and standard deviation of it.
        training ([`TrainingConfig`]): in YAML, `recipe` names one of [`RECIPES`]: by default `fine_tuning` with
            `model.checkpoint`, else `paper_1x`.

    Example:

    ```python
    >>> experiment = Experiment.from_yaml("configs/r50.yaml", ["training.learning_rate=1e-4"])
    >>> experiment.training.learning_rate
    0.0001
    ```
    """

    model: ModelSettings
    data: DataSettings
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    image_processor: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        for name, value in self.image_processor.items():
            if name not in PROCESSOR_FIELDS:
                raise ValueError(
                    f"unknown field `image_processor.{name}` (value {shown(value)}); expected some of "
                    f"{sorted(PROCESSOR_FIELDS)}."
                )
        if self.data.streams:
            unit, boxes = self.training.schedule.unit, self.model.initial_boxes
            if unit != "step":
                raise ValueError(
                    f"`training.schedule.unit` is {unit!r}; expected 'step' (`--steps`): a streamed source does not "
                    "tell how many images an epoch has."
                )
            if boxes != "whole_image":
                raise ValueError(
                    f"`model.initial_boxes` is {boxes!r}; expected 'whole_image': a streamed source does not tell its "
                    "boxes before training."
                )

    @classmethod
    def from_mapping(
        cls, values: Any, source: str = "experiment", length: tuple[int, Literal["step", "epoch"]] | None = None
    ) -> "Experiment":
        """Builds the description from plain values.

        Args:
            values (`Mapping`): fields and their values, as a YAML file has them.
            source (`str`): where they come from, for messages.
            length (`tuple`, *optional*): another length of training and its unit, see
                [`LearningRateSchedule.with_length`].

        Raises:
            ValueError: a value is wrong; the message names source, field, value and what is expected.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{source}: expected fields with values, got {shown(values)}.")
        values = dict(values)
        model = values.get("model")
        if isinstance(model, Mapping):
            fields = {name: value for name, value in model.items() if name in MODEL_FIELDS}
            if fields:
                rest = {name: value for name, value in model.items() if name not in MODEL_FIELDS}
                place = "config" if isinstance(rest.get("config"), Mapping) else "overrides"
                values["model"] = {**rest, place: {**(rest.get(place) or {}), **fields}}
        settings = values.pop("training", None) or {}
        if isinstance(settings, Mapping) and isinstance(model, Mapping) and model.get("checkpoint") is not None:
            settings = {"recipe": "fine_tuning", **settings}
        training = TrainingConfig.from_mapping(settings, f"{source}: in `training`")
        if length is not None:
            training = dataclasses.replace(training, schedule=training.schedule.with_length(*length))
        experiment = build(cls, values, source)
        try:
            sizes = {}
            if isinstance(settings, Mapping) and settings.get("recipe") == "fine_tuning":
                sizes = _sizes_for_fine_tuning(experiment, values.get("augmentation") or {})
            augmentation = dataclasses.replace(experiment.augmentation, **sizes)
            return dataclasses.replace(experiment, augmentation=augmentation, training=training)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    @classmethod
    def from_yaml(cls, path: str | Path, assignments: Iterable[str] = ()) -> "Experiment":
        """Reads the description from a YAML file, changed by assignments such as `"training.batch_size=4"`."""
        values = read_yaml(path)
        return cls.from_mapping(with_assignments({} if values is None else values, assignments), str(path))

    def to_mapping(self) -> dict[str, Any]:
        """The description as plain values, for YAML or JSON."""
        return plain_mapping(self)

    def to_yaml(self) -> str:
        """The description as YAML text, complete with all defaults."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False)

    def check_continues(self, other: "Experiment", source: str) -> None:
        """Raises `ValueError` if a run of `other` cannot be resumed as this experiment.

        Model, data and augmentation have to be the same; files and folders may have moved. The loop checks the
        settings of training.
        """
        for name in ("model", "augmentation", "data"):
            mine, theirs = (_without_places(getattr(experiment, name)) for experiment in (self, other))
            for place in sorted({*mine, *theirs}):
                if mine.get(place) != theirs.get(place):
                    raise ValueError(
                        f"{source}: `{name}.{place}` was {shown(theirs.get(place))} in this run and is "
                        f"{shown(mine.get(place))} now; expected the same to resume."
                    )


def _sizes_for_fine_tuning(experiment: Experiment, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of augmentation around those of inference, but for those that the description gives."""
    checkpoint, size = experiment.model.start, experiment.image_processor.get("size")
    if {"short_sides", "longest_side"} <= given.keys():
        return {}
    if size is None:
        if checkpoint is None:
            return {}
        try:
            size = QueryPoseImageProcessor.from_pretrained(checkpoint).size
        except (OSError, ValueError) as error:
            raise ValueError(
                f"`model.checkpoint` is {experiment.model.checkpoint!r}; expected a QueryPose checkpoint with its "
                f"image processor: {error}"
            ) from error
    sides = [value for value in dict(size).values() if value is not None]
    sizes = {
        "short_sides": tuple(round(factor * min(sides)) for factor in FINE_TUNING_SIZES),
        "longest_side": round(max(FINE_TUNING_SIZES) * max(sides)),
    }
    return {name: value for name, value in sizes.items() if name not in given}


#: Fields that may differ when a run is resumed: where files are, and what is scored.
_MOVABLE = frozenset({"annotations", "images", "checkpoint", "backbone_weights", "heatmap_pretrained", "validation"})


def _without_places(settings: Any) -> dict[str, Any]:
    """Every plain value by its path, without those that do not change the training."""

    def leaves(value: Any, path: str) -> Iterable[tuple[str, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            yield path, value
            return
        for name, item in items:
            if name not in _MOVABLE:
                yield from leaves(item, f"{path}.{name}" if path else str(name))

    return dict(leaves(plain_mapping(settings), ""))
