"""A training experiment as a description: model, data, augmentation, image processor and training settings.

This is what the YAML files of `querypose train` hold. Nothing here reads a picture or builds a model.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import PreTrainedConfig

from ..checks import shown
from ..data.augmentation import Mosaic, PoseAugmentation, RandomCrop, ResizeShortSide
from ..evaluation.options import PredictionOptions
from ..evaluation.protocols import Metric
from ..model.configuration_querypose import VARIANTS, QueryPoseConfig
from ..settings import build, plain_mapping, read_yaml, require, with_assignments
from .recipe import TrainingConfig


#: The configuration fields that a description of a model may set.
MODEL_FIELDS = frozenset(
    {part.name for part in dataclasses.fields(QueryPoseConfig)}
    - {part.name for part in dataclasses.fields(PreTrainedConfig)}
    | {"id2label"}
)

#: The settings of the image processor that a description may set; those about keypoints and categories are the data's.
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
        "size",
        "size_divisor",
    }
)

_FILES = ("annotations", "images")
_RENDERED = ("layouts", "length", "size", "people", "seed")
# What a format of data takes, beside what all do; everything else must be left out.
_FIELDS_OF_FORMAT: dict[str, tuple[str, ...]] = {
    "coco": (*_FILES, "undo_squeeze", "category_ids", "on_error", "only_with_people"),
    "crowdpose": (*_FILES, "on_error", "only_with_people"),
    "yolo": ("annotations", "split", "on_error", "only_with_people"),
    "hub": ("annotations", "split", "columns", "keypoint_names", "on_error", "only_with_people"),
    "synthetic": _RENDERED,
}
_OF_SOME_FORMATS = frozenset(name for names in _FIELDS_OF_FORMAT.values() for name in names)
_NEEDED = {"coco": _FILES, "crowdpose": _FILES, "yolo": ("annotations",), "hub": ("annotations",), "synthetic": ()}


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained, and from what it starts. Exactly one of the first three says which.

    Args:
        checkpoint (`str`, *optional*): folder or Hub id of a QueryPose checkpoint to go on from. If the data has other
            keypoints, what the two have in common by name is carried over.
        variant (`str`, *optional*): a published model, `"r50"`, `"hrnet_w32"`, ..., with new weights.
        config (`dict`, *optional*): any fields of [`QueryPoseConfig`], with new weights.
        light (`bool`): with `variant`, the light version.
        overrides (`dict`): fields of [`QueryPoseConfig`] that differ from the checkpoint's or the variant's.
        backbone_weights (`str`): `"none"`; `"imagenet"`, which downloads timm's default for the backbone; a file of
            weights (`.safetensors`, `.pth`); or the name of weights to download.
        heatmap_pretrained (`str`, *optional*): file of an HRNet trained on keypoint heatmaps.
        initial_boxes (`str`): where the queries of a new model start to look: `"whole_image"`, as in the paper, or
            `"training_people"`, typical boxes of the first source that has annotations to read them from.
    """

    checkpoint: str | None = None
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
                f"`checkpoint`, `variant` and `config`: {' and '.join(given) or 'none'} given; expected one of them."
            )
        if self.variant is not None:
            require(self, "variant", self.variant in VARIANTS, f"one of {sorted(VARIANTS)}")
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
            raise ValueError(f"{sorted(self.overrides)} beside `config`; expected them in it.")

    @property
    def backbone_weights_are_a_file(self) -> bool:
        """Whether `backbone_weights` names a file, and no weights to download."""
        return self.backbone_weights.endswith((".safetensors", ".pth", ".pt", ".bin"))


@dataclass(frozen=True)
class SourceSettings:
    """A source of annotated pictures.

    Args:
        format (`str`): `"coco"`, `"crowdpose"`, `"yolo"`, `"hub"` or `"synthetic"`.
        annotations (`str`, *optional*): the JSON file; for `yolo` the `data.yaml`; for `hub` the name or folder of the
            data set.
        images (`str`, *optional*): `coco`, `crowdpose`: the folder of the pictures.
        split (`str`, *optional*): `yolo`, `hub`: the split.
        max_images (`int`, *optional*): only the first so many.
        undo_squeeze (`bool`): `coco`: pictures were squeezed to another aspect ratio and are resized to `orig_width`
            and `orig_height`, which the file must have.
        category_ids (`tuple[int, ...]`, *optional*): `coco`: the categories wanted, in the order of the classes.
        keypoint_names (`tuple[str, ...]`, *optional*): `hub`: names of the keypoints.
        columns (`dict[str, str]`, *optional*): `hub`: the arguments of [`PoseColumns`].
        layouts, length, size, people, seed: `synthetic`: the arguments of [`SyntheticPeople`]; `length` is the number
            of pictures in an epoch, which are other ones in each. With `layouts` it is the number of these.
    """

    format: Literal["coco", "crowdpose", "yolo", "hub", "synthetic"] = "coco"
    annotations: str | None = None
    images: str | None = None
    split: str | None = None
    max_images: int | None = None
    undo_squeeze: bool = False
    category_ids: tuple[int, ...] | None = None
    keypoint_names: tuple[str, ...] | None = None
    columns: dict[str, str] | None = None
    layouts: str | None = None
    length: int | None = None
    size: tuple[int, ...] | None = None
    people: tuple[int, ...] = (1, 4)
    seed: int = 0

    def __post_init__(self) -> None:
        takes = _FIELDS_OF_FORMAT[self.format]
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if part.name in _OF_SOME_FORMATS and part.name not in takes and value != part.default:
                raise ValueError(
                    f"`{part.name}` is {shown(value)}; format {self.format!r} does not have it, expected some of "
                    f"{sorted(takes)}."
                )
        for name in _NEEDED[self.format]:
            require(self, name, getattr(self, name) is not None, f"a value: format {self.format!r} needs it")
        if self.format == "synthetic" and self.layouts is None:
            require(self, "length", self.length is not None, "the number of pictures in an epoch, or `layouts`")
        if self.max_images is not None:
            require(self, "max_images", self.max_images >= 1, "at least 1")


@dataclass(frozen=True)
class TrainingSource(SourceSettings):
    """A source of pictures to train on.

    Args:
        repeat (`float`): how often it counts in an epoch, see [`JoinedPoseDataset`]; may be a fraction.
        exhaustive (`bool`): whether everybody in its pictures is annotated. Where not, people found outside the
            annotations are not taught to be wrong.
        only_with_people (`bool`): whether pictures without anybody are left out, as the paper's recipe does.
        on_error (`str`): `"raise"`, or `"skip"` for pictures that are missing or broken.
        person_crops (`int`, *optional*): cut everybody out into a square picture of this side, see
            [`PersonCropDataset`]; not of `synthetic` sources.
    """

    repeat: float = 1.0
    exhaustive: bool = True
    only_with_people: bool = True
    on_error: Literal["raise", "skip"] = "raise"
    person_crops: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "repeat", self.repeat > 0, "above 0")
        if self.person_crops is not None:
            require(self, "person_crops", self.format != "synthetic", "nothing: rendered pictures are not cut")
            require(self, "person_crops", self.person_crops >= 32, "at least 32 pixels, or nothing")


@dataclass(frozen=True)
class ValidationSource(PredictionOptions, SourceSettings):
    """The images that the model is scored on while it is trained, and how it finds people in them.

    The fields of [`PredictionOptions`] may be set, too, but for `device` and `dtype`, which are the training's.

    Args:
        metric (`str`, *optional*): one of [`PROTOCOLS`]; by default the format's.
        sigmas (`tuple[float, ...]`, *optional*): OKS sigmas; by default the protocol's if the model has its keypoints,
            and else the model's.
    """

    metric: Metric | None = None
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        SourceSettings.__post_init__(self)
        PredictionOptions.__post_init__(self)
        for name in ("device", "dtype"):
            require(self, name, getattr(self, name) is None, "nothing: a model is scored where and as it is trained")
        if self.metric == "crowdpose":
            require(self, "metric", self.format == "crowdpose", "'coco' for this format")

    @property
    def protocol(self) -> str:
        """The metric, `"coco"` or `"crowdpose"`."""
        return self.metric or ("crowdpose" if self.format == "crowdpose" else "coco")


@dataclass(frozen=True)
class DataSettings:
    """The pictures: sources to train on, joined, and what to score on, if anything."""

    train: tuple[TrainingSource, ...]
    validation: ValidationSource | None = None

    def __post_init__(self) -> None:
        require(self, "train", len(self.train) > 0, "at least one source")


@dataclass(frozen=True)
class MosaicSettings:
    """The arguments of [`Mosaic`]."""

    size: int
    probability: float = Mosaic.probability
    center: tuple[float, ...] = Mosaic.center

    def build(self) -> Mosaic:
        """The augmentation."""
        return Mosaic(self.size, self.probability, (self.center[0], self.center[-1]))

    def __post_init__(self) -> None:
        require(self, "center", len(self.center) == 2, "two numbers")
        self.build()


@dataclass(frozen=True)
class AugmentationSettings:
    """The arguments of [`PoseAugmentation.from_recipe`], the paper's by default, and a mosaic."""

    short_sides: tuple[int, ...] = tuple(ResizeShortSide.short_sides)
    longest_side: int | None = ResizeShortSide.longest_side
    crop_short_sides: tuple[int, ...] = tuple(RandomCrop.short_sides)
    crop_window: tuple[int, ...] = RandomCrop.window
    flip_probability: float = 0.5
    crop_probability: float = 0.5
    scale_jitter: tuple[float, ...] | None = None
    rotation: float = 0.0
    color_jitter: float = 0.0
    erasing_probability: float = 0.0
    mosaic: MosaicSettings | None = None

    def build(self, flip_indices: Any) -> PoseAugmentation:
        """The augmentation for a skeleton's flip indices."""
        values = {part.name: getattr(self, part.name) for part in dataclasses.fields(self) if part.name != "mosaic"}
        return PoseAugmentation.from_recipe(flip_indices, **values)

    def __post_init__(self) -> None:
        for name in ("flip_probability", "crop_probability", "color_jitter", "erasing_probability"):
            require(self, name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        require(self, "rotation", 0 <= self.rotation <= 180, "an angle from 0 to 180")
        self.build(())


@dataclass(frozen=True)
class Experiment:
    """A training experiment.

    Attributes:
        model ([`ModelSettings`]): fields of [`QueryPoseConfig`] may stand among its own, as `overrides`.
        data ([`DataSettings`]): what to train and to score on.
        augmentation ([`AugmentationSettings`]): the paper's by default.
        image_processor (`dict`): settings of [`QueryPoseImageProcessor`] for inference, saved with the model. The
            checkpoint's by default, or the paper's. Mean and standard deviation hold in training, too.
        training ([`TrainingConfig`]): read as [`TrainingConfig.from_mapping`] does, so `recipe` may name the paper's.

    Example:

    ```python
    >>> experiment = Experiment.from_yaml("configs/r50.yaml", ["training.learning_rate=1e-4"])
    >>> experiment.training.learning_rate
    0.0001
    ```
    """

    model: ModelSettings
    data: DataSettings
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    image_processor: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        for name, value in self.image_processor.items():
            if name not in PROCESSOR_FIELDS:
                raise ValueError(
                    f"unknown field `image_processor.{name}` (value {shown(value)}); expected some of "
                    f"{sorted(PROCESSOR_FIELDS)}."
                )

    @classmethod
    def from_mapping(cls, values: Any, source: str = "experiment") -> "Experiment":
        """Builds the description from plain values.

        Raises:
            ValueError: the message names source, field, value and what is expected.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{source}: expected fields with values, got {shown(values)}.")
        values = dict(values)
        model = values.get("model")
        if isinstance(model, Mapping):
            fields = {name: value for name, value in model.items() if name in MODEL_FIELDS}
            if fields:
                rest = {name: value for name, value in model.items() if name not in MODEL_FIELDS}
                values["model"] = {**rest, "overrides": {**(rest.get("overrides") or {}), **fields}}
        training = TrainingConfig.from_mapping(values.pop("training", None) or {}, f"{source}: in `training`")
        return dataclasses.replace(build(cls, values, source), training=training)

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

    def with_length(self, length: int, unit: Literal["step", "epoch"]) -> "Experiment":
        """The same with training of another length: milestones move along, and the warm-up is a tenth at most."""
        schedule = self.training.schedule
        if length < 1:
            raise ValueError(f"the length of training is {length} {unit}s; expected at least 1.")
        places = (round(place * length / schedule.length) for place in schedule.milestones)
        fields: dict[str, Any] = {
            "unit": unit,
            "length": length,
            "milestones": tuple(sorted({place for place in places if 0 < place < length})),
        }
        if unit == "step":
            fields["warmup_steps"] = min(schedule.warmup_steps, length // 10)
        training = dataclasses.replace(self.training, schedule=dataclasses.replace(schedule, **fields))
        return dataclasses.replace(self, training=training)

    def check_continues(self, other: "Experiment", source: str) -> None:
        """Raises `ValueError` where a run of `other` cannot be resumed as this one.

        Model, data and augmentation have to be the same; files and folders may have moved. Settings of training are
        checked by the loop.
        """
        for name in ("model", "augmentation", "data"):
            mine, theirs = (_without_places(getattr(experiment, name)) for experiment in (self, other))
            for place in sorted({*mine, *theirs}):
                if mine.get(place) != theirs.get(place):
                    raise ValueError(
                        f"{source}: `{name}.{place}` was {shown(theirs.get(place))} in this run and is "
                        f"{shown(mine.get(place))} now; expected the same to resume it."
                    )


#: What may differ where a run is resumed: where things are, and what is scored.
_MOVABLE = frozenset(
    {"annotations", "images", "layouts", "checkpoint", "backbone_weights", "heatmap_pretrained", "validation"}
)


def _without_places(settings: Any) -> dict[str, Any]:
    """Every plain value by its path, but for those that do not change what is computed."""

    def leaves(value: Any, path: str) -> Iterable[tuple[str, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            yield path, value
            return
        for name, item in items:
            if name not in _MOVABLE:
                yield from leaves(item, f"{path}.{name}" if path else str(name))

    return dict(leaves(plain_mapping(settings), ""))
