"""The Python of the pages on results in other forms, serving and adapters, run as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from tiny import people, tiny_config

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.data.synthetic import SAMPLE_SCENE_PATH


DOCS = Path(__file__).resolve().parents[1] / "docs"
# what is not in the test extra, by what a block imports
OPTIONAL = ("fiftyone", "bitsandbytes", "peft", "supervision", "pandas", "torchao")


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder with what the pages speak of."""
    checkpoint = tmp_path / "path" / "to" / "checkpoint"
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config())
    # sure of itself, so that there are people to speak of
    for layer in model.model.decoder.box_layers:
        layer.class_head.bias.data.fill_(4.0)
    model.save_pretrained(checkpoint)
    QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(checkpoint)
    (tmp_path / "photo.jpg").write_bytes(SAMPLE_SCENE_PATH.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page):
    batch = {"pixel_values": torch.zeros(1, 3, 64, 64), "labels": [people(2)]}
    namespace = {"batch": batch}
    missing = set()
    for block in blocks(page):
        needed = [name for name in OPTIONAL if re.search(rf"^\s*(import|from) {name}\b", block, flags=re.MULTILINE)]
        needed += ["torchao"] if "int8_config" in block else []
        absent = [name for name in needed if not _is_there(name)]
        if absent:
            missing.update(absent)
            continue
        exec(compile(block, page, "exec"), namespace)
    return namespace, missing


def _is_there(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_interoperability(in_folder):
    namespace, missing = run("interoperability.md")
    count = len(namespace["people"])
    assert count > 0
    assert (in_folder / "results.json").is_file()
    if "supervision" not in missing:
        assert len(namespace["key_points"]) == len(namespace["detections"]) == count
    if "pandas" not in missing:
        assert len(namespace["noses"]) == len(namespace["one_row_each"]) == count


def test_serving(in_folder):
    namespace, _ = run("serving.md")
    assert (in_folder / "path/to/checkpoint/handler.py").is_file()
    assert all(person["score"] >= 0.5 for person in namespace["people"])


def test_adapters(in_folder):
    if not _is_there("peft"):
        pytest.skip("PEFT is not installed")
    namespace, missing = run("adapters.md")
    assert (in_folder / "merged" / "model.safetensors").is_file()
    assert (in_folder / "adapter" / "adapter_model.safetensors").is_file()
    if "torchao" not in missing:
        assert (in_folder / "int8" / "model.safetensors").is_file()
    assert type(namespace["merged"]) is QueryPoseForPoseEstimation
