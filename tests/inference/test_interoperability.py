"""People in other libraries' forms, checked by what those libraries make of them."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_config
from transformers import pipeline

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.inference.interoperability import (
    PeopleArrays,
    fiftyone_skeleton,
    to_dataframe,
    to_fiftyone_labels,
    to_fiftyone_sample,
    to_supervision_detections,
    to_supervision_keypoints,
    to_transformers_detections,
    to_transformers_keypoints,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """People that a model found, in both forms, and its configuration."""
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config()).eval()
    image_processor = QueryPoseImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    picture = PIL.Image.open(SAMPLE_IMAGE)
    with torch.no_grad():
        outputs = model(**image_processor(picture, return_tensors="pt"))
    [people] = image_processor.post_process_pose_estimation(outputs, threshold=0.0, target_sizes=[picture.size[::-1]])
    pose_estimator = pipeline("pose-estimation", model=model, image_processor=image_processor)
    assert len(people) > 1
    return people, pose_estimator(picture, threshold=0.0), model.config, picture.size[::-1]


@pytest.mark.parametrize("form", [0, 1], ids=["post-processed", "pipeline"])
def test_supervision(found, form):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    people, config = found[form], found[2]
    key_points = to_supervision_keypoints(people, config)
    assert len(key_points) == len(people)
    theirs = supervision.KeyPoints.from_transformers(found[0])
    np.testing.assert_allclose(key_points.xy, theirs.xy, atol=1e-3)
    np.testing.assert_allclose(key_points.keypoint_confidence, theirs.keypoint_confidence, atol=1e-6)
    assert key_points.class_id.tolist() == [0] * len(people)
    assert key_points.data["class_name"].tolist() == ["person"] * len(people)

    same = supervision.KeyPoints.from_transformers(to_transformers_keypoints(people, config))
    np.testing.assert_allclose(same.xy, theirs.xy, atol=1e-3)
    np.testing.assert_allclose(same.keypoint_confidence, theirs.keypoint_confidence, atol=1e-6)
    boxes = supervision.Detections.from_transformers(
        to_transformers_detections(people, config), id2label=config.id2label
    )

    detections = to_supervision_detections(people, config)
    np.testing.assert_allclose(boxes.xyxy, detections.xyxy)
    np.testing.assert_allclose(boxes.confidence, detections.confidence)
    assert boxes.data["class_name"].tolist() == detections.data["class_name"].tolist()
    np.testing.assert_allclose(detections.xyxy, torch.stack([one["bbox"] for one in found[0]]), atol=1e-3)
    best = detections[detections.confidence == detections.confidence.max()]
    np.testing.assert_allclose(best.data["keypoints"], key_points.xy[:1])
    scene = np.zeros((*found[3], 3), dtype=np.uint8)
    drawn = supervision.EdgeAnnotator(edges=[(a + 1, b + 1) for a, b in config.keypoint_edges]).annotate(
        scene.copy(), key_points
    )
    assert drawn.any()
    assert supervision.BoxAnnotator().annotate(scene.copy(), detections).any()


def test_supervision_of_nobody():
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    assert len(to_supervision_keypoints([], tiny_config())) == 0
    assert len(to_supervision_detections([], tiny_config())) == 0
    assert supervision.KeyPoints.from_transformers(to_transformers_keypoints([], tiny_config())).is_empty()
    assert supervision.Detections.from_transformers(to_transformers_detections([], tiny_config())).is_empty()


@pytest.mark.parametrize("form", [0, 1], ids=["post-processed", "pipeline"])
def test_pandas(found, form):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    people, config = found[form], found[2]
    table = to_dataframe(people, config, image="scene.jpg")
    assert len(table) == len(people) * 17
    assert set(table.image) == {"scene.jpg"}
    for person, expected in enumerate(found[1]):
        rows = table[table.person == person].set_index("keypoint")
        assert rows.score.iloc[0] == pytest.approx(expected["score"])
        assert rows.xmax.iloc[0] == pytest.approx(expected["box"]["xmax"], abs=1e-3)
        assert set(rows.label) == {"person"}
        for point in expected["keypoints"]:
            row = rows.loc[point["name"]]
            assert [row.x, row.y, row.keypoint_score] == pytest.approx(
                [point["x"], point["y"], point["score"]], abs=1e-3
            )
    both = pandas.concat([table, to_dataframe([], config, image="empty.jpg")])
    assert len(both) == len(table)
    assert list(to_dataframe([], config).columns) == list(table.columns)


def test_fiftyone(found, tmp_path):
    pytest.importorskip(
        "fiftyone.core.labels", reason="FiftyOne, with its database, is half a gigabyte and not in the test extra"
    )
    people, _, config, (height, width) = found
    detections, keypoints = to_fiftyone_labels(people, config, (height, width))
    assert len(detections.detections) == len(keypoints.keypoints) == len(people)
    person, box, points = people[0], detections.detections[0], keypoints.keypoints[0]
    left, top, box_width, box_height = box.bounding_box
    corners = np.array([left, top, left + box_width, top + box_height]) * [width, height, width, height]
    np.testing.assert_allclose(corners, person["bbox"], atol=1e-3)
    np.testing.assert_allclose(np.array(points.points) * [width, height] - 0.5, person["keypoints"], atol=1e-3)
    np.testing.assert_allclose(points.confidence, person["scores"], atol=1e-6)
    assert (box.label, box.index, points.index) == ("person", 0, 0)
    sample = to_fiftyone_sample(SAMPLE_IMAGE, people, config, (height, width), field="found")
    assert len(sample["found_keypoints"].keypoints) == len(people)
    assert sample["found_boxes"].detections[0].confidence == pytest.approx(float(person["score"]))
    skeleton = fiftyone_skeleton(config)
    assert skeleton.labels == list(config.keypoint_names)
    assert [tuple(edge) for edge in skeleton.edges] == [tuple(edge) for edge in config.keypoint_edges]


def test_coco_results(found, tmp_path):
    """What COCO's own package reads."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from pycocotools.coco import COCO

    from querypose_hf.evaluation import coco_results_from_people, write_coco_results

    people = found[0]
    annotations = {
        "images": [{"id": 7, "width": found[3][1], "height": found[3][0], "file_name": "scene.jpg"}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    write_coco_results(coco_results_from_people(people, image_id=7), tmp_path / "results.json")
    loaded = COCO(tmp_path / "annotations.json").loadRes(str(tmp_path / "results.json"))
    records = loaded.loadAnns(loaded.getAnnIds(imgIds=[7]))
    assert len(records) == len(people)
    np.testing.assert_allclose(
        np.array(records[0]["keypoints"]).reshape(17, 3)[:, :2], people[0]["keypoints"], atol=1e-3
    )


def test_people_of_several_images_are_refused(found):
    people, _, config, _ = found
    with pytest.raises(ValueError, match="must be the people of one image, but holds list"):
        PeopleArrays.from_people([people], config)
    with pytest.raises(ValueError, match=r"`keypoints` of a person has shape \(17, 2\); expected \(14, 2\)"):
        PeopleArrays.from_people(people, tiny_config(**config.skeleton_fields("crowdpose")))
