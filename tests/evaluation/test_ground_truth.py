import copy
import json
import math

import pytest

from querypose_hf.evaluation import KeypointGroundTruth


def test_missing_fields_are_filled_in_and_the_file_stays_as_it_is(one_person, tmp_path):
    person = one_person["annotations"][0]
    for name in ("iscrowd", "num_keypoints", "area", "id"):
        del person[name]
    one_person["images"][0]["crowdIndex"] = 0.3
    one_person["annotations"].append({"image_id": 5, "category_id": 1, "bbox": [0, 0, 10, 10]})
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(one_person))
    before = path.read_bytes()

    ground_truth = KeypointGroundTruth.read(path, "crowdpose")

    first, second = ground_truth.annotations
    assert (first["area"], first["iscrowd"], first["num_keypoints"]) == (0.53 * 100 * 100, 0, 3)
    assert (second["keypoints"].tolist(), second["num_keypoints"]) == ([0] * 9, 0)
    assert ground_truth.people_per_image() == {5: 1}
    assert ground_truth.image_groups == {"easy": [], "medium": [5], "hard": []}
    assert ground_truth.num_keypoints == 3
    assert path.read_bytes() == before


def test_a_count_of_keypoints_that_is_given_stands(one_person):
    """As in the official tools: 0 takes a person out, whatever the visibilities say."""
    one_person["annotations"][0]["num_keypoints"] = 0
    assert KeypointGroundTruth.read(one_person).people_per_image() == {5: 0}


def test_annotations_of_unlisted_images_and_categories_are_left_out(one_person):
    person = one_person["annotations"][0]
    one_person["annotations"] += [{**person, "id": 2, "image_id": 99}, {**person, "id": 3, "category_id": 2}]
    assert len(KeypointGroundTruth.read(one_person).annotations) == 1


def test_some_images(one_person):
    one_person["images"].append({"id": 6})
    ground_truth = KeypointGroundTruth.read(one_person, image_ids=[6, 6])
    assert [image["id"] for image in ground_truth.images] == [6]
    assert ground_truth.annotations == []
    assert ground_truth.known_image_ids == {5, 6}
    with pytest.raises(
        ValueError, match="`image_ids` holds 7, 8, which annotations does not have; its ids are like 5, 6"
    ):
        KeypointGroundTruth.read(one_person, image_ids=[5, 7, 8])
    with pytest.raises(ValueError, match="there are no images"):
        KeypointGroundTruth.read(one_person, image_ids=[])


def _without(field):
    return lambda record: record.pop(field)


def _with(field, value):
    return lambda record: record.update({field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("bbox"), "annotation 1: `bbox` is missing; expected 4 numbers"),
        (_with("bbox", [1, 2, 3]), "annotation 1: `bbox` has 3 values; expected 4 numbers"),
        (_with("bbox", [1, 2, "3", 4]), r"annotation 1: `bbox`\[2\] is '3'; expected 4 numbers"),
        (_without("area"), "annotation 1: `area` is missing, as in 1 of 2; expected the person's area.*--area-ratio"),
        (_with("area", math.nan), "annotation 1: `area` is nan; expected"),
        (_with("keypoints", [1, 2, 2] * 4), "annotation 1: `keypoints` has 12 values; expected 9 numbers"),
        (_with("keypoints", "abc"), "annotation 1: `keypoints` is 'abc'; expected 9 numbers"),
        (_with("keypoints", [1, 2, None] * 3), r"annotation 1: `keypoints`\[2\] is None; expected 9 numbers"),
        (_with("num_keypoints", "3"), "annotation 1: `num_keypoints` is '3'; expected the number"),
        (_with("iscrowd", "0"), "annotation 1: `iscrowd` is '0'; expected 0 or 1"),
        (_with("image_id", "5"), "annotation 1: `image_id` is '5'; expected a whole number"),
        (_without("category_id"), "annotation 1: `category_id` is None; expected a whole number"),
    ],
)
def test_wrong_annotations_are_named(one_person, change, message):
    one_person["annotations"].append({**copy.deepcopy(one_person["annotations"][0]), "id": 2})
    change(one_person["annotations"][1])
    with pytest.raises(ValueError, match=message):
        KeypointGroundTruth.read(one_person)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("images"), "`images` is missing"),
        (_with("images", {}), "`images`: expected a list, got {}"),
        (_with("images", [5]), "image 0: expected an object with named fields, got 5"),
        (_with("images", [{"id": "5"}]), "image 0: `id` is '5'; expected a whole number"),
        (_with("images", [{"id": 5}, {"id": 5}]), "image 1: `id` 5 occurs twice"),
        (_with("categories", [{"id": 1}, {"id": 1}]), "category 1: `id` 1 occurs twice"),
        (_with("annotations", [{"image_id": 5, "category_id": 1, "bbox": [0] * 4, "area": 1, "keypoints": [1, 2]}]),
         "annotation 0: `keypoints` has 2 values; expected 9 numbers"),
    ],
)  # fmt: skip
def test_wrong_files_are_named(one_person, change, message, tmp_path):
    change(one_person)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(one_person))
    with pytest.raises(ValueError, match=rf"truth\.json: .*{message}|truth\.json: {message}"):
        KeypointGroundTruth.read(path)


def test_crowdpose_needs_the_crowd_index_of_every_image(one_person):
    one_person["images"] = [{"id": 5, "crowdIndex": 0.1}, {"id": 6}]
    with pytest.raises(ValueError, match="annotations: image 1: `crowdIndex` is missing; expected a number"):
        KeypointGroundTruth.read(one_person, "crowdpose")
    one_person["images"][1]["crowdIndex"] = math.nan
    with pytest.raises(ValueError, match="image 1: `crowdIndex` is nan"):
        KeypointGroundTruth.read(one_person, "crowdpose")


def test_unknown_metric(one_person):
    with pytest.raises(ValueError, match="`metric` is 'mpii'; expected one of 'coco', 'crowdpose'"):
        KeypointGroundTruth.read(one_person, "mpii")


def test_files_that_are_not_annotations(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json: no such file"):
        KeypointGroundTruth.read(tmp_path / "nowhere.json")
    path = tmp_path / "broken.json"
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"broken\.json: not a JSON file: .*line 1"):
        KeypointGroundTruth.read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"broken\.json: expected COCO annotations"):
        KeypointGroundTruth.read(path)
