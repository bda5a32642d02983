"""Bodies with volume, skin, clothes, hair and faces, built as [`Solids`] around the joints of a pose."""

from dataclasses import dataclass

import numpy as np

from .synthetic_colours import cloth_colour
from .synthetic_poses import FACE_POINTS, JOINT
from .synthetic_surfaces import (
    BLOCKS,
    CHECKS,
    DOTS,
    LOGO,
    MOTTLED,
    OPEN_FRONT,
    PLAIN,
    PROFILE,
    STRIPES_ALONG,
    STRIPES_AROUND,
    Materials,
    Solids,
)


_POSITIONS = np.linspace(0.0, 1.0, PROFILE)

#: How far behind the visible surface a keypoint may lie and still count as seen, in units of standing height: the
#: surface of the head for the face, the depth of the body there for the joints.
SEEN_WITHIN = np.array(
    [0.020, 0.014, 0.014, 0.022, 0.022, 0.070, 0.070, 0.050, 0.050,
     0.038, 0.038, 0.120, 0.120, 0.062, 0.062, 0.050, 0.050]
)  # fmt: skip

_SKIN_TONES = np.array(
    [[0.98, 0.83, 0.73], [0.94, 0.75, 0.62], [0.85, 0.64, 0.49],
     [0.70, 0.48, 0.34], [0.50, 0.32, 0.22], [0.30, 0.19, 0.13]]
)  # fmt: skip
_HAIR_COLOURS = np.array(
    [[0.05, 0.04, 0.04], [0.13, 0.08, 0.05], [0.27, 0.16, 0.08], [0.48, 0.31, 0.15],
     [0.80, 0.64, 0.36], [0.50, 0.18, 0.08], [0.62, 0.61, 0.60], [0.88, 0.87, 0.85]]
)  # fmt: skip


def _between(table: np.ndarray, position: float) -> np.ndarray:
    low = min(int(position), len(table) - 2)
    return table[low] + (position - low) * (table[low + 1] - table[low])


def _profile(*points: tuple[float, float]) -> np.ndarray:
    positions, values = zip(*points, strict=True)
    return np.interp(_POSITIONS, positions, values)


# Radii along the limbs, from the upper joint to the lower one, in units of standing height.
_UPPER_ARM = _profile((0, 0.029), (0.15, 0.032), (0.35, 0.032), (0.6, 0.028), (1, 0.023))
_FOREARM = _profile((0, 0.023), (0.22, 0.025), (0.6, 0.020), (1, 0.0155))
_HAND = _profile((0, 0.015), (0.25, 0.021), (0.5, 0.021), (0.75, 0.016), (1, 0.010))
_THIGH = _profile((0, 0.051), (0.25, 0.050), (0.7, 0.039), (1, 0.032))
_SHIN = _profile((0, 0.032), (0.28, 0.034), (0.6, 0.026), (0.9, 0.019), (1, 0.019))
_FOOT = _profile((0, 0.024), (0.5, 0.025), (0.8, 0.027), (1, 0.019))
_NECK = _profile((0, 0.034), (0.35, 0.029), (1, 0.029))
# Half widths of the trunk as fractions of half the shoulder distance.
_CHEST_MAN = _profile((0, 0.32), (0.07, 0.50), (0.14, 0.84), (0.22, 1.04), (0.4, 1.04), (0.65, 0.97), (1, 0.82))
_CHEST_WOMAN = _profile((0, 0.28), (0.07, 0.44), (0.14, 0.78), (0.22, 1.00), (0.4, 0.98), (0.6, 0.88), (1, 0.70))
# From the waist to the crotch.
_BELLY_MAN = _profile((0, 0.82), (0.4, 0.84), (0.75, 0.90), (1, 0.80))
_BELLY_WOMAN = _profile((0, 0.70), (0.35, 0.80), (0.75, 0.98), (1, 0.86))


@dataclass
class Body:
    """A person ready to be drawn.

    Attributes:
        solids ([`Solids`]), materials ([`Materials`]): the shapes and their looks.
        keypoints (`np.ndarray` of shape (17, 3)): in pixels, continuous.
        tolerance (`np.ndarray` of shape (17,)): how deep under the surface a keypoint still counts as seen, in pixels.
        painter ([`FacePainter`]): colours the head.
        feet (`np.ndarray` of shape (2, 2)): ankles in the picture, for the shadow on the ground.
    """

    solids: Solids
    materials: Materials
    keypoints: np.ndarray
    tolerance: np.ndarray
    painter: "FacePainter"
    feet: np.ndarray


class FacePainter:
    """Paints eyes, brows, lips, beard and cropped hair onto the head, in the head's own coordinates."""

    def __init__(
        self, rng: np.random.Generator, centre: np.ndarray, axes: np.ndarray, hair: np.ndarray, skin: np.ndarray
    ):
        self.numbers: set[int] = set()
        self.centre = centre.astype(np.float32)
        self.inverse = np.linalg.inv(axes).astype(np.float32)
        self.hair = hair.astype(np.float32)
        self.skin = skin.astype(np.float32)
        self.iris = np.array([[0.10, 0.06, 0.04], [0.22, 0.13, 0.07], [0.25, 0.38, 0.50], [0.25, 0.36, 0.24]])[
            rng.choice(4, p=[0.45, 0.3, 0.15, 0.1])
        ].astype(np.float32)
        redness = rng.uniform(0.6, 1.0)
        lips = skin * np.array([0.92, 0.60, 0.58]) if redness < 0.9 else np.array([0.70, 0.12, 0.16])
        self.lips = lips.astype(np.float32)
        self.beard = float(rng.uniform(0.3, 0.95)) if rng.random() < 0.22 else 0.0
        self.glasses = rng.choice(3, p=[0.80, 0.11, 0.09])
        self.smile = float(rng.normal(0.05, 0.06))
        self.open_mouth = float(rng.uniform(0.03, 0.13)) if rng.random() < 0.3 else 0.0
        self.open_eyes = float(rng.uniform(0.055, 0.10))
        self.brow = float(rng.uniform(0.025, 0.055))
        #: Skin above this height, or behind the ears, is covered by short hair; None for a bare scalp.
        self.hairline: float | None = None

    def __call__(self, number: int, points: np.ndarray, colour: np.ndarray) -> None:
        """Changes the colours (k, 3) of visible points (k, 3) of one of the head's solids."""
        if number not in self.numbers:
            return
        x, y, z = ((points - self.centre) @ self.inverse.T).T
        if self.hairline is not None:
            covered = (y < self.hairline + 0.10 * np.abs(x)) | ((z > 0.22) & (y < 0.55) & (z > 0.2 + 0.5 * y))
            colour[covered] = self.hair
        front = z < 0.0
        if not front.any():
            return
        if self.beard:
            beard = front & (y > 0.36 - 0.1 * x * x) & ((y > 0.72) | (np.abs(x) > 0.36) | (y < 0.5))
            colour[beard] += self.beard * (self.hair - colour[beard])
        colour[front & ((np.abs(x) - 0.5) ** 2 + (y - 0.33) ** 2 < 0.05)] *= np.array([1.05, 0.93, 0.93], np.float32)
        for side in (-1, 1):
            dx = x - side * FACE_POINTS[1, 0]
            dy = y - FACE_POINTS[1, 1]
            distance = dx * dx + dy * dy
            socket = front & (dx * dx / 0.06 + dy * dy / 0.028 < 1)
            colour[socket] *= np.float32(0.86)
            lid = front & (dx * dx / 0.040 + dy * dy / (self.open_eyes + 0.03) ** 2 < 1)
            colour[lid] *= np.float32(0.42)
            white = front & (dx * dx / 0.028 + dy * dy / self.open_eyes**2 < 1)
            colour[white] = (0.93, 0.92, 0.90)
            colour[white & (distance < 0.0078)] = self.iris
            colour[white & (distance < 0.0022)] = 0.02
            brow = front & (np.abs(dy + 0.22 - 0.6 * dx * dx) < self.brow) & (np.abs(dx) < 0.24)
            colour[brow] += 0.8 * (self.hair * 0.8 - colour[brow])
            if self.glasses:
                rim = (dx * dx / 0.066 + dy * dy / 0.040) < 1
                if self.glasses == 1:
                    rim &= (dx * dx / 0.047 + dy * dy / 0.026) > 1
                colour[front & rim] = (0.05, 0.05, 0.06)
        if self.glasses:
            colour[front & (np.abs(y + 0.10) < 0.03) & (np.abs(np.abs(x) - 0.5) > 0.22)] = (0.05, 0.05, 0.06)
        nostrils = front & ((np.abs(x) - 0.09) ** 2 / 0.004 + (y - 0.395) ** 2 / 0.0012 < 1)
        colour[nostrils] *= np.float32(0.5)
        bend = y - 0.62 + self.smile * (x / 0.3) ** 2
        mouth = front & (x * x / 0.085 + bend * bend / (0.052 + self.open_mouth) ** 2 < 1)
        colour[mouth] = self.lips
        if self.open_mouth:
            inner = front & (x * x / 0.060 + bend * bend / (0.012 + self.open_mouth) ** 2 < 1)
            colour[inner] = (0.90, 0.88, 0.85) if self.smile > 0.05 else (0.25, 0.07, 0.07)
        else:
            colour[mouth & (np.abs(bend) < 0.012)] *= np.float32(0.55)


class _Wardrobe:
    """What one person wears, and what they are made of: chosen once, before any shape is added."""

    def __init__(self, rng: np.random.Generator, materials: Materials):
        self.woman = rng.random() < 0.5
        self.stout = float(np.clip(rng.normal(1.06, 0.15), 0.82, 1.6))
        tone = rng.random() ** 1.3 * (len(_SKIN_TONES) - 1)
        self.skin_colour = np.clip(_between(_SKIN_TONES, tone) + rng.normal(0, 0.02, 3), 0.05, 1)
        light_hair = tone < 2.5 and rng.random() < 0.55
        self.hair_colour = _HAIR_COLOURS[rng.integers(8 if light_hair else 3)] * rng.uniform(0.8, 1.15)
        self.skin = materials.add(self.skin_colour, folds=0.03, gloss=0.10)
        self.hair = materials.add(
            self.hair_colour, self.hair_colour * 0.7, MOTTLED, rng.uniform(2, 8), folds=0.25, gloss=0.12
        )
        self.top_colour = cloth_colour(rng)
        self.bottom_colour = cloth_colour(rng) if rng.random() < 0.85 else self.top_colour
        pattern = int(
            rng.choice(
                [PLAIN, STRIPES_AROUND, STRIPES_ALONG, CHECKS, DOTS, LOGO, OPEN_FRONT, MOTTLED, BLOCKS],
                p=[0.36, 0.10, 0.05, 0.08, 0.04, 0.15, 0.11, 0.06, 0.05],
            )
        )
        folds = rng.uniform(0.05, 0.26)
        self.top = materials.add(
            self.top_colour, cloth_colour(rng), pattern, rng.uniform(8, 42), folds, rng.choice([0.0, 0.06])
        )
        self.bottom = materials.add(
            self.bottom_colour,
            cloth_colour(rng),
            int(rng.choice([PLAIN, STRIPES_ALONG, CHECKS, MOTTLED], p=[0.84, 0.05, 0.05, 0.06])),
            rng.uniform(8, 36),
            folds,
            0.02,
        )
        kind = rng.random()
        # Sleeves reach 0..1 down the upper arm and on to 2 at the wrist; trouser legs likewise down the leg.
        self.sleeve = float(
            rng.choice([0.02, rng.uniform(0.4, 0.75), rng.uniform(1.2, 1.7), 1.96], p=[0.16, 0.42, 0.07, 0.35])
        )
        self.leg = float(
            rng.choice(
                [rng.uniform(0.25, 0.5), rng.uniform(0.6, 1.05), rng.uniform(1.3, 1.7), 1.93],
                p=[0.08, 0.25, 0.07, 0.60],
            )
        )
        self.loose = float(
            rng.choice([0.002, rng.uniform(0.003, 0.010), rng.uniform(0.01, 0.02)], p=[0.25, 0.5, 0.25])
        )
        self.flare = float(rng.choice([0.0, 0.008, 0.018], p=[0.5, 0.35, 0.15]))
        self.skirt = 0.0
        self.bare_chest = False
        if self.woman and kind < 0.30:
            self.skirt = float(rng.choice([rng.uniform(0.45, 1.05), rng.uniform(1.2, 1.8)], p=[0.7, 0.3]))
            self.leg = 0.2
            if rng.random() < 0.55:
                self.bottom = self.top
        elif kind > 0.95 and not self.woman:
            self.bare_chest, self.sleeve = True, 0.0
            self.leg = float(rng.uniform(0.3, 0.8))
        elif kind > 0.92:
            # overalls, wet suits and ski suits: one material from neck to ankle
            self.bottom, self.sleeve, self.leg = self.top, 1.96, 1.93
        self.tights = materials.add(cloth_colour(rng), folds=0.05) if self.woman and rng.random() < 0.2 else self.skin
        shoe = cloth_colour(rng)
        self.shoe = materials.add(shoe, shoe * 0.6, MOTTLED, 12, 0.1, 0.15) if rng.random() < 0.9 else self.skin
        self.sock = materials.add(cloth_colour(rng), folds=0.05) if rng.random() < 0.35 else self.tights
        self.sock_from = float(rng.uniform(1.4, 1.9))
        self.glove = materials.add(cloth_colour(rng), folds=0.1) if rng.random() < 0.06 else self.skin
        self.boots = rng.random() < 0.15


def build_body(rng: np.random.Generator, joints: np.ndarray, head_axes: np.ndarray, joint_scale: np.ndarray) -> Body:
    """Clothes and fleshes out one pose.

    Args:
        joints (`np.ndarray` of shape (25, 3)), head_axes (`np.ndarray` of shape (3, 3)), joint_scale (`np.ndarray` of
            shape (25,)): one row of [`Poses`] in pixels.
    """
    unit = float(joint_scale[JOINT["pelvis"]])
    solids, materials = Solids(unit), Materials()
    wear = _Wardrobe(rng, materials)
    _add_trunk(rng, solids, wear, joints)
    _add_arms(solids, wear, joints, joint_scale)
    _add_legs(solids, wear, joints, joint_scale)
    painter = _add_head(rng, solids, materials, wear, joints, head_axes, unit)
    _add_belongings(rng, solids, materials, joints, unit)
    tolerance = SEEN_WITHIN * joint_scale[: len(SEEN_WITHIN)] * max(1.0, wear.stout)
    if wear.skirt:
        # a leg under its own skirt is not hidden, as it is not in trousers
        tolerance[JOINT["left_knee"] :] = 0.2 * joint_scale[JOINT["left_knee"] : len(SEEN_WITHIN)]
    return Body(
        solids=solids,
        materials=materials,
        keypoints=joints[: len(SEEN_WITHIN)].copy(),
        tolerance=tolerance,
        painter=painter,
        feet=joints[[JOINT["left_ankle"], JOINT["right_ankle"]], :2],
    )


def _add_trunk(rng: np.random.Generator, solids: Solids, wear: _Wardrobe, joints: np.ndarray) -> None:
    unit = solids.unit
    left_shoulder, right_shoulder = joints[JOINT["left_shoulder"]], joints[JOINT["right_shoulder"]]
    left_hip, right_hip = joints[JOINT["left_hip"]], joints[JOINT["right_hip"]]
    shoulders, hips = left_shoulder - right_shoulder, left_hip - right_hip
    middle_shoulder, pelvis = (left_shoulder + right_shoulder) / 2, (left_hip + right_hip) / 2
    trunk = middle_shoulder - pelvis
    neck = middle_shoulder + 0.042 * unit * trunk / max(np.linalg.norm(trunk), 1e-6)
    # the bend of the spine at the waist, as the pose has it, on the line that shoulders and hips give
    drawn = joints[JOINT["waist"]] - (joints[JOINT["neck"]] + joints[JOINT["pelvis"]]) / 2
    waist = pelvis + 0.34 * (neck - pelvis) + 0.35 * drawn
    half = float(np.clip(np.linalg.norm(shoulders) / 2, 0.085 * unit, 0.135 * unit))
    girth = 1 + 0.75 * (wear.stout - 1)
    chest = (_CHEST_WOMAN if wear.woman else _CHEST_MAN) * half
    belly = (_BELLY_WOMAN if wear.woman else _BELLY_MAN) * half * girth
    chest[PROFILE // 3 :] *= np.linspace(1, girth, PROFILE - PROFILE // 3)
    skin_or_top = wear.skin if wear.bare_chest else wear.top
    loose = 0.0 if wear.bare_chest else wear.loose * 0.7 * unit
    depth = 0.60 + 0.25 * max(wear.stout - 1, 0)
    if np.linalg.norm(hips) < 1e-6:
        hips = shoulders
    collar = np.where(np.linspace(0, 1, PROFILE) < rng.uniform(0.0, 0.08), wear.skin, skin_or_top)
    solids.tube(neck, waist, chest + loose, collar, shoulders, depth, (0.3, 0.35))
    length = float(np.linalg.norm(waist - neck)) / unit
    crotch = pelvis + 0.30 * (pelvis - waist)
    hem = rng.uniform(0.25, 0.95) if not wear.bare_chest else rng.uniform(0.25, 0.4)
    waistband = np.where(np.linspace(0, 1, PROFILE) < hem, skin_or_top, wear.bottom)
    solids.tube(waist, crotch, belly + loose, waistband, hips, depth + 0.12, (0.35, 0.45), texture_start=length)
    if wear.woman and rng.random() < 0.9:
        forward = _forward(shoulders, waist - neck)
        size = rng.uniform(0.026, 0.040) * unit
        down = (waist - neck) / max(np.linalg.norm(waist - neck), 1e-6)
        for sign in (-1, 1):
            centre = neck + 0.115 * unit * down + forward * 0.040 * unit + sign * 0.42 * half * _unit(shoulders)
            solids.ellipsoid(centre, np.diag([1.15, 1.15, 1.0]) * size, skin_or_top)
    head = joints[JOINT["head"]]
    solids.tube(
        neck, neck + 0.75 * (head - neck), _NECK * unit * (0.9 if wear.woman else 1.05), wear.skin, shoulders, 1.0,
        (0.5, 0.5),
    )  # fmt: skip
    if wear.skirt:
        knees = (joints[JOINT["left_knee"]] + joints[JOINT["right_knee"]]) / 2
        ankles = (joints[JOINT["left_ankle"]] + joints[JOINT["right_ankle"]]) / 2
        upper = min(wear.skirt, 1.0)
        end = pelvis + upper * (knees - pelvis)
        gap = np.linalg.norm(joints[JOINT["left_knee"]] - joints[JOINT["right_knee"]]) / 2
        hem_width = float(np.clip(0.055 * unit + upper * gap + rng.uniform(0, 0.04) * unit, belly[-1], 0.19 * unit))
        top = waist + 0.35 * (pelvis - waist)
        across = hips if np.linalg.norm(hips) > 0.3 * half else shoulders
        profile = np.interp(
            np.linspace(0, 1, PROFILE), [0, 0.25, 1], [belly[PROFILE // 6], belly[2 * PROFILE // 3] * 1.03, hem_width]
        )
        solids.tube(top, end, profile, wear.bottom, across, 0.72, (0.1, 0.12), texture_start=length + 0.05)
        if wear.skirt > 1.0:
            low = end + (wear.skirt - 1.0) * (ankles - knees)
            profile = np.linspace(hem_width, hem_width * 1.1, PROFILE)
            solids.tube(end, low, profile, wear.bottom, across, 0.75, (0.15, 0.1), texture_start=length + 0.3)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def _forward(to_left: np.ndarray, downwards: np.ndarray) -> np.ndarray:
    """Where the body faces: down x left."""
    return _unit(np.cross(_unit(downwards), _unit(to_left)))


def _covered(start: float, reach: float, cloth: int, bare: int) -> np.ndarray:
    """Materials along one limb segment that begins at `start` on a limb covered by cloth up to `reach`."""
    return np.where(start + _POSITIONS < reach, cloth, bare)


def _add_arms(solids: Solids, wear: _Wardrobe, joints: np.ndarray, scale: np.ndarray) -> None:
    build = (0.86 if wear.woman else 1.0) * wear.stout**0.8
    unit = solids.unit
    to_left = joints[JOINT["left_shoulder"]] - joints[JOINT["right_shoulder"]]
    for side in ("left", "right"):
        shoulder, elbow, wrist, hand = (joints[JOINT[f"{side}_{n}"]] for n in ("shoulder", "elbow", "wrist", "hand"))
        inwards = _unit(to_left) * (-1 if side == "left" else 1)
        at = [scale[JOINT[f"{side}_{n}"]] for n in ("shoulder", "elbow", "wrist", "hand")]
        for n, (start, end, radius) in enumerate(((shoulder, elbow, _UPPER_ARM), (elbow, wrist, _FOREARM))):
            material = _covered(n, wear.sleeve, wear.top, wear.skin)
            cuff = np.clip(_POSITIONS + n - wear.sleeve + 1, 0.3, 1) * wear.flare
            # a shoulder carries its cloth, a sleeve hangs
            hang = np.clip(0.25 + 2.5 * (_POSITIONS + n), 0, 1)
            cloth = (material == wear.top) * (wear.loose * hang + cuff)
            profile = (radius * build + cloth) * np.linspace(at[n], at[n + 1], PROFILE)
            begin = start + 0.006 * unit * inwards if n == 0 else start
            solids.tube(begin, end, profile, material, to_left, 1.0, (0.9, 0.9), texture_start=1 + n * 0.16)
        # the hand goes on about as the forearm does, and is never longer than one
        limit = 0.085 * at[2]
        reach = 0.6 * (hand - wrist) + 0.4 * limit * _unit(wrist - elbow)
        reach *= min(1.0, limit / max(float(np.linalg.norm(reach)), 1e-6))
        profile = _HAND * (0.92 if wear.woman else 1.05) * np.linspace(at[2], at[3], PROFILE)
        solids.tube(wrist, wrist + reach, profile, wear.glove, np.array([0.6, 0.5, 0.62]), 0.55, (0.5, 0.9))
        thumb = wrist + 0.3 * reach
        tip = thumb + 0.42 * reach + inwards * 0.022 * at[2]
        solids.tube(thumb, tip, np.full(PROFILE, 0.0075 * at[2]), wear.glove, to_left)


def _add_legs(solids: Solids, wear: _Wardrobe, joints: np.ndarray, scale: np.ndarray) -> None:
    build = wear.stout**0.9
    to_left = joints[JOINT["left_hip"]] - joints[JOINT["right_hip"]]
    if np.linalg.norm(to_left) < 1e-6:
        to_left = np.array([1.0, 0.0, 0.0])
    for side in ("left", "right"):
        hip, knee, ankle, toe = (joints[JOINT[f"{side}_{n}"]] for n in ("hip", "knee", "ankle", "toe"))
        at = [scale[JOINT[f"{side}_{n}"]] for n in ("hip", "knee", "ankle", "toe")]
        # joints are where annotators put hips; thighs begin a little further inside
        top = hip + (0.010 if side == "right" else -0.010) * at[0] * _unit(to_left)
        for n, (start, end, radius) in enumerate(((top, knee, _THIGH), (knee, ankle, _SHIN))):
            bare = np.where(n + _POSITIONS > wear.sock_from, wear.sock, wear.tights)
            if wear.boots and wear.leg < 1.4:
                bare = np.where(n + _POSITIONS > 1.4, wear.shoe, bare)
            material = np.where(n + _POSITIONS < wear.leg, wear.bottom, bare)
            cuff = np.clip(_POSITIONS + n - wear.leg + 1, 0.2, 1) * wear.flare
            cloth = (n + _POSITIONS < wear.leg) * (wear.loose + cuff)
            profile = (radius * build + cloth) * np.linspace(at[n], at[n + 1], PROFILE)
            solids.tube(start, end, profile, material, to_left, 1.0, (0.9, 0.9), texture_start=1 + n * 0.24)
        length = 0.13 * at[2]
        direction = toe - ankle
        direction *= min(1.0, length / max(float(np.linalg.norm(direction)), 1e-6))
        down = 0.022 * at[2] * _unit(ankle - knee)
        heel = ankle - 0.18 * direction + down * 0.8
        tip = ankle + direction + down * 0.2
        profile = _FOOT * (1.1 if wear.shoe != wear.skin else 0.9) * np.linspace(at[2], at[3], PROFILE)
        solids.tube(heel, tip, profile, wear.shoe, to_left, 0.85, (0.8, 0.9))


def _add_head(
    rng: np.random.Generator,
    solids: Solids,
    materials: Materials,
    wear: _Wardrobe,
    joints: np.ndarray,
    axes: np.ndarray,
    unit: float,
) -> FacePainter:
    centre = joints[JOINT["head"]]
    painter = FacePainter(rng, centre, axes, wear.hair_colour, wear.skin_colour)

    def at(x: float, y: float, z: float) -> np.ndarray:
        return centre + axes @ np.array([x, y, z])

    def sized(x: float, y: float, z: float) -> np.ndarray:
        return axes * np.array([x, y, z])

    skull = solids.ellipsoid(centre, axes, wear.skin)
    jaw = solids.ellipsoid(at(0, 0.50, -0.36), sized(0.66, 0.54, 0.56), wear.skin)
    nose = solids.ellipsoid(at(0, 0.20, -0.98), sized(0.15, 0.26, 0.20), wear.skin)
    painter.numbers.update((skull, jaw, nose))
    for sign in (-1, 1):
        solids.ellipsoid(at(sign * 0.98, 0.08, 0.08), sized(0.13, 0.24, 0.18), wear.skin)

    if wear.woman:
        painter.beard = 0.0
    style = rng.random()
    long_hair = style < 0.55 if wear.woman else style < 0.08
    bald = not wear.woman and style > 0.93
    if not bald:
        painter.hairline = float(rng.uniform(-0.62, -0.45))
        volume = rng.uniform(1.06, 1.2)
        # the hair is a shell behind a plane from the forehead to the nape
        plane = (0.0, 0.72, -0.69, rng.uniform(-0.02, 0.10))
        solids.ellipsoid(at(0, -0.04, 0.05), sized(volume, volume, volume), wear.hair, cut=plane)
        fringe = rng.random()
        if fringe < 0.4:
            tilt = rng.uniform(-0.35, 0.35)
            solids.ellipsoid(at(0, -0.03, -0.02), sized(1.05, 1.08, 1.09), wear.hair, cut=(tilt, 1.0, 0.0, -0.50))
    if long_hair:
        back = _unit(axes[:, 2])
        down = 0.55 * _unit(axes[:, 1]) + 0.45 * np.array([0.0, 1.0, 0.0])
        length = rng.uniform(0.08, 0.22) * unit * np.linalg.norm(axes[:, 1]) / (0.068 * unit)
        if rng.random() < 0.35:
            # a pony tail
            start = at(0, -0.2, 1.05)
            end = start + length * 0.9 * down + 0.03 * unit * back
            solids.tube(
                start, end, np.interp(_POSITIONS, [0, 0.3, 1], [0.014, 0.024, 0.008]) * unit, wear.hair, axes[:, 0]
            )
        else:
            start = at(0, -0.05, 0.42)
            width = np.linalg.norm(axes[:, 0])
            profile = np.interp(_POSITIONS, [0, 0.4, 1], [0.95, 1.15, rng.uniform(0.8, 1.2)]) * width
            end = start + length * down + 0.012 * unit * back
            solids.tube(start, end, profile, wear.hair, axes[:, 0], 0.62, (1.0, 0.4))
            for sign in (-1, 1):
                start = at(sign * 0.92, -0.1, 0.12)
                end = start + length * 0.85 * down
                solids.tube(
                    start, end, np.interp(_POSITIONS, [0, 0.5, 1], [0.014, 0.018, 0.008]) * unit, wear.hair, axes[:, 0]
                )
    elif wear.woman and style > 0.8:
        solids.ellipsoid(at(0, -0.85, 0.75), sized(0.42, 0.32, 0.36), wear.hair)

    hat = rng.random()
    if hat < 0.16:
        cloth = materials.add(cloth_colour(rng), cloth_colour(rng), PLAIN, 20, 0.1, 0.02)
        solids.ellipsoid(at(0, -0.10, 0.02), sized(1.15, 1.16, 1.15), cloth, cut=(0.0, 1.0, 0.1, -0.42))
        if hat < 0.11:
            # the visor of a cap, or the brim of a hat
            if hat < 0.075:
                solids.ellipsoid(at(0, -0.52, -1.05), sized(0.75, 0.06, 0.72), cloth)
            else:
                solids.ellipsoid(at(0, -0.50, 0.0), sized(1.9, 0.08, 1.8), cloth)
    elif hat < 0.24:
        shell = materials.add(cloth_colour(rng), cloth_colour(rng), STRIPES_ALONG, 14, 0.0, 0.5)
        solids.ellipsoid(at(0, -0.10, 0.06), sized(1.24, 1.20, 1.22), shell, cut=(0.0, 1.0, -0.45, -0.18))
    return painter


def _add_belongings(
    rng: np.random.Generator, solids: Solids, materials: Materials, joints: np.ndarray, unit: float
) -> None:
    """Things that go with a person: in a hand, on the back or under the feet."""
    choice = rng.random()
    colour = cloth_colour(rng)
    hand = joints[JOINT["left_hand" if rng.random() < 0.5 else "right_hand"]]
    if choice < 0.05:
        ball = materials.add(colour, cloth_colour(rng), CHECKS, 30, 0.0, 0.3)
        size = rng.uniform(0.02, 0.07) * unit
        offset = rng.normal(0, 1, 3) * (0.5 * size)
        solids.ellipsoid(hand + offset, np.eye(3) * size, ball, body=False)
    elif choice < 0.11:
        handle = materials.add(colour * 0.6, gloss=0.2)
        face = materials.add(np.array([0.75, 0.76, 0.70]), colour, CHECKS, 60, 0.0, 0.1)
        direction = _unit(rng.normal(0, 1, 3) * np.array([1, 1, 0.5]) + np.array([0, -0.8, -0.2]))
        end = hand + direction * 0.22 * unit
        solids.tube(
            hand - direction * 0.04 * unit,
            end,
            np.full(PROFILE, 0.008 * unit),
            handle,
            np.array([1.0, 0.2, 0.3]),
            body=False,
        )
        side = _unit(np.cross(direction, rng.normal(0, 1, 3)))
        axes = np.stack([side * 0.065, direction * 0.085, np.cross(side, direction) * 0.006], axis=1) * unit
        solids.ellipsoid(end + direction * 0.08 * unit, axes, face, body=False)
    elif choice < 0.15:
        stick = materials.add(colour, gloss=0.2)
        direction = _unit(rng.normal(0, 1, 3) * np.array([1, 1, 0.4]))
        length = rng.uniform(0.15, 0.5) * unit
        profile = np.linspace(0.008, rng.uniform(0.006, 0.02), PROFILE) * unit
        solids.tube(
            hand - 0.15 * length * direction,
            hand + length * direction,
            profile,
            stick,
            np.array([0.3, 0.1, 1.0]),
            body=False,
        )
    elif choice < 0.20:
        phone = materials.add(np.array([0.05, 0.05, 0.06]), gloss=0.4)
        solids.tube(
            hand + np.array([0, -0.03 * unit, -0.01 * unit]),
            hand + np.array([0, 0.03 * unit, -0.012 * unit]),
            np.full(PROFILE, 0.016 * unit),
            phone,
            np.array([1.0, 0.1, 0.2]),
            0.3,
            (0.1, 0.1),
            body=False,
        )
    elif choice < 0.28:
        bag = materials.add(colour, cloth_colour(rng), LOGO, 20, 0.2, 0.1)
        size = rng.uniform(0.05, 0.085) * unit
        top = hand + np.array([0, 0.03 * unit, 0])
        solids.tube(
            top,
            top + np.array([0, 1.8 * size, 0]),
            np.full(PROFILE, size),
            bag,
            np.array([1.0, 0.0, 0.35]),
            0.4,
            (0.1, 0.15),
            body=False,
        )
    elif choice < 0.36:
        neck, waist = joints[JOINT["neck"]], joints[JOINT["waist"]]
        forward = _forward(joints[JOINT["left_shoulder"]] - joints[JOINT["right_shoulder"]], waist - neck)
        pack = materials.add(colour, colour * 0.6, BLOCKS, 12, 0.25, 0.05)
        start = neck + 0.1 * (waist - neck) - forward * 0.115 * unit
        end = neck + 0.95 * (waist - neck) - forward * 0.125 * unit
        across = joints[JOINT["left_shoulder"]] - joints[JOINT["right_shoulder"]]
        solids.tube(start, end, np.full(PROFILE, 0.075 * unit), pack, across, 0.75, (0.3, 0.25), body=False)
    elif choice < 0.42:
        left, right = joints[JOINT["left_toe"]], joints[JOINT["right_toe"]]
        board = materials.add(colour, cloth_colour(rng), STRIPES_AROUND, 9, 0.0, 0.3)
        middle = (left + right) / 2 + np.array([0, 0.03 * unit, 0])
        half = (left - right) / 2
        half = _unit(half + np.array([0.05 * unit, 0, 0])) * max(float(np.linalg.norm(half)) * 1.25, 0.16 * unit)
        axes = np.stack(
            [half, _unit(np.cross(half, [0.0, 0.0, 1.0])) * 0.012 * unit, np.array([0, 0.02, 0.055]) * unit], axis=1
        )
        if abs(np.linalg.det(axes)) > 1e-6 * unit**3:
            solids.ellipsoid(middle, axes, board, body=False)
