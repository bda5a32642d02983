"""Draws people on an image with Pillow: limbs, keypoints, boxes and scores, for any skeleton.

Every stroke is drawn enlarged and scaled down, which makes it smooth, and has a dark rim, which keeps it readable on
light ground as well as on dark.
"""

import colorsys
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..model.image_decoding_querypose import decode_pil_image
from ..model.skeletons import flip_indices_from_names


Color = tuple[int, int, int]
PixelBox = tuple[int, int, int, int]  # left, top, right, bottom
Point = tuple[float, float]

_RIM: Color = (16, 16, 20)
# degrees on the colour circle: cold for left and warm for right, which most of the colour-blind tell apart too; pure
# blue is left out because it is too dark to stand out from the rim
_SIDE_HUES = {"left": (172.0, 222.0), "middle": (84.0, 138.0), "right": (-14.0, 46.0)}
_GOLDEN_ANGLE = 137.508
_STRIP = 128  # pixels


def draw_poses(
    image: Image.Image | np.ndarray | str | PathLike,
    people: Sequence[Mapping[str, Any]],
    *,
    edges: Iterable[Sequence[int]],
    keypoint_names: Sequence[str] | None = None,
    keypoint_threshold: float = 0.3,
    draw_boxes: bool = True,
    draw_scores: bool = True,
) -> Image.Image:
    """Draws people on a copy of an image.

    Lines grow with the person and with the image. Of overlapping people the first one lies on top. Keypoints and boxes
    that are not finite are skipped, and what lies outside the image is cut off.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, path or what else [`~image_decoding_querypose.decode_image`] takes):
            The image that the people were found in. It becomes upright and RGB as for the model.
        people (`Sequence[Mapping]`):
            The people of one image, as [`PoseEstimationPipeline`] returns them or as
            [`~QueryPoseImageProcessor.post_process_pose_estimation`] does. Keypoints are pixel indices, boxes
            continuous coordinates, both in the upright image. A `track_id` chooses the box's colour and is written
            before the label.
        edges (`Iterable[Sequence[int]]`):
            The limbs, as pairs of keypoint indices: `model.config.keypoint_edges`.
        keypoint_names (`Sequence[str]`, *optional*):
            Names that tell left from right, for the colours (see [`pose_colors`]). By default the pipeline's own; the
            image processor's people carry none.
        keypoint_threshold (`float`, *optional*, defaults to 0.3):
            Keypoints with a lower score are not drawn, nor are limbs that end in one.
        draw_boxes (`bool`, *optional*, defaults to `True`):
            Whether to draw each person's box, in a colour of its own.
        draw_scores (`bool`, *optional*, defaults to `True`):
            Whether to write each person's label and score beside the box. A label that is a number is left out.

    Returns:
        `PIL.Image.Image`: a new RGB image of the upright input's size.

    Raises:
        TypeError: if the image is of none of these types, or a person is not a mapping.
        ValueError: if the image cannot be decoded, or a person's fields, the names or an edge are not as described.

    Example:

    ```python
    >>> people = pipeline("pose-estimation", model=model)("street.jpg")
    >>> draw_poses("street.jpg", people, edges=model.config.keypoint_edges).save("street_poses.png")
    ```
    """
    canvas = decode_pil_image(image).copy()  # which may share the memory of an array
    poses = [_Pose.from_person(person, index, keypoint_names) for index, person in enumerate(people)]
    limbs = [(int(a), int(b)) for a, b in edges]
    for index, pose in enumerate(poses):
        last = len(pose.points) - 1
        if wrong := [limb for limb in limbs if min(limb) < 0 or max(limb) > last]:
            raise ValueError(f"`edges` holds {wrong[0]}, but people[{index}] has the keypoints 0 to {last}.")

    boxes = [pose.pixel_box(canvas.size) for pose in poses]
    # a person who is followed through a video keeps a colour
    numbers = [index if (track := person.get("track_id")) is None else track for index, person in enumerate(people)]
    person_colors = [_rgb(200.0 + number * _GOLDEN_ANGLE, lightness=0.7) for number in numbers]
    boxed = [(pose, box, color) for pose, box, color in zip(poses, boxes, person_colors, strict=True) if box]
    if draw_boxes:
        for _, box, color in reversed(boxed):
            _draw_box(canvas, box, color)
    colors: dict[tuple, tuple[list[Color], list[Color]]] = {}
    for pose in reversed(poses):
        skeleton = (len(pose.points), pose.names)
        if skeleton not in colors:
            colors[skeleton] = pose_colors(limbs, *skeleton)
        _draw_skeleton(canvas, pose, limbs, *colors[skeleton], keypoint_threshold)
    if draw_scores:
        taken: list[PixelBox] = []
        for pose, box, color in boxed:
            _draw_tag(canvas, pose, box, color, taken)
    return canvas


def keypoint_threshold_for(threshold: float) -> float:
    """The `keypoint_threshold` of [`draw_poses`] for people of at least `threshold`: 0.3, or less if that is less."""
    return min(0.3, threshold)


def pose_colors(
    edges: Sequence[Sequence[int]], num_keypoints: int, keypoint_names: Sequence[str] | None = None
) -> tuple[list[Color], list[Color]]:
    """Chooses a colour for every limb and every keypoint of any skeleton.

    Where the names come in left/right pairs, the left side runs from turquoise to blue, the right side from crimson to
    yellow, and what has no side or joins the two is green. Where they do not, neighbours in the list of limbs get
    hues far apart. A keypoint takes the colour of the first limb of its own side that ends in it.

    Args:
        edges (`Sequence[Sequence[int]]`): the limbs, as pairs of keypoint indices.
        num_keypoints (`int`): the number of keypoints K.
        keypoint_names (`Sequence[str]`, *optional*): K names, such as `left_knee`.

    Returns:
        `tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]`: RGB colours of the limbs and of the keypoints.

    Example:

    ```python
    >>> limb_colors, keypoint_colors = pose_colors(COCO_17.edges, 17, COCO_17.keypoint_names)
    ```
    """
    sides: list[str | None] = [None] * num_keypoints
    flip_indices = None if keypoint_names is None else flip_indices_from_names(keypoint_names)
    if keypoint_names is not None and flip_indices is not None:
        for index, mirrored in enumerate(flip_indices):
            # the two names differ in the word for the side alone, and "left" comes before "right" in the alphabet
            name, mirrored_name = keypoint_names[index].lower(), keypoint_names[mirrored].lower()
            sides[index] = "middle" if index == mirrored else "left" if name < mirrored_name else "right"
    limb_sides = []
    for a, b in edges:
        one_sided = {sides[a], sides[b]} - {"middle"}
        limb_sides.append(one_sided.pop() if len(one_sided) == 1 else "middle")
    limb_colors = _palette(limb_sides)
    keypoint_colors = _palette(sides)
    for edge, side, color in reversed(list(zip(edges, limb_sides, limb_colors, strict=True))):
        for end in edge:
            if sides[end] == side:
                keypoint_colors[end] = color
    return limb_colors, keypoint_colors


def _palette(sides: Sequence[str | None]) -> list[Color]:
    colors = []
    for index, side in enumerate(sides):
        if side is None:
            hue = index * _GOLDEN_ANGLE
        else:
            low, high = _SIDE_HUES[side]
            hue = low + (high - low) * (sides[:index].count(side) + 0.5) / sides.count(side)
        colors.append(_rgb(hue))
    return colors


def _rgb(hue: float, lightness: float = 0.6) -> Color:
    red, green, blue = colorsys.hls_to_rgb(hue / 360.0 % 1.0, lightness, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True)
class _Pose:
    """One person: the tag's text, box (4,) xyxy and keypoints (K, 2) in continuous coordinates, scores (K,)."""

    text: str
    box: np.ndarray
    points: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...] | None

    @classmethod
    def from_person(cls, person: Mapping[str, Any], index: int, names: Sequence[str] | None) -> "_Pose":
        if not isinstance(person, Mapping):
            raise TypeError(
                f"people[{index}] must be a mapping, but is a {type(person).__name__}: `people` is one image's list."
            )
        try:
            score, label = float(person["score"]), person.get("label")
            if "box" in person:
                box = _array([person["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")])
                keypoints = person["keypoints"]
                points = _array([(keypoint["x"], keypoint["y"]) for keypoint in keypoints])
                scores = _array([keypoint["score"] for keypoint in keypoints])
                names = [keypoint["name"] for keypoint in keypoints] if names is None else names
            else:
                box, points, scores = _array(person["bbox"]), _array(person["keypoints"]), _array(person["scores"])
        except KeyError as error:
            raise ValueError(f"people[{index}] lacks the field {error}.") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"people[{index}] holds what is not a number: {error}") from error
        if box.shape != (4,) or scores.ndim != 1 or points.shape != (len(scores), 2):
            raise ValueError(
                f"people[{index}] must have a box of 4 numbers, keypoints of shape (K, 2) and K scores, but their "
                f"shapes are {box.shape}, {points.shape} and {scores.shape}."
            )
        if names is not None and len(names) != len(points):
            raise ValueError(f"`keypoint_names` has {len(names)} names, but people[{index}] {len(points)} keypoints.")
        text = f"{label} {score:.2f}" if isinstance(label, str) else f"{score:.2f}"
        if person.get("track_id") is not None:
            text = f"#{person['track_id']} {text}"
        return cls(text, box, points + 0.5, scores, None if names is None else tuple(names))

    def pixel_box(self, image_size: tuple[int, int]) -> PixelBox | None:
        """The first and last pixels that the box covers in the image, or `None` where there are none."""
        if not np.isfinite(self.box).all():
            return None
        left, top, right, bottom = np.clip(np.rint(self.box), 0, np.array([image_size, image_size]).ravel())
        return (int(left), int(top), int(right) - 1, int(bottom) - 1) if left < right and top < bottom else None


def _array(values: Any) -> np.ndarray:
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu().numpy()


def _scale(canvas: Image.Image) -> float:
    return math.sqrt(canvas.width * canvas.height)


def _draw_skeleton(
    canvas: Image.Image,
    pose: _Pose,
    limbs: Sequence[tuple[int, int]],
    limb_colors: Sequence[Color],
    keypoint_colors: Sequence[Color],
    threshold: float,
) -> None:
    drawn = np.isfinite(pose.points).all(axis=1) & (pose.scores >= threshold)
    if not drawn.any():
        return
    # a point this far away only gives its limb's direction; nearer, it stays within Pillow's 32-bit arithmetic
    reach = 10.0 * max(canvas.size)
    clipped = np.clip(np.where(drawn[:, None], pose.points, 0.0), -reach, reach)
    extent = pose.box[2:] - pose.box[:2] if np.isfinite(pose.box).all() else np.ptp(clipped[drawn], axis=0)
    person_scale, canvas_scale = math.sqrt(max(extent.prod(), 0.0)), _scale(canvas)
    points: list[Point] = [(x, y) for x, y in clipped.tolist()]
    lines = [
        (points[a], points[b], color)
        for (a, b), color in zip(limbs, limb_colors, strict=True)
        if drawn[a] and drawn[b]
    ]
    # keypoints that lie close together must not hide the limbs between them
    typical_limb = float(np.median([math.dist(start, end) for start, end, _ in lines])) if lines else math.inf
    width = min(0.014 * person_scale, 0.007 * canvas_scale, 0.25 * typical_limb)
    width = max(width, 1.2, 0.0007 * canvas_scale)
    rim = max(0.8, 0.28 * width)
    dots = [(point, point, color) for point, color, shown in zip(points, keypoint_colors, drawn, strict=True) if shown]
    for strokes, stroke_width in ((lines, width), (dots, 1.9 * width)):
        for start, end, _ in strokes:
            _draw_stroke(canvas, start, end, stroke_width + 2.0 * rim, _RIM)
        for start, end, color in strokes:
            _draw_stroke(canvas, start, end, stroke_width, color)


# arithmetic of single numbers: arrays of two take most of the time of drawing
def _draw_stroke(canvas: Image.Image, start: Point, end: Point, width: float, color: Color) -> None:
    """Draws a smooth line with round ends; a dot where `start` is `end`. Continuous coordinates."""
    enlargement = 8 if width < 4.0 else 4 if width < 12.0 else 2
    # Pillow takes a whole pixel by its index and fills a shape's border too: hence the whole radius and the halves
    radius = max(1, round(0.5 * width * enlargement))
    length = max(math.dist(start, end), 1e-9)
    across_x = -(end[1] - start[1]) / length * (radius - 0.5)
    across_y = (end[0] - start[0]) / length * (radius - 0.5)
    for box in _stroke_boxes(start, end, 0.5 * width + 0.5, canvas.size):
        left, top, right, bottom = box
        mask = Image.new("L", ((right - left) * enlargement, (bottom - top) * enlargement))
        draw = ImageDraw.Draw(mask)
        ends = [((x - left) * enlargement, (y - top) * enlargement) for x, y in (start, end)]
        for place in dict.fromkeys((round(x), round(y)) for x, y in ends):
            x, y = place
            draw.ellipse((x - radius, y - radius, x + radius - 1, y + radius - 1), fill=255)
        if start != end:
            corners = [(x + across_x, y + across_y) for x, y in ends]
            corners += [(x - across_x, y - across_y) for x, y in reversed(ends)]
            draw.polygon([(round(x - 0.5), round(y - 0.5)) for x, y in corners], fill=255)
        canvas.paste(color, box, mask.reduce(enlargement))


def _stroke_boxes(start: Point, end: Point, radius: float, size: tuple[int, int]) -> Iterator[PixelBox]:
    """Covers a stroke with boxes side by side: one box round a long slanting limb would be nearly all empty."""
    extent = (end[0] - start[0], end[1] - start[1])
    axis = int(abs(extent[1]) > abs(extent[0]))
    length = extent[axis]
    lowest = max(math.floor(min(start[axis], end[axis]) - radius), 0)
    highest = min(math.ceil(max(start[axis], end[axis]) + radius), size[axis])
    for low in range(lowest, highest, _STRIP):
        high = min(low + _STRIP, highest)
        part = [(place - start[axis]) / (length or 1.0) for place in (low - radius, high + radius)]
        other = [start[1 - axis] + extent[1 - axis] * min(max(share, 0.0), 1.0) for share in part]
        other_low = max(math.floor(min(other) - radius), 0)
        other_high = min(math.ceil(max(other) + radius), size[1 - axis])
        if other_low < other_high:
            yield (low, other_low, high, other_high) if axis == 0 else (other_low, low, other_high, high)


def _draw_box(canvas: Image.Image, box: PixelBox, color: Color) -> None:
    width = max(1, round(0.0018 * _scale(canvas)))
    rim = max(1, width // 2)
    outside = (box[0] - rim, box[1] - rim, box[2] + rim, box[3] + rim)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle(outside, outline=_RIM, width=width + 2 * rim)
    draw.rectangle(box, outline=color, width=width)


def _draw_tag(canvas: Image.Image, pose: _Pose, box: PixelBox, color: Color, taken: list[PixelBox]) -> None:
    """Writes label and score at the box, inside the image and, where possible, clear of the tags in `taken`."""
    left, top, right, bottom = box
    smallest, largest = max(10.0, 0.012 * _scale(canvas)), 0.022 * _scale(canvas)
    size = max(smallest, min(0.065 * math.hypot(right - left, bottom - top), largest))
    length = ImageFont.load_default(size).getlength(pose.text) + size
    size = math.floor(size * min(1.0, canvas.width / length, canvas.height / (1.4 * size)))
    if size < 6:
        return  # nobody could read it
    font = ImageFont.load_default(size)
    width, height = min(math.ceil(font.getlength(pose.text) + 0.6 * size), canvas.width), math.floor(1.4 * size)

    inside, below = (left, top), (left, bottom + 1)
    # inside a small box the tag would hide the person
    rest = [inside, below] if bottom - top > 6 * height else [below, inside]
    corners = [(left, top - height), (right + 1 - width, top - height), *rest, (left, bottom + 1 - height)]
    fitting = [(x, y) for x, y in corners if 0 <= y <= canvas.height - height] or [inside]
    places = []
    for x, y in fitting:
        x, y = max(0, min(x, canvas.width - width)), min(y, canvas.height - height)
        places.append((x, y, x + width - 1, y + height - 1))
    place = next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])
    taken.append(place)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle(place, fill=color)
    draw.text((place[0] + width / 2, place[1] + height / 2), pose.text, fill=_RIM, font=font, anchor="mm")


def _overlap(a: PixelBox, b: PixelBox) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
