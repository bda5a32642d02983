"""Annotations and results made up for the scoring tests, which need no file outside the repository."""

from pathlib import Path

import numpy as np
import pytest
from places import SHARED


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data; tests that need it are skipped where it does not exist."""
    folder = SHARED
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; QUERYPOSE_SHARED can name another folder")
    return folder


def _make_annotations(num_keypoints: int, images: int = 40, seed: int = 0) -> dict:
    """Every case that the protocols treat apart: crowd regions, people without keypoints, empty images, all sizes."""
    rng = np.random.default_rng(seed)
    dataset: dict = {
        "images": [
            {
                "id": 1000 - 7 * index,
                "width": 640,
                "height": 480,
                "crowdIndex": float(rng.choice([0.1, 0.2, 0.5, 0.8, 1])),
            }
            for index in range(images)
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "keypoints": [f"k{i}" for i in range(num_keypoints)]}],
    }
    for image in dataset["images"]:
        for _ in range(rng.integers(0, 6)):
            x, y = rng.uniform(0, 400, 2)
            width, height = rng.uniform(20, 200, 2)
            points = np.zeros((num_keypoints, 3))
            points[:, :2] = rng.uniform((x, y), (x + width, y + height), (num_keypoints, 2)).round()
            points[:, 2] = rng.choice([0, 1, 2], num_keypoints)
            points[points[:, 2] == 0] = 0
            kind = rng.choice(["labelled", "unlabelled", "crowd"], p=[0.8, 0.1, 0.1])
            if kind != "labelled":
                points[:] = 0
            dataset["annotations"].append(
                {
                    "id": len(dataset["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": [float(x), float(y), float(width), float(height)],
                    "area": float(width * height * rng.uniform(0.3, 0.7)),
                    "iscrowd": int(kind == "crowd"),
                    "keypoints": points.flatten().tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
    return dataset


def _make_results(dataset: dict, seed: int = 1) -> list[dict]:
    """People found more or less well, some twice, some nowhere; equal scores; one image with more than 20."""
    rng = np.random.default_rng(seed)
    results = []
    crowded = dataset["annotations"][0]["image_id"]
    for annotation in dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        for _ in range(12 if annotation["image_id"] == crowded else rng.integers(0, 3)):
            points = np.array(annotation["keypoints"]).reshape(-1, 3)
            unseen = points[:, 2] == 0
            points[unseen, :2] = rng.uniform((x, y), (x + width, y + height), (unseen.sum(), 2))
            points[:, :2] += rng.normal(
                0, rng.choice([0, 0.02, 0.06, 0.3]) * (width * height) ** 0.5, (len(points), 2)
            )
            points[:, 2] = rng.uniform(0, 1, len(points))
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": 1,
                    "keypoints": points.flatten().tolist(),
                    "score": float(rng.integers(1, 10) / 10),
                    "bbox": [x + float(rng.normal(0, 4)), y, width, height * float(rng.uniform(0.8, 1.2))],
                }
            )
    return results


def _make_coco_case(seed: int) -> tuple[dict, list[dict]]:
    dataset = _make_annotations(17, seed=seed)
    return dataset, _make_results(dataset, seed=seed + 100)


def _make_crowdpose_case(seed: int) -> tuple[dict, list[dict]]:
    dataset = _make_annotations(14, seed=seed + 10)
    results = _make_results(dataset, seed=seed + 100)
    for annotation in dataset["annotations"]:
        del annotation["area"]
    for result in results:
        del result["bbox"]
    return dataset, results


@pytest.fixture
def coco_case() -> tuple[dict, list[dict]]:
    """Annotations with COCO's 17 keypoints, and results."""
    return _make_coco_case(0)


@pytest.fixture(params=[0, 1, 2])
def coco_cases(request) -> tuple[dict, list[dict]]:
    """Three of them."""
    return _make_coco_case(request.param)


@pytest.fixture
def crowdpose_case() -> tuple[dict, list[dict]]:
    """Annotations with CrowdPose's 14 keypoints and without `area`, and results without `bbox`."""
    return _make_crowdpose_case(0)


@pytest.fixture(params=[0, 1, 2])
def crowdpose_cases(request) -> tuple[dict, list[dict]]:
    """Three of them."""
    return _make_crowdpose_case(request.param)


@pytest.fixture(params=["coco", "crowdpose"])
def either_case(request) -> tuple[str, dict, list[dict]]:
    """The metric, annotations and results of one or the other."""
    make = _make_coco_case if request.param == "coco" else _make_crowdpose_case
    return request.param, *make(0)


@pytest.fixture
def one_person() -> dict:
    """One image, one person with three keypoints in a box of 100 x 100 and an area of 5000."""
    return {
        "images": [{"id": 5, "width": 640, "height": 480, "file_name": "five.jpg"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 1,
                "bbox": [100.0, 100.0, 100.0, 100.0],
                "area": 5000.0,
                "iscrowd": 0,
                "keypoints": [110, 110, 2, 150, 150, 2, 190, 190, 1],
                "num_keypoints": 3,
            }
        ],
        "categories": [{"id": 1, "name": "horse", "keypoints": ["nose", "withers", "tail"]}],
    }
