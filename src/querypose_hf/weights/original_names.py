"""Where the tensors of the authors' checkpoints go: their names, and those of [`QueryPoseForPoseEstimation`]."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..model.configuration_querypose import QueryPoseConfig


@dataclass(frozen=True)
class Placement:
    """Where a tensor of the original, or some of its rows, goes.

    Attributes:
        name (`str`): the parameter or buffer of [`QueryPoseForPoseEstimation`].
        rows (`slice` or `list[int]`, *optional*): the rows of it that are filled; all by default.
        source_rows (`slice`, *optional*): the rows of the original tensor that fill them; all by default.
    """

    name: str
    rows: slice | list[int] | None = None
    source_rows: slice | None = None


# layers that the original has and does not use, and constants that the model makes itself
_UNUSED = (
    r"head\.pose_head_series\.\d+\.updater\.(fc3|norm_fc3)\.(weight|bias)",
    r"backbone\.fpn_conv\.4\.(weight|bias)",
    r"backbone\.lateral_conv\.0\.weight",
    r"criterion\.flow\.flow\.mask",
    r"backbone\.bottom_up\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",
)

# Tensors that go to one place as they are: pattern of the original's name, and ours. The first four tables are of a
# backbone, a box stage and a keypoint stage, whose prefixes are left out.
_RESNET = (
    (r"stem\.conv1\.norm\.(\w+)", r"_backbone.bn1.\1"),
    (r"stem\.conv1\.weight", r"_backbone.conv1.weight"),
    *(
        (rf"res{layer + 1}\.(\d+)\.{theirs}", rf"_backbone.layer{layer}.\1.{ours}")
        for layer in range(1, 5)
        for theirs, ours in (
            (r"conv(\d)\.norm\.(\w+)", r"bn\2.\3"),
            (r"conv(\d)\.weight", r"conv\2.weight"),
            (r"shortcut\.norm\.(\w+)", r"downsample.1.\2"),
            (r"shortcut\.weight", r"downsample.0.weight"),
        )
    ),
)
_SWIN = (
    (r"patch_embed\.proj\.(\w+)", r"swin.embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"swin.embeddings.norm.\1"),
    *((rf"norm{layer}\.(\w+)", rf"hidden_states_norms.stage{layer + 1}.\1") for layer in range(4)),
    (r"layers\.(\d+)\.downsample\.(reduction|norm)\.(\w+)", r"swin.encoder.layers.\1.downsample.\2.\3"),
    *(
        (rf"layers\.(\d+)\.blocks\.(\d+)\.{theirs}", rf"swin.encoder.layers.\1.blocks.\2.{ours}")
        for theirs, ours in (
            (r"norm1\.(\w+)", r"layernorm_before.\3"),
            (r"norm2\.(\w+)", r"layernorm_after.\3"),
            (r"attn\.proj\.(\w+)", r"attention.o_proj.\3"),
            (r"attn\.(relative_position_bias_table)", r"attention.relative_position_bias.\3"),
            (r"mlp\.(fc\d)\.(\w+)", r"mlp.\3.\4"),
        )
    ),
)
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
# the rest, by whole names
_OTHERS = (
    (r"init_proposal_features\.weight", "model.decoder.instance_queries"),
    (r"init_proposal_boxes\.weight", "model.decoder.initial_boxes"),
    (r"part_query\.weight", "model.decoder.part_queries"),
    (r"criterion\.flow\.flow\.s\.(.+)", r"flow.scale.\1"),
    (r"criterion\.flow\.flow\.t\.(.+)", r"flow.shift.\1"),
    (r"backbone\.reduction_conv\.0\.(\w+)", r"model.neck.reduction_conv.\1"),
    (r"backbone\.fpn_conv\.([0-3])\.(\w+)", r"model.neck.output_convs.\1.\2"),
    *(
        (rf"backbone\.fpn_(lateral|output){level + 2}\.(\w+)", rf"model.neck.\1_convs.{level}.\2")
        for level in range(4)
    ),
    *((rf"backbone\.lateral_conv\.{level + 1}\.(\w+)", rf"model.neck.lateral_convs.{level}.\1") for level in range(3)),
)


def is_unused(name: str) -> bool:
    """Whether the original has this tensor and nothing uses it."""
    return any(re.fullmatch(pattern, name) for pattern in _UNUSED)


def place(name: str, config: QueryPoseConfig) -> list[Placement]:
    """Where a tensor of the original goes, by its name; nowhere if the original does not have the name."""
    if match := re.fullmatch(r"backbone\.bottom_up\.(.+)", name):
        prefix, placements = "model.backbone.model.", _place_in_backbone(match[1], config)
    elif match := re.fullmatch(r"head\.head_series\.(\d+)\.(.+)", name):
        prefix, placements = f"model.decoder.box_layers.{match[1]}.", _by_rules(match[2], _BOX_STAGE)
    elif match := re.fullmatch(r"head\.pose_head_series\.(\d+)\.(.+)", name):
        prefix, placements = f"model.decoder.keypoint_layers.{match[1]}.", _place_in_keypoint_stage(match[2], config)
    else:
        prefix, placements = "", _by_rules(name, _OTHERS)
    return [replace(placement, name=prefix + placement.name) for placement in placements]


def _by_rules(name: str, rules: Iterable[tuple[str, str]]) -> list[Placement]:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return [Placement(match.expand(replacement))]
    return []


def _place_in_backbone(name: str, config: QueryPoseConfig) -> list[Placement]:
    if config.backbone_config.model_type != "swin":
        # timm's HRNet has the names of the original HRNet
        return _by_rules(name, _RESNET) if config.neck_type == "fpn" else [Placement(f"_backbone.{name}")]
    if match := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
        layer, block, kind = match.groups()
        width = config.backbone_config.embed_dim * 2 ** int(layer)
        return [
            Placement(
                f"swin.encoder.layers.{layer}.blocks.{block}.attention.{projection}.{kind}",
                source_rows=slice(part * width, (part + 1) * width),
            )
            for part, projection in enumerate(("q_proj", "k_proj", "v_proj"))
        ]
    return _by_rules(name, _SWIN)


def _place_in_keypoint_stage(name: str, config: QueryPoseConfig) -> list[Placement]:
    if match := re.fullmatch(r"inst_convs\.(\d*[02468])\.(\w+)", name):  # a ReLU between any two
        return [Placement(f"conv_stack.convs.{int(match[1]) // 2}.{match[2]}")]
    # the original has a layer for each part, the model one for all
    if match := re.fullmatch(r"residual_filter\.(\d+)\.(\w+)", name):
        rows = slice(int(match[1]) * config.part_dim, (int(match[1]) + 1) * config.part_dim)
        return [Placement(f"query_projection.projection.{match[2]}", rows)]
    match = re.fullmatch(r"fc_(coord|sigma)\.(\d+)\.linear\.(\w+)", name)
    if match and int(match[2]) < config.num_parts:
        head = {"coord": "keypoint_head", "sigma": "sigma_head"}[match[1]]
        return [Placement(f"{head}.{match[3]}", list(config.keypoint_parts[int(match[2])]))]
    return _by_rules(name, _KEYPOINT_STAGE)


__all__ = ["Placement", "is_unused", "place"]
