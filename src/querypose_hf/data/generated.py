"""Drawn people with exact keypoints: data for tests, notebooks and trials, without any download."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from torch.utils.data import Dataset

from ..model.skeletons import COCO_17
from ..settings import require
from .description import DataDescription, Described
from .sample import PoseSample


_K = {name: index for index, name in enumerate(COCO_17.keypoint_names)}
_NECK, _HEAD = 17, 18  # drawn besides COCO's keypoints
_DEFAULT_SIZE = (640, 480)
_SUPERSAMPLING = 2

# The built-in prior: angles in degrees of some poses. Arms and legs hang down at 0; flexion lifts them to the front,
# abduction to the side.
_POSES: list[list[float]] = [
    # lean | left arm: flexion, abduction, elbow | right arm | left leg: flexion, abduction, knee | right leg
    [2, 5, 12, 20, 5, 12, 20, 2, 4, 4, 2, 4, 4],  # standing
    [0, 5, 45, 80, -5, 12, 20, 2, 6, 4, 2, 4, 10],  # a hand on the hip
    [5, -20, 8, 20, 25, 8, 25, 25, 3, 10, -18, 3, 25],  # walking
    [14, -40, 8, 90, 40, 8, 90, 60, 4, 80, -25, 4, 45],  # running
    [2, 30, 8, 60, 30, 8, 60, 85, 8, 85, 85, 8, 85],  # sitting
    [0, 10, 150, 20, 10, 150, 20, 0, 10, 5, 0, 10, 5],  # both arms up
    [4, 20, 140, 30, 20, 20, 30, -8, 8, 10, 14, 8, 20],  # one arm up
    [30, 50, 20, 50, 50, 20, 50, 85, 16, 110, 85, 16, 110],  # crouching
    [15, 20, 55, 40, 20, 55, 40, 40, 20, 55, 40, 20, 55],  # skiing
]
_MIRRORED = [0, 4, 5, 6, 1, 2, 3, 10, 11, 12, 7, 8, 9]

# Limbs: start, end, radius relative to the height of the person, colour. Their labels in a map of parts are 1, 2, ...
_LIMBS = [
    (_K[f"{side}_{start}"], _K[f"{side}_{end}"], radius, colour)
    for side in ("left", "right")
    for start, end, radius, colour in (
        ("hip", "knee", 0.042, "trousers"),
        ("knee", "ankle", 0.032, "shins"),
        ("shoulder", "elbow", 0.030, "shirt"),
        ("elbow", "wrist", 0.024, "forearms"),
    )
]
_TORSO_LABEL, _HEAD_LABEL = len(_LIMBS) + 1, len(_LIMBS) + 2
_TORSO = [_K[name] for name in ("left_shoulder", "right_shoulder", "right_hip", "left_hip")]
# radii and colours of nose, eyes and ears
_FACE = [(0.012, "skin"), (0.009, "eyes"), (0.009, "eyes"), (0.014, "skin"), (0.014, "skin")]
_HEAD_RADIUS, _TORSO_RADIUS = 0.062, 0.035


@dataclass
class _Figure:
    """One person: joints (19, 2) in pixels, and their depths (19,), which grow away from the camera."""

    joints: np.ndarray
    depth: np.ndarray
    height: float

    def faces_camera(self, joint: int) -> bool:
        """Whether a keypoint is one of the face, and on the side of the head that is seen."""
        return bool(joint < 5 and self.depth[joint] <= self.depth[_HEAD] + 0.03)


class GeneratedPeople(Described, Dataset[PoseSample]):
    """Images of drawn people with COCO annotations, made when they are asked for.

    People take built-in poses in random places. An image depends on the arguments, the epoch and the index alone.
    `people[i]` is image i of epoch 0; other epochs show other people.

    Args:
        length (`int`): images in an epoch.
        seed (`int`): of everything random.
        size (`tuple[int, int]`, *optional*): width and height of the images in pixels; by default 640 x 480.
        people (`tuple[int, int]`): the smallest and the largest number of people in an image.

    Raises:
        ValueError: an argument is not as described.

    Example:

    ```python
    >>> people = GeneratedPeople(1000, size=(320, 240))
    >>> people[3]["image"].size
    (320, 240)
    ```
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        people: tuple[int, int] = (1, 4),
    ):
        self.length, self.seed, self.people = length, seed, people
        self.size = _DEFAULT_SIZE if size is None else size
        require(self, "length", isinstance(length, int) and length >= 1, "a whole number of at least 1")
        require(self, "seed", isinstance(seed, int) and seed >= 0, "a whole number of at least 0")
        fits = len(self.size) == 2 and min(self.size) >= 16
        require(self, "size", fits, "a width and a height of at least 16 pixels")
        fits = len(people) == 2 and 1 <= people[0] <= people[1]
        require(self, "people", fits, "a smallest and a largest number of at least 1")
        self.description = DataDescription(17, COCO_17.keypoint_names, COCO_17.edges, None, {1: "person"})

    def __len__(self) -> int:
        return self.length

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) int64: width and height of every image of an epoch."""
        return np.tile(np.array(self.size, dtype=np.int64), (self.length, 1))

    def __getitem__(self, index: int) -> PoseSample:
        return self.in_epoch(0, index)

    def in_epoch(self, epoch: int, index: int) -> PoseSample:
        """Image `index` of an epoch."""
        number = epoch * self.length + range(self.length)[index]
        width, height = self.size
        ground = _ground(np.random.default_rng((self.seed, number, 0)), (width, height))
        canvas = ground.resize((_SUPERSAMPLING * width, _SUPERSAMPLING * height), PIL.Image.Resampling.NEAREST)
        rng = np.random.default_rng((self.seed, number, 1))
        annotations = _draw(rng, canvas, self._figures(rng))
        for position, annotation in enumerate(annotations):
            annotation.update(id=1000 * number + position, image_id=number)
        return {"image": canvas.reduce(_SUPERSAMPLING), "image_id": number, "annotations": annotations}

    def _figures(self, rng: np.random.Generator) -> list[_Figure]:
        """The people of an image, the farthest first."""
        figures = [_posed(rng, self.size) for _ in range(rng.integers(self.people[0], self.people[1] + 1))]
        return sorted(figures, key=lambda figure: figure.height)


def _turned(points: np.ndarray, axis: int, degrees: float) -> np.ndarray:
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = points.copy()
    turned[..., a] = cosine * points[..., a] - sine * points[..., b]
    turned[..., b] = sine * points[..., a] + cosine * points[..., b]
    return turned


def _posed(rng: np.random.Generator, size: tuple[int, int]) -> _Figure:
    """A person of the built-in prior; x is to the right, y down, z away, in units of the standing height."""
    angles = _POSES[rng.integers(len(_POSES))] + rng.normal(0, 9, 13)
    angles = angles[_MIRRORED] if rng.random() < 0.5 else angles
    joints = np.zeros((19, 3))

    def limb(start: np.ndarray, length: float, flexion: float, abduction: float, sign: int) -> np.ndarray:
        return start + _turned(_turned(np.array([0.0, length, 0.0]), 0, -flexion), 2, -sign * abduction)

    up = _turned(np.array([0.0, -1.0, 0.0]), 0, angles[0])
    joints[_NECK] = 0.32 * up
    joints[_HEAD] = 0.435 * up
    face = 0.001 * np.array([[0, 20, -66], [25, -8, -55], [-25, -8, -55], [60, 0, 0], [-60, 0, 0]])
    joints[:5] = joints[_HEAD] + _turned(_turned(face, 0, rng.normal(4, 8)), 1, rng.normal(0, 22))
    for side, sign, arm, leg in (("left", 1, 1, 7), ("right", -1, 4, 10)):
        flexion, abduction, elbow = angles[arm : arm + 3]
        joints[_K[f"{side}_shoulder"]] = shoulder = joints[_NECK] + np.array([0.105 * sign, 0.025, 0])
        joints[_K[f"{side}_elbow"]] = middle = limb(shoulder, 0.16, flexion, abduction, sign)
        joints[_K[f"{side}_wrist"]] = limb(middle, 0.145, flexion + max(elbow, 0), abduction, sign)
        flexion, abduction, knee = angles[leg : leg + 3]
        joints[_K[f"{side}_hip"]] = hip = np.array([0.062 * sign, 0, 0])
        joints[_K[f"{side}_knee"]] = middle = limb(hip, 0.245, flexion, abduction, sign)
        joints[_K[f"{side}_ankle"]] = limb(middle, 0.24, flexion - max(knee, 0), abduction, sign)
    # most people face the camera
    joints = _turned(joints, 1, rng.normal(0, 35) if rng.random() < 0.6 else rng.uniform(-180, 180))
    joints = _turned(joints, 2, rng.normal(0, 4))
    low, high = joints[:, :2].min(0) - 0.05, joints[:, :2].max(0) + 0.05
    height = size[1] * rng.uniform(0.5, 0.95) / max(float(high[1] - low[1]), 0.7)
    # the box lies in the image as far as it fits, or sticks out by up to a tenth
    room = np.array(size) - height * (high - low)
    corner = rng.uniform(np.minimum(room, 0), np.maximum(room, 0)) + rng.uniform(-0.1, 0.1, 2) * height * (high - low)
    return _Figure((joints[:, :2] - low) * height + corner, joints[:, 2], height)


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> PIL.Image.Image:
    """A textured ground with some things on it."""
    canvas = PIL.Image.new("RGB", size, tuple(map(int, rng.integers(60, 200, 3))))
    for cells, share in ((3, 0.5), (24, 0.3), (96, 0.3)):
        noise = PIL.Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        canvas = PIL.Image.blend(canvas, noise.resize(size, PIL.Image.Resampling.BILINEAR), share)
    draw = PIL.ImageDraw.Draw(canvas)
    for _ in range(rng.integers(2, 8)):
        corners = np.sort(rng.uniform(-0.2, 1.2, (2, 2)), axis=0) * size
        outline = draw.ellipse if rng.random() < 0.4 else draw.rectangle
        outline(corners.ravel().tolist(), fill=tuple(map(int, rng.integers(0, 256, 3))))
    return canvas


def _draw(rng: np.random.Generator, canvas: PIL.Image.Image, figures: list[_Figure]) -> list[dict[str, Any]]:
    """Draws people on the canvas, each over the ones before; returns their annotations."""
    height, width = canvas.height // _SUPERSAMPLING, canvas.width // _SUPERSAMPLING
    owner, parts = np.full((height, width), -1), np.zeros((height, width), dtype=np.uint8)
    silhouettes = []
    for number, figure in enumerate(figures):
        labels = PIL.Image.new("L", canvas.size)
        _Pen(rng, figure, canvas, labels).draw()
        own = np.asarray(labels.resize((width, height), PIL.Image.Resampling.NEAREST))
        silhouettes.append(own > 0)
        owner[own > 0], parts[own > 0] = number, own[own > 0]
    annotations = []
    for number, (figure, silhouette) in enumerate(zip(figures, silhouettes, strict=True)):
        area = int((owner == number).sum())
        if area <= 0.1 * silhouette.sum():
            continue
        keypoints = _keypoints(figure, np.where(owner == number, parts, 0))
        rows, columns = (np.flatnonzero(silhouette.any(axis)) for axis in (1, 0))
        left, top = int(columns[0]), int(rows[0])
        box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
        annotation: dict[str, Any] = {"category_id": 1, "iscrowd": 0, "bbox": box, "area": area}
        labelled = int((keypoints[:, 2] > 0).sum())
        annotations.append({**annotation, "keypoints": keypoints.ravel().tolist(), "num_keypoints": labelled})
    return annotations


def _keypoints(figure: _Figure, parts: np.ndarray) -> np.ndarray:
    """(17, 3): pixel indices and visibility, given the labels of the parts of the figure that are seen."""
    keypoints = np.zeros((17, 3))
    for joint, (x, y) in enumerate(figure.joints[:17]):
        column, row = int(np.floor(x)), int(np.floor(y))
        if not (0 <= row < parts.shape[0] and 0 <= column < parts.shape[1]):
            continue
        labels = [label for label, (start, end, _, _) in enumerate(_LIMBS, start=1) if joint in (start, end)]
        labels += [_TORSO_LABEL] * (joint in _TORSO) + [_HEAD_LABEL] * figure.faces_camera(joint)
        keypoints[joint] = x - 0.5, y - 0.5, 2 if parts[row, column] in labels else 1
    return keypoints


class _Pen:
    """Draws one figure in random colours on an enlarged canvas, and the labels of its parts on a map of that size."""

    def __init__(self, rng: np.random.Generator, figure: _Figure, canvas: PIL.Image.Image, labels: PIL.Image.Image):
        self.figure, self.joints = figure, figure.joints * _SUPERSAMPLING
        self.canvas, self.labels = PIL.ImageDraw.Draw(canvas), PIL.ImageDraw.Draw(labels)
        skin = np.array([235, 190, 160]) * rng.uniform(0.35, 1.05)
        shirt, trousers = rng.uniform(20, 250, 3), rng.uniform(20, 250, 3)
        self.colours = {"skin": skin, "shirt": shirt, "trousers": trousers, "eyes": np.full(3, 25.0)}
        self.colours["hair"] = np.array([90, 65, 45]) * rng.uniform(0.2, 2)
        self.colours["shins"] = trousers if rng.random() < 0.7 else skin
        self.colours["forearms"] = shirt if rng.random() < 0.5 else skin

    def draw(self) -> None:
        """Draws all parts, the farthest first."""
        depth = self.figure.depth
        parts: list[tuple[float, int, Callable[[], None]]] = []
        for label, (start, end, radius, colour) in enumerate(_LIMBS, start=1):
            limb = partial(self.capsule, self.joints[start], self.joints[end], radius, colour, label)
            parts.append((-depth[[start, end]].mean(), label, limb))
        parts.append((-depth[_TORSO].mean(), _TORSO_LABEL, self.torso))
        parts.append((-depth[_HEAD], _HEAD_LABEL, self.head))
        for _, _, part in sorted(parts, key=lambda part: part[:2]):
            part()

    def capsule(self, start: np.ndarray, end: np.ndarray, radius: float, colour: str, label: int) -> None:
        """A line with round ends; a lighter middle makes it look round."""
        radius = max(radius * self.figure.height, 0.75) * _SUPERSAMPLING
        shades = ((self.canvas, radius, self.fill(colour, 0.75)), (self.canvas, 0.6 * radius, self.fill(colour)))
        for draw, reach, fill in ((self.labels, radius, label), *shades):
            draw.line([*start, *end], fill=fill, width=max(1, round(2 * reach)))
            for x, y in (start, end):
                draw.ellipse([x - reach, y - reach, x + reach, y + reach], fill=fill)

    def fill(self, colour: str, light: float = 1) -> tuple[int, ...]:
        return tuple((light * self.colours[colour]).astype(int).clip(0, 255).tolist())

    def torso(self) -> None:
        corners = self.joints[_TORSO]
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            self.capsule(start, end, _TORSO_RADIUS, "shirt", _TORSO_LABEL)
        self.labels.polygon(corners.ravel().tolist(), fill=_TORSO_LABEL)
        self.canvas.polygon(corners.ravel().tolist(), fill=self.fill("shirt"))

    def head(self) -> None:
        figure, centre = self.figure, self.joints[_HEAD]
        self.capsule(self.joints[_NECK], centre, 0.028, "skin", _HEAD_LABEL)
        crown = centre - np.array([0, 0.02 * figure.height * _SUPERSAMPLING])
        self.capsule(crown, crown, _HEAD_RADIUS, "hair", _HEAD_LABEL)
        face = "skin" if figure.faces_camera(0) else "hair"
        self.capsule(centre, centre, 0.95 * _HEAD_RADIUS, face, _HEAD_LABEL)
        for joint, (radius, colour) in enumerate(_FACE):
            if figure.faces_camera(joint):
                self.capsule(self.joints[joint], self.joints[joint], radius, colour, _HEAD_LABEL)
