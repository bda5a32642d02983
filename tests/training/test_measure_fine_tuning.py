"""The dataset that `scripts/measure_fine_tuning.py` makes."""

import runpy

from places import PROJECT
from small_data import sample_coco

from querypose_hf import COCO_17, CROWDPOSE_14
from querypose_hf.training.transfer import match_keypoints


SHOULDERS = ("left_shoulder", "right_shoulder")


def test_nine_keypoints():
    script = runpy.run_path(str(PROJECT / "scripts" / "measure_fine_tuning.py"))
    before = sample_coco()
    before["images"].append({"id": 2, "file_name": "empty.jpg", "width": 9, "height": 9})
    content = script["with_keypoints"](before, "nine", 5)
    assert [image["id"] for image in content["images"]] == [1]
    (category,) = content["categories"]
    assert category["name"] == "horse" and len(category["keypoints"]) == 9
    assert match_keypoints(COCO_17.keypoint_names, category["keypoints"]) == [None] * 9
    for person, origin in zip(content["annotations"], before["annotations"], strict=True):
        named = dict(zip(category["keypoints"], zip(*[iter(person["keypoints"])] * 3, strict=True), strict=True))
        place = 3 * COCO_17.keypoint_names.index("right_ankle")
        assert named["right_hind_hoof"] == tuple(origin["keypoints"][place : place + 3])
        assert person["num_keypoints"] == sum(point[2] > 0 for point in named.values())
    assert script["with_keypoints"](before, "nine", 0)["annotations"] == []


def test_crowdpose_keypoints():
    script = runpy.run_path(str(PROJECT / "scripts" / "measure_fine_tuning.py"))
    before = sample_coco()
    content = script["with_keypoints"](before, "crowdpose", 5)
    (category,) = content["categories"]
    assert tuple(category["keypoints"]) == CROWDPOSE_14.keypoint_names
    necks = 0
    for person, origin in zip(content["annotations"], before["annotations"], strict=True):
        points = dict(zip(category["keypoints"], zip(*[iter(person["keypoints"])] * 3, strict=True), strict=True))
        left, right = (origin["keypoints"][3 * COCO_17.keypoint_names.index(name) :][:3] for name in SHOULDERS)
        assert points["head"] == (0, 0, 0) and points["left_shoulder"] == tuple(left)
        if left[2] and right[2]:
            assert points["neck"] == ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2, min(left[2], right[2]))
            necks += 1
        else:
            assert points["neck"] == (0, 0, 0)
    assert necks
