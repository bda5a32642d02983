"""Conversion of the authors' QueryPose checkpoints, without their code and without detectron2."""

import pickle
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from tqdm.auto import tqdm

from ..hub.model_card import write_model_card
from ..model.configuration_querypose import VARIANTS, QueryPoseConfig
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..model.skeletons import COCO_17, COCO_PARTS, Skeleton


# Layers of the original that exist in its checkpoints and take no part in any computation, and constants that the
# model makes itself.
_UNUSED = (
    r"head\.pose_head_series\.\d+\.updater\.(fc3|norm_fc3)\.(weight|bias)",
    r"backbone\.fpn_conv\.4\.(weight|bias)",
    r"backbone\.lateral_conv\.0\.weight",
    r"criterion\.flow\.flow\.mask",
    r"backbone\.bottom_up\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",
)


@dataclass(frozen=True)
class Placement:
    """Where a tensor of the original, or some rows of it, goes.

    Attributes:
        name (`str`): the parameter or buffer of [`QueryPoseForPoseEstimation`].
        rows (`slice` or `list[int]`, *optional*): its rows that are filled; all by default.
        source_rows (`slice`, *optional*): the rows of the original tensor that fill them; all by default.
    """

    name: str
    rows: slice | list[int] | None = None
    source_rows: slice | None = None


@dataclass
class ConversionReport:
    """What became of the tensors of a checkpoint: names that were used, and known ones that nothing uses."""

    used: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def _resnet(name: str) -> str | None:
    rules = (
        (r"stem\.conv1\.norm\.(\w+)", r"bn1.\1"),
        (r"stem\.conv1\.weight", r"conv1.weight"),
        (r"res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)", r"layer{0}.\2.bn\3.\4"),
        (r"res(\d)\.(\d+)\.conv(\d)\.weight", r"layer{0}.\2.conv\3.weight"),
        (r"res(\d)\.(\d+)\.shortcut\.norm\.(\w+)", r"layer{0}.\2.downsample.1.\3"),
        (r"res(\d)\.(\d+)\.shortcut\.weight", r"layer{0}.\2.downsample.0.weight"),
    )
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            layer = int(match.group(1)) - 1 if "{0}" in replacement else None
            return "_backbone." + match.expand(replacement.replace("{0}", str(layer)))
    return None


def _swin(name: str, embed_dim: int) -> list[Placement] | None:
    rules = (
        (r"patch_embed\.proj\.(\w+)", r"swin.embeddings.patch_embeddings.projection.\1"),
        (r"patch_embed\.norm\.(\w+)", r"swin.embeddings.norm.\1"),
        (r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.(\w+)", r"swin.encoder.layers.\1.blocks.\2.layernorm_before.\3"),
        (r"layers\.(\d+)\.blocks\.(\d+)\.norm2\.(\w+)", r"swin.encoder.layers.\1.blocks.\2.layernorm_after.\3"),
        (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(\w+)", r"swin.encoder.layers.\1.blocks.\2.attention.o_proj.\3"),
        (
            r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table",
            r"swin.encoder.layers.\1.blocks.\2.attention.relative_position_bias.relative_position_bias_table",
        ),
        (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.(fc\d)\.(\w+)", r"swin.encoder.layers.\1.blocks.\2.mlp.\3.\4"),
        (r"layers\.(\d+)\.downsample\.(reduction|norm)\.(\w+)", r"swin.encoder.layers.\1.downsample.\2.\3"),
    )
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return [Placement(match.expand(replacement))]
    if match := re.fullmatch(r"norm(\d)\.(\w+)", name):
        return [Placement(f"hidden_states_norms.stage{int(match.group(1)) + 1}.{match.group(2)}")]
    if match := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
        layer, block, kind = match.groups()
        width = embed_dim * 2 ** int(layer)
        return [
            Placement(
                f"swin.encoder.layers.{layer}.blocks.{block}.attention.{projection}.{kind}",
                source_rows=slice(part * width, (part + 1) * width),
            )
            for part, projection in enumerate(("q_proj", "k_proj", "v_proj"))
        ]
    return None


_BOX_STAGE = (
    (r"self_attn\.in_proj_(\w+)", r"self_attn.qkv_proj.\1"),
    (r"self_attn\.out_proj\.(\w+)", r"self_attn.out_proj.\1"),
    (r"inst_interact\.(dynamic_layer|out_layer)\.(\w+)", r"interaction.\1.\2"),
    (r"inst_interact\.norm1\.(\w+)", r"interaction.dynamic_norm.\1"),
    (r"inst_interact\.norm2\.(\w+)", r"interaction.feature_norm.\1"),
    (r"inst_interact\.norm3\.(\w+)", r"interaction.out_norm.\1"),
    (r"linear([12])\.(\w+)", r"ffn.fc\1.\2"),
    (r"norm1\.(\w+)", r"self_attn_norm.\1"),
    (r"norm2\.(\w+)", r"interaction_norm.\1"),
    (r"norm3\.(\w+)", r"ffn_norm.\1"),
    (r"cls_module\.(\d+)\.(\w+)", r"class_branch.\1.\2"),
    (r"reg_module\.(\d+)\.(\w+)", r"box_branch.\1.\2"),
    (r"class_logits\.(\w+)", r"class_head.\1"),
    (r"bboxes_delta\.(\w+)", r"box_head.\1"),
)
_KEYPOINT_STAGE = (
    (r"pose_decoder_inst_interact\.(dynamic_layer|out_layer)\.(\w+)", r"interaction.\1.\2"),
    (r"pose_decoder_inst_interact\.norm1\.(\w+)", r"interaction.dynamic_norm.\1"),
    (r"pose_decoder_inst_interact\.norm2\.(\w+)", r"interaction.feature_norm.\1"),
    (r"pose_decoder_inst_interact\.norm3\.(\w+)", r"interaction.out_norm.\1"),
    (r"inst_norm\.(\w+)", r"interaction_norm.\1"),
    (r"linear([12])\.(\w+)", r"instance_ffn.fc\1.\2"),
    (r"norm2\.(\w+)", r"instance_ffn_norm.\1"),
    (r"part_embed_generator\.upsample\.0\.(\w+)", r"part_embedding.upsample.\1"),
    (r"part_embed_generator\.upsample\.1\.(\w+)", r"part_embedding.upsample_norm.\1"),
    (r"part_embed_generator\.LSA_conv\.(\w+)", r"part_embedding.attention_conv.\1"),
    (r"part_embed_generator\.fc\.(\w+)", r"part_embedding.projection.\1"),
    (r"updater\.fc([12])\.(\w+)", r"iteration.fc\1.\2"),
    (r"updater\.norm_fc1\.(\w+)", r"iteration.norm.\1"),
    (r"kps_self_attn\.in_proj_(\w+)", r"self_attn.qkv_proj.\1"),
    (r"kps_self_attn\.out_proj\.(\w+)", r"self_attn.out_proj.\1"),
    (r"self_attn_norm\.(\w+)", r"self_attn_norm.\1"),
    (r"linear([12])_l\.(\w+)", r"part_ffn.fc\1.\2"),
    (r"norm2_l\.(\w+)", r"part_ffn_norm.\1"),
)


def _by_rules(name: str, rules: Iterable[tuple[str, str]]) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _keypoint_stage(name: str, config: QueryPoseConfig) -> Placement | None:
    if target := _by_rules(name, _KEYPOINT_STAGE):
        return Placement(target)
    if match := re.fullmatch(r"inst_convs\.(\d+)\.(\w+)", name):  # a ReLU stands between any two
        return Placement(f"conv_stack.convs.{int(match.group(1)) // 2}.{match.group(2)}")
    if match := re.fullmatch(r"residual_filter\.(\d+)\.(\w+)", name):
        part, kind = int(match.group(1)), match.group(2)
        rows = slice(part * config.part_dim, (part + 1) * config.part_dim)
        return Placement(f"query_projection.projection.{kind}", rows)
    if match := re.fullmatch(r"fc_(coord|sigma)\.(\d+)\.linear\.(\w+)", name):
        head = {"coord": "keypoint_head", "sigma": "sigma_head"}[match.group(1)]
        part = int(match.group(2))
        if part < config.num_parts:
            return Placement(f"{head}.{match.group(3)}", list(config.keypoint_parts[part]))
    return None


def place(name: str, config: QueryPoseConfig) -> list[Placement] | None:
    """Where a tensor of the original goes, by its name; `None` for a name that the original does not have."""
    prefix = "model.backbone.model."
    if match := re.fullmatch(r"backbone\.bottom_up\.(.+)", name):
        rest = match.group(1)
        if config.backbone_config.model_type == "swin":
            placements = _swin(rest, config.backbone_config.embed_dim)
            if placements is None:
                return None
            return [Placement(prefix + item.name, item.rows, item.source_rows) for item in placements]
        if config.neck_type != "fpn":  # timm's HRNet has the names of the original HRNet
            return [Placement(f"{prefix}_backbone.{rest}")]
        target = _resnet(rest)
        return None if target is None else [Placement(prefix + target)]
    if match := re.fullmatch(r"backbone\.fpn_(lateral|output)([2-5])\.(\w+)", name):
        kind, level, rest = match.groups()
        return [Placement(f"model.neck.{kind}_convs.{int(level) - 2}.{rest}")]
    if match := re.fullmatch(r"backbone\.reduction_conv\.0\.(\w+)", name):
        return [Placement(f"model.neck.reduction_conv.{match.group(1)}")]
    if match := re.fullmatch(r"backbone\.fpn_conv\.([0-3])\.(\w+)", name):
        return [Placement(f"model.neck.output_convs.{match.group(1)}.{match.group(2)}")]
    if match := re.fullmatch(r"backbone\.lateral_conv\.([1-3])\.(\w+)", name):
        return [Placement(f"model.neck.lateral_convs.{int(match.group(1)) - 1}.{match.group(2)}")]
    tables = {
        "init_proposal_features.weight": "instance_queries",
        "init_proposal_boxes.weight": "initial_boxes",
        "part_query.weight": "part_queries",
    }
    if name in tables:
        return [Placement(f"model.decoder.{tables[name]}")]
    if match := re.fullmatch(r"criterion\.flow\.flow\.([st])\.(.+)", name):
        return [Placement(f"flow.{'scale' if match.group(1) == 's' else 'shift'}.{match.group(2)}")]
    if match := re.fullmatch(r"head\.head_series\.(\d+)\.(.+)", name):
        target = _by_rules(match.group(2), _BOX_STAGE)
        return None if target is None else [Placement(f"model.decoder.box_layers.{match.group(1)}.{target}")]
    if match := re.fullmatch(r"head\.pose_head_series\.(\d+)\.(.+)", name):
        placement = _keypoint_stage(match.group(2), config)
        if placement is None:
            return None
        return [Placement(f"model.decoder.keypoint_layers.{match.group(1)}.{placement.name}", placement.rows)]
    return None


def read_original_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint of the authors, `{"model": {name: tensor}}`, without running code from it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint_path` must be a file, but there is none at {path}.")
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files written before torch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`checkpoint_path` must hold tensors alone, but {path} holds something else, which is not loaded because "
            f"it could run code: {error}"
        ) from error
    except (EOFError, OSError, RuntimeError) as error:  # torch has many ways to say that a file is cut off
        raise ValueError(
            f"`checkpoint_path` must be a whole checkpoint of PyTorch, but {path} cannot be read: {error}"
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a checkpoint of QueryPose: expected a dict of tensors under the key 'model'.")
    return dict(state)


def config_from_original(
    state: Mapping[str, Tensor], variant: str, keypoint_parts: Sequence[Sequence[int]] | None = None, **overrides: Any
) -> QueryPoseConfig:
    """The configuration that a checkpoint's tensors call for.

    Number of queries, stages, classes and parts, and full or light version, are read off the tensors.

    Args:
        state (`Mapping[str, Tensor]`): the checkpoint.
        variant (`str`): its backbone and neck, see [`QueryPoseConfig.from_variant`].
        keypoint_parts (`Sequence[Sequence[int]]`, *optional*):
            The parts, where they are none of those that the paper has for COCO.
        overrides: other configuration fields, such as the keypoint names of another skeleton.

    Raises:
        ValueError: if the checkpoint lacks what tells, its parts are not known, or another field does not fit.
    """

    def find(name: str) -> Tensor:
        if name not in state:
            raise ValueError(f"The checkpoint has no tensor {name!r}: it is not one of QueryPose.")
        return state[name]

    stages = {int(match.group(1)) for name in state if (match := re.match(r"head\.head_series\.(\d+)\.", name))}
    find("head.head_series.0.class_logits.weight")
    parts = find("part_query.weight").shape[0]
    sizes = tuple(
        find(f"head.pose_head_series.0.fc_coord.{part}.linear.weight").shape[0] // 2 for part in range(parts)
    )
    if keypoint_parts is None:
        known = {tuple(len(part) for part in partition): partition for partition in COCO_PARTS.values()}
        if sizes not in known:
            raise ValueError(
                f"The checkpoint has parts of {list(sizes)} keypoints, which is none of the paper's groupings of "
                f"COCO's {COCO_17.num_keypoints}. Give `keypoint_parts`, the keypoint indices of each part."
            )
        keypoint_parts = known[sizes]
    elif tuple(len(part) for part in keypoint_parts) != sizes:
        raise ValueError(
            f"`keypoint_parts` has parts of {[len(part) for part in keypoint_parts]} keypoints, but the checkpoint's "
            f"have {list(sizes)}."
        )
    full = "head.pose_head_series.0.pose_decoder_inst_interact.dynamic_layer.weight" in state
    num_labels = state["head.head_series.0.class_logits.weight"].shape[0]
    fields: dict[str, Any] = {
        "num_queries": find("init_proposal_features.weight").shape[0],
        "decoder_layers": len(stages),
        "part_dim": state["part_query.weight"].shape[1],
        "num_pose_convs": sum(
            bool(re.fullmatch(r"head\.pose_head_series\.0\.inst_convs\.\d+\.weight", name)) for name in state
        ),
        "num_keypoints": sum(sizes),
        "keypoint_parts": [list(part) for part in keypoint_parts],
        "query_feedback": "training",  # what the released code does
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
) -> tuple[dict[str, Tensor], ConversionReport]:
    """The tensors of a checkpoint under the names and in the shapes of `model`.

    Returns:
        `tuple`: the new state dict, and a [`ConversionReport`].

    Raises:
        ValueError: if a tensor is neither used nor known to be unused, has another shape than its place, or a place of
            the model stays empty; the names are given.
    """
    places = model.state_dict()
    converted: dict[str, Tensor] = {}
    filled: dict[str, int] = {}
    report = ConversionReport()
    unknown, misshapen = [], []
    for name, tensor in tqdm(state.items(), desc="Converting", unit="tensor", leave=False):
        if any(re.fullmatch(pattern, name) for pattern in _UNUSED):
            report.unused.append(name)
            continue
        placements = place(name, model.config)
        if placements is None or any(placement.name not in places for placement in placements):
            unknown.append(name)
            continue
        for placement in placements:
            like = places[placement.name]
            if placement.name not in converted:
                converted[placement.name] = torch.empty(like.shape, dtype=tensor.dtype)
            target = converted[placement.name]
            source = tensor if placement.source_rows is None else tensor[placement.source_rows]
            room = target if placement.rows is None else target[placement.rows]
            # the keypoints of a part come as one matrix with x and y in turns
            expected = room.flatten(0, 1).shape if isinstance(placement.rows, list) else room.shape
            a_number = source.numel() == expected.numel() == 1  # counters come as a number or a list of one
            if source.shape != expected and not a_number:
                misshapen.append(f"{name} {tuple(source.shape)} (expected {tuple(expected)})")
                break
            if placement.rows is None:
                target.copy_(source.reshape(room.shape))
            else:
                target[placement.rows] = source.reshape(room.shape)
            filled[placement.name] = filled.get(placement.name, 0) + source.numel()
        else:
            report.used.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} tensors of the checkpoint have no place in this variant: {unknown}.")
    if misshapen:
        raise ValueError(f"{len(misshapen)} tensors of the checkpoint have another shape than expected: {misshapen}.")
    # transformers' Swin has a final norm that its backbone does not use
    optional = {"model.backbone.model.swin.layernorm.weight", "model.backbone.model.swin.layernorm.bias"}
    empty = [name for name, like in places.items() if filled.get(name, 0) != like.numel() and name not in optional]
    if empty:
        raise ValueError(f"The checkpoint does not fill {len(empty)} tensors of this variant: {empty}.")
    for name in optional & set(places):
        converted[name] = places[name]
    return converted, report


def convert_checkpoint(
    checkpoint_path: str | Path,
    variant: str,
    output_dir: str | Path,
    *,
    keypoint_parts: Sequence[Sequence[int]] | None = None,
    **overrides: Any,
) -> ConversionReport:
    """Converts a checkpoint file of the authors into a folder for `from_pretrained`.

    Writes the weights as safetensors, configuration, image processor, the code for use without this package, and a
    model card. The folder appears when all of it is complete; until then its name has `.partial` at the end.

    Args:
        checkpoint_path (`str` or `Path`): the authors' `.pth` file.
        variant (`str`): `"r50"`, `"hrnet_w32"`, `"hrnet_w48"`, `"swin_t"`, `"swin_b"` or `"swin_l"`.
        output_dir (`str` or `Path`): a folder that does not exist yet, or is empty.
        keypoint_parts, overrides: see [`config_from_original`].

    Raises:
        FileExistsError: if the output folder has content.
        FileNotFoundError: if there is no checkpoint file.
        ValueError: see [`read_original_checkpoint`], [`config_from_original`] and [`convert_state_dict`].
    """
    if variant not in VARIANTS:
        raise ValueError(f"`variant` must be one of {sorted(VARIANTS)}, but is {variant!r}.")
    output_dir = Path(output_dir).resolve()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"`output_dir` must be new or an empty folder, but {output_dir} has content.")
    state = read_original_checkpoint(checkpoint_path)
    config = config_from_original(state, variant, keypoint_parts, **overrides)
    model = QueryPoseForPoseEstimation(config).eval()
    converted, report = convert_state_dict(state, model)
    model.load_state_dict(converted, strict=True)
    model.to(state["init_proposal_features.weight"].dtype)

    partial = output_dir.with_name(output_dir.name + ".partial")
    if partial.exists():  # a run that was killed; its files must not get among the new ones
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        model.save_pretrained(partial)
        QueryPoseImageProcessor(num_keypoints=config.num_keypoints).save_pretrained(partial)
        write_model_card(partial, config, variant=variant)
        if output_dir.exists():
            output_dir.rmdir()
        partial.rename(output_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return report


def describe_report(report: ConversionReport) -> str:
    """The report as text: how many tensors were used, and every one that was not."""
    lines = [f"{len(report.used)} tensors used, {len(report.unused)} known ones that nothing uses:"]
    return "\n".join([*lines, *(f"  {name}" for name in report.unused)])


__all__ = [
    "ConversionReport",
    "config_from_original",
    "convert_checkpoint",
    "convert_state_dict",
    "describe_report",
    "read_original_checkpoint",
]
