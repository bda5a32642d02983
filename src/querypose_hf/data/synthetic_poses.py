"""A prior over three-dimensional human poses: jointed skeletons in everyday positions, seen by a random camera.

Coordinates are those of the camera: x to the right, y down, z away from it. Lengths are in units of the standing
height of an adult with these proportions, so a pose times the height in pixels is a pose in the picture.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..model.skeletons import COCO_17


#: The joints of a body: COCO's 17 keypoints first, in their order, then what drawing needs besides.
JOINT_NAMES = (
    *COCO_17.keypoint_names,
    "left_hand",
    "right_hand",
    "left_toe",
    "right_toe",
    "neck",
    "waist",
    "pelvis",
    "head",
)
JOINT = {name: i for i, name in enumerate(JOINT_NAMES)}
NUM_KEYPOINTS = COCO_17.num_keypoints

#: Semi-axes of the head as an ellipsoid: left, down, back.
HEAD_RADII = np.array([0.050, 0.068, 0.062])
#: Nose tip, eyes and ears in the head's own coordinates (left, down, back), as fractions of its semi-axes.
FACE_POINTS = np.array(
    [[0.0, 0.28, -1.13], [0.40, -0.08, -0.913], [-0.40, -0.08, -0.913], [1.03, 0.08, 0.06], [-1.03, 0.08, 0.06]]
)

# Angles of a pose in degrees. Arms and legs hang down at zero; flexion lifts them to the front, abduction to their
# side, a twist turns the forearm (or shin) inwards about the limb above it.
_ANGLES = (
    "lean tilt spine side twist neck_pitch neck_yaw neck_roll "
    "left_arm_flexion left_arm_abduction left_arm_twist left_elbow "
    "right_arm_flexion right_arm_abduction right_arm_twist right_elbow "
    "left_leg_flexion left_leg_abduction left_leg_twist left_knee "
    "right_leg_flexion right_leg_abduction right_leg_twist right_knee"
).split()
_ANGLE = {name: i for i, name in enumerate(_ANGLES)}

_STANDING: dict[str, tuple[float, float]] = {
    "lean": (2, 4), "tilt": (0, 3), "spine": (4, 7), "side": (0, 4), "twist": (0, 10),
    "neck_pitch": (4, 12), "neck_yaw": (0, 24), "neck_roll": (0, 7),
    "arm_flexion": (6, 16), "arm_abduction": (11, 8), "arm_twist": (22, 24), "elbow": (24, 20),
    "leg_flexion": (2, 7), "leg_abduction": (4, 5), "leg_twist": (-6, 8), "knee": (5, 6),
}  # fmt: skip

# How often each kind of pose is drawn, and where its angles differ from standing: (mean, standard deviation).
# A name without a side holds for both sides.
_KINDS: tuple[tuple[float, dict[str, tuple[float, float]]], ...] = (
    (16, {}),
    # walking
    (11, {"left_leg_flexion": (24, 8), "left_knee": (10, 8), "right_leg_flexion": (-16, 8), "right_knee": (22, 12),
          "left_arm_flexion": (-18, 12), "right_arm_flexion": (24, 12), "lean": (5, 4)}),
    # running
    (7, {"left_leg_flexion": (62, 16), "left_knee": (82, 24), "right_leg_flexion": (-22, 12),
         "right_knee": (42, 28), "left_arm_flexion": (-38, 14), "right_arm_flexion": (38, 18), "elbow": (92, 18),
         "lean": (12, 7), "twist": (8, 10)}),
    # one or both hands held in front: a telephone, a plate, a camera
    (11, {"arm_flexion": (32, 18), "arm_abduction": (12, 10), "elbow": (95, 26), "arm_twist": (30, 22),
          "neck_pitch": (14, 14)}),
    (6, {"left_arm_flexion": (45, 20), "left_elbow": (120, 18), "left_arm_twist": (12, 20)}),
    # sitting
    (14, {"leg_flexion": (84, 12), "knee": (84, 18), "leg_abduction": (10, 9), "arm_flexion": (28, 18),
          "elbow": (62, 30), "arm_twist": (32, 22), "lean": (2, 9), "spine": (10, 11)}),
    # crouching, and the low stance of ball games
    (6, {"leg_flexion": (88, 22), "knee": (112, 22), "leg_abduction": (18, 10), "lean": (32, 14),
         "arm_flexion": (48, 24), "elbow": (54, 30), "neck_pitch": (-18, 14)}),
    (7, {"leg_flexion": (44, 14), "knee": (56, 16), "leg_abduction": (18, 9), "lean": (22, 12),
         "arm_flexion": (34, 26), "arm_abduction": (34, 22), "elbow": (48, 28), "neck_pitch": (-10, 12)}),
    # board and ski stances: arms out
    (6, {"leg_flexion": (36, 14), "knee": (48, 16), "leg_abduction": (22, 8), "lean": (14, 12),
         "arm_flexion": (22, 26), "arm_abduction": (58, 24), "elbow": (34, 24), "tilt": (0, 12)}),
    # both arms up, one arm up, arms spread
    (5, {"arm_flexion": (30, 30), "arm_abduction": (142, 20), "elbow": (28, 26), "neck_pitch": (-8, 12)}),
    (7, {"left_arm_flexion": (142, 28), "left_arm_abduction": (22, 18), "left_elbow": (34, 28), "spine": (-2, 8),
         "right_arm_flexion": (22, 26), "right_arm_abduction": (26, 20), "twist": (0, 20), "lean": (4, 8),
         "left_leg_flexion": (-8, 14), "right_leg_flexion": (14, 14), "knee": (18, 14)}),
    (4, {"arm_abduction": (84, 14), "arm_flexion": (4, 16), "elbow": (14, 16)}),
    # a two-handed swing
    (6, {"arm_flexion": (66, 22), "arm_abduction": (6, 12), "arm_twist": (32, 18), "elbow": (52, 26),
         "twist": (0, 34), "lean": (12, 10), "knee": (26, 14), "leg_flexion": (18, 10), "leg_abduction": (16, 7)}),
    # hands on the hips
    (4, {"arm_flexion": (-14, 8), "arm_abduction": (42, 8), "arm_twist": (62, 12), "elbow": (84, 12)}),
    # bending down
    (5, {"lean": (52, 16), "spine": (28, 12), "neck_pitch": (-8, 20), "arm_flexion": (62, 22), "elbow": (22, 20),
         "leg_flexion": (42, 14), "knee": (22, 16)}),
    # kneeling on one knee
    (3, {"left_leg_flexion": (82, 10), "left_knee": (92, 12), "right_leg_flexion": (4, 10), "right_knee": (88, 12),
         "arm_flexion": (32, 22), "elbow": (54, 28)}),
    # kicking, jumping
    (4, {"left_leg_flexion": (58, 22), "left_knee": (24, 20), "right_leg_flexion": (-4, 10), "right_knee": (14, 10),
         "arm_abduction": (46, 24), "elbow": (34, 24), "lean": (-8, 8)}),
    (4, {"leg_flexion": (34, 26), "knee": (58, 34), "leg_abduction": (14, 12), "arm_flexion": (60, 50),
         "arm_abduction": (50, 36), "elbow": (40, 28), "lean": (6, 16), "tilt": (0, 12)}),
)  # fmt: skip

# Joints bend only so far.
_LIMITS: dict[str, tuple[float, float]] = {
    "lean": (-40, 100), "tilt": (-35, 35), "spine": (-25, 60), "side": (-30, 30), "twist": (-50, 50),
    "neck_pitch": (-45, 50), "neck_yaw": (-75, 75), "neck_roll": (-30, 30),
    "arm_flexion": (-60, 175), "arm_abduction": (-15, 175), "arm_twist": (-60, 95), "elbow": (0, 145),
    "leg_flexion": (-35, 125), "leg_abduction": (-15, 65), "leg_twist": (-45, 35), "knee": (0, 145),
}  # fmt: skip


def _angle_vector(table: dict[str, tuple[float, float]], column: int, start: np.ndarray) -> np.ndarray:
    # entries of one side come after those of both sides, whatever their order in the table
    vector = start.copy()
    for name in sorted(table, key=lambda name: name.startswith(("left_", "right_"))):
        for full in (name,) if name in _ANGLE else (f"left_{name}", f"right_{name}"):
            vector[_ANGLE[full]] = table[name][column]
    return vector


_ZERO = np.zeros(len(_ANGLES))
_STANDING_MEAN, _STANDING_STD = (_angle_vector(_STANDING, column, _ZERO) for column in (0, 1))
_MEANS = np.stack([_angle_vector(kind, 0, _STANDING_MEAN) for _, kind in _KINDS])
_STDS = np.stack([_angle_vector(kind, 1, _STANDING_STD) for _, kind in _KINDS])
_WEIGHTS = np.array([weight for weight, _ in _KINDS], dtype=float) / sum(weight for weight, _ in _KINDS)
_LOWEST, _HIGHEST = (_angle_vector(_LIMITS, column, _ZERO) for column in (0, 1))
_MIRRORED = np.array(
    [_ANGLE[name.replace("left_", "@").replace("right_", "left_").replace("@", "right_")] for name in _ANGLES]
)
_MIRROR_SIGN = np.array([-1.0 if n in ("tilt", "side", "twist", "neck_yaw", "neck_roll") else 1.0 for n in _ANGLES])


@dataclass
class Poses:
    """Poses of n people in camera coordinates.

    Attributes:
        joints (`np.ndarray` of shape (n, 25, 3)): positions of [`JOINT_NAMES`]; those of nose, eyes and ears lie on
            the surface of the head, the others inside the limbs.
        head_axes (`np.ndarray` of shape (n, 3, 3)): columns are the head's semi-axes: to its left, down, to its back.
        joint_scale (`np.ndarray` of shape (n, 25)): units per standing height at each joint; it grows towards the
            camera (perspective).
    """

    joints: np.ndarray
    head_axes: np.ndarray
    joint_scale: np.ndarray

    def __len__(self) -> int:
        return len(self.joints)


def _rotation(axis: int, degrees: np.ndarray) -> np.ndarray:
    """Rotation matrices (n, 3, 3) about one axis."""
    radians = np.radians(degrees)
    matrix = np.zeros((*radians.shape, 3, 3))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1.0
    matrix[..., a, a] = matrix[..., b, b] = np.cos(radians)
    matrix[..., b, a] = np.sin(radians)
    matrix[..., a, b] = -matrix[..., b, a]
    return matrix


def sample_poses(rng: np.random.Generator, count: int) -> Poses:
    """Draws `count` poses with body proportions and a view for each; the pelvis is the origin.

    Example:

    ```python
    >>> sample_poses(np.random.default_rng(0), 3).joints.shape
    (3, 25, 3)
    ```
    """
    kind = rng.choice(len(_KINDS), size=count, p=_WEIGHTS)
    angles = _MEANS[kind] + _STDS[kind] * rng.standard_normal((count, len(_ANGLES)))
    mirror = rng.random((count, 1)) < 0.5
    angles = np.where(mirror, angles[:, _MIRRORED] * _MIRROR_SIGN, angles)
    angles = np.clip(angles, _LOWEST, _HIGHEST)

    # Most people in photographs are seen from the front, many from anywhere, some from the back.
    view = rng.random(count)
    yaw = np.where(view < 0.5, rng.normal(0, 38, count), rng.uniform(-180, 180, count))
    yaw = np.where(view > 0.85, rng.normal(180, 30, count), yaw)
    pitch = np.where(rng.random(count) < 0.85, rng.normal(5, 8, count), rng.normal(25, 15, count))
    roll = np.where(rng.random(count) < 0.94, rng.normal(0, 4, count), rng.choice([-85.0, 85.0], count))
    root = _rotation(2, roll) @ _rotation(0, pitch) @ _rotation(1, yaw)
    return _assemble(rng, angles, root)


def _assemble(rng: np.random.Generator, angles: np.ndarray, root: np.ndarray) -> Poses:
    """Forward kinematics: places every joint from the angles of the one above it."""
    count = len(angles)

    def angle(name: str) -> np.ndarray:
        return angles[:, _ANGLE[name]]

    def place(rotation: np.ndarray, x, y, z) -> np.ndarray:
        offset = np.stack(np.broadcast_arrays(x, y, z, np.zeros(count))[:3], axis=-1)
        return np.einsum("nij,nj->ni", rotation, offset)

    child = rng.random(count) < 0.12
    head_size = np.where(child, rng.uniform(1.2, 1.5, count), rng.uniform(0.93, 1.08, count))
    shoulder_width = rng.normal(0.107, 0.006, count) * np.where(child, 0.92, 1.0)
    hip_width = rng.normal(0.062, 0.004, count)
    arm = rng.normal(1.0, 0.03, count) * np.where(child, 0.9, 1.0)
    leg = rng.normal(1.0, 0.025, count) * np.where(child, 0.88, 1.0)

    joints = np.zeros((count, len(JOINT_NAMES), 3))
    pelvis_frame = root @ _rotation(0, angle("lean")) @ _rotation(2, angle("tilt"))
    chest_frame = (
        pelvis_frame @ _rotation(1, angle("twist")) @ _rotation(0, angle("spine")) @ _rotation(2, angle("side"))
    )
    head_frame = (
        chest_frame
        @ _rotation(1, angle("neck_yaw"))
        @ _rotation(0, angle("neck_pitch"))
        @ _rotation(2, angle("neck_roll"))
    )
    joints[:, JOINT["waist"]] = place(pelvis_frame, 0.0, -0.105, 0.0)
    joints[:, JOINT["neck"]] = joints[:, JOINT["waist"]] + place(chest_frame, 0.0, -0.215, 0.0)
    joints[:, JOINT["head"]] = joints[:, JOINT["neck"]] + place(
        head_frame, 0.0, -0.045 - 0.058 * head_size, -0.018 * head_size
    )
    head_axes = head_frame * (HEAD_RADII * head_size[:, None])[:, None, :]
    joints[:, :5] = joints[:, None, JOINT["head"]] + np.einsum("nij,kj->nki", head_axes, FACE_POINTS)

    for side, sign in (("left", 1.0), ("right", -1.0)):
        raised = np.maximum(angle(f"{side}_arm_flexion"), angle(f"{side}_arm_abduction"))
        lift = 0.038 * np.clip((raised - 60) / 110, 0, 1)
        shoulder = joints[:, JOINT["neck"]] + place(chest_frame, sign * (shoulder_width - 0.4 * lift), 0.028 - lift, 0)
        upper = (
            chest_frame
            @ _rotation(2, -sign * angle(f"{side}_arm_abduction"))
            @ _rotation(0, -angle(f"{side}_arm_flexion"))
            @ _rotation(1, sign * angle(f"{side}_arm_twist"))
        )
        lower = upper @ _rotation(0, -angle(f"{side}_elbow"))
        elbow = shoulder + place(upper, 0, 0.160 * arm, 0)
        wrist = elbow + place(lower, 0, 0.142 * arm, 0)
        hand = wrist + place(lower @ _rotation(0, rng.normal(-8, 18, count)), 0, 0.078 * arm, 0)
        hip = place(pelvis_frame, sign * hip_width, 0.012, 0.0)
        thigh = (
            pelvis_frame
            @ _rotation(2, -sign * angle(f"{side}_leg_abduction"))
            @ _rotation(0, -angle(f"{side}_leg_flexion"))
            @ _rotation(1, sign * angle(f"{side}_leg_twist"))
        )
        shin = thigh @ _rotation(0, angle(f"{side}_knee"))
        knee = hip + place(thigh, 0, 0.245 * leg, 0)
        ankle = knee + place(shin, 0, 0.235 * leg, 0)
        toe = ankle + place(shin @ _rotation(0, rng.normal(6, 9, count)), 0, 0.032, -0.105)
        for name, position in (
            ("shoulder", shoulder), ("elbow", elbow), ("wrist", wrist), ("hand", hand),
            ("hip", hip), ("knee", knee), ("ankle", ankle), ("toe", toe),
        ):  # fmt: skip
            joints[:, JOINT[f"{side}_{name}"]] = position

    # Perspective about the pelvis: what is nearer is larger.
    distance = np.exp(rng.uniform(np.log(2.2), np.log(12.0), count))[:, None]
    joint_scale = distance / (distance + joints[..., 2])
    joints[..., :2] *= joint_scale[..., None]
    return Poses(joints, head_axes * joint_scale[:, JOINT["head"], None, None], joint_scale)


@lru_cache(maxsize=1)
def pose_library() -> Poses:
    """A fixed set of 6000 poses of the prior: examples from which two-dimensional poses are completed and lifted."""
    return sample_poses(np.random.default_rng(17), 6000)
