"""Another engine in place of torch finds the same people, and is exported to once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tiny import images, make_model

from querypose_hf import QueryPoseImageProcessorPil
from querypose_hf.cli import main
from querypose_hf.export import choose_engine, engines, load_engine
from querypose_hf.inference.loading import load_model


CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of its own, for engines that are exported to once in this module."""
    for package in engines.ENGINES["onnx"]:
        pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model(backbone="resnet", pose_query_interaction="none", num_queries=24).float().save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    QueryPoseImageProcessorPil(size=size, score_threshold=0.0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_model(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def processor(loaded):
    return loaded[1]


@pytest.mark.parametrize(
    ("wanted", "by_model"),
    [
        ({"person_threshold": 0.9}, 0),  # nobody that high
        ({"person_threshold": 1e-6}, 1),  # all 24 queries may be people, and the graph decodes 20
        ({"max_people": 1}, 0),
        ({"max_people": 24}, 1),
        ({"keypoint_top_k": 20}, 0),
        ({"keypoint_top_k": 7}, 1),
        ({}, 1),
    ],
)
def test_results_are_the_models(model, processor, wanted, by_model, monkeypatch):
    """Where the graph decodes too few queries, the model itself looks at the batch."""
    engine = load_engine(model, processor, "onnx")
    calls = []
    monkeypatch.setattr(model.model.decoder, "forward", _counting(model.model.decoder.forward, calls))
    pixel_values = images(2, 3, 64, 96).float()
    with torch.no_grad():
        found = engine(pixel_values, **wanted)
        assert len(calls) == by_model
        expected = model(pixel_values, **wanted)
    threshold, top_k = wanted.get("person_threshold", 0.0), wanted.get("max_people")
    sizes = [(480, 640)] * 2
    for people, others in zip(
        processor.post_process_pose_estimation(found, threshold, sizes, top_k),
        processor.post_process_pose_estimation(expected, threshold, sizes, top_k),
        strict=True,
    ):
        assert len(people) == len(others)
        for person, other in zip(people, others, strict=True):
            torch.testing.assert_close(person["keypoints"], other["keypoints"], atol=0.05, rtol=0)
            torch.testing.assert_close(person["score"], other["score"], atol=1e-4, rtol=0)


def _counting(function, calls):
    def counted(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return counted


def test_exported_once_for_each_checkpoint(model, processor, monkeypatch):
    load_engine(model, processor, "onnx")
    told = []
    monkeypatch.setattr(engines, "export_model", _refuse)
    load_engine(model, processor, "onnx", told.append)
    assert not told
    other = make_model(1, backbone="resnet", pose_query_interaction="none", num_queries=24).float()
    with pytest.raises(OSError, match="disk is full"):
        load_engine(other, processor, "onnx", told.append)
    [folder] = told
    assert not folder.exists() and not list(folder.parent.glob(".part.*"))


def _refuse(*args):
    raise OSError("the disk is full")


def test_the_faster_of_two_processes_wins(model, processor, monkeypatch, tmp_path):
    """Both export at once; the slower one takes the folder of the other."""
    load_engine(model, processor, "onnx")
    [exported] = Path(constants.HF_HOME, "querypose").iterdir()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))

    def export(model, processor, temporary, options):
        shutil.copytree(exported, tmp_path / "querypose" / exported.name)
        shutil.copytree(exported, temporary, dirs_exist_ok=True)

    monkeypatch.setattr(engines, "export_model", export)
    assert load_engine(model, processor, "onnx").metadata["format"] == "onnx"
    assert [path.name for path in (tmp_path / "querypose").iterdir()] == [exported.name]


def test_which_engine(monkeypatch):
    installed = {"openvino", "onnxruntime", "onnx", "onnxscript"}
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert choose_engine("auto", CPU) == "openvino"
    installed.remove("openvino")
    assert choose_engine("auto", CPU) == "onnx"
    installed.remove("onnxscript")
    assert choose_engine("auto", CPU) == "torch"
    assert choose_engine("auto", torch.device("cuda")) == "torch"
    installed.add("onnxscript")
    assert choose_engine("auto", CPU, torch.bfloat16) == "torch"
    assert choose_engine("onnx", CPU) == "onnx"  # its error names the extra
    with pytest.raises(ValueError, match=r"`engine` is 'onnx'.*; expected 'torch' on cuda in"):
        choose_engine("onnx", torch.device("cuda"))


def test_predict(model, processor, checkpoint, tmp_path, capsys):
    load_engine(model, processor, "onnx")  # what predict will look for
    people = {}
    for engine in ("torch", "onnx"):
        lines = tmp_path / f"{engine}.jsonl"
        common = ["predict", "--model", str(checkpoint), "--no-draw", "--threshold", "0.2", "--jsonl", str(lines)]
        assert main([*common, "--engine", engine]) == 0
        people[engine] = json.loads(lines.read_text())["people"]
    assert "Exporting" not in capsys.readouterr().err
    assert len(people["torch"]) == len(people["onnx"]) > 0
    for person, other in zip(people["torch"], people["onnx"], strict=True):
        assert person["box"] == pytest.approx(other["box"], abs=0.05)
        assert person["score"] == pytest.approx(other["score"], abs=1e-4)
