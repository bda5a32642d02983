import functools
import json
import sys
import time

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_config

import querypose_hf.evaluation.evaluate as evaluate_module
from querypose_hf import COCO_17, QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor, Skeleton
from querypose_hf.evaluation import (
    KEYPOINT_METRICS,
    PredictionOptions,
    ReportOptions,
    ScoringOptions,
    evaluate_model,
    evaluate_predictions,
    predict_test_dev,
)
from querypose_hf.evaluation.evaluate import TEST_DEV_FILE


DEFAULT, NO_REPORT = ScoringOptions(), ReportOptions(write=False)


@pytest.fixture
def files(coco_case, tmp_path):
    dataset, results = coco_case
    (tmp_path / "annotations.json").write_text(json.dumps(dataset))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path / "annotations.json", tmp_path / "results.json", tmp_path / "scores" / "run"


@pytest.fixture(autouse=True)
def _needs_pycocotools():
    pytest.importorskip("pycocotools")


def test_the_files_written_are_what_is_returned(files, coco_case):
    annotations, predictions, output_dir = files
    before = annotations.read_bytes(), predictions.read_bytes()

    report = evaluate_predictions(annotations, predictions, output_dir, ScoringOptions(boxes=True), progress=False)

    assert json.loads((output_dir / "metrics.json").read_text()) == report
    assert json.loads((output_dir / "keypoints.json").read_text()) == coco_case[1]
    assert sorted(file.name for file in output_dir.iterdir()) == ["keypoints.json", "metrics.json"]
    assert list(report) == ["metrics", "box_metrics", "score_threshold", "protocol"]
    assert tuple(report["metrics"]) == KEYPOINT_METRICS["coco"]
    assert all(0 < value < 1 for value in report["metrics"].values())
    assert report["protocol"]["metric"] == "coco"
    assert report["protocol"]["images"] == 40
    assert report["protocol"]["results"] == len(coco_case[1])
    assert (annotations.read_bytes(), predictions.read_bytes()) == before


def test_lists_give_the_same_as_files(files, coco_case):
    from_files = evaluate_predictions(*files[:2], progress=False)
    assert evaluate_predictions(*coco_case, progress=False) == from_files


def test_scoring_again_what_was_written(files):
    annotations, predictions, output_dir = files
    first = evaluate_predictions(annotations, predictions, output_dir, progress=False)
    again = evaluate_predictions(annotations, output_dir / "keypoints.json", output_dir, progress=False)
    assert again == first


def test_crowdpose(crowdpose_case, tmp_path):
    report = evaluate_predictions(*crowdpose_case, tmp_path, ScoringOptions("crowdpose"), progress=False)
    assert tuple(report["metrics"]) == KEYPOINT_METRICS["crowdpose"]
    assert report["protocol"]["area"] == "0.53 * box width * box height"


def test_a_figure_that_does_not_exist_is_null(one_person, tmp_path):
    report = evaluate_predictions(one_person, [], tmp_path, ScoringOptions(sigmas=(0.1,) * 3), progress=False)
    assert report["metrics"]["APL"] is None
    assert '"APL": null' in (tmp_path / "metrics.json").read_text()


def test_some_images(coco_case, tmp_path):
    dataset, results = coco_case
    chosen = tuple(image["id"] for image in dataset["images"][:5])
    report = evaluate_predictions(dataset, results, tmp_path, ScoringOptions(image_ids=chosen), progress=False)
    assert report["protocol"]["images"] == 5
    written = json.loads((tmp_path / "keypoints.json").read_text())
    assert {record["image_id"] for record in written} <= set(chosen)
    assert report["protocol"]["results"] == len(written)


def test_nothing_is_written_when_something_is_wrong(coco_case, tmp_path):
    dataset, results = coco_case
    output_dir = tmp_path / "scores"
    wrong = [
        ({"metric": "crowd"}, "`metric` is 'crowd'"),
        ({"sigmas": (0.1,)}, "`sigmas` has 1 values"),
        ({"image_ids": (-1,)}, "`image_ids` holds -1"),
        ({"backend": "numpy"}, "`backend` is 'numpy'"),
        ({"predictions": [{**results[0], "score": None}]}, "result 0: `score` is None"),
        ({"predictions": [{k: v for k, v in results[0].items() if k != "bbox"}], "boxes": True}, "`bbox` is missing"),
    ]
    for changed, message in wrong:
        predictions = changed.pop("predictions", results)
        with pytest.raises(ValueError, match=message):
            evaluate_predictions(dataset, predictions, output_dir, ScoringOptions(**changed), progress=False)
    assert not output_dir.exists()


def test_crowdpose_without_crowd_indices(coco_case):
    dataset, results = coco_case
    del dataset["images"][3]["crowdIndex"]
    with pytest.raises(ValueError, match="image 3: `crowdIndex` is missing"):
        evaluate_predictions(dataset, results, scoring=ScoringOptions("crowdpose"))


def test_output_that_is_a_file(coco_case, tmp_path):
    (tmp_path / "scores").write_text("")
    with pytest.raises(ValueError, match=r"`output_dir` is .*scores', which is a file; expected a folder"):
        evaluate_predictions(*coco_case, tmp_path / "scores")


def test_missing_pycocotools_is_noticed_first(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "querypose_hf.evaluation.pycocotools_scorer", raising=False)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"pip install querypose-hf\[evaluation\]"):
        evaluate_predictions(tmp_path / "none.json", [])


def test_figures_of_the_official_tools(shared):
    """What pycocotools and CrowdPose's own tool answer on the shared annotations and results."""
    data = shared / "data"
    oracles = data / "eval_oracles" / "expected.json"
    if not oracles.is_file():
        pytest.skip(f"no {oracles}")
    sets = {
        "crowdpose/crowdpose_val.json + crowdpose/preds.json": (
            "crowdpose/crowdpose_val",
            "crowdpose/preds",
            "crowdpose",
        ),
        "eval_oracles/one_image_*.json": ("eval_oracles/one_image_gt", "eval_oracles/one_image_dt", "coco"),
        "eval_oracles/four_images_*.json": ("eval_oracles/four_images_gt", "eval_oracles/four_images_dt", "coco"),
    }
    compared = 0
    for name, figures in json.loads(oracles.read_text()).items():
        annotations, predictions, metric = sets[name]
        report = evaluate_predictions(
            data / f"{annotations}.json",
            data / f"{predictions}.json",
            scoring=ScoringOptions(metric),
            progress=False,
        )
        for figure, value in report["metrics"].items():
            # CrowdPose's tool rounds the figures of its groups to four digits
            if figure.startswith("AP_"):
                value = round(value, 4)
            assert value == pytest.approx(figures[figure], abs=1e-6), (name, figure)
            compared += 1
    assert compared == 29


@pytest.fixture
def image_processor():
    return QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return QueryPoseForPoseEstimation(tiny_config())


@pytest.fixture
def data(model, image_processor, tmp_path):
    """Three images whose annotations are what the model finds, a little moved, so that some of it is right."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id, (width, height) in enumerate([(96, 64), (64, 96), (80, 80)], start=1):
        image = PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(tmp_path / f"{image_id}.png")
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height, "crowdIndex": 0.1}
        )
        with torch.inference_mode():
            outputs = model.eval()(**image_processor(image, return_tensors="pt"))
        for person in image_processor.post_process_pose_estimation(outputs, 0.0, [(height, width)])[0][:2]:
            points = person["keypoints"].numpy() + rng.normal(0, 1, (17, 2))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [0.0, 0.0, 60.0, 60.0],
                    "area": 2000.0,
                    "keypoints": np.column_stack([points, np.full(17, 2)]).ravel().tolist(),
                }
            )
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_17.keypoint_names)}]
    (tmp_path / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return tmp_path


def evaluate(model, data, image_processor, report=NO_REPORT, scoring=DEFAULT, **prediction):
    return evaluate_model(
        model,
        data / "annotations.json",
        data,
        data / "scores",
        PredictionOptions(**{"num_workers": 0, "batch_size": 2, **prediction}),
        scoring,
        report,
        image_processor=image_processor,
        progress=False,
    )


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_figures_files_and_report(model, image_processor, data):
    figures = evaluate(model, data, image_processor, ReportOptions(), ScoringOptions(boxes=True))
    scores = data / "scores"
    assert names(scores) == ["keypoints.json", "metrics.json", "report.html", "report.json"]
    assert json.loads((scores / "metrics.json").read_text()) == figures
    assert 0.1 < figures["metrics"]["AP"] < 1
    again = evaluate_predictions(
        data / "annotations.json", scores / "keypoints.json", scoring=ScoringOptions(boxes=True), progress=False
    )
    assert {name: figures[name] for name in again} == again
    assert figures["prediction"] == {
        "model": "QueryPoseForPoseEstimation",
        "dtype": "float32",
        "device": "cpu",
        "batch_size": 2,
        "top_k": 20,
        "flip_test": False,
        "scales": None,
    }
    assert figures["time"]["images"] == 3 and figures["time"]["images_per_second"] > 0
    assert list(figures["time"]["seconds"]) == ["loading", "reading", "model", "writing", "scoring", "report"]
    page = (scores / "report.html").read_text()
    assert page.count("<img") == 6
    assert "annotations.json" in page


def test_the_parts_add_up_to_the_whole(model, image_processor, data, monkeypatch):
    """What takes long is in some part, wherever it is."""
    for name in ("load_model", "check_model", "score_keypoints", "write_coco_results", "write_report"):
        slow = functools.partial(_slowly, getattr(evaluate_module, name))
        monkeypatch.setattr(evaluate_module, name, slow)
    start = time.perf_counter()
    found = evaluate(model, data, image_processor, report=ReportOptions())["time"]
    wall = time.perf_counter() - start
    assert found["seconds"]["report"] > 0.4 and found["seconds"]["loading"] > 0.4
    assert 0.9 * wall < sum(found["seconds"].values()) < found["total_seconds"] + 0.01 < wall + 0.02


def _slowly(function, *arguments, **options):
    time.sleep(0.2)
    return function(*arguments, **options)


def test_without_a_report(model, image_processor, data):
    evaluate(model, data, image_processor)
    assert names(data / "scores") == ["keypoints.json", "metrics.json"]


def test_a_folder_with_flip_test_and_scales(model, image_processor, data):
    model.save_pretrained(data / "checkpoint")
    image_processor.save_pretrained(data / "checkpoint")
    figures = evaluate(data / "checkpoint", data, None, flip_test=True, scales=(1, 0.5), device="cpu")
    assert figures["prediction"]["model"] == str(data / "checkpoint")
    assert figures["prediction"]["flip_test"] is True
    assert figures["prediction"]["scales"] == [1, 0.5]
    assert figures["protocol"]["results"] <= 20 * 3


def test_sigmas_of_the_model_for_its_own_keypoints(model, image_processor, data):
    own = Skeleton.from_names([f"k{index}" for index in range(17)], sigmas=[0.05] * 17)
    other = QueryPoseForPoseEstimation(tiny_config(**QueryPoseConfig.skeleton_fields(own)))
    figures = evaluate(other, data, image_processor)
    assert figures["protocol"]["sigmas"] == [0.05] * 17
    assert evaluate(model, data, image_processor)["protocol"]["sigmas"] == list(COCO_17.sigmas)
    given = evaluate(model, data, image_processor, scoring=ScoringOptions(sigmas=(0.2,) * 17))
    assert given["protocol"]["sigmas"] == [0.2] * 17


def test_test_dev_is_written_as_the_server_takes_it(model, image_processor, data):
    content = json.loads((data / "annotations.json").read_text())
    del content["annotations"]
    (data / "annotations.json").write_text(json.dumps(content))
    options = PredictionOptions(batch_size=2, num_workers=0)
    answer = predict_test_dev(
        model,
        data / "annotations.json",
        data,
        data / "scores",
        options,
        image_processor=image_processor,
        progress=False,
    )
    assert names(data / "scores") == [TEST_DEV_FILE]
    submission = json.loads((data / "scores" / TEST_DEV_FILE).read_text())
    assert len(submission) == answer["results"] > 0
    assert {tuple(result) for result in submission} == {("image_id", "category_id", "keypoints", "score")}


def test_bad_input_stops_before_inference(model, image_processor, data, monkeypatch):
    def forward(*args, **kwargs):
        raise AssertionError("inference was started")

    monkeypatch.setattr(QueryPoseForPoseEstimation, "forward", forward)
    wrong = [
        ({"backend": "numpy"}, "`backend` is 'numpy'"),
        ({"sigmas": (0.1,)}, "`sigmas` has 1 values"),
        ({"metric": "voc"}, "`metric` is 'voc'"),
        ({"metric": "crowdpose", "sigmas": (0.1,) * 14}, "`sigmas` has 14 values"),
        ({"image_ids": (9,)}, "`image_ids` holds 9"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            evaluate(model, data, image_processor, scoring=ScoringOptions(**options))
    assert not (data / "scores").exists()
    (data / "scores").write_text("")
    with pytest.raises(ValueError, match=r"`output_dir` is .*scores', which is a file"):
        evaluate(model, data, image_processor)
