import json

import pytest

from querypose_hf.evaluation.image_list import read_image_list


@pytest.fixture
def content():
    return {
        "images": [{"id": 7}, {"id": 5}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "horse", "keypoints": ["nose", "tail"]}],
    }


def test_what_a_file_tells(content, tmp_path):
    path = tmp_path / "images.json"
    path.write_text(json.dumps(content))
    images = read_image_list(path)
    assert images.source == str(path)
    assert images.images == content["images"]
    assert (images.category_ids, images.num_keypoints) == ([1], 2)


def test_chosen_categories(content):
    content["categories"][0]["keypoints"] = ["nose"]
    assert [read_image_list(content, category_ids=[one]).num_keypoints for one in (3, 1)] == [1, 2]
    with pytest.raises(ValueError, match=r"expected the same for all categories\. Choose some of them"):
        read_image_list(content)


def test_a_file_that_does_not_tell_keypoints_and_categories(content):
    del content["categories"]
    images = read_image_list(content)
    assert (images.category_ids, images.num_keypoints) == ([], None)


def test_chosen_images_in_the_order_of_the_file(content):
    assert [image["id"] for image in read_image_list(content, [5, 7, 5]).images] == [7, 5]
    with pytest.raises(
        ValueError, match="`image_ids` holds 6, which annotations does not have; its ids are like 5, 7"
    ):
        read_image_list(content, [5, 6])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("images", [], "annotations: there are no images"),
        ("images", [{"id": 5}, {"id": 5}], "annotations: image 1: `id` 5 occurs twice; expected one image per id"),
        ("images", [{"id": "5"}], "annotations: image 0: `id` is '5'; expected a whole number"),
        ("categories", [{}], "annotations: category 0: `id` is None; expected a whole number"),
    ],
)
def test_wrong_files_are_named(content, field, value, message):
    content[field] = value
    with pytest.raises(ValueError, match=message):
        read_image_list(content)


def test_files_without_images(tmp_path):
    with pytest.raises(ValueError, match="`images` is missing"):
        read_image_list({"annotations": []})
    path = tmp_path / "images.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"images\.json: expected COCO annotations"):
        read_image_list(path)
