"""The benchmark's counts and its report, on tiny models: what it times is looked at by people alone."""

import copy
import dataclasses
import json
import os

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from places import PROJECT
from tiny import images, make_model, save_tiny_checkpoint

from querypose_hf.benchmark import (
    BenchmarkSettings,
    benchmark,
    describe_results,
    run_benchmark,
    training_step,
    write_results,
)
from querypose_hf.benchmark.engines import measure_engines
from querypose_hf.benchmark.steps import count_multiply_adds, multiply_adds_of_all_queries, run_steps, time_steps
from querypose_hf.cli import main
from querypose_hf.model.fusion_querypose import fuse_for_inference
from querypose_hf.training.recipe import RECIPES


def tiny_settings(**changes) -> BenchmarkSettings:
    fields = {
        "people": [2, 3],
        "queries": [12],
        "image_sizes": [(64, 96)],
        "batch_sizes": [1],
        "rounds": 1,
        "full_rounds": 1,
        "compare": ["full", "plain"],
    }
    return BenchmarkSettings(**{**fields, **changes})


@pytest.mark.parametrize("query_feedback", ["never", "always"])
def test_steps_are_the_forward_pass(query_feedback):
    """What is timed does all that the model does: as many multiply-adds, split as the configuration says."""
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(query_feedback=query_feedback, pose_query_interaction="dynamic").float()
    model.requires_grad_(False)  # the counter of operations wants gradients otherwise
    pixel_values = images(2, 3, 64, 96).float()
    steps = count_multiply_adds(model, pixel_values, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values, keypoint_top_k=3)
    assert sum(steps.values()) == counter.get_total_flops() // 2
    if query_feedback == "never":  # else earlier stages decode every query
        assert count_multiply_adds(model, pixel_values, 6)["keypoints"] == 2 * steps["keypoints"]
    # per stage the class and box branches and heads alone
    assert steps["boxes"] > 2 * 2 * 12 * (4 * 32**2 + 5 * 32)
    assert all(seconds > 0 for seconds in time_steps(model, pixel_values, 3, torch.device("cpu")).values())
    names = []
    run_steps(model, pixel_values, 3, names.append)
    assert names[:3] == ["backbone + neck", "boxes", "keypoints"] and names[-1] == ""


@pytest.mark.parametrize("query_feedback", ["never", "always"])
def test_multiply_adds_of_all_queries(query_feedback):
    """P2, which the keypoints of a few large people read in whole, does not grow with the queries."""
    model = make_model(query_feedback=query_feedback).float()
    model.requires_grad_(False)
    model.model.decoder.initial_boxes[:] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    for layer in model.model.decoder.box_layers:
        layer.box_head.weight.zero_()
        layer.box_head.bias.zero_()
    pixel_values = images(1, 3, 512, 512).float()
    every = count_multiply_adds(model, pixel_values, model.config.num_queries, lazily=False)["keypoints"]
    assert multiply_adds_of_all_queries(model, pixel_values) == every
    with_p2 = count_multiply_adds(model, pixel_values, model.config.num_queries)["keypoints"]
    assert with_p2 - every == 128 * 128 * 9 * model.config.d_model**2


def test_multiply_adds_of_the_light_model():
    """Of a published model, without weights: the figures that follow from the paper's sizes by hand."""
    from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation

    config = QueryPoseConfig.from_variant("r50", light=True)
    with torch.device("meta"):
        layer = QueryPoseForPoseEstimation(config).eval().model.decoder.keypoint_layers[0]
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            layer.part_embedding(layer.conv_stack(torch.zeros(1, 256, 14, 14)))
    convolutions = 196 * 9 * (256 * 512 + 4 * 512 * 512 + 512 * 256)
    upsampling = 196 * 16 * 256 * 256 + 784 * 9 * 256 * 7
    assert counter.get_total_flops() / 2 == pytest.approx(convolutions + upsampling, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": []}, "`people` is .*; expected one or more numbers"),
        ({"people": [2, 13]}, "`people` is .*; expected at most as many as the queries"),
        ({"image_sizes": [(64, 65)]}, "`image_sizes` is .*multiples of 32"),
        ({"rounds": 0}, "`rounds` is 0; expected at least 1"),
        ({"compare": ["yolo"]}, "`compare` is .*; expected some of full, plain"),
        ({"dtype": "int8"}, "`dtype` is 'int8'; expected one of float32"),
        ({"engines": ["tvm"]}, "`engines` is .*; expected some of compile, onnx"),
        ({"engines": ["onnx"], "dtype": "bfloat16"}, "`engines` is .*; expected 'compile' alone"),
        ({"num_threads": [0]}, "`num_threads` is .*; expected numbers of at least 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_settings(**changes)


def test_results_and_files(tmp_path, monkeypatch):
    parts = dict.fromkeys(training_step.PARTS, 0.01)
    fine_tuning = {"workers": 2, "images_per_second": 20.0, "data_wait": 0.1, "parts": parts}
    monkeypatch.setattr(benchmark, "measure_fine_tuning", lambda model, settings: fine_tuning)
    model = make_model(backbone="resnet", pose_query_interaction="none").float()
    # of more people than a given model has queries, only the first number is looked at
    settings = tiny_settings(num_threads=(1,), training=True, people=[2, 90], queries=[100])
    results = run_benchmark(settings, model)
    assert set(results["comparison"]) == {
        "selective",
        "selective, nothing folded",
        "full decoding",
        "full decoding, nothing folded",
    }
    assert results["base"] == {"people": 2, "queries": 12, "image_size": [64, 96], "batch_size": 1}
    table = describe_results(results)
    json_file, table_file = write_results(results, tmp_path)
    assert json.loads(json_file.read_text())["comparison"]["selective"]["times_of_selective"] == 1.0
    assert table_file.read_text() == table
    for name in (
        "decode",
        "preprocess",
        "backbone + neck",
        "boxes",
        "keypoints",
        "post-process",
        "full decoding",
        "training step",
        "matching and loss",
        "arithmetic at the measured peak",
    ):
        assert f"| {name} |" in table
    assert json_file.name.endswith("-float32-queryposeforposeestimation-64x96.json")
    # the record that the docs name has the name that it would be given
    of_record = {"device": "AMD EPYC, 2 threads", "model": "r50 light", "base": {**results["base"]}}
    of_record["base"]["image_size"] = [800, 1216]
    for path in write_results({**results, **of_record}, tmp_path):
        assert (PROJECT / "benchmarks" / path.name).is_file()
    assert f"`benchmarks/{path.name}`" in (PROJECT / "docs" / "speed.md").read_text()


def test_engines_side_by_side():
    """Each engine at each number of threads, within those that torch is left with."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = make_model(backbone="resnet", pose_query_interaction="none").float()
    settings = tiny_settings(engines=("onnx",), num_threads=(1, 2))
    before = torch.get_num_threads()
    found = measure_engines(model, fuse_for_inference(copy.deepcopy(model)), images(1, 3, 64, 96).float(), settings)
    assert [(each["engine"], each["threads"]) for each in found] == [
        ("torch", 1),
        ("torch", 2),
        ("onnx", 1),
        ("onnx", 2),
    ]
    assert torch.get_num_threads() == before
    for each, torch_itself in zip(found, found[:2] * 2, strict=True):
        assert each["times_of_torch"] == each["median_s"] / torch_itself["median_s"]
        assert len(each["times_s"]) == 1 and each["prepare_s"] > 0 and each["processor_s"] > 0


def test_training_step_next_to_plainer_ones():
    """The plainer ones decode the keypoints of every query, and each does so in every stage."""
    model = make_model(backbone="resnet", pose_query_interaction="none").float()
    pixel_values = images(2, 3, 64, 96).float()
    found = training_step.measure_training_step(model, pixel_values, 3, rounds=4, plain_rounds=1)
    for name, each in found.items():
        assert each["images_per_second"] == pytest.approx(2 / each["median_s"]), name
        assert len(each["times_s"]) == (1 if "every query" in name else 4), name
    assert list(found) == ["training step", "plain loop", "keypoints of every query"]
    assert all(parameter.grad is None for parameter in model.parameters())

    decoded = []
    for layer in model.model.decoder.keypoint_layers:
        layer.register_forward_hook(lambda module, inputs, output: decoded.append(len(inputs[0])))
    labels = training_step._labels(2, 3, model)
    model.eval()
    torch.testing.assert_close(
        training_step._loss(model, pixel_values, labels),
        training_step._loss_of_every_query(model, pixel_values, labels),
    )
    for loss, queries in ((training_step._loss, 3), (training_step._loss_of_every_query, model.config.num_queries)):
        decoded.clear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        training_step._step(model.train(), optimizer, pixel_values, labels, loss, torch.float32)()
        assert decoded == [2 * queries] * model.config.decoder_layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_training_step_is_that_of_the_recipe(monkeypatch, dtype):
    """Only the package's own is laid out as training does; half precision is mixed; one step warms up."""
    seen, loss = [], training_step._loss

    def look(model, pixel_values, labels):
        laid_out = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
        [precision] = {parameter.dtype for parameter in model.parameters()}
        seen.append((torch.is_autocast_enabled("cpu"), precision, laid_out))
        return loss(model, pixel_values, labels)

    monkeypatch.setattr(training_step, "_loss", look)
    model = make_model(backbone="resnet", pose_query_interaction="none").to(dtype)
    training_step.measure_training_step(model, images(1, 3, 64, 96).to(dtype), 2, rounds=1, plain_rounds=1)
    assert sorted(seen) == [(dtype != torch.float32, torch.float32, ours) for ours in (False, False, True, True)]


@pytest.fixture
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_fine_tuning_by_parts(monkeypatch, fresh_accelerator):
    """The parts are those of the loop's steps after the first ones, and add up to their time."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    model = make_model(backbone="resnet", pose_query_interaction="none").float()
    recipe = dataclasses.replace(RECIPES["fine_tuning"], num_workers=0)
    monkeypatch.setitem(RECIPES, "fine_tuning", recipe)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = tiny_settings(rounds=2, batch_sizes=(3,))
    found = training_step.measure_fine_tuning(model, settings)
    assert tuple(found["parts"]) == training_step.PARTS and found["workers"] == 0
    assert all(seconds > 0 for seconds in found["parts"].values())
    assert 3 / sum(found["parts"].values()) == pytest.approx(found["images_per_second"], rel=0.2)
    assert found["parts"]["waiting for data"] / sum(found["parts"].values()) == pytest.approx(found["data_wait"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert os.environ["ACCELERATE_USE_CPU"] == "false"


def test_command(tmp_path, capsys):
    folder = tmp_path / "model"
    save_tiny_checkpoint(folder)
    small = ["--people", "2", "--sizes", "64x64", "--batch-sizes", "1", "--rounds", "1", "--compare"]
    arguments = ["benchmark", "--model", str(folder), "--output", str(tmp_path / "out"), *small]
    assert main(arguments) == 0
    assert len(list((tmp_path / "out").glob("*.json"))) == 1
    assert "| keypoints |" in capsys.readouterr().out
    for wrong, message in (
        (["--sizes", "large"], "--sizes"),
        (["--sizes", "65x64"], "multiples of 32"),
        (["--people", "0"], "people"),
        (["--compare", "yolo"], "compare"),
    ):
        try:
            assert main(["benchmark", *wrong]) == 2
        except SystemExit as refused:  # a value that the parser cannot read
            assert refused.code == 2
        assert message in capsys.readouterr().err
