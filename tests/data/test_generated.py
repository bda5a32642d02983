"""Drawn people: the same ones each time, with keypoints, visibility and boxes as they are drawn."""

import numpy as np
import pytest
from places import SHARED

from querypose_hf import COCO_17
from querypose_hf.data import GeneratedPeople


K = {name: index for index, name in enumerate(COCO_17.keypoint_names)}


def standing(x, height=160.0):
    """(17, 3) keypoints of somebody who faces the camera, around a column of the image."""
    points = {"nose": (0, 0.09), "eye": (0.02, 0.075), "ear": (0.045, 0.08), "shoulder": (0.11, 0.2)}
    points |= {"elbow": (0.15, 0.36), "wrist": (0.16, 0.5), "hip": (0.07, 0.52), "knee": (0.07, 0.74)}
    points["ankle"] = (0.07, 0.96)
    keypoints = np.full((17, 3), 2.0)
    for name, index in K.items():
        side, _, joint = name.rpartition("_")
        across, down = points[joint]
        keypoints[index, :2] = x + height * across * (1 if side == "left" else -1), 20 + height * down
    return keypoints


def write_layouts(path, *people, **changed):
    """One image of 320 x 240 pixels."""
    boxes = [[*person[:, :2].min(0), *np.ptp(person[:, :2], axis=0)] for person in people]
    arrays = {"size": [(320, 240)], "offset": [0, len(people)], "bbox": boxes, "keypoints": people}
    np.savez(path, **{**arrays, **changed})
    return path


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


def test_people_are_drawn_where_their_keypoints_are(tmp_path):
    """The ground depends on seed and index alone, so that where images differ there is somebody."""
    left, right = (GeneratedPeople(layouts=write_layouts(tmp_path / f"{x}.npz", standing(x))) for x in (80, 240))
    assert left.sizes.tolist() == [[320, 240]]
    sample, (annotation,) = left[0], left[0]["annotations"]
    differs = (np.asarray(sample["image"]) != np.asarray(right[0]["image"])).any(axis=2)[:, :160]
    keypoints = keypoints_of(annotation)
    assert np.allclose(keypoints, standing(80))
    assert all(differs[round(y), round(x)] for x, y, _ in keypoints)
    rows, columns = np.nonzero(differs)
    extent = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert annotation["bbox"] == pytest.approx(extent, abs=2)
    assert annotation["area"] == pytest.approx(differs.sum(), rel=0.1)


def test_what_is_hidden_missing_or_outside(tmp_path):
    front, behind, beside = standing(100, 190.0), standing(106, 180.0), standing(-8)
    front[K["left_wrist"]] = 0
    path = write_layouts(tmp_path / "layouts.npz", front, behind, beside)
    people = {entry["bbox"][3]: keypoints_of(entry) for entry in GeneratedPeople(layouts=path)[0]["annotations"]}
    assert len(people) == 3
    outside, hidden, seen = (people[height] for height in sorted(people))
    assert set(seen[:, 2]) == {0, 2} and seen[K["left_wrist"]].tolist() == [0, 0, 0]
    assert hidden[K["nose"], 2] == hidden[K["right_hip"], 2] == 1
    assert outside[K["left_shoulder"], 2] == 2 and outside[K["right_shoulder"]].tolist() == [0, 0, 0]


def test_layouts_at_another_size(tmp_path):
    path = write_layouts(tmp_path / "layouts.npz", standing(80))
    (annotation,) = GeneratedPeople(layouts=path, size=(160, 200))[0]["annotations"]
    assert np.allclose(keypoints_of(annotation)[:, :2] + 0.5, (standing(80)[:, :2] + 0.5) / 2)


@pytest.mark.skipif(not (SHARED / "data" / "coco_layouts").is_dir(), reason="needs ../shared/data/coco_layouts")
def test_layouts_of_coco():
    people = GeneratedPeople(layouts=SHARED / "data" / "coco_layouts" / "val2017.npz")
    assert len(people) == 2346
    assert all(people[index]["image"].size == tuple(people.sizes[index]) for index in (0, 500))


@pytest.mark.parametrize(
    ("arguments", "changed", "message"),
    [
        ({"layouts": None}, {}, "`length` is None; expected a whole number of at least 1"),
        ({"length": 2}, {}, "`length` is 2; with layouts it is their number, 1"),
        ({"seed": -1}, {}, "`seed` is -1; expected"),
        ({"size": (8, 64)}, {}, "`size` is .8, 64.; expected"),
        ({"people": (3, 1)}, {}, "`people` is .3, 1.; expected"),
        ({}, {"size": [(0, 240)]}, "`size` must hold widths and heights"),
        ({}, {"offset": [0, 3]}, "`offset` must rise from 0 to the number of people, 1"),
        ({}, {"bbox": [[1.0, 2.0]]}, r"`bbox` has shape \(1, 2\); expected finite \(1, 4\)"),
        ({}, {"keypoints": np.full((1, 17, 3), "x")}, "expected an .npz file with numbers"),
    ],
)
def test_errors(tmp_path, arguments, changed, message):
    path = write_layouts(tmp_path / "layouts.npz", standing(80), **changed)
    with pytest.raises(ValueError, match=message):
        GeneratedPeople(**{"layouts": path, **arguments})
    with pytest.raises(FileNotFoundError, match="missing"):
        GeneratedPeople(layouts=tmp_path / "missing.npz")
