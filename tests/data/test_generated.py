"""Drawn people: the same ones each time, with keypoints, visibility and boxes as they are drawn."""

import numpy as np
import pytest
from PIL import Image

from querypose_hf import COCO_17
from querypose_hf.data import GeneratedPeople, generated


def keypoints_of(annotation):
    return np.reshape(annotation["keypoints"], (17, 3))


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    people, again = GeneratedPeople(5, seed=2, size=(96, 64)), GeneratedPeople(5, seed=2, size=(96, 64))
    samples = [people[i] for i in range(5)]
    for index in (3, 0):
        assert again[index]["image"].tobytes() == samples[index]["image"].tobytes()
        assert again[index]["annotations"] == samples[index]["annotations"]
    others = [people.in_epoch(1, 3), GeneratedPeople(5, seed=3, size=(96, 64))[3], samples[0]]
    assert all(other["image"].tobytes() != samples[3]["image"].tobytes() for other in others)
    assert [people.in_epoch(epoch, 4)["image_id"] for epoch in range(3)] == [4, 9, 14]


def test_annotations_fit_the_image():
    people = GeneratedPeople(12, size=(160, 120), people=(2, 3))
    assert (people.sizes == (160, 120)).all() and people.flip_indices == COCO_17.flip_indices
    seen = set()
    for sample in map(people.__getitem__, range(12)):
        assert sample["image"].size == (160, 120) and 1 <= len(sample["annotations"]) <= 3
        for annotation in sample["annotations"]:
            left, top, width, height = annotation["bbox"]
            assert left >= 0 and top >= 0 and left + width <= 160 and top + height <= 120
            assert 0 < annotation["area"] <= width * height
            keypoints = keypoints_of(annotation)
            x, y = keypoints[keypoints[:, 2] > 0, :2].T
            assert (left - 0.5 <= x).all() and (x <= left + width - 0.5).all()
            assert (top - 0.5 <= y).all() and (y <= top + height - 0.5).all()
            assert annotation["num_keypoints"] == len(x)
            seen |= set(keypoints[:, 2].tolist())
    assert seen == {0, 1, 2}


def test_people_are_drawn_where_their_keypoints_are(monkeypatch):
    ground = (255, 0, 255)
    monkeypatch.setattr(generated, "_ground", lambda rng, size: Image.new("RGB", size, ground))
    people = GeneratedPeople(8, size=(320, 240), people=(1, 1))
    for sample in map(people.__getitem__, range(8)):
        (annotation,) = sample["annotations"]
        drawn = (np.asarray(sample["image"]) != ground).any(axis=2)
        keypoints = keypoints_of(annotation)
        assert (keypoints[:, 2] == 2).any()
        assert all(drawn[round(y), round(x)] for x, y, visibility in keypoints if visibility == 2)
        rows, columns = np.nonzero(drawn)
        extent = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == pytest.approx(extent, abs=2)
        assert annotation["area"] == pytest.approx(drawn.sum(), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": None}, "`length` is None; expected a whole number of at least 1"),
        ({"seed": -1}, "`seed` is -1; expected"),
        ({"size": (8, 64)}, "`size` is .8, 64.; expected"),
        ({"people": (3, 1)}, "`people` is .3, 1.; expected"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        GeneratedPeople(**{"length": 1, **arguments})
