"""Places people in a scene: drawn from a prior, or as the keypoints of real people say.

Real keypoints are two-dimensional and incomplete; [`lift`] gives them depth and the missing joints.
"""

from dataclasses import dataclass

import numpy as np

from .synthetic_layouts import Layouts
from .synthetic_poses import (
    FACE_POINTS,
    HEAD_RADII,
    JOINT,
    JOINT_NAMES,
    NUM_KEYPOINTS,
    Poses,
    pose_library,
    sample_poses,
)


@dataclass
class Arrangement:
    """The people of one scene, in pixels of its picture, with continuous coordinates (a pixel's centre is at + 0.5).

    Attributes:
        poses ([`Poses`]): joints in pixels; z only orders the parts of one body.
        depth (`np.ndarray` of shape (n,)): the larger, the further away; people are drawn by falling depth.
        labels (`np.ndarray` of shape (n, 17, 2), *optional*): the keypoints as pixel indices, where they are given
            and not drawn from the prior.
        labelled (`np.ndarray` of shape (n, 17)): whether a keypoint may be annotated.
        horizon (`float`): height of the horizon in the picture.
        boxes (`np.ndarray` of shape (n, 4), *optional*): the given boxes, x, y, width, height.
    """

    poses: Poses
    depth: np.ndarray
    labels: np.ndarray | None
    labelled: np.ndarray
    horizon: float
    boxes: np.ndarray | None = None


def arrange(rng: np.random.Generator, size: tuple[int, int], people: tuple[int, int]) -> Arrangement:
    """Draws an arrangement from the built-in prior: people on common ground, of varied size, some cut by the border.

    Args:
        rng (`np.random.Generator`): where all chance comes from.
        size (`tuple[int, int]`): width and height of the picture in pixels.
        people (`tuple[int, int]`): the smallest and the largest number of people.
    """
    width, height = size
    count = int(rng.integers(people[0], people[1] + 1))
    poses = sample_poses(rng, count)
    horizon = height * rng.uniform(0.2, 0.62)
    camera_height = rng.uniform(0.75, 1.25)
    common = np.exp(rng.uniform(np.log(0.32), np.log(1.6))) * min(height, 1.2 * width) * count**-0.2
    scale = np.clip(common * np.exp(rng.normal(0, 0.28, count)), 0.12 * height, 2.2 * height)

    joints = poses.joints
    lowest = joints[..., 1].max(axis=1)
    slots = (rng.permutation(count) + 0.5 + rng.uniform(-0.45, 0.45, count)) / count
    x = width * (0.5 + (slots - 0.5) * rng.uniform(0.55, 1.1)) if count > 1 else width * rng.normal(0.5, 0.16, count)
    ground = horizon + camera_height * scale
    # keep at least the upper body of most people inside, however large they are
    ground = np.minimum(ground, height * 0.82 + scale * 0.55) - scale * 0.06 * np.abs(rng.standard_normal(count))
    ground = np.maximum(ground, 0.3 * scale + 0.25 * height)
    position = np.stack([x, ground - lowest * scale, np.zeros(count)], axis=-1)
    return Arrangement(
        Poses(joints * scale[:, None, None] + position[:, None],
              poses.head_axes * scale[:, None, None], poses.joint_scale * scale[:, None]),
        depth=-ground,
        labels=None,
        labelled=np.ones((count, NUM_KEYPOINTS), dtype=bool),
        horizon=float(horizon),
    )  # fmt: skip


def arrangement_from_layout(
    rng: np.random.Generator, layouts: Layouts, index: int, size: tuple[int, int] | None
) -> tuple[Arrangement, tuple[int, int]]:
    """The people of one layout, and the size of the picture.

    With a `size`, the layout is enlarged or reduced to cover it, keeping its proportions, and a window of it is shown
    that holds many of its keypoints. Without, the picture is as large as the layout says and keypoints are exactly
    those given.
    """
    own_width, own_height = (int(v) for v in layouts.size[index])
    people = slice(int(layouts.offset[index]), int(layouts.offset[index + 1]))
    keypoints = layouts.keypoints[people].astype(np.float64)
    boxes = layouts.bbox[people].astype(np.float64)
    labelled = keypoints[..., 2] > 0
    labels = keypoints[..., :2].copy()
    if size is None:
        size = (own_width, own_height)
    else:
        zoom = max(size[0] / own_width, size[1] / own_height)
        spare = np.array([own_width * zoom - size[0], own_height * zoom - size[1]])
        labels = (labels + 0.5) * zoom
        corner = _window_with_people(rng, labels[labelled], spare, size)
        labels = labels - corner - 0.5
        boxes = boxes * zoom - np.array([*corner, 0, 0])
    poses = lift(labels + 0.5, labelled, boxes)
    feet = np.where(labelled, labels[..., 1], -np.inf).max(axis=1)
    depth = -(feet + 0.3 * poses.joint_scale.mean(axis=1))
    horizon = size[1] * rng.uniform(0.2, 0.55)
    return Arrangement(poses, depth, labels, labelled, float(horizon), boxes), size


def _window_with_people(
    rng: np.random.Generator, points: np.ndarray, spare: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """The upper left corner (2,) of a window over a layout: of a few random ones, one that holds many keypoints."""
    corners = np.floor(spare * rng.random((8, 2)))
    inside = ((points >= corners[:, None]) & (points < corners[:, None] + size)).all(axis=2).sum(axis=1)
    return corners[np.argmax(inside * rng.uniform(0.7, 1.0, len(corners)))]


#: How near joints are to each other along the body, in steps from joint to joint.
_BONES = tuple(
    (JOINT[a], JOINT[b])
    for a, b in (
        ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear"),
        ("nose", "head"), ("left_ear", "head"), ("right_ear", "head"), ("head", "neck"),
        ("neck", "left_shoulder"), ("neck", "right_shoulder"), ("left_shoulder", "left_elbow"),
        ("right_shoulder", "right_elbow"), ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"),
        ("left_wrist", "left_hand"), ("right_wrist", "right_hand"), ("neck", "waist"), ("waist", "pelvis"),
        ("pelvis", "left_hip"), ("pelvis", "right_hip"), ("left_hip", "left_knee"), ("right_hip", "right_knee"),
        ("left_knee", "left_ankle"), ("right_knee", "right_ankle"), ("left_ankle", "left_toe"),
        ("right_ankle", "right_toe"),
    )
)  # fmt: skip


def _body_distance() -> np.ndarray:
    distance = np.full((len(JOINT_NAMES), len(JOINT_NAMES)), np.inf)
    np.fill_diagonal(distance, 0.0)
    for a, b in _BONES:
        distance[a, b] = distance[b, a] = 1.0
    for middle in range(len(JOINT_NAMES)):
        distance = np.minimum(distance, distance[:, middle, None] + distance[middle])
    return distance


_NEARNESS = 8.0 ** -_body_distance()


def lift(keypoints: np.ndarray, labelled: np.ndarray, boxes: np.ndarray) -> Poses:
    """Gives two-dimensional, incomplete poses depth and their missing joints.

    The pose of the prior's library that fits the labelled keypoints best, moved and scaled, supplies depth, the head's
    direction and the joints that are not labelled; labelled ones stay exactly where they are.

    Args:
        keypoints (`np.ndarray` of shape (n, 17, 2)): continuous coordinates in pixels.
        labelled (`np.ndarray` of shape (n, 17)): which of them count; the others may hold anything.
        boxes (`np.ndarray` of shape (n, 4)): x, y, width, height; they give the scale where keypoints cannot.
    """
    library = pose_library()
    count = len(keypoints)
    weight = labelled.astype(np.float64)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1.0)
    centre = (keypoints * weight[..., None]).sum(axis=1) / total
    target = np.where(labelled[..., None], keypoints - centre[:, None], 0.0)
    example = library.joints[:, :NUM_KEYPOINTS, :2]

    # Least squares over scale and shift, for all pairs at once: with centred points the best scale is <a, b> / <b, b>.
    flat = example.reshape(len(library), -1)
    mean = np.einsum("nk,ekc->nec", weight, example) / total[..., None]
    product = target.reshape(count, -1) @ flat.T
    square = weight @ (example**2).sum(axis=2).T - (total * (mean**2).sum(axis=2))
    energy = (target**2).sum(axis=(1, 2))[:, None]
    fit = 1.0 - np.maximum(product, 0.0) ** 2 / np.maximum(square * energy, 1e-9)

    # A face that is labelled should face the camera, and one that is not, beside labelled ears, should not.
    faces_camera = (library.head_axes[:, 2, 2] > 0).astype(np.float64)
    head, face = (weight[:, :n].sum(axis=1, keepdims=True) > 0 for n in (5, 3))
    disagreement = np.where(face, 1.0 - faces_camera, faces_camera) * head
    best = np.argmin(fit + 0.08 * disagreement, axis=1)

    rows = np.arange(count)
    scale = product[rows, best] / np.maximum(square[rows, best], 1e-9)
    longer_side = np.maximum(boxes[:, 2:].max(axis=1), 4.0)
    few = labelled.sum(axis=1) < 3
    scale = np.where(few, longer_side, np.clip(scale, 0.6 * longer_side, 6.0 * longer_side))
    shift = centre - scale[:, None] * mean[rows, best]
    joints = library.joints[best] * scale[:, None, None]
    joints[..., :2] += shift[:, None]

    # Joints without a label follow the labelled ones that are next to them along the body.
    residual = np.where(labelled[..., None], keypoints - joints[:, :NUM_KEYPOINTS, :2], 0.0)
    pull = _NEARNESS[None, :, :NUM_KEYPOINTS] * weight[:, None, :]
    joints[..., :2] += np.einsum("njk,nkc->njc", pull, residual) / np.maximum(pull.sum(axis=2, keepdims=True), 1e-12)
    joints[:, :NUM_KEYPOINTS, :2] = np.where(labelled[..., None], keypoints, joints[:, :NUM_KEYPOINTS, :2])

    head_axes, head_centre = _fit_heads(joints, library.head_axes[best] * scale[:, None, None])
    joints[:, JOINT["head"], :2] = head_centre
    joint_scale = library.joint_scale[best] * scale[:, None]
    return Poses(joints, head_axes, joint_scale)


def _fit_heads(joints: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bends each head's axes a little so that its nose, eyes and ears project to where they are."""
    points = np.concatenate([FACE_POINTS, np.ones((5, 1))], axis=1)
    start = np.concatenate([axes[:, :2], joints[:, JOINT["head"], :2, None]], axis=2)
    wanted = joints[:, :5, :2] - np.einsum("ncj,kj->nkc", start, points)
    # ridge regression: the shift of the head is free, its shape resists
    ridge = np.diag([0.3, 1.0, 0.3, 0.02])
    solve = np.linalg.solve(points.T @ points + ridge, points.T)
    fitted = start + np.einsum("jk,nkc->ncj", solve, wanted)
    bent = axes.copy()
    bent[:, :2] = fitted[..., :3]
    # A head that would be flattened or blown up comes from a wrong label: it keeps its shape and only moves.
    size = np.cbrt(np.abs(np.linalg.det(axes)))
    stretch = np.linalg.svd(bent / HEAD_RADII, compute_uv=False)
    change = np.asarray(stretch / (size / HEAD_RADII.prod() ** (1 / 3))[:, None])
    sound: np.ndarray = (change.min(axis=1) > 0.45) & (change.max(axis=1) < 1.9) & (np.linalg.det(bent) > 0)
    centre = np.where(sound[:, None], fitted[..., 3], joints[:, JOINT["head"], :2] + wanted.mean(axis=1))
    return np.where(sound[:, None, None], bent, axes), centre
