import json

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_config

from querypose_hf import COCO_17, QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor, Skeleton
from querypose_hf.evaluation import evaluate_predictions
from querypose_hf.evaluation.model_evaluation import TEST_DEV_FILE, evaluate_model


pytest.importorskip("pycocotools")

QUIET = {"num_workers": 0, "progress": False, "batch_size": 2}


@pytest.fixture
def image_processor():
    return QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return QueryPoseForPoseEstimation(tiny_config())


@pytest.fixture
def data(model, image_processor, tmp_path):
    """Three pictures whose annotations are what the model finds, a little moved, so that some of it is right."""
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


def evaluate(model, data, image_processor, **options):
    return evaluate_model(
        model,
        data / "annotations.json",
        data,
        data / "scores",
        **{"image_processor": image_processor, **QUIET, **options},
    )


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_figures_files_and_report(model, image_processor, data):
    figures = evaluate(model, data, image_processor, boxes=True)
    scores = data / "scores"
    assert names(scores) == ["keypoints.json", "metrics.json", "report.html", "report.json"]
    assert json.loads((scores / "metrics.json").read_text()) == figures
    assert 0.1 < figures["metrics"]["AP"] < 1
    again = evaluate_predictions(data / "annotations.json", scores / "keypoints.json", boxes=True, progress=False)
    assert {name: figures[name] for name in again} == again
    assert figures["prediction"] == {
        "model": "QueryPoseForPoseEstimation",
        "dtype": "float32",
        "device": "cpu",
        "batch_size": 2,
        "top_k": 20,
        "flip_test": False,
        "scales": None,
        "undo_squeeze": False,
    }
    page = (scores / "report.html").read_text()
    assert page.count("<img") == 6
    assert "annotations.json" in page


def test_without_a_report(model, image_processor, data):
    evaluate(model, data, image_processor, report=False)
    assert names(data / "scores") == ["keypoints.json", "metrics.json"]


def test_a_folder_with_flip_test_and_scales(model, image_processor, data):
    model.save_pretrained(data / "checkpoint")
    image_processor.save_pretrained(data / "checkpoint")
    figures = evaluate(data / "checkpoint", data, None, flip_test=True, scales=(1, 0.5), device="cpu", report=False)
    assert figures["prediction"]["model"] == str(data / "checkpoint")
    assert figures["prediction"]["flip_test"] is True
    assert figures["prediction"]["scales"] == [1, 0.5]
    assert figures["protocol"]["results"] <= 20 * 3


def test_sigmas_of_the_model_for_its_own_keypoints(model, image_processor, data):
    own = Skeleton.from_names([f"k{index}" for index in range(17)], sigmas=[0.05] * 17)
    other = QueryPoseForPoseEstimation(tiny_config(**QueryPoseConfig.skeleton_fields(own)))
    figures = evaluate(other, data, image_processor, report=False)
    assert figures["protocol"]["sigmas"] == [0.05] * 17
    assert evaluate(model, data, image_processor, report=False)["protocol"]["sigmas"] == list(COCO_17.sigmas)
    given = evaluate(model, data, image_processor, report=False, sigmas=[0.2] * 17)
    assert given["protocol"]["sigmas"] == [0.2] * 17


def test_test_dev_is_written_as_the_server_takes_it(model, image_processor, data):
    content = json.loads((data / "annotations.json").read_text())
    del content["annotations"]
    (data / "annotations.json").write_text(json.dumps(content))
    answer = evaluate(model, data, image_processor, test_dev=True)
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
        ({"sigmas": [0.1]}, "`sigmas` has 1 values"),
        ({"worst_images": -1}, "`worst_images` is -1"),
        ({"metric": "voc"}, "`metric` is 'voc'"),
        ({"metric": "crowdpose", "sigmas": [0.1] * 14}, "`sigmas` has 14 values"),
        ({"image_ids": [9]}, "`image_ids` holds 9"),
        ({"test_dev": True, "boxes": True}, "`test_dev` is True"),
        ({"batch_size": 0}, "`batch_size` is 0"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            evaluate(model, data, image_processor, **options)
    assert not (data / "scores").exists()
    (data / "scores").write_text("")
    with pytest.raises(ValueError, match=r"`output_dir` is .*scores', which is a file"):
        evaluate(model, data, image_processor)
