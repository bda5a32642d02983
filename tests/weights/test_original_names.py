"""Where the tensors of the authors' checkpoints go."""

import goldens
import pytest
import torch
from original_checkpoints import KINDS, original_shapes, small_state

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation
from querypose_hf.model.skeletons import COCO_PARTS
from querypose_hf.weights.conversion import config_from_original, convert_state_dict


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
def test_small_checkpoints_follow_the_original(variant, name):
    config = QueryPoseConfig.from_variant(name, light=variant.endswith("light"), num_queries=12)
    expected = {name: tuple(shape) for name, shape, *_ in goldens.manifest(variant)["state_dict"]}
    assert original_shapes(config) == expected


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
