"""Skeletons: those that are given, and those that follow from keypoint names."""

import warnings

import pytest

from querypose_hf.model.skeletons import (
    COCO_17,
    COCO_PARTS,
    CROWDPOSE_14,
    DEFAULT_SIGMA,
    SKELETONS,
    Skeleton,
    flip_indices_from_names,
)


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_known_skeletons_are_consistent(skeleton):
    count = skeleton.num_keypoints
    names = skeleton.keypoint_names
    assert len(set(names)) == len(skeleton.sigmas) == count
    assert sorted(index for part in skeleton.parts for index in part) == list(range(count))
    assert skeleton.flip_indices == flip_indices_from_names(names)
    ends = [index for edge in skeleton.edges for index in edge]
    assert set(ends) == set(range(count)), "a keypoint without a limb would not be drawn as part of anything"
    assert len({frozenset(edge) for edge in skeleton.edges}) == len(skeleton.edges)
    # limbs come in mirrored pairs
    flipped = {frozenset(skeleton.flip_indices[end] for end in edge) for edge in skeleton.edges}
    assert flipped == {frozenset(edge) for edge in skeleton.edges}


def test_coco():
    assert COCO_17.num_keypoints == 17
    assert COCO_17.keypoint_names[:3] == ("nose", "left_eye", "right_eye")
    assert COCO_17.keypoint_names[-1] == "right_ankle"
    # as COCO's own evaluation has them
    tenths = (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
    assert COCO_17.sigmas == pytest.approx([value / 10 for value in tenths], abs=1e-12)
    assert pytest.approx(sum(COCO_17.sigmas) / 17, abs=5e-4) == DEFAULT_SIGMA
    assert len(COCO_17.edges) == 19


def test_crowdpose():
    sides = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    names = (*(f"{side}_{joint}" for joint in sides for side in ("left", "right")), "head", "neck")
    assert CROWDPOSE_14.keypoint_names == names
    tenths = (0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89, 0.79, 0.79)
    assert CROWDPOSE_14.sigmas == pytest.approx([value / 10 for value in tenths], abs=1e-12)


def test_groupings_of_the_paper():
    """Figure 4: single keypoints; the head as one; the default of seven parts; head and whole limbs."""
    by_name = {
        key: [[COCO_17.keypoint_names[index] for index in part] for part in parts] for key, parts in COCO_PARTS.items()
    }
    head = ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]
    rest = [name for name in COCO_17.keypoint_names if name not in head]
    assert by_name["a"] == [[name] for name in COCO_17.keypoint_names]
    assert by_name["b"] == [head] + [[name] for name in rest]
    assert by_name["c"] == [
        head,
        ["left_shoulder", "right_shoulder"],
        ["left_elbow", "left_wrist"],
        ["right_elbow", "right_wrist"],
        ["left_hip", "right_hip"],
        ["left_knee", "left_ankle"],
        ["right_knee", "right_ankle"],
    ]
    assert by_name["d"] == [
        head,
        *([f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist")] for side in ("left", "right")),
        *([f"{side}_{joint}" for joint in ("hip", "knee", "ankle")] for side in ("left", "right")),
    ]
    assert COCO_17.parts == COCO_PARTS["c"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["nose", "left_eye", "right_eye"], (0, 2, 1)),
        (["Left Eye", "Right Eye", "Nose"], (1, 0, 2)),
        (["eye-left", "eye-right"], (1, 0)),
        (["l_eye", "r_eye", "tail"], (1, 0, 2)),
        (["LeftEye", "RightEye", "MidHip"], (1, 0, 2)),
        (["eyeL", "eyeR"], (1, 0)),
        (["Neck", "RShoulder", "LShoulder"], (0, 2, 1)),  # as OpenPose writes them
        (["nose", "lefteye", "righteye"], (0, 2, 1)),
        (["front_left_hoof", "front_right_hoof", "hind_left_hoof", "hind_right_hoof"], (1, 0, 3, 2)),
        (["tail"], (0,)),
        (["bright_spot", "left_ear", "right_ear"], (0, 2, 1)),  # no side, though its letters hold one
        (["tail", "elbow", "lip", "left_ear", "right_ear"], (0, 1, 2, 4, 3)),
        # nothing is known of these
        (["left_eye", "nose"], None),
        (["a", "b", "c"], None),
        (["left_eye", "right_eye", "Left Eye"], None),
        (["left_eye", "Left_Eye", "right_eye"], None),
    ],
)
def test_mirror_images_from_names(names, expected):
    assert flip_indices_from_names(names) == expected


def test_from_names_fills_in_what_is_not_given():
    with pytest.warns(UserWarning, match=rf"keypoint_sigmas.*{DEFAULT_SIGMA}"):
        horse = Skeleton.from_names(["nose", "left_ear", "right_ear"])
    assert horse == Skeleton(
        keypoint_names=("nose", "left_ear", "right_ear"),
        parts=((0,), (1,), (2,)),
        edges=(),
        flip_indices=(0, 2, 1),
        sigmas=(DEFAULT_SIGMA,) * 3,
    )


def test_from_names_keeps_what_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        skeleton = Skeleton.from_names(
            ["a", "b", "c"], parts=[[0, 2], [1]], edges=[[0, 1]], flip_indices=[2, 1, 0], sigmas=[0.1, 0.2, 1]
        )
    assert skeleton == Skeleton(("a", "b", "c"), ((0, 2), (1,)), ((0, 1),), (2, 1, 0), (0.1, 0.2, 1.0))


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_names_of_a_known_skeleton_give_it(skeleton):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Skeleton.from_names(list(skeleton.keypoint_names)) == skeleton
        alone = tuple((index,) for index in range(skeleton.num_keypoints))
        other_parts = Skeleton.from_names(skeleton.keypoint_names, parts=alone)
    assert other_parts.parts == alone
    assert other_parts.sigmas == skeleton.sigmas


def test_another_order_of_known_names_is_another_skeleton():
    with pytest.warns(UserWarning, match="keypoint_sigmas"):
        reversed_coco = Skeleton.from_names(COCO_17.keypoint_names[::-1])
    assert reversed_coco.sigmas == (DEFAULT_SIGMA,) * 17
    assert reversed_coco.flip_indices == tuple(16 - index for index in COCO_17.flip_indices[::-1])
