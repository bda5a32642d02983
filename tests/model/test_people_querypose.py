"""Overlap of boxes, against torchvision's operators."""

import pytest
import torch
import torchvision

from querypose_hf.model.boxes_querypose import generalized_box_iou
from querypose_hf.model.people_querypose import find_duplicates


def random_boxes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, 2, generator=generator, dtype=torch.float64).sort(dim=-2).values
    return corners.flatten(-2)


def test_giou_is_torchvisions():
    boxes, others = random_boxes(50), random_boxes(40, seed=1)
    expected = torchvision.ops.generalized_box_iou(boxes, others)
    torch.testing.assert_close(generalized_box_iou(boxes[:, None], others), expected)


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.6])
def test_duplicates_are_those_that_overlap_a_better_one(threshold):
    boxes = random_boxes(3, 40)
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(3, 40, generator=generator)
    labels = torch.randint(0, 2, (3, 40), generator=generator)
    found = find_duplicates(scores, labels, boxes, threshold)
    for image in range(3):
        overlap = torchvision.ops.box_iou(boxes[image], boxes[image])
        for query in range(40):
            better = (scores[image] > scores[image, query]) & (labels[image] == labels[image, query])
            assert found[image, query] == bool((overlap[query][better] > threshold).any())
    assert found.any() and not found.all()


def test_duplicates_are_what_nms_leaves_out_where_none_hides_another():
    people = torch.tensor([[0.1, 0.1, 0.3, 0.9], [0.5, 0.2, 0.7, 0.8], [0.15, 0.1, 0.35, 0.9]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = 0.004 * torch.rand(3, 6, 4, generator=generator, dtype=torch.float64)
    boxes = (people[:, None] + noise).flatten(0, 1)
    scores = torch.rand(18, generator=generator, dtype=torch.float64)
    found = find_duplicates(scores[None], torch.zeros(1, 18, dtype=torch.long), boxes[None], 0.7)
    kept = torchvision.ops.nms(boxes, scores, 0.7)
    assert sorted(kept.tolist()) == (~found[0]).nonzero().flatten().tolist() and len(kept) == 3


def test_of_equal_scores_the_first_stays():
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.9]]).repeat(1, 4, 1)
    labels = torch.tensor([[0, 0, 1, 0]])
    found = find_duplicates(torch.ones(1, 4), labels, boxes, 0.9)
    assert found.tolist() == [[False, True, False, True]]
    assert not find_duplicates(torch.ones(1, 4), labels, boxes, 1.0).any()
    nothing = boxes[..., [0, 1, 0, 1]]
    assert not find_duplicates(torch.ones(1, 4), labels, nothing, 0.5).any()
    assert find_duplicates(torch.ones(2, 0), torch.ones(2, 0), torch.ones(2, 0, 4), 0.5).shape == (2, 0)
