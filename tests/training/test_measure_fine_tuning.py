"""The dataset that `scripts/measure_fine_tuning.py` makes."""

import runpy

from places import PROJECT
from small_data import sample_coco

from querypose_hf import COCO_17
from querypose_hf.training.transfer import match_keypoints


def test_nine_keypoints():
    script = runpy.run_path(str(PROJECT / "scripts" / "measure_fine_tuning.py"))
    before = sample_coco()
    before["images"].append({"id": 2, "file_name": "empty.jpg", "width": 9, "height": 9})
    content = script["with_nine_keypoints"](before, 5)
    assert [image["id"] for image in content["images"]] == [1]
    (category,) = content["categories"]
    assert category["name"] == "horse" and len(category["keypoints"]) == 9
    assert match_keypoints(COCO_17.keypoint_names, category["keypoints"]) == [None] * 9
    for person, origin in zip(content["annotations"], before["annotations"], strict=True):
        named = dict(zip(category["keypoints"], zip(*[iter(person["keypoints"])] * 3, strict=True), strict=True))
        place = 3 * COCO_17.keypoint_names.index("right_ankle")
        assert named["right_hind_hoof"] == tuple(origin["keypoints"][place : place + 3])
        assert person["num_keypoints"] == sum(point[2] > 0 for point in named.values())
    assert script["with_nine_keypoints"](before, 0)["annotations"] == []
