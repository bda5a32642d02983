"""Heatmaps and poses alone: what is learnt, what is left alone, and runs through the command's own description."""

import copy

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from small_data import small_experiment, write_rendered_coco
from small_run import read_log
from tiny import people, tiny_config

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.model.attention_maps_querypose import part_attention_loss
from querypose_hf.model.loss_querypose import keypoints_in_boxes
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.pretraining import HeatmapPretraining, PosePretraining
from querypose_hf.training.run import run_experiment


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_model(**overrides):
    torch.manual_seed(0)
    fields = {"heatmap_loss_coefficient": 0.1, "keypoint_parts": "a", "keypoint_origin": "attention"}
    config = tiny_config(pose_query_interaction="none", **{**fields, **overrides})
    return QueryPoseForPoseEstimation(config).train()


def test_heatmaps_are_distributions_of_each_person():
    model = make_model()
    objective = HeatmapPretraining(model)
    torch.manual_seed(1)
    pixel_values, labels = torch.randn(2, 3, 64, 96), [people(2), people(1, seed=1)]
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    mask[1, 48:] = 0  # the second image is 48 pixels high
    outputs = objective(pixel_values=pixel_values, labels=labels, pixel_mask=mask)
    logits = model.heatmap_head(model.model.extract_pyramid(pixel_values)[0])
    expected = 0.0
    for image, height in ((0, 64), (1, 48)):
        maps = logits[image].flatten(1).softmax(-1).view(1, 17, 16, 24)
        for points in labels[image]["keypoints"]:
            points = points * torch.tensor([96.0, height, 1.0])
            whole = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
            expected += (
                part_attention_loss(maps, *keypoints_in_boxes(points[None], whole), [[k] for k in range(17)]) / 3 / 17
            )
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    assert all(parameter.grad is None for parameter in model.model.decoder.parameters())
    assert all(parameter.grad is not None for parameter in model.heatmap_head.parameters())


def test_poses_of_known_people():
    """Learning one picture's person moves the pose towards it; classes are left alone."""
    model = make_model(dropout=0.0)
    objective = PosePretraining(model, jitter=0.02)
    classes = copy.deepcopy([layer.class_head.state_dict() for layer in model.model.decoder.box_layers])
    pixel_values, labels = torch.randn(2, 3, 64, 64), [people(1), people(1, seed=1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    losses = []
    for _ in range(80):
        outputs = objective(pixel_values=pixel_values, labels=labels)
        optimizer.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(outputs.loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    stages = ("_0", "")
    terms = ("bbox", "giou", "keypoint", "part_attention")
    assert list(outputs.loss_dict) == [f"loss_{term}{stage}" for stage in stages for term in terms]
    for layer, before in zip(model.model.decoder.box_layers, classes, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in layer.class_head.state_dict().items())


def test_poses_start_at_the_annotated_boxes():
    """Without jitter and with boxes that the decoder leaves alone, the boxes are the annotated ones."""
    model = make_model().eval()
    for layer in model.model.decoder.box_layers:
        torch.nn.init.zeros_(layer.box_head.weight)
        torch.nn.init.zeros_(layer.box_head.bias)
    outputs = PosePretraining(model, jitter=0.0)(pixel_values=torch.randn(2, 3, 64, 64), labels=[people(1), people(1)])
    for stage in ("_0", ""):
        assert outputs.loss_dict[f"loss_bbox{stage}"].item() == pytest.approx(0, abs=1e-4)
        assert outputs.loss_dict[f"loss_giou{stage}"].item() == pytest.approx(0, abs=1e-4)


def test_pictures_without_anybody_count_for_nothing():
    model = make_model(dropout=0.0).eval()
    objective = PosePretraining(model, jitter=0.0)
    pixel_values = torch.randn(2, 3, 64, 64)
    nobody = {name: value[:0] for name, value in people(1).items()}
    torch.manual_seed(0)
    both = objective(pixel_values=pixel_values, labels=[people(1), nobody])
    torch.manual_seed(0)
    alone = objective(pixel_values=pixel_values[:1], labels=[people(1)])
    torch.testing.assert_close(both.loss, alone.loss)
    assert objective(pixel_values=pixel_values, labels=[nobody, nobody]).loss.item() == 0
    heatmaps = HeatmapPretraining(model)(pixel_values=pixel_values, labels=[nobody, nobody])
    assert heatmaps.loss.item() == 0
    heatmaps.loss.backward()


def test_what_cannot_be_pretrained():
    with pytest.raises(ValueError, match="`heatmap_loss_coefficient` is 0"):
        HeatmapPretraining(QueryPoseForPoseEstimation(tiny_config()))
    with pytest.raises(ValueError, match=r"`labels\[1\]` has 2 people.*person_crops"):
        PosePretraining(make_model())(pixel_values=torch.randn(2, 3, 64, 64), labels=[people(1), people(2)])


@pytest.mark.parametrize("objective", ["heatmaps", "poses"])
def test_runs_and_resumes(objective, tmp_path):
    """From the description to a model folder; a run that was stopped goes on with the same losses."""
    source = write_rendered_coco(tmp_path / "data", count=4, size=(160, 120))
    description = small_experiment({**source, "format": "coco"})
    description["data"] = {"train": [{**source, "person_crops": 64}]}
    description["model"]["config"]["heatmap_loss_coefficient"] = 0.1
    description["augmentation"] = {"short_sides": [64], "crop_probability": 0.0, "scale_jitter": [1.0, 1.3]}
    description["training"].update(objective=objective, save_every=2, evaluate_every=None)
    path = tmp_path / "description.yaml"
    path.write_text(yaml.safe_dump(description))
    run_experiment(Experiment.from_yaml(path), tmp_path / "whole")
    expected = [record["loss"] for record in read_log(tmp_path / "whole")]
    assert len(expected) == 4
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run_experiment(Experiment.from_yaml(path), tmp_path / "stopped", stop_after=3)
    assert [record["loss"] for record in read_log(tmp_path / "stopped")] == expected[:3]
    assert (tmp_path / "stopped" / "last" / "model.safetensors").is_file()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run_experiment(Experiment.from_yaml(path), tmp_path / "stopped", resume=True, stop_after=10)
    assert [record["loss"] for record in read_log(tmp_path / "stopped")] == expected
    with pytest.raises(ValueError, match="`stop_after` is 0; expected a step of at least 1"):
        run_experiment(Experiment.from_yaml(path), tmp_path / "whole", resume=True, stop_after=0)
