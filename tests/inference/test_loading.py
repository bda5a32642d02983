"""Tests of loading a checkpoint: by name or folder, onto a device, and errors that say what was expected."""

import json

import pytest
import torch
from tiny import save_tiny_checkpoint
from transformers import pipeline

from querypose_hf import PoseEstimationPipeline, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.assets import QUERYPOSE_NANO
from querypose_hf.inference.loading import find_device, load_model, load_pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder, class_bias=2.0)
    return folder


def test_a_folder_gives_model_and_image_processor_in_float32(checkpoint):
    model, image_processor = load_model(checkpoint, device="cpu")
    assert isinstance(model, QueryPoseForPoseEstimation) and not model.training
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")
    assert isinstance(image_processor, QueryPoseImageProcessor) and image_processor.size.longest_edge == 128
    assert load_model(checkpoint, device="cpu", dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert load_model(checkpoint, "mine", device="cpu")[1] == "mine"


def test_the_name_stands_for_the_shipped_checkpoint():
    by_name, by_folder = (load_model(name, device="cpu")[0] for name in ("querypose-nano", QUERYPOSE_NANO))
    assert by_name.config.num_queries == by_folder.config.num_queries
    for ours, theirs in zip(by_name.parameters(), by_folder.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_that_is_passed_in_stays_as_it_is(checkpoint):
    model, image_processor = load_model(checkpoint, device="cpu", dtype="float64", optimize=False)
    model.train()
    assert load_model(model, image_processor) == (model, image_processor)
    assert model.training and model.dtype == torch.float64
    assert load_model(model, image_processor, dtype=torch.float32)[0].dtype == torch.float32
    with pytest.raises(ValueError, match="`image_processor` is None"):
        load_model(model)


def test_the_pipeline_is_the_one_of_transformers(checkpoint):
    pose_estimator = load_pipeline(checkpoint, device="cpu")
    assert type(pose_estimator) is PoseEstimationPipeline and pose_estimator.task == "pose-estimation"
    image = torch.rand(3, 40, 60).mul(255).byte()
    for optimize in (False, True):
        expected = pipeline("pose-estimation", model=str(checkpoint), device="cpu", optimize=optimize)(image)
        people = pose_estimator(image)
        assert len(people) == len(expected) > 0
        for person, other in zip(people, expected, strict=True):
            assert person["score"] == pytest.approx(other["score"], abs=1e-5)
            assert person["box"] == pytest.approx(other["box"], abs=1e-3)


@pytest.mark.parametrize("load", [load_model, load_pipeline])
def test_what_is_no_checkpoint_is_named(load, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"`model` is .*nothing'; expected a QueryPose checkpoint"):
        load(tmp_path / "nothing", device="cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vitpose"}))
    with pytest.raises(ValueError, match=r"`model` is .*; expected a QueryPose checkpoint.*of type 'vitpose'"):
        load(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    (tmp_path / "model.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match=r"`model` is .*; expected a QueryPose checkpoint"):
        load(tmp_path, device="cpu")


def test_a_model_of_another_kind_is_named(checkpoint):
    with pytest.raises(ValueError, match="Linear is of type None; expected a QueryPose model"):
        load_model(torch.nn.Linear(1, 1), "an image processor")


def test_a_model_is_fused_unless_told_otherwise(checkpoint, tmp_path):
    model, _ = load_model(checkpoint, device="cpu")
    with pytest.raises(ValueError, match="batch norms are folded"):
        model.save_pretrained(tmp_path)
    model, _ = load_model(checkpoint, device="cpu", optimize=False)
    assert model.train().training
    assert model.state_dict().keys() == QueryPoseForPoseEstimation.from_pretrained(checkpoint).state_dict().keys()


def test_a_type_is_checked(checkpoint):
    with pytest.raises(ValueError, match="`dtype` is 'float1'; expected a type of torch"):
        load_model(checkpoint, device="cpu", dtype="float1")


def test_a_device_is_checked_before_anything_is_loaded(tmp_path):
    assert find_device("cpu") == torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert find_device().type == ("cpu" if accelerator is None else accelerator.type)
    with pytest.raises(ValueError, match="`device` is 'abacus'; expected one that torch can use here"):
        load_model(tmp_path / "nothing", device="abacus")
