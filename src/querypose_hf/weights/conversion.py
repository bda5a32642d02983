"""Conversion of the authors' QueryPose checkpoints, without their code and without detectron2."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from tqdm.auto import tqdm

from ..files import making_folder, write_text
from ..hub.model_card import build_model_card
from ..model.configuration_querypose import VARIANTS, QueryPoseConfig
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..model.skeletons import COCO_17, COCO_PARTS, Skeleton
from .original_names import Placement, is_unused, place
from .tensor_files import WeightsReport, read_tensors


def config_from_original(
    state: Mapping[str, Tensor], variant: str, keypoint_parts: Sequence[Sequence[int]] | None = None, **overrides: Any
) -> QueryPoseConfig:
    """The configuration of a checkpoint of the authors.

    The tensors say the number of queries, stages, classes and parts, and whether it is the full or the light version.

    Args:
        state (`Mapping[str, Tensor]`): the checkpoint.
        variant (`str`): its backbone and neck, see [`QueryPoseConfig.from_variant`].
        keypoint_parts (`Sequence[Sequence[int]]`, *optional*): keypoint indices of each part, if they are not one of
            the paper's groupings of COCO's keypoints.
        overrides: other configuration fields, such as the keypoint names of another skeleton, or
            `query_feedback="always"` for a full checkpoint of the authors' first published code. Tensors do not tell
            it from one of the released code, which is `"training"`, the default here.

    Raises:
        ValueError: the checkpoint lacks a tensor that is needed here, its parts are unknown, or a field does not fit.
    """

    def find(name: str) -> Tensor:
        if name not in state:
            raise ValueError(f"The checkpoint has no tensor {name!r}: it is not one of QueryPose.")
        return state[name]

    num_labels = find("head.head_series.0.class_logits.weight").shape[0]
    stages = {match[1] for name in state if (match := re.match(r"head\.head_series\.(\d+)\.", name))}
    num_parts, part_dim = find("part_query.weight").shape
    sizes = tuple(
        find(f"head.pose_head_series.0.fc_coord.{part}.linear.weight").shape[0] // 2 for part in range(num_parts)
    )
    if keypoint_parts is None:
        known = {tuple(len(part) for part in partition): partition for partition in COCO_PARTS.values()}
        if sizes not in known:
            raise ValueError(
                f"The checkpoint has parts of {list(sizes)} keypoints, which is not one of the paper's groupings of "
                f"COCO's {COCO_17.num_keypoints}; expected `keypoint_parts`, the keypoint indices of each part."
            )
        keypoint_parts = known[sizes]
    elif tuple(len(part) for part in keypoint_parts) != sizes:
        raise ValueError(
            f"`keypoint_parts` has parts of {[len(part) for part in keypoint_parts]} keypoints; expected "
            f"{list(sizes)}, as in the checkpoint."
        )
    full = "head.pose_head_series.0.pose_decoder_inst_interact.dynamic_layer.weight" in state
    if not full and "query_feedback" in overrides:
        raise ValueError(
            f"`query_feedback` is {overrides['query_feedback']!r}; expected none for this checkpoint: it is of the "
            "light version, in which no query feeds back."
        )
    fields: dict[str, Any] = {
        "num_queries": find("init_proposal_features.weight").shape[0],
        "decoder_layers": len(stages),
        "part_dim": part_dim,
        "num_pose_convs": sum(
            bool(re.fullmatch(r"head\.pose_head_series\.0\.inst_convs\.\d+\.weight", name)) for name in state
        ),
        "num_keypoints": sum(sizes),
        "keypoint_parts": [list(part) for part in keypoint_parts],
        "query_feedback": "training",  # as in the released code
        **overrides,
    }
    if num_labels != 1:
        fields.setdefault("num_labels", num_labels)
    names = fields.get("keypoint_names")
    if names is None and sum(sizes) == COCO_17.num_keypoints:
        skeleton = COCO_17
    else:
        names = names or [f"keypoint_{index}" for index in range(sum(sizes))]
        skeleton = Skeleton.from_names(names, sigmas=fields.get("keypoint_sigmas"))
    try:
        return QueryPoseConfig.from_variant(variant, light=not full, skeleton=skeleton, **fields)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error


def convert_state_dict(
    state: Mapping[str, Tensor], model: QueryPoseForPoseEstimation
) -> tuple[dict[str, Tensor], WeightsReport]:
    """The tensors of a checkpoint of the authors under the names and in the shapes of `model`.

    Returns:
        `tuple`: the new state dict, and a [`WeightsReport`] with the original's names.

    Raises:
        ValueError: a tensor is neither used nor known to be unused, has another shape than its place, or a place of
            the model stays empty; the message names them.
    """
    places = model.state_dict()
    converted: dict[str, Tensor] = {}
    filled = dict.fromkeys(places, 0)
    used, unused, unknown, misshapen = [], [], [], []
    for name, tensor in tqdm(state.items(), desc="Converting", unit="tensor", leave=False):
        if is_unused(name):
            unused.append(name)
            continue
        placements = place(name, model.config)
        if not placements or any(placement.name not in places for placement in placements):
            unknown.append(name)
            continue
        for placement in placements:
            if placement.name not in converted:
                converted[placement.name] = torch.empty(places[placement.name].shape, dtype=tensor.dtype)
            try:
                filled[placement.name] += _copy_rows(tensor, converted[placement.name], placement)
            except ValueError as error:
                misshapen.append(f"{name} {error}")
                break
        else:
            used.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} tensors of the checkpoint have no place in this variant: {unknown}.")
    if misshapen:
        raise ValueError(f"{len(misshapen)} tensors of the checkpoint have another shape than expected: {misshapen}.")
    # transformers' Swin has a final norm that its backbone does not use
    idle = {name for name in places if name.startswith("model.backbone.model.swin.layernorm.")}
    empty = [name for name, like in places.items() if filled[name] != like.numel() and name not in idle]
    if empty:
        raise ValueError(f"The checkpoint does not fill {len(empty)} tensors of this variant: {empty}.")
    return {**converted, **{name: places[name] for name in idle}}, WeightsReport(used, unused)


def _copy_rows(tensor: Tensor, target: Tensor, placement: Placement) -> int:
    """Copies a tensor's rows to where they go; returns how many numbers that are."""
    source = tensor if placement.source_rows is None else tensor[placement.source_rows]
    room = target if placement.rows is None else target[placement.rows]
    # the keypoints of a part come as one matrix, x and y in turns
    expected = room.flatten(0, 1).shape if isinstance(placement.rows, list) else room.shape
    # a counter comes as a number or as a list of one
    if source.shape != expected and not source.numel() == expected.numel() == 1:
        raise ValueError(f"{tuple(source.shape)} (expected {tuple(expected)})")
    target[... if placement.rows is None else placement.rows] = source.reshape(room.shape)
    return source.numel()


def convert_checkpoint(
    checkpoint_path: str | Path,
    variant: str,
    output_dir: str | Path,
    *,
    keypoint_parts: Sequence[Sequence[int]] | None = None,
    **overrides: Any,
) -> WeightsReport:
    """Converts a checkpoint file of the authors into a folder for `from_pretrained`.

    Writes the weights as safetensors, configuration, image processor, the code for use without this package, and a
    model card. The folder appears once all of it is written.

    Args:
        checkpoint_path (`str` or `Path`): the authors' `.pth` file.
        variant (`str`): `"r50"`, `"hrnet_w32"`, `"hrnet_w48"`, `"swin_t"`, `"swin_b"` or `"swin_l"`.
        output_dir (`str` or `Path`): a new or empty folder.
        keypoint_parts, overrides: see [`config_from_original`].

    Returns:
        [`WeightsReport`], with a remark about `query_feedback` if it is given.

    Raises:
        FileExistsError: the output folder is not empty.
        FileNotFoundError: there is no checkpoint file.
        ValueError: see [`read_tensors`], [`config_from_original`] and [`convert_state_dict`].
    """
    if variant not in VARIANTS:
        raise ValueError(f"`variant` is {variant!r}; expected one of {sorted(VARIANTS)}.")
    with making_folder(output_dir) as folder:
        state = read_tensors(checkpoint_path, "checkpoint_path")
        config = config_from_original(state, variant, keypoint_parts, **overrides)
        model = QueryPoseForPoseEstimation(config).eval()
        converted, report = convert_state_dict(state, model)
        model.load_state_dict(converted, strict=True)
        model.to(state["init_proposal_features.weight"].dtype)
        model.save_pretrained(folder)
        QueryPoseImageProcessor(num_keypoints=config.num_keypoints).save_pretrained(folder)
        write_text(str(build_model_card(config, "converted", variant=variant)), folder / "README.md")
    if "query_feedback" in overrides:
        report = replace(
            report, remark=f"query feedback, which tensors do not tell: {config.query_feedback}, as given"
        )
    return report


__all__ = ["config_from_original", "convert_checkpoint", "convert_state_dict"]
