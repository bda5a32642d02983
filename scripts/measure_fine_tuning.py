#!/usr/bin/env python
"""Measures what fine-tuning gives without any flag, on little data with other keypoints.

Both datasets are made of COCO annotations, of the first images with people: `nine` has nine keypoints of an animal,
all new to the checkpoint by name; `crowdpose` has CrowdPose's 14, where the neck is between the shoulders and the head
is not labelled. The images to score on must not be among those that the checkpoint was trained on. `result.json` in
the output folder has the best figures and the minutes.

    python scripts/measure_fine_tuning.py --annotations coco_train/person_keypoints.json --images coco_train/images \
        --val-annotations coco_val2017/person_keypoints.json --val-images coco_val2017/images --output runs/nine

Flags of `querypose train` may follow `--`, such as `-- --learning-rate 1e-4`.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from querypose_hf import CROWDPOSE_14
from querypose_hf.cli import main as querypose
from querypose_hf.files import read_json, write_json


#: By name of a set, its class and its keypoints, each with those of COCO that it lies between.
KEYPOINT_SETS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "nine": (
        "horse",
        {
            "muzzle": ("nose",),
            "left_fore_hock": ("left_elbow",),
            "right_fore_hock": ("right_elbow",),
            "left_fore_hoof": ("left_wrist",),
            "right_fore_hoof": ("right_wrist",),
            "left_hind_hock": ("left_knee",),
            "right_hind_hock": ("right_knee",),
            "left_hind_hoof": ("left_ankle",),
            "right_hind_hoof": ("right_ankle",),
        },
    ),
    "crowdpose": (
        "person",
        {name: (name,) for name in CROWDPOSE_14.keypoint_names}
        | {"head": (), "neck": ("left_shoulder", "right_shoulder")},
    ),
}


def with_keypoints(content: dict[str, Any], name: str, count: int) -> dict[str, Any]:
    """COCO annotations with the keypoints of one of [`KEYPOINT_SETS`], of the first images that have any of them.

    Args:
        content (`dict`): COCO keypoint annotations of one category.
        name (`str`): of the set.
        count (`int`): how many images.
    """
    (category,) = [one for one in content["categories"] if one.get("keypoints")]
    label, keypoints = KEYPOINT_SETS[name]
    places = [[3 * category["keypoints"].index(one) for one in between] for between in keypoints.values()]
    annotations = []
    for person in content["annotations"]:
        points = person.get("keypoints")
        if points is None or person["category_id"] != category["id"]:
            continue
        new = [value for ends in places for value in _mean([points[end : end + 3] for end in ends])]
        annotations.append({**person, "keypoints": new, "num_keypoints": sum(v > 0 for v in new[2::3])})
    shown = {one["image_id"] for one in annotations if one["num_keypoints"] > 0}
    images = [image for image in content["images"] if image["id"] in shown][:count]
    kept = {image["id"] for image in images}
    return {
        "images": images,
        "annotations": [one for one in annotations if one["image_id"] in kept],
        "categories": [{**category, "name": label, "keypoints": list(keypoints), "skeleton": []}],
    }


def _mean(points: list[list[float]]) -> list[float]:
    """Of keypoints with visibility; not labelled unless all are."""
    if not points or any(point[2] == 0 for point in points):
        return [0, 0, 0]
    x, y, visibility = zip(*points, strict=True)
    return [sum(x) / len(x), sum(y) / len(y), min(visibility)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, what in (("", "to train on"), ("val-", "to score on")):
        parser.add_argument(f"--{flag}annotations", required=True, help=f"COCO keypoints JSON {what}")
        parser.add_argument(f"--{flag}images", required=True, help="folder of its images")
    parser.add_argument("--output", required=True, type=Path, help="folder of the data and the run")
    parser.add_argument("--keypoints", choices=list(KEYPOINT_SETS), default="nine", help="(%(default)s)")
    parser.add_argument("--count", type=int, default=300, help="images to train on (%(default)s)")
    parser.add_argument("--val-count", type=int, default=100, help="images to score on (%(default)s)")
    parser.add_argument("flags", nargs="*", help="flags of querypose train, after --")
    options = parser.parse_args()

    data, run = options.output / "data", options.output / "run"
    for annotations, count, split in (
        (options.annotations, options.count, "train"),
        (options.val_annotations, options.val_count, "val"),
    ):
        write_json(with_keypoints(read_json(annotations), options.keypoints, count), data / f"{split}.json")
    arguments = ["train", "--annotations", str(data / "train.json"), "--images", options.images]
    arguments += ["--val-annotations", str(data / "val.json"), "--val-images", options.val_images]
    start = time.perf_counter()
    status = querypose([*arguments, "--output", str(run), *options.flags])
    if status != 0:
        return status
    minutes = (time.perf_counter() - start) / 60
    lines = (run / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    scores = [record for record in map(json.loads, lines) if "evaluation/AP" in record]
    best = max(scores, key=lambda record: record["evaluation/AP"])
    figures = {name.removeprefix("evaluation/"): value for name, value in best.items()}
    result = {"minutes": round(minutes, 2), "evaluations": len(scores), "flags": options.flags, "best": figures}
    write_json(result, options.output / "result.json", indent=2)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
