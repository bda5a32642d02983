"""Skeletons: keypoint names, limbs, left/right pairs, OKS sigmas and body parts.

A skeleton is data. COCO's 17 and CrowdPose's 14 keypoints are given; any other follows from a list of names.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass


#: Used for keypoints whose OKS sigma nobody has measured: the mean of COCO's 17.
DEFAULT_SIGMA = 0.067

_SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])")
_JOINED_SIDE = re.compile(r"(left|right)")
_NEW_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


@dataclass(frozen=True)
class Skeleton:
    """What a model has to know about the keypoints of one kind of instance.

    Attributes:
        keypoint_names (`tuple[str, ...]`): one name per keypoint; the order is that of every keypoint array.
        parts (`tuple[tuple[int, ...], ...]`): the parts of the paper's Section 3.2, each a group of keypoint indices;
            every keypoint is in exactly one of them.
        edges (`tuple[tuple[int, int], ...]`): limbs to draw, as pairs of keypoint indices.
        flip_indices (`tuple[int, ...]` or `None`): for each keypoint the index of its mirror image; `None` where it
            is not known, and then images must not be flipped.
        sigmas (`tuple[float, ...]`): the per-keypoint constants of object keypoint similarity (OKS).
    """

    keypoint_names: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int], ...]
    flip_indices: tuple[int, ...] | None
    sigmas: tuple[float, ...]

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoint_names)

    @classmethod
    def from_names(
        cls,
        keypoint_names: Sequence[str],
        *,
        parts: Sequence[Sequence[int]] | None = None,
        edges: Sequence[Sequence[int]] | None = None,
        flip_indices: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> "Skeleton":
        """Builds a skeleton from keypoint names, filling in what is not given.

        For the names of one of [`SKELETONS`] it is that one's. For others, left/right pairs come from the names, every
        keypoint is a part of its own (Figure 4a of the paper), and sigmas are [`DEFAULT_SIGMA`], with a warning: OKS
        figures made with them compare with nobody else's.

        Example:

        ```python
        >>> horse = Skeleton.from_names(["nose", "left_ear", "right_ear"], sigmas=[0.03, 0.04, 0.04])
        >>> horse.flip_indices
        (0, 2, 1)
        ```
        """
        names = tuple(keypoint_names)
        for known in SKELETONS.values():
            if known.keypoint_names == names:
                parts = known.parts if parts is None else parts
                edges = known.edges if edges is None else edges
                flip_indices = known.flip_indices if flip_indices is None else flip_indices
                sigmas = known.sigmas if sigmas is None else sigmas
        if sigmas is None:
            warnings.warn(
                f"`keypoint_sigmas` not given: every keypoint gets {DEFAULT_SIGMA}, the mean of COCO's. Training does "
                "not use them, but OKS and AP do.",
                stacklevel=2,
            )
            sigmas = (DEFAULT_SIGMA,) * len(names)
        return cls(
            keypoint_names=names,
            parts=tuple((i,) for i in range(len(names))) if parts is None else tuple(tuple(p) for p in parts),
            edges=() if edges is None else tuple((first, second) for first, second in edges),
            flip_indices=flip_indices_from_names(names) if flip_indices is None else tuple(flip_indices),
            sigmas=tuple(float(s) for s in sigmas),
        )


def flip_indices_from_names(keypoint_names: Sequence[str]) -> tuple[int, ...] | None:
    """For each keypoint the index of its mirror image, found by exchanging left and right in its name.

    `left_eye`, `Left Eye`, `eye-left`, `lefteye`, `l_eye`, `LeftEye` and `LEye` are understood. A name without a side
    is its own mirror image. Returns `None` when a sided name has no partner, or no name has a side and there are
    several keypoints: then nothing is known, and flipping would teach the model wrong labels.
    """
    keys = [_NEW_WORD.sub("_", name).lower() for name in keypoint_names]
    index = {key: i for i, key in enumerate(keys)}
    if len(index) < len(keys):  # which of two alike is whose partner?
        return None
    flipped = []
    for key in keys:
        mirrored = _SIDE.sub(lambda side: _OTHER_SIDE[side.group(1)], key)
        if mirrored == key:  # a side grown together with the next word, which only a partner gives away
            joined = _JOINED_SIDE.sub(lambda side: _OTHER_SIDE[side.group(1)], key)
            mirrored = joined if joined in index else key
        if mirrored not in index:
            return None
        flipped.append(index[mirrored])
    if len(keys) > 1 and flipped == list(range(len(keys))):
        return None
    return tuple(flipped)


def warn_of_sides(keypoint_names: Sequence[str], flip_indices: Sequence[int] | None) -> None:
    """Warns if `flip_indices` do not exchange keypoints whose names say that they are left and right."""
    if flip_indices is None or len(flip_indices) != len(keypoint_names):
        return
    expected = flip_indices_from_names(keypoint_names)
    wrong = [
        name
        for i, name in enumerate(keypoint_names)
        if (expected is not None and flip_indices[i] != expected[i])
        or (flip_indices[i] == i and _SIDE.search(_NEW_WORD.sub("_", name).lower()))
    ]
    if wrong:
        warnings.warn(
            f"flip indices {list(flip_indices)} do not exchange left and right as the names of the keypoints say "
            f"({', '.join(wrong[:4])}{', ...' if len(wrong) > 4 else ''}): mirrored images would teach the model "
            "wrong sides.",
            stacklevel=2,
        )


def _tuple_of_tenths(values: str) -> tuple[float, ...]:
    return tuple(round(float(value) / 10, 6) for value in values.split())


_COCO_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

#: The four ways to group COCO's keypoints that the paper compares (Figure 4, Table 2(d)); "c" is the default.
COCO_PARTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "a": tuple((i,) for i in range(17)),
    "b": ((0, 1, 2, 3, 4), *((i,) for i in range(5, 17))),
    "c": ((0, 1, 2, 3, 4), (5, 6), (7, 9), (8, 10), (11, 12), (13, 15), (14, 16)),
    "d": ((0, 1, 2, 3, 4), (5, 7, 9), (6, 8, 10), (11, 13, 15), (12, 14, 16)),
}

COCO_17 = Skeleton(
    keypoint_names=_COCO_NAMES,
    parts=COCO_PARTS["c"],
    edges=(
        (15, 13),
        (13, 11),
        (16, 14),
        (14, 12),
        (11, 12),
        (5, 11),
        (6, 12),
        (5, 6),
        (5, 7),
        (6, 8),
        (7, 9),
        (8, 10),
        (1, 2),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
    ),
    flip_indices=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    sigmas=_tuple_of_tenths(".26 .25 .25 .35 .35 .79 .79 .72 .72 .62 .62 1.07 1.07 .87 .87 .89 .89"),
)

#: The same groupings carried over to CrowdPose's keypoints.
CROWDPOSE_PARTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "a": tuple((i,) for i in range(14)),
    "b": (*((i,) for i in range(12)), (12, 13)),
    "c": ((12, 13), (0, 1), (2, 4), (3, 5), (6, 7), (8, 10), (9, 11)),
    "d": ((12, 13), (0, 2, 4), (1, 3, 5), (6, 8, 10), (7, 9, 11)),
}

CROWDPOSE_14 = Skeleton(
    keypoint_names=(
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
        "head",
        "neck",
    ),
    parts=CROWDPOSE_PARTS["c"],
    edges=(
        (10, 8),
        (8, 6),
        (11, 9),
        (9, 7),
        (6, 7),
        (0, 6),
        (1, 7),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (12, 13),
        (13, 0),
        (13, 1),
    ),
    flip_indices=(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13),
    sigmas=_tuple_of_tenths(".79 .79 .72 .72 .62 .62 1.07 1.07 .87 .87 .89 .89 .79 .79"),
)

#: Skeletons that can be asked for by name.
SKELETONS: dict[str, Skeleton] = {"coco": COCO_17, "crowdpose": CROWDPOSE_14}


def grouping(name: str, keypoint_names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The parts of a grouping of the paper's Figure 4.

    Args:
        name (`str`): `"a"`, each keypoint a part, for any keypoints; `"b"` to `"d"` for COCO's and CrowdPose's.
        keypoint_names (`Sequence[str]`)

    Raises:
        ValueError: there is no such grouping of these keypoints.
    """
    names = tuple(keypoint_names)
    if name == "a":
        return tuple((i,) for i in range(len(names)))
    for skeleton, groupings in ((COCO_17, COCO_PARTS), (CROWDPOSE_14, CROWDPOSE_PARTS)):
        if names == skeleton.keypoint_names and name in groupings:
            return groupings[name]
    raise ValueError(
        f"`keypoint_parts` is {name!r}; expected lists of keypoint indices, 'a', or, for the keypoints of COCO or "
        "CrowdPose, one of 'b', 'c' and 'd'."
    )
