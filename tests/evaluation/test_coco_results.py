import copy
import json
import math

import numpy as np
import pytest
import torch

from querypose_hf.evaluation import coco_results_from_people, read_coco_results, write_coco_results


def make_people(count=3, num_keypoints=17):
    generator = torch.Generator().manual_seed(0)
    people = []
    for index in range(count):
        corner = torch.rand(2, generator=generator) * 300
        people.append(
            {
                "score": torch.rand((), generator=generator),
                "label": torch.tensor(index % 2),
                "bbox": torch.cat([corner, corner + torch.rand(2, generator=generator) * 200]),
                "keypoints": torch.rand(num_keypoints, 2, generator=generator) * 500,
                "scores": torch.rand(num_keypoints, generator=generator),
                "labels": torch.arange(num_keypoints),
            }
        )
    return people


def make_results():
    return [
        {"image_id": 5, "category_id": 1, "keypoints": [1.0, 2.0, 0.5] * 2, "score": 0.5, "bbox": [0.0, 0.0, 4.0, 4.0]}
        for _ in range(3)
    ]


def read(results):
    return read_coco_results(results, num_keypoints=2, image_ids=[5, 6], category_ids=[1])


def test_people_become_records():
    people = make_people()
    records = coco_results_from_people(people, torch.tensor(42), category_ids=(1, 8))
    assert [record["category_id"] for record in records] == [1, 8, 1]
    for person, record in zip(people, records, strict=True):
        assert record["image_id"] == 42 and type(record["image_id"]) is int
        assert record["score"] == person["score"].item()
        keypoints = np.array(record["keypoints"]).reshape(17, 3)
        assert np.abs(keypoints[:, :2] - person["keypoints"].double().numpy()).max() <= 0.5001e-4
        assert np.abs(keypoints[:, 2] - person["scores"].double().numpy()).max() <= 0.5001e-6
        left, top, width, height = record["bbox"]
        assert [left, top, left + width, top + height] == pytest.approx(person["bbox"].tolist(), abs=2e-4)


def test_plain_numbers_and_half_precision_are_taken_too():
    person = {"score": 0.1, "label": 0, "bbox": [1, 2, 4, 8], "keypoints": [[3.5, 4.0]], "scores": [0.75]}
    expected = {"image_id": 7, "category_id": 1, "keypoints": [3.5, 4, 0.75], "score": 0.1, "bbox": [1, 2, 3, 6]}
    assert coco_results_from_people([person], 7) == [expected]
    as_tensors = {field: torch.tensor(value, dtype=torch.bfloat16) for field, value in person.items()}
    assert coco_results_from_people([as_tensors], 7)[0]["keypoints"] == [3.5, 4, 0.75]


def test_nobody_becomes_no_record():
    assert coco_results_from_people([], 7) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label", torch.tensor(1), "image 7: person 1: `label` is 1; expected one of the 1 that `category_ids` has"),
        ("label", torch.tensor(-1), "image 7: person 1: `label` is -1"),
        ("score", torch.tensor(math.nan), "image 7: person 1: `score` holds NaN or infinity"),
        ("keypoints", torch.full((17, 2), math.inf), "image 7: person 1: `keypoints` holds NaN or infinity"),
    ],
)
def test_people_that_cannot_be_written(field, value, message):
    people = make_people(2)
    people[1]["label"] = torch.tensor(0)
    people[1][field] = value
    with pytest.raises(ValueError, match=message):
        coco_results_from_people(people, 7)


def test_arrays_that_do_not_fit_together():
    people = make_people(1)
    with pytest.raises(ValueError, match=r"`keypoints` has shape \(17, 2\) and `scores` \(16,\); expected"):
        coco_results_from_people([{**people[0], "scores": torch.zeros(16)}], 7)
    with pytest.raises(ValueError, match=r"`bbox` has shape \(5,\); expected \(4,\), xyxy"):
        coco_results_from_people([{**people[0], "bbox": torch.zeros(5)}], 7)


def test_records_survive_the_file(tmp_path):
    records = coco_results_from_people(make_people(), 5, category_ids=(1, 8))
    path = tmp_path / "new" / "keypoints.json"
    write_coco_results(records, path)
    assert read_coco_results(path, 17, [5], [1, 8]) == records
    assert [file.name for file in path.parent.iterdir()] == ["keypoints.json"]


def test_numpy_numbers_can_be_written(tmp_path):
    records = [{"image_id": np.int64(5), "score": np.float32(0.5), "keypoints": np.ones(3)}]
    write_coco_results(records, tmp_path / "keypoints.json")
    written = json.loads((tmp_path / "keypoints.json").read_text())
    assert written == [{"image_id": 5, "score": 0.5, "keypoints": [1, 1, 1]}]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "keypoints.json"
    write_coco_results([], path)
    with pytest.raises(ValueError):
        write_coco_results([{"score": math.nan}], path)
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        write_coco_results([{"score": {1}}], path)
    assert path.read_text() == "[]\n"
    assert [file.name for file in tmp_path.iterdir()] == ["keypoints.json"]


def test_good_results_are_returned_as_they_are():
    results = make_results()
    before = copy.deepcopy(results)
    assert read(results) == before
    assert read([]) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_id", 7, "result 1: `image_id` is 7; expected one of the annotations' 2 ids, such as 5"),
        ("image_id", "5", "result 1: `image_id` is '5'; expected"),
        ("image_id", [5], r"result 1: `image_id` is \[5\]; expected"),
        ("image_id", None, "result 1: `image_id` is missing; expected"),
        ("category_id", 2, "result 1: `category_id` is 2; expected one of the annotations' 1 ids, such as 1"),
        ("keypoints", [1.0] * 5, "result 1: `keypoints` has 5 values; expected 6 numbers, x, y, score for each of 2"),
        ("keypoints", [1.0] * 5 + [math.nan], r"result 1: `keypoints`\[5\] is nan; expected 6 numbers"),
        ("keypoints", [[1.0, 2.0, 3.0]] * 6, r"result 1: `keypoints`\[0\] is \[1.0, 2.0, 3.0\]; expected 6"),
        ("keypoints", None, "result 1: `keypoints` is missing; expected 6 numbers"),
        ("score", None, "result 1: `score` is missing; expected a number"),
        ("score", "high", "result 1: `score` is 'high'; expected a number"),
        ("score", math.inf, "result 1: `score` is inf; expected a number"),
        ("bbox", None, "result 1: `bbox` is missing; expected x, y, width, height in every record or in none"),
        ("bbox", [1, 2, 3, math.nan], r"result 1: `bbox`\[3\] is nan; expected"),
    ],
)
def test_wrong_results_are_named(field, value, message, tmp_path):
    results = make_results()
    if value is None:
        del results[1][field]
    else:
        results[1][field] = value
    path = tmp_path / "found.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"found\.json: {message}"):
        read(path)
    with pytest.raises(ValueError, match=f"results: {message}"):
        read(results)


def test_boxes_that_come_later_are_missed_in_the_first():
    results = make_results()
    del results[0]["bbox"]
    with pytest.raises(ValueError, match=r"result 0: `bbox` is missing; expected .* in every record or in none"):
        read(results)


def test_files_that_are_not_results(tmp_path):
    path = tmp_path / "found.json"
    with pytest.raises(FileNotFoundError, match=r"found\.json: no such file"):
        read(path)
    path.write_text('{"annotations": []}')
    with pytest.raises(ValueError, match=r"found\.json: expected a list, got \{"):
        read(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"found\.json: result 0: expected an object with named fields, got 1"):
        read(path)
