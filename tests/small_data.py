"""Small COCO data: the sample photograph, drawn people, and an experiment with them that takes seconds."""

import copy
import json
from pathlib import Path

from tiny import tiny_config

from querypose_hf import COCO_17, CROWDPOSE_14
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.data import GeneratedPeople


def _person(number: int, bbox: list[float], **points: tuple[float, float]) -> dict:
    keypoints = [(*points[name], 2) if name in points else (0, 0, 0) for name in COCO_17.keypoint_names]
    return {
        "id": number,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": bbox,
        "area": bbox[2] * bbox[3] / 2,
        "keypoints": [value for point in keypoints for value in point],
        "num_keypoints": len(points),
    }


#: Two of the five skiers on the sample photograph, annotated by eye: the outer ones, of whom most is seen.
SAMPLE_PEOPLE = [
    _person(
        1,
        [152, 78, 56, 230],
        **{"nose": (190, 101), "left_eye": (194, 96), "right_eye": (185, 97)},
        **{"left_shoulder": (200, 128), "right_shoulder": (165, 125), "right_elbow": (165, 165)},
        **{"right_wrist": (192, 170), "left_hip": (195, 195), "right_hip": (172, 195), "left_knee": (195, 240)},
        **{"right_knee": (175, 245), "left_ankle": (185, 285), "right_ankle": (165, 290)},
    ),
    _person(
        2,
        [367, 80, 90, 226],
        **{"nose": (420, 104), "left_eye": (425, 97), "right_eye": (414, 98)},
        **{"left_shoulder": (446, 125), "right_shoulder": (398, 127), "left_elbow": (452, 160)},
        **{"right_elbow": (383, 165), "left_wrist": (424, 190), "right_wrist": (395, 180), "left_hip": (432, 195)},
        **{"right_hip": (400, 195), "left_knee": (433, 245), "right_knee": (385, 245)},
        **{"left_ankle": (424, 287), "right_ankle": (385, 285)},
    ),
]


def sample_coco() -> dict:
    """COCO annotations of the sample photograph, whose id is 1."""
    image = {"id": 1, "file_name": SAMPLE_IMAGE.name, "width": 640, "height": 360}
    category = {"id": 1, "name": "person", "keypoints": list(COCO_17.keypoint_names), "skeleton": []}
    return {"images": [image], "annotations": copy.deepcopy(SAMPLE_PEOPLE), "categories": [category]}


def write_rendered_coco(folder: Path, count: int = 6, size=(64, 48)) -> dict[str, str]:
    """Draws people into a folder; returns the fields of a source that say where everything is."""
    images_folder = folder / "images"
    images_folder.mkdir(parents=True, exist_ok=True)
    people = GeneratedPeople(count, seed=1, size=size, people=(1, 2))
    images, annotations = [], []
    for index in range(count):
        sample = people[index]
        name = f"{index}.png"
        sample["image"].save(images_folder / name)
        images.append({"id": index, "file_name": name, "width": size[0], "height": size[1]})
        annotations += sample["annotations"]
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
