import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from small_data import write_rendered_coco

from querypose_hf.data import CocoPoseDataset, PersonCropDataset, ReadingOptions
from querypose_hf.data.augmentation import FILL_COLOR


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rendered_coco(tmp_path_factory.mktemp("rendered"), count=4, size=(200, 150))


@pytest.fixture(scope="module")
def rendered(source):
    return CocoPoseDataset(source["annotations"], source["images"], options=ReadingOptions(only_with_people=True))


def test_one_person_each_with_what_is_around(rendered):
    crops = PersonCropDataset(rendered, (64, 64), context=1.5)
    everybody = [
        (index, entry)
        for index in range(len(rendered))
        for entry in rendered.annotations(index)
        if any(v > 0 for v in entry["keypoints"][2::3])
    ]
    assert len(crops) == len(everybody) > 3
    assert crops.sizes.tolist() == [[64, 64]] * len(crops)
    assert crops.left_out["people_without_keypoints_or_extent"] == sum(
        len(rendered.annotations(index)) for index in range(len(rendered))
    ) - len(crops)
    for sample, (index, entry) in zip(crops, everybody, strict=False):
        [found] = sample["annotations"]
        assert sample["image"].size == (64, 64) and not sample["exhaustive"]
        assert sample["image_id"] == rendered.image_id(index)
        x, y, width, height = entry["bbox"]
        length = 1.5 * max(width, height)
        left, top = x + (width - length) / 2, y + (height - length) / 2
        scale = 64 / length
        expected = np.array([(x - left) * scale, (y - top) * scale, width * scale, height * scale])
        np.testing.assert_allclose(found["bbox"], expected, atol=1e-6)
        points, original = (np.reshape(one["keypoints"], (-1, 3)) for one in (found, entry))
        labelled = original[:, 2] > 0
        # continuous coordinates are half a pixel further than indices
        place = (original[labelled, :2] + 0.5 - (left, top)) * scale - 0.5
        np.testing.assert_allclose(points[labelled, :2], place, atol=1e-6)
        # the crop shows that part of the image: compare the average of its middle
        full = np.asarray(rendered[index]["image"].resize((1, 1), box=_inside(left, top, length, rendered[index])))
        part = np.asarray(sample["image"].resize((1, 1), box=_inside_crop(left, top, length, rendered[index])))
        assert np.abs(full.astype(int) - part).max() <= 12


def _inside(left, top, length, sample):
    """The middle quarter of the window, in coordinates of the image."""
    middle = np.array([left, top]) + length / 2
    low, high = np.maximum(middle - length / 8, 0), np.minimum(middle + length / 8, sample["image"].size)
    return (*low.tolist(), *high.tolist())


def _inside_crop(left, top, length, sample):
    box = np.array(_inside(left, top, length, sample)).reshape(2, 2)
    return tuple(((box - (left, top)) * 64 / length).ravel().tolist())


def test_beyond_the_image_is_plain_background(tmp_path):
    PIL.Image.new("RGB", (100, 100), (255, 0, 0)).save(tmp_path / "a.png")
    person = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [0, 0, 50, 100],
        "area": 5000,
        "keypoints": [10, 10, 2] * 17,
    }
    names = [f"keypoint_{number}" for number in range(17)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "person", "keypoints": names}],
        "annotations": [person],
    }
    (tmp_path / "people.json").write_text(json.dumps(content))
    crops = PersonCropDataset(CocoPoseDataset(tmp_path / "people.json", tmp_path), (80, 80), context=2.0)
    pixels = np.asarray(crops[0]["image"])
    # 200 pixels from -75 and -50 on
    assert (pixels[:, :29] == FILL_COLOR).all() and (pixels[:19] == FILL_COLOR).all()
    assert (pixels[21:59, 31:69] == (255, 0, 0)).all()


def test_other_aspect_ratios(rendered):
    crops = PersonCropDataset(rendered, (48, 64), context=1.25)
    assert crops.sizes.tolist() == [[48, 64]] * len(crops)
    for index in range(len(crops)):
        sample = crops[index]
        assert sample["image"].size == (48, 64)
        [found] = sample["annotations"]
        x, y, width, height = found["bbox"]
        # the box is in the middle, and fills the crop but for the context on one of the axes
        assert (x + width / 2, y + height / 2) == pytest.approx((24, 32))
        assert max(width / 48, height / 64) == pytest.approx(1 / 1.25)


def test_what_cannot_be_cropped(source, rendered):
    skipping = CocoPoseDataset(source["annotations"], source["images"], options=ReadingOptions(on_error="skip"))
    with pytest.raises(ValueError, match="`on_error` of the dataset is 'skip'"):
        PersonCropDataset(skipping, (64, 64))
    with pytest.raises(ValueError, match=r"`size` is \(64, 16\); expected at least 32"):
        PersonCropDataset(rendered, (64, 16))
    with pytest.raises(ValueError, match=r"`context` is 0\.5"):
        PersonCropDataset(rendered, (64, 64), context=0.5)


def test_nobody_to_crop(source, tmp_path):
    content = json.loads(Path(source["annotations"]).read_text())
    for entry in content["annotations"]:
        entry["keypoints"] = [0] * len(entry["keypoints"])
        entry["num_keypoints"] = 0
    (tmp_path / "people.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="nobody in the dataset has a labelled keypoint"):
        PersonCropDataset(CocoPoseDataset(tmp_path / "people.json", source["images"]), (64, 64))
