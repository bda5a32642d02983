import json
import sys

import pytest

from querypose_hf.evaluation import KEYPOINT_METRICS, evaluate_predictions


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

    report = evaluate_predictions(annotations, predictions, output_dir=output_dir, boxes=True, progress=False)

    assert json.loads((output_dir / "metrics.json").read_text()) == report
    assert json.loads((output_dir / "keypoints.json").read_text()) == coco_case[1]
    assert sorted(file.name for file in output_dir.iterdir()) == ["keypoints.json", "metrics.json"]
    assert list(report) == ["metrics", "box_metrics", "protocol"]
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
    first = evaluate_predictions(annotations, predictions, output_dir=output_dir, progress=False)
    again = evaluate_predictions(annotations, output_dir / "keypoints.json", output_dir=output_dir, progress=False)
    assert again == first


def test_crowdpose(crowdpose_case, tmp_path):
    report = evaluate_predictions(*crowdpose_case, metric="crowdpose", output_dir=tmp_path, progress=False)
    assert tuple(report["metrics"]) == KEYPOINT_METRICS["crowdpose"]
    assert report["protocol"]["area"] == "0.53 * box width * box height"


def test_a_figure_that_does_not_exist_is_null(one_person, tmp_path):
    report = evaluate_predictions(one_person, [], sigmas=[0.1] * 3, output_dir=tmp_path, progress=False)
    assert report["metrics"]["APL"] is None
    assert '"APL": null' in (tmp_path / "metrics.json").read_text()


def test_some_images(coco_case, tmp_path):
    dataset, results = coco_case
    chosen = [image["id"] for image in dataset["images"][:5]]
    report = evaluate_predictions(dataset, results, image_ids=chosen, output_dir=tmp_path, progress=False)
    assert report["protocol"]["images"] == 5
    written = json.loads((tmp_path / "keypoints.json").read_text())
    assert {record["image_id"] for record in written} <= set(chosen)
    assert report["protocol"]["results"] == len(written)


def test_nothing_is_written_when_something_is_wrong(coco_case, tmp_path):
    dataset, results = coco_case
    output_dir = tmp_path / "scores"
    wrong = [
        ({"metric": "crowd"}, "`metric` is 'crowd'"),
        ({"sigmas": [0.1]}, "`sigmas` has 1 values"),
        ({"image_ids": [-1]}, "`image_ids` holds -1"),
        ({"backend": "numpy"}, "`backend` is 'numpy'"),
        ({"predictions": [{**results[0], "score": None}]}, "result 0: `score` is None"),
        ({"predictions": [{k: v for k, v in results[0].items() if k != "bbox"}], "boxes": True}, "`bbox` is missing"),
    ]
    for changed, message in wrong:
        arguments = {"annotations": dataset, "predictions": results, "output_dir": output_dir, "progress": False}
        with pytest.raises(ValueError, match=message):
            evaluate_predictions(**{**arguments, **changed})
    assert not output_dir.exists()


def test_crowdpose_without_crowd_indices(coco_case):
    dataset, results = coco_case
    del dataset["images"][3]["crowdIndex"]
    with pytest.raises(ValueError, match="image 3: `crowdIndex` is missing"):
        evaluate_predictions(dataset, results, metric="crowdpose")


def test_output_that_is_a_file(coco_case, tmp_path):
    (tmp_path / "scores").write_text("")
    with pytest.raises(ValueError, match=r"`output_dir` is .*scores', which is a file; expected a folder"):
        evaluate_predictions(*coco_case, output_dir=tmp_path / "scores")


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
            data / f"{annotations}.json", data / f"{predictions}.json", metric=metric, progress=False
        )
        for figure, value in report["metrics"].items():
            # CrowdPose's tool rounds the figures of its groups to four digits
            if figure.startswith("AP_"):
                value = round(value, 4)
            assert value == pytest.approx(figures[figure], abs=1e-6), (name, figure)
            compared += 1
    assert compared == 29
