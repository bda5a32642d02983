"""Small datasets for the tests of readers, augmentation and collation."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import SHARED


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data; tests that need it are skipped where it does not exist."""
    folder = SHARED
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; QUERYPOSE_SHARED can name another folder")
    return folder


NAMES = ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder")


def _person(rng: np.random.Generator, width: int, height: int) -> tuple[list[float], list[float]]:
    left, top = rng.uniform(0, 0.5, 2) * (width, height)
    size = rng.uniform(0.2, 0.45, 2) * (width, height)
    points = np.zeros((len(NAMES), 3))
    points[:, :2] = ((left, top) + rng.uniform(0, 1, (len(NAMES), 2)) * size).round(2)
    points[:, 2] = rng.integers(0, 3, len(NAMES))
    points[0, 2] = 2
    points[points[:, 2] == 0] = 0
    return [round(value, 2) for value in (left, top, *size)], points.ravel().tolist()


@pytest.fixture
def coco_content() -> dict:
    """COCO annotations of six images, wide and tall in turn; the last one shows only a crowd."""
    rng = np.random.default_rng(0)
    images = [
        {"id": 100 - i, "file_name": f"{i}.png", "width": (64, 40)[i % 2], "height": (48, 60)[i % 2]} for i in range(6)
    ]
    annotations = []
    for i, image in enumerate(images[:-1]):
        for _ in range(1 + i % 3):
            bbox, keypoints = _person(rng, image["width"], image["height"])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": bbox,
                    "keypoints": keypoints,
                    "area": round(0.6 * bbox[2] * bbox[3], 2),
                    "iscrowd": 0,
                }
            )
    crowd = {"id": 99, "image_id": 95, "category_id": 1, "bbox": [0, 0, 40, 30], "area": 700, "iscrowd": 1}
    category = {"id": 1, "name": "person", "keypoints": list(NAMES), "skeleton": [[1, 2], [1, 3], [4, 5]]}
    # the order of annotations in the file is not that of the images
    return {"images": images, "annotations": [crowd, *annotations[::-1]], "categories": [category]}


@pytest.fixture
def write_coco(tmp_path):
    """Writes annotations and an image of noise for each of their records; returns the file and the folder."""

    def write(content: dict) -> tuple[Path, Path]:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in content["images"]:
            noise = np.random.default_rng(image["id"]).integers(0, 256, (image["height"], image["width"], 3))
            Image.fromarray(noise.astype(np.uint8)).save(folder / image["file_name"])
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return path, folder

    return write
