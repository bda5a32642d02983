"""The model that an experiment starts from, made for the keypoints of its data, and its image processor."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..checks import telling
from ..data import DataDescription
from ..model.configuration_querypose import VARIANTS, QueryPoseConfig
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..model.skeletons import DEFAULT_SIGMA, SKELETONS, Skeleton
from ..weights.backbone_weights import load_backbone_weights, load_heatmap_pretrained_hrnet
from .experiment import ModelSettings
from .transfer import match_keypoints, transfer_weights


_SKELETON_FIELDS = (
    "num_keypoints",
    "keypoint_names",
    "keypoint_parts",
    "keypoint_edges",
    "keypoint_flip_indices",
    "keypoint_sigmas",
)
_LABEL_FIELDS = ("id2label", "label2id", "num_labels")


def build_config(settings: ModelSettings, data: DataDescription) -> QueryPoseConfig:
    """The configuration: the checkpoint's, the variant's or the one given, for the keypoints and classes of the data.

    Fields about keypoints come from the description, then from the data, then from the known skeleton with the same
    names, and then, keypoint by keypoint, from the checkpoint.

    Raises:
        ValueError: a field is wrong, or the description's keypoints are not the data's.
    """
    given = dict(settings.config or settings.overrides)
    names = given.get("keypoint_names")
    count = given.get("num_keypoints", len(names) if isinstance(names, list | tuple) else None)
    if count not in (None, data.num_keypoints):
        raise ValueError(f"`model` has {count} keypoints; expected {data.num_keypoints}, as in the data.")
    if names is not None and data.keypoint_names is not None and tuple(names) != data.keypoint_names:
        raise ValueError(
            f"`model.keypoint_names` is {list(names)}; expected those of the data, {list(data.keypoint_names)}, or "
            "none."
        )
    try:
        start: dict[str, Any] = {}
        base = None
        if settings.start is not None:
            base = read_config(settings)
            start = base.to_dict()
        elif settings.variant is not None:
            start = {
                **copy.deepcopy(VARIANTS[settings.variant]),
                "pose_query_interaction": "none" if settings.light else "dynamic",
            }
        for name in (*_SKELETON_FIELDS, *_LABEL_FIELDS):
            start.pop(name, None)
        names = tuple(names) if names is not None else data.keypoint_names
        classes = dict(enumerate(data.category_names.values()))
        labels = {"id2label": classes, "label2id": {name: number for number, name in classes.items()}}
        if "id2label" in given:
            given["label2id"] = {name: number for number, name in given["id2label"].items()}
        skeleton = _skeleton_fields(names, data, None if base is None else base.skeleton)
        if {**start, **given}.get("keypoint_coordinates") == "attention":
            skeleton["keypoint_parts"] = "a"  # one keypoint each, as its maps need
        return QueryPoseConfig.from_dict({**start, **labels, **skeleton, **given})
    except StrictDataclassError as error:
        raise ValueError(f"`model`: {_told(error)}") from error


def read_config(settings: ModelSettings) -> QueryPoseConfig:
    """The configuration of the checkpoint that a description starts from.

    Raises:
        ValueError: there is none, or it is of another model.
    """
    checkpoint, place = settings.checkpoint, settings.start
    assert place is not None
    expected = f"`model.checkpoint` is {checkpoint!r}; expected a folder or Hub id"
    with telling(expected):
        config, _ = QueryPoseConfig.get_config_dict(place)
    if config.get("model_type") != QueryPoseConfig.model_type:
        raise ValueError(
            f"`model.checkpoint` is {checkpoint!r}, of type {config.get('model_type')!r}; expected a QueryPose "
            "checkpoint."
        )
    with telling(expected):
        return QueryPoseConfig.from_pretrained(place)


def _skeleton_fields(names: Sequence[str] | None, data: DataDescription, base: Skeleton | None) -> dict[str, Any]:
    """The configuration's fields about keypoints, as far as they are known."""
    if base is not None and data.num_keypoints == base.num_keypoints and names in (None, base.keypoint_names):
        fields = QueryPoseConfig.skeleton_fields(base)
        if data.flip_indices is not None:
            fields["keypoint_flip_indices"] = list(data.flip_indices)
        return fields
    if names is not None and any(tuple(names) == known.keypoint_names for known in SKELETONS.values()):
        return QueryPoseConfig.skeleton_fields(names)
    fields = {"num_keypoints": data.num_keypoints}
    if names is not None:
        fields["keypoint_names"] = list(names)
    if data.edges:
        fields["keypoint_edges"] = [list(edge) for edge in data.edges]
    if data.flip_indices is not None:
        fields["keypoint_flip_indices"] = list(data.flip_indices)
    if base is not None and names is not None:
        fields |= _as_in(base, names)
    return fields


def _as_in(base: Skeleton, names: Sequence[str]) -> dict[str, Any]:
    """Parts and OKS constants of the keypoints that `base` has, too; every new keypoint is a part of its own."""
    origins = match_keypoints(base.keypoint_names, names)
    if all(origin is None for origin in origins):
        return {}
    part_of = {keypoint: number for number, part in enumerate(base.parts) for keypoint in part}
    parts: dict[Any, list[int]] = {}
    for keypoint, origin in enumerate(origins):
        parts.setdefault(("new", keypoint) if origin is None else part_of[origin], []).append(keypoint)
    new = [name for name, origin in zip(names, origins, strict=True) if origin is None]
    if new:
        warnings.warn(
            f"`keypoint_sigmas` of {', '.join(new)} are not given and become {DEFAULT_SIGMA}, the mean of COCO's. "
            "OKS and AP use them; training does not.",
            stacklevel=2,
        )
    sigmas = [DEFAULT_SIGMA if origin is None else base.sigmas[origin] for origin in origins]
    return {"keypoint_parts": list(parts.values()), "keypoint_sigmas": sigmas}


def _told(error: StrictDataclassError) -> str:
    # the first line is a heading that names the check
    return " ".join(line.strip() for line in str(error).splitlines()[1:]) or str(error)


def build_model(settings: ModelSettings, config: QueryPoseConfig, weights: bool = True) -> tuple[Any, list[str]]:
    """The model, with the weights it starts from.

    Args:
        settings ([`ModelSettings`]): the description.
        config ([`QueryPoseConfig`]): from [`build_config`].
        weights (`bool`): whether to read weights; a resumed run does not need them.

    Returns:
        `tuple[QueryPoseForPoseEstimation, list[str]]`: the model in float32, and reports about its weights.

    Raises:
        FileNotFoundError, ValueError: weights are missing or do not fit the model.
    """
    files = {"heatmap_pretrained": settings.heatmap_pretrained}
    if settings.backbone_weights_are_a_file:
        files["backbone_weights"] = settings.backbone_weights
    for name, file in files.items():
        if weights and file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"`model.{name}` is {file!r}; there is no such file.")
    model = QueryPoseForPoseEstimation(config)
    reports: list[str] = []
    if not weights:
        return model, reports
    if settings.start is not None:
        with telling(f"`model.checkpoint` is {settings.checkpoint!r}; expected a whole checkpoint"):
            source = QueryPoseForPoseEstimation.from_pretrained(settings.start, dtype="float32")
        carried = transfer_weights(source, model, settings.fresh)
        # where everything was carried over, there is nothing else to report
        shown = str(carried) if carried.left_behind or carried.fresh or carried.carried_in_part else "all carried over"
        reports.append(f"Weights of {settings.checkpoint}: {shown}")
    reports += load_backbone(settings, model)
    if settings.heatmap_pretrained is not None:
        report = load_heatmap_pretrained_hrnet(model, settings.heatmap_pretrained)
        reports.append(f"Backbone weights of {settings.heatmap_pretrained}: {report}")
    return model, reports


def load_backbone(settings: ModelSettings, model: Any) -> list[str]:
    """Fills a model's backbone with `backbone_weights`.

    Returns:
        `list[str]`: the report; empty for `"none"`.
    """
    name = settings.backbone_weights
    if name == "none":
        return []
    is_file = settings.backbone_weights_are_a_file
    report = load_backbone_weights(
        model, file=name if is_file else None, checkpoint=None if is_file or name == "imagenet" else name
    )
    return [f"Backbone weights of {name}: {report}"]


def about_names(settings: ModelSettings, data: DataDescription, config: QueryPoseConfig) -> list[str]:
    """A line about keypoints that nobody names, where a checkpoint's weights are carried over by names."""
    named = settings.overrides.get("keypoint_names") is not None or data.keypoint_names is not None
    if settings.start is None or named:
        return []
    if config.num_keypoints == read_config(settings).num_keypoints:
        names = ", ".join(config.skeleton.keypoint_names)
        return [f"The data does not name its keypoints: they are taken for the checkpoint's, {names}."]
    return [
        f"The data does not name its keypoints: all {data.num_keypoints} are newly initialised. With names "
        "(`keypoints` of a COCO category, `kpt_names` of a data.yaml) those that the checkpoint has would be carried "
        "over."
    ]


def build_image_processor(
    settings: ModelSettings, overrides: dict[str, Any], data: DataDescription
) -> QueryPoseImageProcessor:
    """The checkpoint's or the paper's image processor with `overrides`, for the data's keypoints and categories."""
    fields = {**overrides, "num_keypoints": data.num_keypoints, "category_ids": list(data.category_names)}
    try:
        if settings.start is not None:
            return QueryPoseImageProcessor.from_pretrained(settings.start, **fields)
        return QueryPoseImageProcessor(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"`image_processor`: {_told(error)}") from error
