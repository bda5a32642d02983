"""Checkpoints with weights in float16."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_checkpoint
from transformers import AutoImageProcessor, AutoModelForPoseEstimation

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.weights.float16_storage import store_in_float16


@pytest.fixture
def checkpoint(tmp_path):
    save_tiny_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_loads_in_float32(checkpoint, tmp_path):
    output = store_in_float16(checkpoint, tmp_path / "halved")
    assert {path.name for path in output.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert (output / "model.safetensors").stat().st_size < 0.6 * (checkpoint / "model.safetensors").stat().st_size
    original = QueryPoseForPoseEstimation.from_pretrained(checkpoint).state_dict()
    model, report = AutoModelForPoseEstimation.from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and model.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert value.dtype == original[name].dtype
        if name.endswith("gamma"):  # a ConvNeXt's layer scales start at 1e-6, where float16 has two digits left
            assert torch.equal(value, original[name])
            continue
        torch.testing.assert_close(value, original[name].half().to(value.dtype), rtol=0, atol=0)
    assert AutoImageProcessor.from_pretrained(output).size == AutoImageProcessor.from_pretrained(checkpoint).size
    # a model loaded from it can be saved again
    model.save_pretrained(tmp_path / "again")
    again = QueryPoseForPoseEstimation.from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("value", [1e6, 1e-8])
def test_tensor_beyond_float16_keeps_its_type(checkpoint, tmp_path, value):
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.decoder.initial_boxes"
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    stored = load_file(store_in_float16(checkpoint, tmp_path / "halved") / "model.safetensors")
    assert torch.equal(stored[name], weights[name]) and stored[name].dtype == torch.float32
    kept = [other for other, tensor in stored.items() if tensor.dtype != torch.float16]
    assert all(other == name or other.endswith(("gamma", "num_batches_tracked")) for other in kept)


def test_folder_without_configuration(checkpoint, tmp_path):
    (checkpoint / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        store_in_float16(checkpoint, tmp_path / "halved")
