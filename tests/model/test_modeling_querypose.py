"""The model beyond the references: sizes, selective decoding, feedback, initialisation, precision, compilation."""

import copy
import logging
import math
import re
import shutil

import goldens
import pytest
import torch
import torchvision
from tiny import BACKBONES, images, make_model, people, tiny_config
from torch import nn
from transformers import AutoModel, AutoModelForPoseEstimation, pipeline

from querypose_hf import (
    QueryPoseConfig,
    QueryPoseForPoseEstimation,
    QueryPoseImageProcessor,
    QueryPoseImageProcessorPil,
    QueryPoseModel,
)
from querypose_hf.model import modeling_querypose
from querypose_hf.model.attention_maps_querypose import attention_centers, expected_similarity, sine_encoding
from querypose_hf.model.box_layer_querypose import apply_box_deltas
from querypose_hf.model.loss_querypose import object_keypoint_similarity
from querypose_hf.model.rois_querypose import QueryPoseRoiPooler, align_rois, pool_from_pyramid


RESULTS = ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores", "keypoint_sigmas")


def rois_of(boxes: torch.Tensor) -> torch.Tensor:
    pyramid = [torch.zeros(len(boxes), 1, 1, 1, dtype=boxes.dtype)]
    return QueryPoseRoiPooler(tiny_config(), pyramid, torch.ones(len(boxes), 2)).rois(boxes)


@pytest.mark.parametrize("variant", ["r50_full", "r50_light", "hrnet_w32_light", "hrnet_w48_full", "swin_t_full"])
def test_parameters_are_those_of_the_original(variant):
    """Their number is the original's less the layers that nothing uses; Swin's final norm is Transformers' own."""
    description = goldens.manifest(variant)
    backbone, _, version = variant.rpartition("_")
    config = QueryPoseConfig.from_variant(backbone, light=version == "light", num_queries=12)
    with torch.device("meta"):
        model = QueryPoseForPoseEstimation(config)
    unused = ("updater.fc3", "updater.norm_fc3", "backbone.fpn_conv.4", "backbone.lateral_conv.0")
    expected = description["num_parameters"] - sum(
        math.prod(shape) for name, shape, *_ in description["state_dict"] if any(part in name for part in unused)
    )
    extra = {name: p.numel() for name, p in model.named_parameters() if name.endswith(("swin.layernorm.weight",))}
    if backbone == "r50":  # frozen batch norms are buffers in timm and are not counted by the original either
        frozen = [module for module in model.modules() if type(module).__name__ == "FrozenBatchNorm2d"]
        assert len(frozen) == 53
    assert model.num_parameters() == expected + 2 * sum(extra.values())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_and_sizes(backbone):
    overrides = {"neck_type": "hrfpn", "backbone_kwargs": {"feature_location": ""}} if backbone == "hrnet" else {}
    model = make_model(backbone=backbone, **overrides)
    for height, width in ((64, 96), (65, 70)):
        with torch.no_grad():
            outputs = model(images(2, 3, height, width))
        assert outputs.pred_keypoints.shape == (2, 12, 17, 2)
        assert all(outputs[name].isfinite().all() for name in RESULTS)


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_a_backbone_whose_configuration_asks_for_tuples(backbone):
    model = QueryPoseForPoseEstimation(tiny_config(backbone_config={**BACKBONES[backbone], "return_dict": False}))
    with torch.no_grad():
        assert model.eval()(images(1, 3, 64, 96).float()).pred_keypoints.shape == (1, 12, 17, 2)


def test_hrfpn_with_laterals():
    model = make_model(backbone="hrnet", neck_type="hrfpn_lateral", backbone_kwargs={"feature_location": ""})
    pyramid = model.model.extract_pyramid(images(1, 3, 64, 96))
    assert [tuple(level.shape) for level in pyramid] == [(1, 32, 64 // s, 96 // s) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize(
    ("out_indices", "message"), [([2, 3, 4], "4 feature maps"), ([0, 1, 2, 3], r"strides \(2, 4, 8, 16\)")]
)
def test_backbones_of_other_strides_are_refused(out_indices, message):
    backbone = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": out_indices}
    with pytest.raises(ValueError, match=message):
        QueryPoseForPoseEstimation(tiny_config(backbone_config=backbone))


def test_inputs_that_do_not_fit():
    model = make_model()
    with pytest.raises(ValueError, match="pixel_values"):
        model(images(3, 64, 64))
    with pytest.raises(ValueError, match=r"pixel_mask.*\(1, 64, 64\)"):
        model(images(1, 3, 64, 64), pixel_mask=torch.ones(1, 32, 32))
    with pytest.raises(ValueError, match="one dict per image"):
        model(images(2, 3, 64, 64), labels=[people(1)])


@pytest.mark.parametrize("query_feedback", ["never", "training"])
@pytest.mark.parametrize("pose_query_interaction", ["dynamic", "none"])
def test_selective_decoding_changes_nothing(query_feedback, pose_query_interaction):
    model = make_model(query_feedback=query_feedback, pose_query_interaction=pose_query_interaction)
    pixel_values = images(3, 3, 64, 96)
    with torch.no_grad():
        everything = model(pixel_values)
        selected = model(pixel_values, keypoint_top_k=4)
    scores = everything.logits.sigmoid().amax(dim=-1)
    best = scores.argsort(dim=1, descending=True)[:, :4]
    mask = torch.zeros(3, 12, dtype=torch.bool).scatter(1, best, True)
    assert torch.equal(selected.keypoint_query_mask, mask)
    for name in RESULTS:
        torch.testing.assert_close(selected[name][mask], everything[name][mask])
    torch.testing.assert_close(selected.part_queries[mask], everything.part_queries[mask])
    torch.testing.assert_close(selected.logits, everything.logits)
    torch.testing.assert_close(selected.pred_boxes, everything.pred_boxes)
    assert (selected.keypoint_scores[~mask] == 0).all() and (selected.pred_keypoints[~mask] == 0).all()

    if not model.model.decoder.feeds_back:
        threshold = float(scores.flatten().median())
        with torch.no_grad():
            selected = model(pixel_values, person_threshold=threshold)
            nobody = model(pixel_values, person_threshold=0.999999)
        mask = selected.keypoint_query_mask
        assert torch.equal(mask, scores > threshold)
        torch.testing.assert_close(selected.pred_keypoints[mask], everything.pred_keypoints[mask])
        assert not nobody.keypoint_query_mask.any() and nobody.pred_keypoints.isfinite().all()


@pytest.mark.parametrize("coordinates", ["regression", "attention"])
@pytest.mark.parametrize(("threshold", "max_people"), [(None, 1), (None, 4), (0.5, 4), (0.5, None), (0.999, 3)])
def test_the_best_people_are_found_without_decoding_everybody(threshold, max_people, coordinates):
    """Exactly the people of full decoding, whatever the confidences; and the choice leaves somebody out at all."""
    decoded = 0
    for seed in range(4):
        fields = {"pose_query_interaction": "none", "keypoint_flip_indices": None, "keypoint_parts": "a"}
        model = make_model(seed=seed, num_queries=40, keypoint_coordinates=coordinates, **fields)
        for layer in model.model.decoder.keypoint_layers:  # confidences far apart, so that class scores mislead
            layer.sigma_head.weight.data.mul_(8)
            layer.part_embedding.attention_conv.weight.data.mul_(8)
        # confidence from random maps is low, and class scores close to each other would need all queries
        if coordinates == "attention":
            model.model.decoder.box_layers[-1].class_head.weight.data.mul_(8)
        pixel_values = images(3, 3, 64, 96, seed=seed)
        with torch.no_grad():
            everything = model(pixel_values)
            found = model(pixel_values, person_threshold=threshold, max_people=max_people)
        processor = QueryPoseImageProcessorPil()
        wanted = {"threshold": threshold or 0.0, "top_k": max_people, "target_sizes": [(480, 640)] * 3}
        for expected, people_found in zip(
            processor.post_process_pose_estimation(everything, **wanted),
            processor.post_process_pose_estimation(found, **wanted),
            strict=True,
        ):
            assert len(people_found) == len(expected)
            for person, other in zip(people_found, expected, strict=True):
                for name in person:
                    torch.testing.assert_close(person[name], other[name])
        decoded += int(found.keypoint_query_mask.sum())
        everybody = found.keypoint_query_mask
        torch.testing.assert_close(found.part_queries[everybody], everything.part_queries[everybody])
    assert decoded < 4 * 3 * 40


def test_people_outside_the_image_do_not_count_as_found():
    """Post-processing drops them, so that a query behind them may be the last one wanted."""
    model = make_model(num_queries=12, pose_query_interaction="none", decoder_layers=1)
    decoder = model.model.decoder
    with torch.no_grad():
        decoder.initial_boxes[:6, :2] = 5.0
        decoder.box_layers[0].box_head.weight.zero_()
        decoder.box_layers[0].box_head.bias.zero_()
        pixel_values = images(2, 3, 64, 64)
        everything = model(pixel_values)
        found = model(pixel_values, max_people=6)
    processor = QueryPoseImageProcessorPil()
    expected = processor.post_process_pose_estimation(everything, threshold=0.0, top_k=6)
    for people_found, others in zip(
        processor.post_process_pose_estimation(found, threshold=0.0, top_k=6), expected, strict=True
    ):
        assert len(people_found) == len(others) == 6
        for person, other in zip(people_found, others, strict=True):
            torch.testing.assert_close(person["keypoints"], other["keypoints"])


@pytest.mark.parametrize("query_feedback", ["always", "selected"])
def test_wanted_people_save_the_last_stage_where_queries_feed_back(query_feedback):
    """Earlier stages decode what the rule says, whoever is wanted; the people found are those of full decoding."""
    model = make_model(query_feedback=query_feedback, decoder_layers=3, feedback_threshold=0.5)
    pixel_values = images(2, 3, 64, 64)
    with torch.no_grad():
        everything = model(pixel_values)
        scores = everything.logits.sigmoid().amax(dim=-1)
        threshold = float(scores.median())
        found = model(pixel_values, person_threshold=threshold)
        with pytest.raises(ValueError, match="max_people"):
            model(pixel_values, max_people=0)
    assert everything.keypoint_query_mask.all()
    for stage, other in zip(found.auxiliary_outputs, everything.auxiliary_outputs, strict=True):
        assert torch.equal(stage["keypoint_query_mask"], other["keypoint_query_mask"])
    mask = found.keypoint_query_mask
    assert torch.equal(mask, scores > threshold)
    for name in RESULTS:
        torch.testing.assert_close(found[name][mask], everything[name][mask])


def test_autocast_keeps_coordinates_in_float32():
    model = make_model(pose_query_interaction="none").float()
    pixel_values = images(2, 3, 96, 128).float()
    with torch.no_grad():
        expected = model(pixel_values)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(pixel_values)
            few = model(pixel_values, max_people=3)
    for name in ("pred_boxes", "pred_keypoints", "keypoint_sigmas"):
        assert found[name].dtype == few[name].dtype == torch.float32
    assert (found.pred_boxes - expected.pred_boxes).abs().median() < 0.02
    # not on bfloat16's grid, which knows 8 bits
    assert (found.pred_keypoints != found.pred_keypoints.bfloat16().float()).float().mean() > 0.9
    mask = few.keypoint_query_mask
    # a batch of other RoIs may be rounded otherwise
    torch.testing.assert_close(few.pred_keypoints[mask], found.pred_keypoints[mask], atol=0.02, rtol=0)


def test_selective_decoding_with_feedback_chooses_in_the_last_stage():
    model = make_model(query_feedback="always", decoder_layers=3)
    pixel_values = images(2, 3, 64, 64)
    with torch.no_grad():
        outputs, everything = model(pixel_values, keypoint_top_k=5), model(pixel_values)
    assert all(stage["keypoint_query_mask"].all() for stage in outputs.auxiliary_outputs)
    best = outputs.logits.amax(dim=-1).argsort(dim=1, descending=True)[:, :5]
    mask = torch.zeros(2, 12).scatter(1, best, 1).bool()
    assert torch.equal(outputs.keypoint_query_mask, mask)
    for name in RESULTS:
        torch.testing.assert_close(outputs[name][mask], everything[name][mask])


def test_selection_from_the_configuration():
    model = make_model(keypoint_top_k=3)
    with torch.no_grad():
        assert model(images(1, 3, 64, 64)).keypoint_query_mask.sum() == 3
        assert model(images(1, 3, 64, 64), keypoint_top_k=5).keypoint_query_mask.sum() == 5


FEEDBACK = {"always": (1, 1), "selected": (1, 1), "training": (1, 0), "never": (0, 0)}


@pytest.mark.parametrize("query_feedback", FEEDBACK)
def test_query_feedback(query_feedback):
    """What the keypoint decoder does to the instance queries reaches the next stage when it should, and only then."""
    pixel_values = images(1, 3, 64, 64)

    def logits(training: bool, changed: bool) -> torch.Tensor:
        model = make_model(query_feedback=query_feedback)
        if changed:
            with torch.no_grad():
                model.model.decoder.keypoint_layers[0].instance_ffn_norm.bias.add_(1.0)
        model.train(training)
        with torch.no_grad():
            return model(pixel_values, labels=[people(2)] if training else None).logits

    for training, expected in zip((True, False), FEEDBACK[query_feedback], strict=True):
        differs = not torch.equal(logits(training, False), logits(training, True))
        assert differs == bool(expected), training


@pytest.mark.parametrize("query_feedback", FEEDBACK)
def test_a_model_trains_as_it_infers(query_feedback):
    """With the same weights and batch norms that stand still, training and inference score alike in every stage.

    Not so with `"training"`: the released code feeds matched queries back in training and none in inference.
    """
    model = make_model(query_feedback=query_feedback, decoder_layers=3, feedback_threshold=0.5)
    pixel_values, labels = images(2, 3, 64, 96), [people(3), people(1, seed=1)]
    with torch.no_grad():
        inference = model(pixel_values)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        training = model(pixel_values, labels=labels)
    fed_back = inference.auxiliary_outputs[0]["keypoint_query_mask"]
    assert query_feedback != "selected" or 0 < fed_back.sum() < fed_back.numel()
    stages = zip([*training.auxiliary_outputs, training], [*inference.auxiliary_outputs, inference], strict=True)
    same = [torch.allclose(one["logits"], other["logits"], atol=1e-10) for one, other in stages]
    assert same == ([True, False, False] if query_feedback == "training" else [True] * 3)
    if all(same):
        mask = training.keypoint_query_mask & inference.keypoint_query_mask
        if query_feedback == "never":  # a query that was not matched before starts from the learned part queries
            mask &= torch.stack([stage["keypoint_query_mask"] for stage in training.auxiliary_outputs]).all(dim=0)
        assert mask.any()
        torch.testing.assert_close(training.pred_keypoints[mask], inference.pred_keypoints[mask])


@pytest.mark.parametrize(
    ("query_feedback", "decoded"), [("always", "all"), ("selected", "rule"), ("training", "matched")]
)
def test_who_is_fed_back_in_training(query_feedback, decoded):
    model = make_model(query_feedback=query_feedback, feedback_threshold=0.5).train()
    decoder = model.model.decoder
    seen = {}
    decoder.box_layers[0].register_forward_hook(lambda _, inputs, output: seen.update(left=output[0]))
    decoder.box_layers[1].register_forward_pre_hook(lambda _, inputs: seen.update(entered=inputs[0]))
    outputs = model(images(1, 3, 64, 64), labels=[people(3)])
    changed = (seen["left"] != seen["entered"]).any(dim=-1)
    first = outputs.auxiliary_outputs[0]
    above = first["logits"].sigmoid().amax(dim=-1) > 0.5
    if decoded == "all":
        assert changed.all() and first["keypoint_query_mask"].all() and outputs.keypoint_query_mask.all()
        return
    assert outputs.keypoint_query_mask.sum() == 3
    if decoded == "matched":
        assert torch.equal(changed, first["keypoint_query_mask"]) and changed.sum() == 3
    else:
        assert torch.equal(changed, above) and 0 < above.sum() < 12
        # matched queries outside the rule are decoded for the loss alone
        alone = first["keypoint_query_mask"] & ~changed
        assert (first["keypoint_query_mask"] & above == above).all() and alone.sum() <= 3


def test_image_sizes_do_not_leak():
    """Another image's size and content change nothing, as long as the batch's padding is the same."""
    model = make_model()
    pixel_values = images(2, 3, 96, 96)
    mask = torch.zeros(2, 96, 96, dtype=torch.long)
    mask[0, :64, :80] = 1
    pixel_values[0] *= mask[0]
    results = []
    for height, width, seed in ((96, 96, 1), (40, 96, 2)):
        mask[1] = 0
        mask[1, :height, :width] = 1
        pixel_values[1] = images(3, 96, 96, seed=seed) * mask[1]
        with torch.no_grad():
            results.append(model(pixel_values, pixel_mask=mask))
    for name in RESULTS:
        torch.testing.assert_close(results[0][name][0], results[1][name][0])
        assert not torch.allclose(results[0][name][1], results[1][name][1])


def test_sizes_come_from_the_mask():
    """Boxes start from each image's own size: the same pixels with another mask give another result."""
    model = make_model()
    pixel_values = images(1, 3, 64, 64)
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[:, :48, :32] = 1
    with torch.no_grad():
        masked = model(pixel_values, pixel_mask=mask)
        whole = model(pixel_values, pixel_mask=torch.ones_like(mask))
        unmasked = model(pixel_values)
    torch.testing.assert_close(whole.pred_boxes, unmasked.pred_boxes)
    assert not torch.allclose(masked.pred_boxes, unmasked.pred_boxes)


def test_every_roi_is_pooled_from_its_level(monkeypatch):
    """The way without host synchronisation gives what the other one does, and both what one level at a time gives."""
    from torchvision.ops import roi_align

    generator = torch.Generator().manual_seed(0)
    pyramid = [torch.randn(2, 4, 512 // s, 512 // s, generator=generator, dtype=torch.float64) for s in (4, 8, 16, 32)]
    sides = torch.tensor([0.0, 1e-9, 10, 111.9, 112, 112.1, 224, 300, 447.9, 448, 700, 3000], dtype=torch.float64)
    low = 200 * torch.rand(2, len(sides), 2, generator=generator, dtype=torch.float64)
    rois = rois_of(torch.cat([low, low + sides[:, None]], dim=-1))
    pooled = pool_from_pyramid(pyramid, rois, 7, 2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(pool_from_pyramid(pyramid, rois, 7, 2), pooled)
    for roi, found in zip(rois, pooled, strict=True):
        side = float((roi[3:] - roi[1:3]).prod().sqrt())
        level = min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), 5)
        expected = roi_align(pyramid[level - 2], roi[None], 7, 1 / 2**level, sampling_ratio=2, aligned=True)
        torch.testing.assert_close(found, expected[0])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_align_rois_is_torchvisions_roi_align(layout, sampling_ratio):
    """Inside, across every edge, outside, without area, turned around, and enormous; results and gradients."""
    boxes = [
        [4.3, 7.1, 50.2, 60.9],
        [-30.0, -12.5, 20.0, 31.0],
        [70.0, 50.0, 140.0, 99.0],
        [-4.0, -4.0, -2.0, -2.0],
        [500.0, 500.0, 600.0, 600.0],
        [33.0, 20.0, 33.0, 20.0],
        [60.0, 40.0, 20.0, 10.0],
        [-1e6, -1e6, 1e6, 1e6],
        [0.0, 0.0, 96.0, 64.0],
    ]
    rois = rois_of(torch.tensor([boxes, boxes[::-1]], dtype=torch.float64))
    features = images(2, 5, 16, 24).contiguous(memory_format=layout).requires_grad_()
    reference = features.detach().clone().requires_grad_()
    found = align_rois(features, rois, 6, 4, sampling_ratio)
    expected = torchvision.ops.roi_align(reference, rois, 6, 1 / 4, sampling_ratio=sampling_ratio, aligned=True)
    torch.testing.assert_close(found, expected)
    weights = images(*found.shape, seed=1)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(features.grad, reference.grad)
    nobody = align_rois(features, rois[:0], 6, 4, sampling_ratio)
    assert nobody.shape == (0, 5, 6, 6)
    nobody.sum().backward()


def test_box_deltas():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    deltas = torch.tensor([[0.5, -0.25, math.log(2), 100.0]])
    low_high = apply_box_deltas(boxes, deltas)[0]
    centre = (20 + 0.25 * 20, 40 - 0.125 * 40)
    size = (40, 40 * 100000 / 16)
    expected = [centre[0] - size[0] / 2, centre[1] - size[1] / 2, centre[0] + size[0] / 2, centre[1] + size[1] / 2]
    torch.testing.assert_close(low_high, torch.tensor(expected))


def test_boxes_that_are_no_numbers_do_not_reach_roi_align():
    boxes = torch.tensor([[[float("nan"), 0, float("inf"), 1], [-float("inf"), -1e30, 1e30, 5]]])
    assert rois_of(boxes).isfinite().all()


def test_initialisation():
    torch.manual_seed(0)
    config = tiny_config(keypoint_parts=[[0, 1, 2, 3, 4], *[[k] for k in range(5, 17)]])
    model = QueryPoseForPoseEstimation(config)
    decoder = model.model.decoder

    def is_uniform(tensor: torch.Tensor, bound: float) -> bool:
        # of few numbers the largest stays further from the bound
        return (0.93 if tensor.numel() > 100 else 0.7) * bound < tensor.abs().max() <= bound

    def xavier(fan_in: int, fan_out: int) -> float:
        return math.sqrt(6 / (fan_in + fan_out))

    d, d_p, ffn = config.d_model, config.part_dim, config.decoder_ffn_dim
    torch.testing.assert_close(decoder.initial_boxes, torch.tensor([0.5, 0.5, 1, 1]).expand(12, 4))
    for table in (decoder.instance_queries, decoder.part_queries):
        assert 0.8 < table.std() < 1.2
    for box_layer, keypoint_layer in zip(decoder.box_layers, decoder.keypoint_layers, strict=True):
        assert is_uniform(box_layer.self_attn.qkv_proj.weight, xavier(d, 3 * d))
        assert (box_layer.self_attn.qkv_proj.bias == 0).all() and (box_layer.self_attn.out_proj.bias == 0).all()
        assert is_uniform(box_layer.ffn.fc1.weight, xavier(d, ffn))
        assert is_uniform(box_layer.ffn.fc1.bias, 1 / math.sqrt(d))
        torch.testing.assert_close(box_layer.class_head.bias, torch.tensor([-math.log(99)]))
        assert is_uniform(keypoint_layer.conv_stack.convs[0].weight, xavier(9 * d, 9 * 2 * d))
        assert is_uniform(keypoint_layer.part_embedding.upsample.weight, xavier(16 * d, 16 * d))
        assert (keypoint_layer.part_embedding.attention_conv.bias == 0).all()
        assert is_uniform(keypoint_layer.query_projection.projection.weight, xavier(d, d_p))
        for head in (keypoint_layer.keypoint_head, keypoint_layer.sigma_head):
            assert is_uniform(head.weight[:5], xavier(d_p, 10))
            assert is_uniform(head.weight[5:], xavier(d_p, 2))
            assert is_uniform(head.bias, 1 / math.sqrt(d_p))
            assert head.weight[5:].abs().max() > 1.05 * xavier(d_p, 10)
    for conv in (*model.model.neck.lateral_convs, *model.model.neck.output_convs):
        fan_in = conv.weight[0].numel()
        assert is_uniform(conv.weight, math.sqrt(3 / fan_in)) and (conv.bias == 0).all()


def test_model_without_head_loads_from_a_checkpoint_for_pose_estimation(tmp_path):
    """Without a report of what it does not have: the flow of the loss, and the heatmap head."""
    whole = QueryPoseForPoseEstimation(tiny_config(heatmap_loss_coefficient=0.5))
    assert any(name.startswith("flow.") for name in whole.state_dict())
    assert any(name.startswith("heatmap_head.") for name in whole.state_dict())
    whole.save_pretrained(tmp_path)
    model, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is QueryPoseModel
    assert not any(report.values()), report


def test_loaded_weights_are_not_initialised_again(tmp_path):
    model = make_model().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.125)
    model.save_pretrained(tmp_path)
    loaded = QueryPoseForPoseEstimation.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.training
    base = QueryPoseModel.from_pretrained(tmp_path)
    assert torch.equal(base.decoder.part_queries, model.model.decoder.part_queries)


def test_frozen_stages():
    backbone = {**BACKBONES["resnet"], "freeze_batch_norm_2d": True}
    model = QueryPoseForPoseEstimation(tiny_config(backbone_config=backbone, frozen_backbone_stages=2)).train()
    trained = {name for name, p in model.model.backbone.model._backbone.named_parameters() if p.requires_grad}
    assert trained and not any(name.startswith(("conv1", "bn1", "layer1")) for name in trained)
    assert not model.model.backbone.model._backbone["layer1"].training
    with pytest.raises(ValueError, match="frozen_backbone_stages"):
        QueryPoseForPoseEstimation(tiny_config(backbone="swin", frozen_backbone_stages=2))


def test_frozen_stages_that_are_modules_within_modules():
    backbone = {"model_type": "timm_backbone", "backbone": "mobilenetv2_035", "out_indices": [1, 2, 3, 4]}
    model = QueryPoseForPoseEstimation(tiny_config(backbone_config=backbone, frozen_backbone_stages=2)).train()
    network = model.model.backbone.model._backbone
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in network.named_parameters() if name.startswith("blocks.")} - {
        name for name, _ in network.named_parameters() if name.startswith(("blocks.0.", "blocks.1."))
    }
    assert [block.training for block in network.blocks[:3]] == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_coordinates_in_float32(dtype):
    model = make_model().float()
    pixel_values = images(1, 3, 128, 128).float()
    with torch.no_grad():
        expected = model(pixel_values)
        found = model.to(dtype)(pixel_values.to(dtype))
    for name in ("pred_boxes", "pred_keypoints", "keypoint_sigmas"):
        assert found[name].dtype == torch.float32
        assert found[name].isfinite().all()
    # a few per cent of the image: half precision is in the features, not in the coordinates' own grid
    assert (found.pred_boxes - expected.pred_boxes).abs().median() < 0.02
    assert len(found.pred_boxes.unique()) > 0.9 * len(expected.pred_boxes.unique())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_batch_norms_stay_in_float32(dtype):
    """Those of the backbone and of part embeddings, with their gradients, however the model comes to be cast."""
    model = make_model(backbone="resnet").float().train()
    pixel_values = images(1, 3, 64, 64).float()
    model(pixel_values, labels=[people(1)]).loss.backward()
    built = AutoModelForPoseEstimation.from_config(model.config, dtype=dtype)
    wrapped = copy.deepcopy(nn.Sequential(model)).to(dtype)[0]
    for cast in (copy.deepcopy(model).double().to(dtype), wrapped, built):
        norms = [module for module in cast.modules() if "BatchNorm" in type(module).__name__]
        assert len(norms) > 10
        for norm in norms:
            tensors = (*norm.parameters(), *(p.grad for p in norm.parameters() if p.grad is not None), *norm.buffers())
            assert {tensor.dtype for tensor in tensors} == {torch.float32, torch.int64}
        assert cast.dtype == dtype
        assert cast.eval()(pixel_values.to(dtype)).logits.isfinite().all()
    assert {p.dtype for p in wrapped.double().parameters()} == {torch.float64}


def test_weights_that_float16_cannot_hold_are_named(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(modeling_querypose.logger, "warning", messages.append)
    model = make_model().float()
    name = "model.neck.output_convs.0.weight"
    with torch.no_grad():
        model.get_parameter(name)[0] = 1e5
    model.save_pretrained(tmp_path)
    for cast in (lambda: copy.deepcopy(model).half(), lambda: copy.deepcopy(model).to(torch.float16)):
        messages.clear()
        cast()
        assert len(messages) == 1 and name in messages[0] and "bfloat16" in messages[0]
    with pytest.raises(ValueError, match=f"{name} of its weights holds values that are not finite.*bfloat16"):
        QueryPoseForPoseEstimation.from_pretrained(tmp_path, dtype=torch.float16)
    messages.clear()
    copy.deepcopy(model).bfloat16()
    QueryPoseForPoseEstimation.from_pretrained(tmp_path)
    assert not messages


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loaded_weights_that_are_no_numbers_are_refused(value, tmp_path):
    """A checkpoint plainly cast to half holds infinity: no one would be found, without a word."""
    model = make_model().float()
    name = "model.decoder.keypoint_layers.0.part_embedding.upsample_norm.running_var"
    model.get_buffer(name)[0] = value
    model.save_pretrained(tmp_path)
    QueryPoseImageProcessor().save_pretrained(tmp_path)
    expected = f"{re.escape(name)} of its weights holds values that are not finite"
    for dtype in (torch.float32, torch.float16):
        with pytest.raises(ValueError, match=expected):
            QueryPoseForPoseEstimation.from_pretrained(tmp_path, dtype=dtype)
    with pytest.raises(ValueError, match=expected):
        make_model().load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=expected):
        pipeline("pose-estimation", model=str(tmp_path), device="cpu")


def test_one_compiled_graph_serves_all_sizes():
    """A graph compiled for dynamic sizes is not compiled again for another image size of the same batch size."""
    from torch._dynamo.testing import CompileCounterWithBackend

    model = make_model(pose_query_interaction="none").float()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for height, width in ((64, 96), (128, 96), (96, 160)):
            pixel_values = images(2, 3, height, width).float()
            found = compiled(pixel_values, keypoint_top_k=4)
            torch.testing.assert_close(found.pred_keypoints, model(pixel_values, keypoint_top_k=4).pred_keypoints)
    assert counter.frame_count == 1


@pytest.mark.parametrize("query_feedback", ["always", "never"])
def test_compiled_inference(query_feedback):
    """One graph without breaks, and the same results. Tracing is what may fail, so no C++ compiler is asked for."""
    # in float64: compiled graphs take torchvision's RoIAlign, whose samples lie an ulp or two elsewhere
    model = make_model(query_feedback=query_feedback)
    pixel_values = images(2, 3, 64, 96)
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    with torch.no_grad():
        expected = model(pixel_values, pixel_mask=mask, keypoint_top_k=4)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found = compiled(pixel_values, pixel_mask=mask, keypoint_top_k=4)
    for name in RESULTS:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler needs a C++ compiler")
def test_inductor_serves_several_sizes():
    """The compiler that users get, not only its front end: one graph, other image sizes, the same people."""
    model = make_model(pose_query_interaction="none").float()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for height, width in ((64, 96), (128, 96), (96, 160)):
            pixel_values = images(2, 3, height, width).float()
            # the first size compiles, the others must not
            with torch.compiler.set_stance("default" if height == 64 else "fail_on_recompile"):
                found = compiled(pixel_values, keypoint_top_k=4)
            expected = model(pixel_values, keypoint_top_k=4)
            for name in RESULTS:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_device_map(tmp_path):
    model = make_model().float()
    model.save_pretrained(tmp_path / "model")
    pixel_values = images(1, 3, 64, 64).float()
    with torch.no_grad():
        expected = model(pixel_values)
    for device_map in ("auto", {"model.backbone": "cpu", "model.neck": "cpu", "model.decoder": "disk", "flow": "cpu"}):
        placed = QueryPoseForPoseEstimation.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
        )
        with torch.no_grad():
            found = placed(pixel_values)
        for name in RESULTS:
            torch.testing.assert_close(found[name], expected[name])


def test_attention_maps():
    model = make_model()
    with torch.no_grad():
        outputs = model(images(2, 3, 64, 64), output_attentions=True, output_hidden_states=True)
    assert [tuple(x.shape) for x in outputs.attentions] == [(2, 4, 12, 12)] * 2
    # the RoIs of the tiny configuration are 8 wide, upsampled to 16
    assert [tuple(x.shape) for x in outputs.part_attentions] == [(2, 12, 7, 16, 16)] * 2
    for maps in outputs.part_attentions:
        torch.testing.assert_close(maps.sum(dim=(-1, -2)), torch.ones(2, 12, 7, dtype=torch.float64))
    assert len(outputs.hidden_states) == 3
    torch.testing.assert_close(outputs.hidden_states[-1], outputs.last_hidden_state)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 0.002)]
)
def test_position_encoding_is_detrs(dtype, tolerance):
    """Cell by cell, by the formula of DETR's sine encoding at the cells' centres; half precision only rounds it."""
    height, width, dim = 3, 5, 16
    found = sine_encoding(torch.empty(2, dim, height, width, dtype=dtype)).view(height, width, dim)
    assert found.dtype == dtype
    for row in range(height):
        for column in range(width):
            for axis, place in enumerate(((row + 0.5) / height, (column + 0.5) / width)):
                for index in range(dim // 4):
                    angle = place * 2 * math.pi / 10000 ** (2 * index / (dim // 2))
                    pair = found[row, column, axis * dim // 2 + 2 * index :][:2].tolist()
                    assert pair == pytest.approx([math.sin(angle), math.cos(angle)], abs=tolerance)


def test_attention_centers_are_mean_places_of_cubes():
    logits = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = attention_centers(logits.flatten(2).softmax(dim=-1).view_as(logits))
    # the cube of a softmax is that of three times the logits
    maps = (3 * logits).flatten(2).softmax(dim=-1).view_as(logits)
    for image, part in ((0, 0), (1, 2)):
        x = sum(float(maps[image, part, :, column].sum()) * (column + 0.5) / 6 for column in range(6)) - 0.5
        y = sum(float(maps[image, part, row].sum()) * (row + 0.5) / 4 for row in range(4)) - 0.5
        assert found[image, part].tolist() == pytest.approx([x, y])
    corner = torch.zeros(1, 10, 10, dtype=torch.bfloat16)
    corner[0, 0, 9] = 1
    assert attention_centers(corner)[0].tolist() == pytest.approx([0.45, -0.45])
    single = maps.float()
    expected = attention_centers(single)
    with torch.autocast("cpu", torch.bfloat16):  # coordinates stay in float32
        torch.testing.assert_close(attention_centers(single), expected)


def test_attention_centers_stay_near_the_peak():
    # a hand that is seen, and the body that it might be at as well
    broad = torch.full((1, 20, 20), 0.5 / 400)
    broad[0, 2, 18] += 0.5
    assert attention_centers(broad)[0].tolist() == pytest.approx((0.425, -0.375), abs=1e-3)
    # the cube of a flat map is not nothing, and neither is its gradient
    flat = torch.full((1, 200, 200), 1e-16, requires_grad=True)
    centers = attention_centers(flat)
    torch.testing.assert_close(centers, torch.zeros(1, 2), atol=1e-4, rtol=0)
    centers.sum().backward()
    assert flat.grad.isfinite().all() and flat.grad.abs().max() > 1


@pytest.mark.parametrize("parts", ["coco", "crowdpose"])
def test_keypoints_are_where_attention_looks(parts):
    fields = {**QueryPoseConfig.skeleton_fields(parts), "keypoint_parts": "a"}
    model = make_model(keypoint_coordinates="attention", **fields)
    config = model.config
    pixel_values = images(2, 3, 64, 96)
    outputs = model.model(pixel_values, output_attentions=True)
    for stage, maps in enumerate(outputs.part_attentions):
        torch.testing.assert_close(outputs.intermediate_keypoints[:, stage], attention_centers(maps))
    # coordinates alone teach the maps, too
    labels = [people(2, num_keypoints=config.num_keypoints), people(1, num_keypoints=config.num_keypoints)]
    labels = [{k: v.double() if v.is_floating_point() else v for k, v in label.items()} for label in labels]
    model.train()(pixel_values, labels=labels).loss_dict["loss_keypoint"].backward()
    assert model.model.decoder.keypoint_layers[-1].part_embedding.attention_conv.weight.grad.abs().max() > 0


def test_expected_similarity_is_the_mean_oks_of_all_places():
    """Each cell of the cubed map in turn is taken for the truth, and OKS computed by the loss's function in pixels."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 4, 6, dtype=torch.float64, generator=generator) ** 4
    maps = maps / maps.sum(dim=(-1, -2), keepdim=True)
    keypoints = torch.rand(2, 3, 2, dtype=torch.float64, generator=generator) - 0.5
    boxes = torch.tensor([[10.0, 20.0, 70.0, 180.0], [5.0, 5.0, 95.0, 35.0]], dtype=torch.float64)
    sigmas = [0.026, 0.079, 0.107]
    rois = torch.cat([torch.zeros(2, 1, dtype=torch.float64), boxes], dim=1)
    found = expected_similarity(maps, keypoints, rois, torch.tensor(sigmas))
    shares = maps**3 / (maps**3).sum(dim=(-1, -2), keepdim=True)

    def in_pixels(points):
        return (points + 0.5) * (boxes[:, None, 2:] - boxes[:, None, :2]) + boxes[:, None, :2]

    for keypoint in range(3):
        expected = torch.zeros(2, dtype=torch.float64)
        for row in range(4):
            for column in range(6):
                cell = torch.tensor([(column + 0.5) / 6 - 0.5, (row + 0.5) / 4 - 0.5], dtype=torch.float64)
                truth = torch.cat([in_pixels(cell.expand(2, 1, 2)), torch.ones(2, 1, 1)], dim=-1)
                prediction = in_pixels(keypoints[:, keypoint : keypoint + 1])
                similarity = object_keypoint_similarity(
                    prediction, truth, boxes, boxes, sigmas[keypoint : keypoint + 1]
                )
                expected += shares[:, keypoint, row, column] * similarity
        torch.testing.assert_close(found[:, keypoint], expected, rtol=1e-6, atol=1e-9)
    # sure of a place, and right or wrong about it
    sure = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    sure[:, :, 2, 2] = 1
    at = torch.tensor([[[0.0, 0.0], [0.4, 0.4]]], dtype=torch.float64)
    found = expected_similarity(sure, at, rois[:1], torch.tensor(sigmas[:2]))
    assert found[0].tolist() == pytest.approx([1, 0], abs=1e-2)
    nothing = torch.zeros(1, 5, dtype=torch.float64)  # a box without area has no people in it
    assert expected_similarity(sure, at, nothing, torch.tensor(sigmas[:2])).isfinite().all()


@pytest.mark.parametrize("parts", ["coco", "crowdpose"])
def test_confidence_from_attention(parts, tmp_path):
    fields = {**QueryPoseConfig.skeleton_fields(parts), "keypoint_parts": "a", "pose_query_interaction": "none"}
    model = make_model(keypoint_coordinates="attention", **fields)
    pixel_values = images(2, 3, 64, 96)
    with torch.no_grad():
        outputs = model(pixel_values, output_attentions=True)
        others = make_model(**fields)(pixel_values)
    torch.testing.assert_close(others.keypoint_scores, 1 - others.keypoint_sigmas.mean(dim=-1))
    size = torch.tensor([96.0, 64.0], dtype=torch.float64)
    centers, sides = (values * size for values in outputs.pred_boxes.split(2, dim=-1))
    low = centers - sides / 2
    relative = (outputs.pred_keypoints * size - low[..., None, :]) / sides[..., None, :] - 0.5
    rois = torch.cat([torch.zeros(2, 12, 1), low, low + sides], dim=-1).flatten(0, 1)
    maps = outputs.part_attentions[-1].flatten(0, 1)
    constants = torch.tensor(model.config.keypoint_sigmas)
    expected = expected_similarity(maps, relative.flatten(0, 1), rois, constants)
    torch.testing.assert_close(outputs.keypoint_scores.flatten(0, 1), expected, rtol=1e-6, atol=1e-9)
    assert 0 < expected.min() and expected.max() < 1
    # OKS's constants are not saved: a loaded model has its configuration's
    model.config.keypoint_sigmas = [2 * sigma for sigma in model.config.keypoint_sigmas]
    model.save_pretrained(tmp_path)
    loaded = QueryPoseForPoseEstimation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.model.decoder.oks_constants, 2 * constants)


def test_other_skeletons_and_classes():
    config = tiny_config(num_labels=3, **QueryPoseConfig.skeleton_fields("crowdpose"))
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(config)
    labels = [people(2, num_keypoints=14)]
    labels[0]["class_labels"] = torch.tensor([2, 0])
    outputs = model.train()(torch.randn(1, 3, 64, 64), labels=labels)
    outputs.loss.backward()
    assert outputs.logits.shape == (1, 12, 3) and outputs.pred_keypoints.shape == (1, 12, 14, 2)


def test_keypoints_come_from_their_own_part():
    """Changing one part's query moves that part's keypoints and no other."""
    head = make_model().model.decoder.keypoint_layers[0].keypoint_head
    queries = images(1, 7, 16)
    changed = queries.clone()
    changed[:, 2] = images(1, 16, seed=5)
    moved = (head(queries) != head(changed)).any(dim=-1)[0]
    assert moved.nonzero().flatten().tolist() == [7, 9]


def test_training_as_the_released_code_does_warns(caplog, monkeypatch):
    from querypose_hf.model import modeling_querypose

    monkeypatch.setattr(modeling_querypose.logger, "warning_once", modeling_querypose.logger.warning)
    monkeypatch.setattr(logging.getLogger("querypose_hf"), "propagate", True)
    for feedback, interaction, warned in (
        ("training", "dynamic", True),
        ("training", "none", False),
        ("always", "dynamic", False),
    ):
        caplog.clear()
        model = make_model(query_feedback=feedback, pose_query_interaction=interaction).train()
        model(images(1, 3, 64, 64), labels=[people(1)])
        assert ("infers as it trains" in caplog.text) == warned
