"""Initial boxes from the training people."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_config

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.data import CocoPoseDataset
from querypose_hf.training.initial_boxes import start_from_typical_boxes, typical_boxes


@pytest.fixture
def dataset(tmp_path):
    """Four pictures of 200 x 100 with twenty people: ten in a tall box at the left, ten in a small one at the top."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 5):
        PIL.Image.new("RGB", (200, 100)).save(tmp_path / f"{image_id}.jpg")
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "width": 200, "height": 100})
    for index in range(20):
        corner, sides = ((20, 10), (40, 80)) if index % 2 else ((90, 10), (20, 10))
        box = [*(np.array(corner) + rng.uniform(-1, 1, 2)).tolist(), *sides]
        annotations.append({"id": index + 1, "image_id": index % 4 + 1, "category_id": 1, "bbox": box, "iscrowd": 0})
    # a crowd is nobody's box
    annotations.append({"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1})
    for annotation in annotations:
        annotation.update(keypoints=[0] * 51, num_keypoints=0, area=annotation["bbox"][2] * annotation["bbox"][3])
    names = [f"keypoint_{i}" for i in range(17)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": []}],
    }
    (tmp_path / "people.json").write_text(json.dumps(content))
    return CocoPoseDataset(tmp_path / "people.json", tmp_path)


def test_typical_boxes_are_those_of_the_people_and_their_mirror_images(dataset):
    boxes = typical_boxes(dataset, 3)
    expected = {"left": (0.2, 0.5, 0.2, 0.8), "right": (0.8, 0.5, 0.2, 0.8), "top": (0.5, 0.15, 0.1, 0.1)}
    for box in expected.values():
        assert (boxes - torch.tensor(box)).abs().amax(dim=1).min() < 0.02
    torch.testing.assert_close(typical_boxes(dataset, 3), boxes)


def test_a_model_starts_from_them(dataset):
    model = QueryPoseForPoseEstimation(tiny_config())
    start_from_typical_boxes(model, dataset)
    torch.testing.assert_close(model.model.decoder.initial_boxes.data, typical_boxes(dataset, 12))


def test_too_few_people(dataset):
    with pytest.raises(ValueError, match="20 boxes of people; expected at least 41"):
        typical_boxes(dataset, 41)
