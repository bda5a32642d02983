"""The checkpoint that comes with the package."""

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from places import SHARED
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForPoseEstimation, pipeline

import querypose_hf
from querypose_hf import QUERYPOSE_NANO, PoseEstimationPipeline, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.export import ExportedPoseEstimator, ExportOptions, export_model
from querypose_hf.hub.endpoint_handler import EndpointHandler
from querypose_hf.model.fusion_querypose import find_norm_pairs, fuse_for_inference
from querypose_hf.weights.float16_storage import store_in_float16


DATA = SHARED / "data"


def test_is_small_and_whole():
    weights = Path(QUERYPOSE_NANO, "model.safetensors")
    assert weights.stat().st_size <= 15e6
    with safe_open(weights, "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    # a running variance beyond float16's range keeps its type
    assert all(kind in ("F16", "I64") or name.endswith("upsample_norm.running_var") for name, kind in types.items())
    model, report = QueryPoseForPoseEstimation.from_pretrained(QUERYPOSE_NANO, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_is_the_default_of_the_pipeline():
    pose_estimator = pipeline("pose-estimation", device="cpu")
    assert pose_estimator.model.config.keypoint_names == list(querypose_hf.COCO_17.keypoint_names)
    assert pose_estimator.model.name_or_path == QUERYPOSE_NANO


def test_card_and_log_are_complete():
    folder = Path(QUERYPOSE_NANO)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "keypoint-detection"
    figures = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert len(figures) >= 2 and all(1 < value < 100 for value in figures.values())  # in %
    records = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == sorted(set(steps)) and {*range(20, 8001, 20)} <= {*steps}


def load(folder=QUERYPOSE_NANO, **options):
    return QueryPoseForPoseEstimation.from_pretrained(folder, **options).eval()


def find_people(model):
    """Scores `(n,)` and keypoints `(n, 17, 2)` in the sample, from left to right."""
    pose_estimator = PoseEstimationPipeline(
        model=model,
        image_processor=QueryPoseImageProcessor.from_pretrained(QUERYPOSE_NANO),
        task="pose-estimation",
        device="cpu",
    )
    people = pose_estimator(str(SAMPLE_IMAGE), threshold=0.25)  # far from the score of anyone
    people.sort(key=lambda person: person["box"]["xmin"] + person["box"]["xmax"])
    keypoints = [[(point["x"], point["y"]) for point in person["keypoints"]] for person in people]
    return torch.tensor([person["score"] for person in people]), torch.tensor(keypoints)


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory):
    """The same function with running variances beyond float16, as other checkpoints have them."""
    model = load()
    norms = [
        (layer.part_embedding.upsample, layer.part_embedding.upsample_norm, 6e6)
        for layer in model.model.decoder.keypoint_layers
    ]
    pairs, _ = find_norm_pairs(model.model.backbone, torch.randn(1, 3, 64, 64))
    norms += [(convolution, norm, 9e4) for convolution, _, norm in pairs]
    assert len(norms) > 20
    with torch.no_grad():
        for convolution, norm, variance in norms:
            channel = norm.running_var.argmax()
            factor = (variance / norm.running_var[channel]).sqrt()
            weight = convolution.weight
            (weight[:, channel] if isinstance(convolution, nn.ConvTranspose2d) else weight[channel]).mul_(factor)
            assert weight.abs().max() < 6e4
            norm.running_mean[channel] *= factor
            norm.running_var[channel] = variance
    folder = tmp_path_factory.mktemp("large")
    model.save_pretrained(folder)
    QueryPoseImageProcessor.from_pretrained(QUERYPOSE_NANO).save_pretrained(folder)
    return folder


# features are rounded; float16 is the finer of the two. People who overlap differ most
@pytest.mark.parametrize(("dtype", "pixels"), [(torch.bfloat16, 12), (torch.float16, 3)])
def test_finds_the_same_people_in_half_precision(dtype, pixels, large_checkpoint, tmp_path):
    """As in float32, however the model comes to be in half precision. The sample is 640 pixels wide."""
    expected_scores, expected_keypoints = find_people(load())
    assert len(expected_scores) == 5

    def check(model):
        scores, keypoints = find_people(model)
        torch.testing.assert_close(scores, expected_scores, rtol=0, atol=0.1)
        torch.testing.assert_close(keypoints, expected_keypoints, rtol=0, atol=pixels)

    model = load(large_checkpoint, dtype=dtype)
    assert model.dtype == dtype
    check(model)
    with torch.autocast("cpu", dtype=dtype):
        check(load(large_checkpoint))
    check(copy.deepcopy(model).float())  # as an export does
    check(fuse_for_inference(copy.deepcopy(model)))

    # the same weights, so the same people
    model.save_pretrained(tmp_path / "saved")
    QueryPoseImageProcessor.from_pretrained(QUERYPOSE_NANO).save_pretrained(tmp_path / "saved")
    stored = store_in_float16(tmp_path / "saved", tmp_path / "stored")
    built = AutoModelForPoseEstimation.from_config(model.config, dtype=dtype)
    built.load_state_dict(load(large_checkpoint).state_dict())
    for other in (
        load(large_checkpoint).to(dtype),
        load(large_checkpoint).double().to(dtype),
        getattr(load(large_checkpoint), "half" if dtype == torch.float16 else "bfloat16")(),
        built,
        load(tmp_path / "saved", dtype="auto"),
        load(stored, dtype=dtype),
        EndpointHandler(str(tmp_path / "saved"), device="cpu").pose_estimator.model,
        pipeline("pose-estimation", model=str(tmp_path / "saved"), dtype=dtype, device="cpu").model,
    ):
        found = other.state_dict()
        for name, value in model.state_dict().items():
            assert found[name].dtype == value.dtype, name
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7, msg=name)  # float16 storage


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "format"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_exports_find_the_same_people(engine, format, tmp_path):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    expected_scores, expected_keypoints = find_people(load())
    export_model(
        load(), QueryPoseImageProcessor.from_pretrained(QUERYPOSE_NANO), tmp_path, ExportOptions(format=format)
    )
    scores, keypoints = find_people(ExportedPoseEstimator.from_export(tmp_path))
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-3)
    torch.testing.assert_close(keypoints, expected_keypoints, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("dataset", "name", "least"),
    [
        ("coco_ccby", "39 photographs of COCO (CC BY)", {"AP": 0.30, "AP50": 0.55}),
        pytest.param("coco_val2017", "400 images of COCO val2017", {"AP": 0.35, "AP50": 0.62}, marks=pytest.mark.slow),
    ],
)
def test_finds_people_in_photographs(dataset, name, least, tmp_path):
    """The figures that the card gives are those of the checkpoint."""
    data = DATA / dataset
    if not data.is_dir():
        pytest.skip(f"needs ../shared/data/{dataset}")
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from querypose_hf.evaluation import PredictionOptions, ReportOptions, evaluate_model

    result = evaluate_model(
        QUERYPOSE_NANO,
        data / "person_keypoints.json",
        data / "images",
        tmp_path,
        PredictionOptions(num_workers=0, device="cpu"),
        report=ReportOptions(write=False),
    )
    metrics = result["metrics"]
    assert all(metrics[metric] >= value for metric, value in least.items())
    card = ModelCard.load(Path(QUERYPOSE_NANO) / "README.md")
    stated = {
        result.metric_type: result.metric_value for result in card.data.eval_results if result.dataset_name == name
    }
    assert set(stated) == {"ap", "ap50"}
    for metric, percent in stated.items():
        assert 100 * metrics[metric.upper()] == pytest.approx(percent, abs=0.25), metric
