"""Initial boxes from the training people."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from scipy.cluster.vq import kmeans2
from tiny import tiny_config
from torchvision.ops import box_iou
from transformers.image_transforms import center_to_corners_format

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.data import CocoPoseDataset
from querypose_hf.training.initial_boxes import start_from_typical_boxes, typical_boxes


@pytest.fixture
def dataset(tmp_path):
    """Four images of 200 x 100 with twenty people: ten in a tall box at the left, ten in a small one at the top."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 5):
        PIL.Image.new("RGB", (200, 100)).save(tmp_path / f"{image_id}.jpg")
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "width": 200, "height": 100})
    for index in range(20):
        corner, sides = ((20, 10), (40, 80)) if index % 2 else ((90, 10), (20, 10))
        box = [*(np.array(corner) + rng.uniform(-1, 1, 2)).tolist(), *sides]
        annotations.append({"id": index + 1, "image_id": index % 4 + 1, "category_id": 1, "bbox": box, "iscrowd": 0})
    # a crowd is not a person
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


class People:
    """Annotations of one image of 1 x 1."""

    def __init__(self, boxes):
        self.sizes = np.array([[1, 1]])
        self.boxes = boxes

    def annotations(self, index):
        return [{"bbox": box, "iscrowd": 0} for box in self.boxes]


def test_boxes_cover_people_better_than_clusters_of_them():
    rng = np.random.default_rng(1)
    sides = np.exp(rng.uniform(np.log(0.05), np.log(0.8), (300, 1))) * rng.uniform(0.4, 1.0, (300, 2))
    boxes = np.concatenate([rng.random((300, 2)) * (1 - sides), sides], axis=1)
    boxes = np.concatenate([boxes, np.column_stack([1 - boxes[:, 0] - boxes[:, 2], boxes[:, 1:]])])
    centred = np.column_stack([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]])
    corners = torch.tensor(np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))

    def coverage(found):
        overlaps = box_iou(corners, center_to_corners_format(torch.as_tensor(found, dtype=torch.float64)))
        return float(overlaps.max(dim=1).values.mean())

    chosen = typical_boxes(People(boxes[:300].tolist()), 20)
    clusters, _ = kmeans2(centred, 20, iter=50, minit="++", seed=0)
    assert coverage(chosen) > coverage(clusters) + 0.02
    # one box after the other, the best first
    one = coverage(chosen[:1])
    assert one == pytest.approx(max(coverage(box[None]) for box in centred), abs=1e-6)
    assert len(np.unique(chosen.numpy(), axis=0)) == 20


def test_queries_with_boxes_of_their_own_move_to_the_nearest(dataset):
    model = QueryPoseForPoseEstimation(tiny_config(num_queries=3))
    decoder = model.model.decoder
    # at the left, at the top, and at the lower right, which is nearest to the mirror image of the left
    old = torch.tensor([[0.25, 0.5, 0.2, 0.8], [0.5, 0.1, 0.1, 0.1], [0.9, 0.95, 0.01, 0.01]])
    with torch.no_grad():
        decoder.initial_boxes.copy_(old)
    queries = decoder.instance_queries.detach().clone()
    start_from_typical_boxes(model, dataset)
    places = []
    for box, query in zip(decoder.initial_boxes.tolist(), decoder.instance_queries, strict=True):
        places.append(1 if box[1] < 0.3 else 0 if box[0] < 0.5 else 2)
        assert torch.equal(query, queries[places[-1]])
    assert sorted(places) == [0, 1, 2]


def test_too_few_people(dataset):
    with pytest.raises(ValueError, match="20 boxes of people; expected at least `count`, which is 41"):
        typical_boxes(dataset, 41)
