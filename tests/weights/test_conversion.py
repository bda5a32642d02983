"""Conversion of the authors' checkpoints: from names and files to a folder for `from_pretrained`.

That a converted model computes what the original does is in `test_goldens.py`. Here small checkpoints under the
original's names are written from rules, which are themselves held against the references' lists of names.
"""

import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import goldens
import pytest
import timm
import torch
from places import PROJECT
from tiny import tiny_config

from querypose_hf import CROWDPOSE_14, QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.cli import main
from querypose_hf.model.skeletons import COCO_PARTS, DEFAULT_SIGMA
from querypose_hf.weights import conversion as conversion_module
from querypose_hf.weights.conversion import (
    config_from_original,
    convert_checkpoint,
    convert_state_dict,
    describe_report,
    read_original_checkpoint,
)


REPOSITORY = PROJECT
# What a checkpoint tells by itself: conversion has to find it.
TOLD = {"num_queries": 5, "decoder_layers": 2, "part_dim": 16, "num_pose_convs": 2}
# What published checkpoints have in common and conversion takes as given.
SMALLER = {
    "d_model": 32,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 37,
    "dynamic_dim": 8,
    "pose_pooler_resolution": 8,
}
SMALL_RESNET = {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 8]}
SMALL_HRNET = {"model_type": "timm_backbone", "backbone": "hrnet_w18_small", "out_indices": [1, 2, 3, 4]}
SMALL_SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
KINDS = {
    "r50": {**SMALLER, "backbone_kwargs": SMALL_RESNET},
    "hrnet_w32": {**SMALLER, "backbone_config": SMALL_HRNET},
    "hrnet_w48": {**SMALLER, "backbone_config": SMALL_HRNET},
    "swin_t": {**SMALLER, "backbone_config": SMALL_SWIN},
}


def affine(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def conv(name: str, inputs: int, outputs: int, size: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    weight = {f"{name}.weight": (outputs, inputs, size, size)}
    return {**weight, f"{name}.bias": (outputs,)} if bias else weight


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {**affine(name, width), f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def attention(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.in_proj_weight": (3 * width, width),
        f"{name}.in_proj_bias": (3 * width,),
        **linear(f"{name}.out_proj", width, width),
    }


def interaction(name: str, config: QueryPoseConfig, resolution: int) -> dict[str, tuple[int, ...]]:
    d = config.d_model
    return {
        **linear(f"{name}.dynamic_layer", d, 2 * d * config.dynamic_dim),
        **affine(f"{name}.norm1", config.dynamic_dim),
        **affine(f"{name}.norm2", d),
        **linear(f"{name}.out_layer", resolution**2 * d, d),
        **affine(f"{name}.norm3", d),
    }


def resnet(config: QueryPoseConfig) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    depths = config.backbone_kwargs.get("layers", [3, 4, 6, 3])
    widths = config.backbone_kwargs.get("channels", [64, 128, 256, 512])
    shapes = {**conv("stem.conv1", 3, 64, 7, bias=False), **batch_norm("stem.conv1.norm", 64)}
    inputs = 64
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=2):
        for block in range(depth):
            layers = [("conv1", inputs, width, 1), ("conv2", width, width, 3), ("conv3", width, 4 * width, 1)]
            if block == 0:
                layers.append(("shortcut", inputs, 4 * width, 1))
            for layer, ins, outs, size in layers:
                name = f"res{stage}.{block}.{layer}"
                shapes |= {**conv(name, ins, outs, size, bias=False), **batch_norm(f"{name}.norm", outs)}
            inputs = 4 * width
    return shapes, [4 * width for width in widths]


def swin(config: QueryPoseConfig) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    backbone = config.backbone_config
    window = backbone.window_size
    shapes = {
        **conv("patch_embed.proj", 3, backbone.embed_dim, 4),
        **affine("patch_embed.norm", backbone.embed_dim),
    }
    widths = [backbone.embed_dim * 2**layer for layer in range(len(backbone.depths))]
    for layer, width in enumerate(widths):
        for block in range(backbone.depths[layer]):
            name = f"layers.{layer}.blocks.{block}"
            shapes |= {
                **affine(f"{name}.norm1", width),
                f"{name}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, backbone.num_heads[layer]),
                f"{name}.attn.relative_position_index": (window**2, window**2),
                **linear(f"{name}.attn.qkv", width, 3 * width),
                **linear(f"{name}.attn.proj", width, width),
                **affine(f"{name}.norm2", width),
                **linear(f"{name}.mlp.fc1", width, 4 * width),
                **linear(f"{name}.mlp.fc2", 4 * width, width),
            }
        if layer < len(widths) - 1:
            shapes[f"layers.{layer}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= affine(f"layers.{layer}.downsample.norm", 4 * width)
        shapes |= affine(f"norm{layer}", width)
    return shapes, widths


def hrnet(config: QueryPoseConfig) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    with torch.device("meta"):
        network = timm.create_model(
            config.backbone_config.backbone, features_only=True, feature_location="", out_indices=[1, 2, 3, 4]
        )
    return {
        name: tuple(tensor.shape) for name, tensor in network.state_dict().items()
    }, network.feature_info.channels()


def neck(config: QueryPoseConfig, channels: list[int]) -> dict[str, tuple[int, ...]]:
    d = config.d_model
    if config.neck_type == "fpn":
        shapes = {}
        for level, inputs in enumerate(channels, start=2):
            shapes |= {**conv(f"fpn_lateral{level}", inputs, d, 1), **conv(f"fpn_output{level}", d, d, 3)}
        return shapes
    with_laterals = config.neck_type == "hrfpn_lateral"
    shapes = conv("reduction_conv.0", sum(channels), d, 1)
    for level in range(5):
        shapes |= conv(f"fpn_conv.{level}", d, d, 3, bias=not with_laterals)
    if with_laterals:
        for level, inputs in enumerate(channels):
            shapes |= conv(f"lateral_conv.{level}", inputs, d, 1, bias=False)
    return shapes


def box_stage(config: QueryPoseConfig) -> dict[str, tuple[int, ...]]:
    d = config.d_model
    shapes = {
        **attention("self_attn", d),
        **interaction("inst_interact", config, config.box_pooler_resolution),
        **linear("linear1", d, config.decoder_ffn_dim),
        **linear("linear2", config.decoder_ffn_dim, d),
        **affine("norm1", d),
        **affine("norm2", d),
        **affine("norm3", d),
        **linear("class_logits", d, config.num_labels),
        **linear("bboxes_delta", d, 4),
    }
    for branch, layers in (("cls_module", config.num_cls_layers), ("reg_module", config.num_reg_layers)):
        for layer in range(layers):
            shapes |= {f"{branch}.{3 * layer}.weight": (d, d), **affine(f"{branch}.{3 * layer + 1}", d)}
    return shapes


def keypoint_stage(config: QueryPoseConfig) -> dict[str, tuple[int, ...]]:
    d, d_p = config.d_model, config.part_dim
    widths = [d] + [2 * d] * (config.num_pose_convs - 1) + [d]
    shapes = {
        "part_embed_generator.upsample.0.weight": (d, d, 4, 4),
        **batch_norm("part_embed_generator.upsample.1", d),
        "part_embed_generator.upsample.1.num_batches_tracked": (),
        **conv("part_embed_generator.LSA_conv", d, config.num_parts, 3),
        **linear("part_embed_generator.fc", d, d_p),
        "updater.fc1.weight": (d_p // 4, d_p),
        **affine("updater.norm_fc1", d_p // 4),
        **linear("updater.fc2", d_p // 4, 2 * d_p),
        "updater.fc3.weight": (d_p, d_p),
        **affine("updater.norm_fc3", d_p),
        **attention("kps_self_attn", d_p),
        **affine("self_attn_norm", d_p),
        **linear("linear1_l", d_p, config.decoder_ffn_dim),
        **linear("linear2_l", config.decoder_ffn_dim, d_p),
        **affine("norm2_l", d_p),
    }
    for index in range(config.num_pose_convs):
        shapes |= conv(f"inst_convs.{2 * index}", widths[index], widths[index + 1], 3)
    for part, keypoints in enumerate(config.keypoint_parts):
        shapes |= {
            **linear(f"residual_filter.{part}", d, d_p),
            **linear(f"fc_coord.{part}.linear", d_p, 2 * len(keypoints)),
            **linear(f"fc_sigma.{part}.linear", d_p, 2 * len(keypoints)),
        }
    if config.pose_query_interaction == "dynamic":
        shapes |= {
            **interaction("pose_decoder_inst_interact", config, config.pose_pooler_resolution),
            **affine("inst_norm", d),
            **linear("linear1", d, config.decoder_ffn_dim),
            **linear("linear2", config.decoder_ffn_dim, d),
            **affine("norm2", d),
        }
    return shapes


def original_shapes(config: QueryPoseConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' checkpoint of a model of this configuration."""
    if config.backbone_config.model_type == "swin":
        backbone, channels = swin(config)
    else:
        backbone, channels = (resnet if config.neck_type == "fpn" else hrnet)(config)
    shapes = {f"backbone.bottom_up.{name}": shape for name, shape in backbone.items()}
    shapes |= {f"backbone.{name}": shape for name, shape in neck(config, channels).items()}
    shapes["init_proposal_features.weight"] = (config.num_queries, config.d_model)
    shapes["init_proposal_boxes.weight"] = (config.num_queries, 4)
    shapes["part_query.weight"] = (config.num_parts, config.part_dim)
    shapes["criterion.flow.flow.mask"] = (6, 2)
    for layer in range(6):
        for net in "st":
            for index, (inputs, outputs) in zip((0, 2, 4), ((2, 64), (64, 64), (64, 2)), strict=True):
                shapes |= linear(f"criterion.flow.flow.{net}.{layer}.{index}", inputs, outputs)
    for stage in range(config.decoder_layers):
        shapes |= {f"head.head_series.{stage}.{name}": shape for name, shape in box_stage(config).items()}
        shapes |= {f"head.pose_head_series.{stage}.{name}": shape for name, shape in keypoint_stage(config).items()}
    return shapes


def original_state(config: QueryPoseConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint of the authors' with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in original_shapes(config).items():
        if name.endswith(("num_batches_tracked", "relative_position_index")):
            state[name] = torch.randint(100, shape, generator=generator)
        else:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
            if name.endswith("running_var"):
                state[name] = state[name].abs() + 0.5
    return state


def small_config(variant: str, **overrides) -> QueryPoseConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sigmas of skeletons that are made up here
        return QueryPoseConfig.from_variant(variant, **{**TOLD, **KINDS[variant], **overrides})


def small_state(variant: str, **overrides) -> dict[str, torch.Tensor]:
    return original_state(small_config(variant, **overrides))


def save(path: Path, state: dict[str, torch.Tensor], **kwargs) -> Path:
    # as detectron2 writes them
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 269999}, path, **kwargs)
    return path


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("r50_full", "r50"),
        ("r50_light", "r50"),
        ("hrnet_w32_light", "hrnet_w32"),
        ("hrnet_w48_full", "hrnet_w48"),
        ("swin_t_full", "swin_t"),
    ],
)
def test_rules_give_the_names_and_shapes_of_the_original(variant, name):
    config = QueryPoseConfig.from_variant(name, light=variant.endswith("light"), num_queries=12)
    expected = {name: tuple(shape) for name, shape, *_ in goldens.manifest(variant)["state_dict"]}
    assert original_shapes(config) == expected


@pytest.mark.parametrize("light", [False, True], ids=["full", "light"])
@pytest.mark.parametrize("variant", KINDS)
def test_every_tensor_finds_its_place(variant, light):
    state = small_state(variant, light=light)
    config = config_from_original(state, variant, **KINDS[variant])
    assert {field: getattr(config, field) for field in TOLD} == TOLD
    assert config.pose_query_interaction == ("none" if light else "dynamic")
    assert config.query_feedback == "training"
    model = QueryPoseForPoseEstimation(config).eval()
    converted, report = convert_state_dict(state, model)
    model.load_state_dict(converted)

    assert sorted(report.used + report.unused) == sorted(state)
    unused = {"criterion.flow.flow.mask"}
    for stage in range(2):
        updater = f"head.pose_head_series.{stage}.updater"
        unused |= {f"{updater}.fc3.weight", f"{updater}.norm_fc3.weight", f"{updater}.norm_fc3.bias"}
    if variant == "hrnet_w32":
        unused |= {"backbone.fpn_conv.4.weight", "backbone.fpn_conv.4.bias"}
    if variant == "hrnet_w48":
        unused |= {"backbone.fpn_conv.4.weight", "backbone.lateral_conv.0.weight"}
    if variant == "swin_t":
        unused |= {name for name in state if name.endswith("relative_position_index")}
    assert set(report.unused) == unused

    # no number is lost, none appears twice
    final_norm = {name for name in converted if ".swin.layernorm." in name}
    assert len(final_norm) == (2 if variant == "swin_t" else 0)
    floats = [tensor for tensor in converted.values() if tensor.is_floating_point()]
    assert all(tensor.isfinite().all() for tensor in floats)
    theirs = torch.cat([state[name].double().flatten() for name in report.used]).sort().values
    ours = torch.cat([t.double().flatten() for name, t in converted.items() if name not in final_norm]).sort().values
    assert torch.equal(theirs, ours)


@pytest.fixture(scope="module")
def converted_small():
    state = small_state("r50")
    model = QueryPoseForPoseEstimation(config_from_original(state, "r50", **KINDS["r50"]))
    return state, convert_state_dict(state, model)[0]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.bottom_up.stem.conv1.weight", "model.backbone.model._backbone.conv1.weight"),
        ("backbone.bottom_up.res4.0.shortcut.norm.bias", "model.backbone.model._backbone.layer3.0.downsample.1.bias"),
        ("backbone.fpn_lateral3.weight", "model.neck.lateral_convs.1.weight"),
        ("backbone.fpn_output5.bias", "model.neck.output_convs.3.bias"),
        ("init_proposal_boxes.weight", "model.decoder.initial_boxes"),
        ("part_query.weight", "model.decoder.part_queries"),
        ("criterion.flow.flow.s.3.2.weight", "flow.scale.3.2.weight"),
        ("criterion.flow.flow.t.5.4.bias", "flow.shift.5.4.bias"),
        ("head.head_series.1.norm1.weight", "model.decoder.box_layers.1.self_attn_norm.weight"),
        ("head.head_series.1.norm2.weight", "model.decoder.box_layers.1.interaction_norm.weight"),
        ("head.head_series.1.norm3.weight", "model.decoder.box_layers.1.ffn_norm.weight"),
        ("head.head_series.0.inst_interact.norm3.bias", "model.decoder.box_layers.0.interaction.out_norm.bias"),
        ("head.head_series.0.reg_module.6.weight", "model.decoder.box_layers.0.box_branch.6.weight"),
        ("head.pose_head_series.1.inst_convs.2.weight", "model.decoder.keypoint_layers.1.conv_stack.convs.1.weight"),
        ("head.pose_head_series.0.inst_norm.weight", "model.decoder.keypoint_layers.0.interaction_norm.weight"),
        ("head.pose_head_series.0.norm2.weight", "model.decoder.keypoint_layers.0.instance_ffn_norm.weight"),
        ("head.pose_head_series.0.norm2_l.weight", "model.decoder.keypoint_layers.0.part_ffn_norm.weight"),
        ("head.pose_head_series.0.linear1.weight", "model.decoder.keypoint_layers.0.instance_ffn.fc1.weight"),
        ("head.pose_head_series.0.linear1_l.weight", "model.decoder.keypoint_layers.0.part_ffn.fc1.weight"),
    ],
)
def test_places(converted_small, theirs, ours):
    state, converted = converted_small
    assert torch.equal(converted[ours], state[theirs])


def test_part_layers_go_to_their_keypoints(converted_small):
    state, converted = converted_small
    stage, place = "head.pose_head_series.1", "model.decoder.keypoint_layers.1"
    for part, keypoints in enumerate(COCO_PARTS["c"]):
        for kind in ("weight", "bias"):
            projection = converted[f"{place}.query_projection.projection.{kind}"].unflatten(0, (7, 16))
            assert torch.equal(projection[part], state[f"{stage}.residual_filter.{part}.{kind}"])
            for theirs, ours in (("fc_coord", "keypoint_head"), ("fc_sigma", "sigma_head")):
                layer = state[f"{stage}.{theirs}.{part}.linear.{kind}"]
                for index, keypoint in enumerate(keypoints):
                    # x, then y, of each of the part's keypoints
                    expected = layer[2 * index : 2 * index + 2]
                    assert torch.equal(converted[f"{place}.{ours}.{kind}"][keypoint], expected)


def test_swin_attention_is_split():
    state = small_state("swin_t")
    model = QueryPoseForPoseEstimation(config_from_original(state, "swin_t", **KINDS["swin_t"]))
    converted, _ = convert_state_dict(state, model)
    for layer, block, width in ((0, 0, 8), (1, 1, 16), (3, 0, 64)):
        attention = f"model.backbone.model.swin.encoder.layers.{layer}.blocks.{block}.attention"
        for kind in ("weight", "bias"):
            joined = state[f"backbone.bottom_up.layers.{layer}.blocks.{block}.attn.qkv.{kind}"]
            assert len(joined) == 3 * width
            for part, projection in zip(joined.split(width), ("q_proj", "k_proj", "v_proj"), strict=True):
                assert torch.equal(converted[f"{attention}.{projection}.{kind}"], part)
    for level in range(4):
        expected = state[f"backbone.bottom_up.norm{level}.weight"]
        assert torch.equal(converted[f"model.backbone.model.hidden_states_norms.stage{level + 1}.weight"], expected)


@pytest.mark.parametrize("grouping", COCO_PARTS)
def test_groupings_of_the_paper_are_recognised(grouping):
    parts = COCO_PARTS[grouping]
    config = config_from_original(small_state("r50", keypoint_parts=parts), "r50", **KINDS["r50"])
    assert config.keypoint_parts == [list(part) for part in parts]
    assert config.keypoint_names[0] == "nose"


def test_number_of_classes_is_recognised():
    state = small_state("r50", num_labels=3)
    assert config_from_original(state, "r50", **KINDS["r50"]).num_labels == 3


def test_crowdpose_checkpoints_need_parts_and_names():
    state = small_state("r50", skeleton="crowdpose")
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 2, 2, 2, 2\].*`keypoint_parts`"):
        config_from_original(state, "r50", **KINDS["r50"])
    parts = CROWDPOSE_14.parts
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # CrowdPose's sigmas are known
        config = config_from_original(
            state, "r50", parts, keypoint_names=list(CROWDPOSE_14.keypoint_names), **KINDS["r50"]
        )
    assert config.skeleton == CROWDPOSE_14
    with pytest.warns(UserWarning, match="keypoint_sigmas"):
        unnamed = config_from_original(state, "r50", parts, **KINDS["r50"])
    assert unnamed.keypoint_names == [f"keypoint_{index}" for index in range(14)]
    assert unnamed.keypoint_sigmas == [DEFAULT_SIGMA] * 14
    model = QueryPoseForPoseEstimation(config)
    converted, _ = convert_state_dict(state, model)
    expected = state["head.pose_head_series.0.fc_coord.0.linear.weight"].unflatten(0, (2, 2))
    assert torch.equal(converted["model.decoder.keypoint_layers.0.keypoint_head.weight"][[12, 13]], expected)


def test_another_skeleton_of_seventeen_keypoints():
    names = [f"left_{i}" for i in range(8)] + [f"right_{i}" for i in range(8)] + ["tail"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = config_from_original(
            small_state("r50"), "r50", keypoint_names=names, keypoint_sigmas=[0.05] * 17, **KINDS["r50"]
        )
    assert config.keypoint_names == names
    assert config.keypoint_sigmas == [0.05] * 17
    assert config.keypoint_edges == []
    assert config.keypoint_flip_indices == [*range(8, 16), *range(8), 16]


@pytest.mark.parametrize(
    ("parts", "overrides", "message"),
    [
        ([[0, 1], [2]], {}, r"`keypoint_parts`.*\[2, 1\].*\[5, 2, 2, 2, 2, 2, 2\]"),
        (None, {"keypoint_names": ["nose", "tail"], "keypoint_sigmas": [0.1, 0.1]}, "`keypoint_names` has 2 names"),
        ([[0, 1, 2, 3, 3], [5, 6], [7, 9], [8, 10], [11, 12], [13, 15], [14, 16]], {}, "`keypoint_parts`.*once"),
        (None, {"num_querys": 5}, "`num_querys`"),
    ],
)
def test_fields_that_do_not_fit_the_checkpoint(parts, overrides, message):
    with pytest.raises(ValueError, match=message):
        config_from_original(small_state("r50"), "r50", parts, **KINDS["r50"], **overrides)


@pytest.mark.parametrize(
    "name",
    [
        "head.head_series.0.class_logits.weight",
        "part_query.weight",
        "init_proposal_features.weight",
        "head.pose_head_series.0.fc_coord.3.linear.weight",
    ],
)
def test_checkpoint_without_what_tells(name):
    state = small_state("r50")
    del state[name]
    with pytest.raises(ValueError, match=rf"no tensor '{name}'"):
        config_from_original(state, "r50", **KINDS["r50"])


@pytest.fixture(scope="module")
def small_model():
    return QueryPoseForPoseEstimation(config_from_original(small_state("r50"), "r50", **KINDS["r50"]))


@pytest.mark.parametrize(
    "name",
    [
        "teacher.weight",
        "backbone.bottom_up.res9.0.conv1.weight",
        "backbone.bottom_up.res2.7.conv1.weight",
        "backbone.bottom_up.fc.weight",
        "backbone.reduction_conv.0.weight",
        "head.head_series.2.norm1.weight",
        "head.head_series.0.norm4.weight",
        "head.pose_head_series.0.inst_convs.4.weight",
        "head.pose_head_series.0.fc_coord.7.linear.weight",
        "head.pose_head_series.0.updater.fc4.weight",
        "init_proposal_features.weight.ema",
    ],
)
def test_unknown_tensors_are_named(small_model, name):
    state = {**small_state("r50"), name: torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=rf"1 tensors .* no place .*'{name}'"):
        convert_state_dict(state, small_model)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.bottom_up.res3.0.conv2.norm.running_var", "layer2.0.bn2.running_var"),
        ("init_proposal_boxes.weight", "model.decoder.initial_boxes"),
        ("head.pose_head_series.1.fc_sigma.6.linear.bias", "model.decoder.keypoint_layers.1.sigma_head.bias"),
        ("head.pose_head_series.1.residual_filter.2.weight", "keypoint_layers.1.query_projection.projection.weight"),
        ("criterion.flow.flow.s.0.0.bias", "flow.scale.0.0.bias"),
    ],
)
def test_missing_tensors_are_named(small_model, theirs, ours):
    state = small_state("r50")
    del state[theirs]
    with pytest.raises(ValueError, match=rf"does not fill 1 tensors .*{ours}'"):
        convert_state_dict(state, small_model)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("init_proposal_features.weight", (6, 32), r"\(5, 32\)"),
        ("backbone.fpn_output2.weight", (32, 32, 1, 9), r"\(32, 32, 3, 3\)"),
        ("head.head_series.0.self_attn.in_proj_weight", (32, 96), r"\(96, 32\)"),
        # as many numbers, laid out otherwise
        ("head.pose_head_series.0.fc_coord.0.linear.weight", (16, 10), r"\(10, 16\)"),
        ("head.pose_head_series.0.residual_filter.0.weight", (32, 16), r"\(16, 32\)"),
        ("head.pose_head_series.0.residual_filter.0.bias", (32,), r"\(16,\)"),
    ],
)
def test_wrong_shapes_are_named(small_model, name, shape, expected):
    state = {**small_state("r50"), name: torch.zeros(shape)}
    given = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"1 tensors .*shape.*{name} {given} \(expected {expected}\)"):
        convert_state_dict(state, small_model)


def test_full_checkpoint_in_a_light_model():
    light = QueryPoseForPoseEstimation(small_config("r50", light=True))
    with pytest.raises(ValueError, match=r"no place.*pose_decoder_inst_interact"):
        convert_state_dict(small_state("r50"), light)


@pytest.mark.parametrize(
    ("variant", "told"), [("hrnet_w32", r"no place"), ("swin_t", r"no place"), ("r50", r"no place")]
)
def test_checkpoint_of_another_variant(variant, told):
    other = "hrnet_w48" if variant == "r50" else "r50"
    model = QueryPoseForPoseEstimation(small_config(variant))
    with pytest.raises(ValueError, match=told):
        convert_state_dict(small_state(other), model)


@pytest.mark.parametrize("variant", KINDS)
def test_converted_folder_gives_the_same_model(tmp_path, variant):
    state = small_state(variant)
    folder = tmp_path / "converted"
    report = convert_checkpoint(save(tmp_path / "model.pth", state), variant, folder, **KINDS[variant])
    model = QueryPoseForPoseEstimation(config_from_original(state, variant, **KINDS[variant])).eval()
    converted, expected_report = convert_state_dict(state, model)
    model.load_state_dict(converted)
    assert report == expected_report

    loaded, info = QueryPoseForPoseEstimation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_tensors(
        {name: t for name, t in loaded.state_dict().items() if ".swin.layernorm." not in name},
        {name: t for name, t in converted.items() if ".swin.layernorm." not in name},
    )
    fields = [*TOLD, *SMALLER, "neck_type", "backbone_kwargs", "pose_query_interaction", "query_feedback"]
    assert {name: getattr(loaded.config, name) for name in fields} == {
        name: getattr(model.config, name) for name in fields
    }
    assert loaded.config.skeleton == model.config.skeleton
    # in float64: kernels for float32 round differently by where in memory the weights lie
    pixel_values = torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model.double()(pixel_values), loaded.double()(pixel_values)
    for name in ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores"):
        assert torch.equal(found[name], expected[name]), name
    assert QueryPoseImageProcessor.from_pretrained(folder).num_keypoints == 17
    assert (folder / "README.md").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth", "converted"}


def test_half_precision_checkpoints_stay_so(tmp_path):
    state = {name: t.half() if t.is_floating_point() else t for name, t in small_state("r50").items()}
    convert_checkpoint(save(tmp_path / "model.pth", state), "r50", tmp_path / "converted", **KINDS["r50"])
    loaded = QueryPoseForPoseEstimation.from_pretrained(tmp_path / "converted", dtype="auto")
    assert loaded.model.decoder.instance_queries.dtype == torch.float16
    assert torch.equal(loaded.model.decoder.instance_queries, state["init_proposal_features.weight"])


@pytest.mark.parametrize("variant", ["swin_t", "hrnet_w32"])
def test_saving_and_loading_keeps_every_tensor(tmp_path, variant):
    """Transformers saves Swin's tensors under older names and has to bring them back."""
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config("swin") if variant == "swin_t" else small_config(variant))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape))
    model.save_pretrained(tmp_path)
    loaded, info = QueryPoseForPoseEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_tensors(loaded.state_dict(), model.state_dict())


def test_checkpoint_files(tmp_path):
    state = small_state("r50")
    assert_same_tensors(read_original_checkpoint(save(tmp_path / "model.pth", state)), state)
    # without the key, and in the format of before torch 1.6
    torch.save(state, tmp_path / "raw.pth")
    assert_same_tensors(read_original_checkpoint(tmp_path / "raw.pth"), state)
    old = save(tmp_path / "old.pth", state, _use_new_zipfile_serialization=False)
    assert_same_tensors(read_original_checkpoint(str(old)), state)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`checkpoint_path`.*absent\.pth"):
        read_original_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="`checkpoint_path`"):
        read_original_checkpoint(tmp_path)
    contents = {"list.pth": [torch.zeros(1)], "numbers.pth": {"model": {"a": 1.0}}, "names.pth": {"model": "r50"}}
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} is not a checkpoint of QueryPose"):
            read_original_checkpoint(tmp_path / name)
    whole = save(tmp_path / "model.pth", small_state("r50")).read_bytes()
    for name, data in {"empty.pth": b"", "text.pth": b"version https://git-lfs", "cut.pth": whole[:10000]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"(?s)`checkpoint_path`.*{name}"):
            read_original_checkpoint(tmp_path / name)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not one of QueryPose"):
        convert_checkpoint(tmp_path / "other.pth", "r50", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


class WritesAFile:
    """Unpickled, it runs code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "the payload ran")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys, zipped):
    marker = tmp_path / "marker"
    checkpoint = tmp_path / "model.pth"
    content = {"model": small_state("r50"), "extra": WritesAFile(marker)}
    torch.save(content, checkpoint, _use_new_zipfile_serialization=zipped)
    pickle.loads(pickle.dumps(WritesAFile(marker)))
    assert marker.read_text() == "the payload ran"  # it does, where it is let
    marker.unlink()

    with pytest.raises(ValueError, match=r"(?s)`checkpoint_path` must hold tensors alone.*model\.pth.*run code"):
        convert_checkpoint(checkpoint, "r50", tmp_path / "converted", **KINDS["r50"])
    arguments = ["--checkpoint_path", str(checkpoint), "--variant", "r50", "--output_dir", str(tmp_path / "converted")]
    assert main(["convert", *arguments]) == 2
    assert "must hold tensors alone" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth"}


def test_output_folder_with_content_is_refused(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    # before the checkpoint is read, which is not there
    with pytest.raises(FileExistsError, match=r"`output_dir`.*mine has content"):
        convert_checkpoint(tmp_path / "absent.pth", "r50", folder)
    with pytest.raises(FileExistsError, match="`output_dir`"):
        convert_checkpoint(tmp_path / "absent.pth", "r50", folder / "notes.txt")
    assert (folder / "notes.txt").read_text() == "keep"
    with pytest.raises(ValueError, match=r"`variant`.*'r101'"):
        convert_checkpoint(tmp_path / "absent.pth", "r101", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_empty_and_nested_output_folders(tmp_path, monkeypatch):
    checkpoint = save(tmp_path / "model.pth", small_state("r50"))
    (tmp_path / "empty").mkdir()
    convert_checkpoint(checkpoint, "r50", tmp_path / "empty", **KINDS["r50"])
    convert_checkpoint(str(checkpoint), "r50", str(tmp_path / "new" / "er"), **KINDS["r50"])
    monkeypatch.chdir(tmp_path)
    convert_checkpoint("model.pth", "r50", "new/../relative", **KINDS["r50"])
    for folder in ("empty", "new/er", "relative"):
        assert QueryPoseConfig.from_pretrained(tmp_path / folder).num_queries == TOLD["num_queries"]


@pytest.mark.parametrize(
    "error", [OSError("no space left on device"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, error):
    checkpoint = save(tmp_path / "model.pth", small_state("r50"))

    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(conversion_module, "write_model_card", stop)
    with pytest.raises(type(error)):
        convert_checkpoint(checkpoint, "r50", tmp_path / "converted", **KINDS["r50"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth"}


def test_what_a_killed_conversion_left_does_not_get_into_the_next(tmp_path):
    checkpoint = save(tmp_path / "model.pth", small_state("r50"))
    left = tmp_path / "converted.partial"
    left.mkdir()
    (left / "model-00001-of-00002.safetensors").write_bytes(b"half a file")
    convert_checkpoint(checkpoint, "r50", tmp_path / "converted", **KINDS["r50"])
    names = {path.name for path in (tmp_path / "converted").iterdir()}
    assert "model.safetensors" in names
    assert "model-00001-of-00002.safetensors" not in names
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth", "converted"}


def test_report_lists_what_is_unused():
    state = small_state("hrnet_w48")
    model = QueryPoseForPoseEstimation(config_from_original(state, "hrnet_w48", **KINDS["hrnet_w48"]))
    _, report = convert_state_dict(state, model)
    lines = describe_report(report).splitlines()
    assert lines[0].startswith(f"{len(report.used)} tensors used, {len(report.unused)} known ones")
    assert [line.strip() for line in lines[1:]] == report.unused
    assert "backbone.lateral_conv.0.weight" in report.unused


def test_script_converts_a_checkpoint_of_the_published_size(tmp_path):
    """A file of the references' weights, 750 MB, through the script and back."""
    state = goldens.original_state("r50_light")
    checkpoint, folder = tmp_path / "model_r50.pth", tmp_path / "querypose-r50-light"
    try:
        torch.save({"model": state}, checkpoint)
        found = os.environ.get("PYTHONPATH")
        result = subprocess.run(
            [
                sys.executable,
                str(REPOSITORY / "scripts" / "convert_querypose_original_to_hf.py"),
                *("--checkpoint_path", str(checkpoint), "--variant", "r50", "--output_dir", str(folder)),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY / "src"), found]))},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        unused = [name for name in state if "updater.fc3" in name or "updater.norm_fc3" in name]
        assert f"{len(state) - len(unused)} tensors used, {len(unused)} known ones" in result.stdout
        assert all(name in result.stdout for name in unused)
        assert str(folder) in result.stdout

        config = config_from_original(state, "r50")
        assert (config.num_queries, config.pose_query_interaction, config.num_parts) == (12, "none", 7)
        model = QueryPoseForPoseEstimation(config).eval()
        converted, _ = convert_state_dict(state, model)
        loaded = QueryPoseForPoseEstimation.from_pretrained(folder)
        assert_same_tensors(loaded.state_dict(), converted)
        expected = goldens.manifest("r50_light")["num_parameters"] - sum(state[name].numel() for name in unused)
        assert loaded.num_parameters() == expected

        model.load_state_dict(converted)
        pixel_values = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours, theirs = loaded(pixel_values), model(pixel_values)
        for name in ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    finally:
        checkpoint.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
