"""Poses alone: what is learnt, what is left alone, and runs through the command's own description."""

import copy

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from small_data import small_experiment, write_rendered_coco
from small_run import read_log
from tiny import people, tiny_config

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.pretraining import PosePretraining
from querypose_hf.training.run import run_experiment


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_model(**overrides):
    torch.manual_seed(0)
    fields = {"pose_query_interaction": "none", "keypoint_parts": "a", "keypoint_coordinates": "attention"}
    config = tiny_config(**fields, **overrides)
    return QueryPoseForPoseEstimation(config).train()


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


def test_what_cannot_be_pretrained():
    with pytest.raises(ValueError, match=r"`labels\[1\]` has 2 people.*person_crops"):
        PosePretraining(make_model())(pixel_values=torch.randn(2, 3, 64, 64), labels=[people(1), people(2)])


def test_runs_and_resumes(tmp_path):
    """From the description to a model folder; a run that was stopped goes on with the same losses."""
    source = write_rendered_coco(tmp_path / "data", count=4, size=(160, 120))
    description = small_experiment({**source, "format": "coco"})
    description["data"] = {"train": [{**source, "person_crops": 64}]}
    description["augmentation"] = {"short_sides": [64], "crop_probability": 0.0, "scale_jitter": [1.0, 1.3]}
    description["training"].update(objective="poses", save_every=2, evaluate_every=None)
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
