import numpy as np
import pytest
import torch

from querypose_hf import COCO_17
from querypose_hf.evaluation.test_time_augmentation import merge_views, mirror_people, stack_people


def make_people(count, seed=0):
    """People far apart, as post-processing returns them."""
    rng = np.random.default_rng(seed)
    people = []
    for index in range(count):
        corner = np.array([200.0 * index, 10.0])
        people.append(
            {
                "score": torch.tensor(0.9 - 0.2 * index),
                "label": torch.tensor(0),
                "bbox": torch.tensor(np.concatenate([corner, corner + np.array([100, 180])])),
                "keypoints": torch.tensor(corner + rng.uniform(0, 100, (17, 2))),
                "scores": torch.tensor(rng.uniform(0.2, 0.9, 17)),
                "labels": torch.arange(17),
            }
        )
    return people


def moved(people, by, **fields):
    return [
        {**person, "keypoints": person["keypoints"] + by, "bbox": person["bbox"] + by, **fields} for person in people
    ]


def test_the_same_people_twice_are_themselves():
    people = stack_people(make_people(3))
    merged = merge_views([people, people], COCO_17.sigmas)
    assert len(merged) == 3
    for index, person in enumerate(merged):
        for field, values in people.items():
            np.testing.assert_allclose(person[field], values[index], atol=1e-9)


def test_keypoints_are_weighted_by_confidence_and_boxes_by_score():
    [person] = make_people(1)
    sure = {**person, "scores": torch.full((17,), 0.9), "score": torch.tensor(0.6)}
    [unsure] = moved([person], 2.0, scores=torch.full((17,), 0.3), score=torch.tensor(0.2))
    [merged] = merge_views([stack_people([sure]), stack_people([unsure])], COCO_17.sigmas)
    np.testing.assert_allclose(merged["keypoints"], person["keypoints"].numpy() + 2.0 * 0.25, atol=1e-6)
    np.testing.assert_allclose(merged["bbox"], person["bbox"].numpy() + 2.0 * 0.25, atol=1e-6)
    assert merged["score"] == pytest.approx(0.4)
    np.testing.assert_allclose(merged["scores"], 0.6, atol=1e-6)


def test_a_person_of_one_view_keeps_half_the_score():
    first = make_people(2)
    second = [first[1], *moved(first[:1], 5000.0, score=torch.tensor(0.5))]
    merged = merge_views([stack_people(first), stack_people(second)], COCO_17.sigmas)
    assert [person["score"] for person in merged] == pytest.approx([0.7, 0.45, 0.25])
    np.testing.assert_allclose(merged[2]["keypoints"], second[1]["keypoints"])
    assert [person["score"] for person in merge_views([stack_people(first)], COCO_17.sigmas, 1)] == pytest.approx(
        [0.9]
    )


def test_people_of_different_labels_stay_apart():
    first = make_people(1)
    second = moved(first, 0.0, label=torch.tensor(1))
    merged = merge_views([stack_people(first), stack_people(second)], COCO_17.sigmas)
    assert sorted(person["label"] for person in merged) == [0, 1]


def test_people_are_matched_so_that_all_find_a_partner():
    """Greedy matching would give the nearest first and leave the other two alone."""
    [person] = make_people(1)
    first = [person, *moved([person], 6.0)]
    second = moved([person], 4.0) + moved([person], 12.0)
    merged = merge_views([stack_people(first), stack_people(second)], COCO_17.sigmas)
    assert len(merged) == 2


def test_views_without_anybody():
    nobody = stack_people([])
    assert merge_views([nobody, nobody], COCO_17.sigmas) == []
    [person] = merge_views([nobody, stack_people(make_people(1))], COCO_17.sigmas)
    assert person["score"] == pytest.approx(0.45)
    assert len(mirror_people([], 100, COCO_17.flip_indices)["score"]) == 0


def test_mirroring():
    people = make_people(2)
    mirrored = mirror_people(people, 640, COCO_17.flip_indices)
    # a keypoint at pixel index 0 is at index 639 of the mirrored image, a box's edge at 0 becomes one at 640
    assert mirrored["bbox"][0].tolist() == [540, 10, 640, 190]
    wrist, other = COCO_17.keypoint_names.index("left_wrist"), COCO_17.keypoint_names.index("right_wrist")
    assert mirrored["keypoints"][1, wrist, 0] == pytest.approx(639 - people[1]["keypoints"][other, 0].item())
    assert mirrored["scores"][1, wrist] == people[1]["scores"][other]
    again = mirror_people(
        [
            {**person, **{field: torch.tensor(values[i]) for field, values in mirrored.items()}}
            for i, person in enumerate(people)
        ],
        640,
        COCO_17.flip_indices,
    )
    for field, values in stack_people(people).items():
        np.testing.assert_allclose(again[field], values, atol=1e-9)
