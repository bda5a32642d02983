"""Renders a scene from back to front and annotates what can be seen in it."""

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from .synthetic_arrangements import Arrangement
from .synthetic_backgrounds import draw_background
from .synthetic_bodies import Body, build_body
from .synthetic_camera import photograph
from .synthetic_objects import build_object, draw_obstacle
from .synthetic_poses import JOINT, NUM_KEYPOINTS
from .synthetic_surfaces import NEIGHBOURHOOD, Drawing, Light, Materials, Solids


_BACKGROUND, _THING = -1, -2

# A person of whom less than this fraction is seen is not annotated: nobody could find them.
_LEAST_VISIBLE = 0.04


class Scene:
    """A picture that grows from back to front and knows, per pixel, what is in front.

    Attributes:
        picture (`PIL.Image.Image`): RGB.
        owner (`np.ndarray` of shape (height, width)): the number of the person seen, -1 for the background, -2 for a
            thing.
    """

    def __init__(self, picture: Image.Image, light: Light):
        self.picture = picture
        self.light = light
        self.owner = np.full((picture.height, picture.width), _BACKGROUND, dtype=np.int16)

    def add_solids(
        self, rng: np.random.Generator, solids: Solids, materials: Materials, owner: int = _THING, paint=None
    ) -> tuple[Drawing, tuple[int, int], np.ndarray] | None:
        """Draws solids in front of all that is there.

        Returns:
            `tuple`: the drawing, the corner (x, y) of its window in the picture and the silhouette (h, w) of the
            solids that are a body, as booleans; `None` where nothing of them lies inside the picture.
        """
        left, top, right, bottom = solids.bounds()
        window = (
            max(int(np.floor(left)), 0),
            max(int(np.floor(top)), 0),
            min(int(np.ceil(right)), self.picture.width),
            min(int(np.ceil(bottom)), self.picture.height),
        )
        if window[0] >= window[2] or window[1] >= window[3]:
            return None
        # Small figures are drawn at twice their size: there, jagged edges would be all there is to see.
        zoom = float(np.clip(400.0 / max(right - left, bottom - top), 1.25, 2.0))
        drawing = solids.draw(window, zoom)
        texture = rng.integers(512, size=2)
        colours = Image.fromarray(
            drawing.shade(materials, self.light, (int(texture[0]), int(texture[1])), paint)
        ).resize((window[2] - window[0], window[3] - window[1]), Image.Resampling.BOX)
        self.picture.paste(colours, window[:2], colours)
        drawn = np.asarray(colours.getchannel("A")) >= 128
        silhouette = drawn
        if not all(solids.is_body):
            is_body = np.append(solids.is_body, False)[drawing.solid]
            body = Image.fromarray(is_body * np.uint8(255)).resize(colours.size, Image.Resampling.BOX)
            silhouette = np.asarray(body) >= 128
        region = self.owner[window[1] : window[3], window[0] : window[2]]
        region[drawn] = _THING
        region[silhouette] = owner
        return drawing, (window[0], window[1]), silhouette

    def add_picture(self, picture: Image.Image, corner: tuple[int, int]) -> None:
        """Pastes an RGBA picture of a thing in front of all that is there."""
        self.picture.paste(picture, corner, picture)
        opaque = np.asarray(picture.getchannel("A")) >= 128
        self.owner[corner[1] : corner[1] + picture.height, corner[0] : corner[0] + picture.width][opaque] = _THING

    def add_shadow(self, centre: tuple[float, float], radius: tuple[float, float], strength: float) -> None:
        """A soft dark ellipse on the ground."""
        size = (max(2, round(2 * radius[0])), max(2, round(2 * radius[1])))
        mask = _soft_disc().point([int(v * strength) for v in range(256)]).resize(size)
        corner = (round(centre[0] - size[0] / 2), round(centre[1] - size[1] / 2))
        self.picture.paste((0, 0, 0), (*corner, corner[0] + size[0], corner[1] + size[1]), mask)

    def owners_near(self, points: np.ndarray) -> np.ndarray:
        """Owners (9, n) of the pixels that hold continuous points (n, 2), and of their neighbours; -1 outside."""
        columns, rows = np.floor(points).astype(int).T
        rows, columns = rows + NEIGHBOURHOOD[:, :1], columns + NEIGHBOURHOOD[:, 1:]
        height, width = self.owner.shape
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        near = self.owner[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
        return np.where(inside, near, _BACKGROUND)


@lru_cache(maxsize=1)
def _soft_disc() -> Image.Image:
    return Image.radial_gradient("L").point([max(0, 200 - v) for v in range(256)]).reduce(4)


def render(
    rng: np.random.Generator, arrangement: Arrangement, size: tuple[int, int]
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draws people as arranged, with all that surrounds them.

    Args:
        size (`tuple[int, int]`): width and height in pixels.

    Returns:
        `tuple`: the picture and one COCO annotation per person who can be seen, in the order of the arrangement.
    """
    width, height = size
    scene = Scene(draw_background(rng, size, arrangement.horizon), Light.sample(rng))
    poses = arrangement.poses
    bodies = [build_body(rng, poses.joints[i], poses.head_axes[i], poses.joint_scale[i]) for i in range(len(poses))]
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1]))):
        near = rng.random()
        foot = (rng.uniform(0, width), arrangement.horizon + near * 0.75 * (height - arrangement.horizon))
        scene.add_solids(rng, *build_object(rng, foot, height * rng.uniform(0.08, 0.25 + 0.35 * near)))

    casts_shadows = rng.random() < 0.75
    drawn: dict[int, tuple] = {}
    for i in np.argsort(-arrangement.depth, kind="stable").tolist():
        body, unit = bodies[i], float(poses.joint_scale[i, JOINT["pelvis"]])
        if casts_shadows:
            for x, y in body.feet.tolist():
                scene.add_shadow((x, y + 0.05 * unit), (0.16 * unit, 0.05 * unit), 0.45)
        result = scene.add_solids(rng, body.solids, body.materials, i, body.painter)
        if result is not None:
            drawing, corner, silhouette = result
            drawn[i] = (drawing.is_seen(body.keypoints, body.tolerance), corner, silhouette)
        box = _obstacle_box(rng, arrangement, i, unit, height)
        obstacle = None if box is None else draw_obstacle(rng, size, box)
        if obstacle is not None:
            scene.add_picture(*obstacle)

    annotations = []
    for i, (seen, corner, silhouette) in sorted(drawn.items()):
        annotation = _annotate(scene, arrangement, bodies[i], i, seen, corner, silhouette)
        if annotation is not None:
            annotations.append(annotation)
    return photograph(rng, scene.picture), annotations


def _obstacle_box(
    rng: np.random.Generator, arrangement: Arrangement, person: int, unit: float, picture_height: int
) -> tuple[float, float, float, float] | None:
    """Where something stands in front of a person: (left, top, right, bottom), or None."""
    joints = arrangement.poses.joints[person]
    chance = 0.10
    bottom = float(joints[:, 1].max()) + rng.uniform(0.0, 0.1) * unit
    top = float(rng.uniform(joints[JOINT["waist"], 1], bottom))
    if arrangement.boxes is not None and not arrangement.labelled[person, 13:].any():
        box = arrangement.boxes[person]
        if box[1] + box[3] < 0.94 * picture_height:
            # legs without labels were most likely hidden: hide them here as well
            chance, top = 0.6, float(box[1] + 0.97 * box[3])
    if rng.random() > chance:
        return None
    reach = rng.uniform(0.15, 0.5, 2) * unit
    middle = float(joints[JOINT["pelvis"], 0])
    return middle - reach[0], top, middle + reach[1], max(bottom, top + 0.1 * unit)


def _annotate(
    scene: Scene,
    arrangement: Arrangement,
    body: Body,
    person: int,
    seen: np.ndarray,
    corner: tuple[int, int],
    silhouette: np.ndarray,
) -> dict[str, Any] | None:
    rows, columns = np.flatnonzero(silhouette.any(axis=1)), np.flatnonzero(silhouette.any(axis=0))
    if len(rows) == 0:
        return None
    height, width = silhouette.shape
    owner = scene.owner[corner[1] : corner[1] + height, corner[0] : corner[0] + width]
    area = int((owner == person).sum())
    if area < max(1.0, _LEAST_VISIBLE * silhouette.sum()):
        return None
    points = body.keypoints[:, :2]
    inside = ((points >= 0) & (points < [scene.picture.width, scene.picture.height])).all(axis=1)
    inside &= arrangement.labelled[person]
    visible = seen & (scene.owners_near(points) == person).any(axis=0)
    indices = points - 0.5 if arrangement.labels is None else arrangement.labels[person]
    keypoints = np.zeros((NUM_KEYPOINTS, 3))
    keypoints[inside, :2] = np.round(indices[inside], 2)
    keypoints[inside, 2] = np.where(visible[inside], 2, 1)
    return {
        "bbox": [
            float(corner[0] + columns[0]),
            float(corner[1] + rows[0]),
            float(columns[-1] - columns[0] + 1),
            float(rows[-1] - rows[0] + 1),
        ],
        "area": float(area),
        "iscrowd": 0,
        "category_id": 1,
        "keypoints": keypoints.ravel().tolist(),
        "num_keypoints": int(inside.sum()),
    }
