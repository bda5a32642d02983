"""A small COCO data set of rendered people, and the description of an experiment with it that takes seconds."""

import copy
import json
from pathlib import Path

from tiny import tiny_config

from querypose_hf import COCO_17, CROWDPOSE_14
from querypose_hf.data.synthetic import SyntheticPeople


def write_rendered_coco(folder: Path, count: int = 6, size=(64, 48)) -> dict[str, str]:
    """Renders people into a folder; returns the fields of a source that say where everything is."""
    images_folder = folder / "images"
    images_folder.mkdir(parents=True, exist_ok=True)
    people = SyntheticPeople(seed=1, size=size, people=(1, 2))
    images, annotations = [], []
    for index in range(count):
        sample = people[index]
        name = f"{index}.png"
        sample["image"].save(images_folder / name)
        images.append({"id": index, "file_name": name, "width": size[0], "height": size[1]})
        annotations += [{**one, "iscrowd": 0} for one in sample["annotations"]]
    category = {"id": 1, "name": "person", "keypoints": list(COCO_17.keypoint_names), "skeleton": []}
    path = folder / "people.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [category]}))
    return {"annotations": str(path), "images": str(images_folder)}


def relabelled_for_crowdpose(content: dict) -> dict:
    """COCO annotations with CrowdPose's 14 keypoints: `head` is the middle of the face's, `neck` of the shoulders."""
    content = copy.deepcopy(content)
    coco = {name: index for index, name in enumerate(COCO_17.keypoint_names)}
    derived = {
        "head": ["nose", "left_eye", "right_eye", "left_ear", "right_ear"],
        "neck": ["left_shoulder", "right_shoulder"],
    }
    for person in content["annotations"]:
        flat = person.get("keypoints") or [0] * 51
        points = [flat[3 * index : 3 * index + 3] for index in range(17)]
        keypoints = []
        for name in CROWDPOSE_14.keypoint_names:
            origins = [points[coco[origin]] for origin in derived.get(name, [name])]
            known = [point for point in origins if point[2] > 0]
            enough = len(known) == len(origins) if name == "neck" else bool(known)
            if not enough:
                keypoints += [0, 0, 0]
                continue
            x, y = (sum(point[axis] for point in known) / len(known) for axis in range(2))
            keypoints += [x, y, max(point[2] for point in known)]
        person["keypoints"] = keypoints
        person["num_keypoints"] = sum(v > 0 for v in keypoints[2::3])
    for category in content["categories"]:
        category.update(keypoints=list(CROWDPOSE_14.keypoint_names), skeleton=[])
    return content


def small_experiment(source: dict[str, str], steps: int = 4, **model) -> dict:
    """The description, as a YAML file holds it: a tiny model, trained on a source and scored on it."""
    fields = tiny_config().to_diff_dict()
    names = ("backbone_config", "d_model", "num_queries", "decoder_layers", "decoder_attention_heads")
    names += ("decoder_ffn_dim", "dynamic_dim", "part_dim", "num_pose_convs", "pose_pooler_resolution")
    return {
        "model": model or {"config": {name: fields[name] for name in names}},
        "data": {"train": [dict(source)], "validation": {**source, "num_workers": 0}},
        "augmentation": {
            "short_sides": [48, 64],
            "longest_side": 96,
            "crop_short_sides": [48],
            "crop_window": [32, 48],
        },
        "image_processor": {"size": {"shortest_edge": 48, "longest_edge": 96}},
        "training": {
            "learning_rate": 1e-3,
            "ema_decay": 0.9,
            "num_workers": 0,
            "log_every": 1,
            "save_every": 2,
            "evaluate_every": 2,
            "schedule": {"length": steps, "milestones": [], "warmup_steps": 1},
        },
    }
