"""Draws attention maps: all people's over the whole image, or one person's as a sheet of panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..model.image_decoding_querypose import decode_pil_image
from .explanation import PersonAttention
from .visualization import draw_poses


# black over red and yellow to white: brighter is always more, in grey too
_HEAT = np.array([(0, 0, 0), (110, 10, 60), (225, 50, 20), (255, 165, 0), (255, 235, 90), (255, 255, 240)], float)
_FOCUSED = 6.0  # times the mean
_INK, _PAPER = (30, 30, 34), (255, 255, 255)
_GAP = 6  # pixels between panels
_HEADER, _MARGIN = 40, 64  # pixels above and at the left of the panels


def overlay_part_attention(
    image: Any, people: Sequence[PersonAttention], *, part: int | None = None, stage: int = -1
) -> Image.Image:
    """Lays attention maps over the whole image.

    Args:
        image: the image that was explained.
        people (`Sequence[PersonAttention]`): from [`explain_people`].
        part (`int`, *optional*): the part; by default the strongest of all parts at each place.
        stage (`int`, *optional*, defaults to -1): index into the stages.

    Returns:
        `PIL.Image.Image`: RGB, of the image's size. Places with the map's mean weight or less are dark, its maximum is
        bright. A uniform map is dark all over.
    """
    canvas = decode_pil_image(image)
    heat = np.zeros((canvas.height, canvas.width))
    for found in people:
        chosen = found.maps[stage] if part is None else found.maps[stage, [part]]
        scaled = _brightness(chosen).max(axis=0)
        heat = np.maximum(heat, _place(scaled, found.boxes[stage], (0, 0, *canvas.size), canvas.size))
    return _blend(canvas, heat)


def draw_part_attention(
    image: Any,
    found: PersonAttention,
    *,
    stages: Sequence[int] | None = None,
    panel_height: int = 220,
) -> Image.Image:
    """Draws one person's attention maps as panels, a row per stage and a column per part; the pose comes first.

    Args:
        image: the image that was explained.
        found (`PersonAttention`): from [`explain_people`].
        stages (`Sequence[int]`, *optional*): which rows, as indices into `found.stages`; all by default.
        panel_height (`int`, *optional*, defaults to 220): pixels.

    Returns:
        `PIL.Image.Image`: RGB. A frame shows the stage's box, and dots show where the part's keypoints were found.
        Maps are as bright as in [`overlay_part_attention`].

    Raises:
        ValueError: a stage does not exist.
    """
    rows = list(range(len(found.stages))) if stages is None else list(stages)
    if wrong := [row for row in rows if not -len(found.stages) <= row < len(found.stages)]:
        raise ValueError(f"`stages` holds {wrong[0]}, but there are {len(found.stages)} stages.")
    view = _View.around(found.boxes[rows[-1]], panel_height)
    crop = view.crop(decode_pil_image(image))
    pose = _draw_pose(crop, found, view)
    step_x, step_y = view.size[0] + _GAP, view.size[1] + _GAP
    sheet = Image.new("RGB", (_MARGIN + (len(found.parts) + 1) * step_x, _HEADER + len(rows) * step_y), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    titles = (f"score {float(found.person['score']):.2f}", *found.part_names)
    for column, title in enumerate(titles):
        _write(draw, title, (_MARGIN + column * step_x + view.size[0] / 2, _HEADER / 2), font, view.size[0])
    for line, row in enumerate(rows):
        y = _HEADER + line * step_y
        draw.text((_MARGIN / 2, y + view.size[1] / 2), f"stage {found.stages[row] + 1}", _INK, font, "mm")
        panels = [pose, *(_draw_part(crop, found, row, part, view) for part in range(len(found.parts)))]
        for column, panel in enumerate(panels):
            sheet.paste(panel, (_MARGIN + column * step_x, y))
    return sheet


@dataclass(frozen=True)
class _View:
    """A rectangle of the image, and the size of the panel that shows it.

    Attributes:
        corners (`tuple`): x1, y1, x2, y2 in continuous pixel coordinates of the image.
        size (`tuple[int, int]`): width and height of the panel.
    """

    corners: tuple[float, float, float, float]
    size: tuple[int, int]

    @classmethod
    def around(cls, box: np.ndarray, panel_height: int) -> "_View":
        """The box and a margin, no slimmer than half its height."""
        x1, y1, x2, y2 = (float(value) for value in box)
        width, height = 1.2 * max(x2 - x1, 1.0), 1.2 * max(y2 - y1, 1.0)
        width, height = max(width, 0.5 * height), max(height, 0.5 * width)
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        scale = panel_height / (corners[3] - corners[1])
        return cls(corners, (max(60, round((corners[2] - corners[0]) * scale)), panel_height))

    def crop(self, image: Image.Image) -> Image.Image:
        return image.transform(self.size, Image.Transform.EXTENT, self.corners, Image.Resampling.BICUBIC)

    def to_panel(self, points: np.ndarray) -> np.ndarray:
        """Points `(n, 2)` of the image in the panel's coordinates."""
        low, high = np.array(self.corners[:2]), np.array(self.corners[2:])
        return (points - low) * np.array(self.size) / (high - low)

    def keypoints(self, found: PersonAttention) -> np.ndarray:
        return self.to_panel(found.person["keypoints"].double().numpy() + 0.5)


def _draw_pose(crop: Image.Image, found: PersonAttention, view: _View) -> Image.Image:
    moved = dict(found.person, keypoints=torch.from_numpy(view.keypoints(found) - 0.5))
    moved["bbox"] = torch.from_numpy(view.to_panel(found.person["bbox"].double().numpy().reshape(2, 2)).ravel())
    return draw_poses(crop, [moved], edges=found.edges, keypoint_threshold=0.0, draw_boxes=False, draw_scores=False)


def _draw_part(crop: Image.Image, found: PersonAttention, row: int, part: int, view: _View) -> Image.Image:
    heat = _place(_brightness(found.maps[row, part]), found.boxes[row], view.corners, view.size)
    panel = _blend(crop, heat)
    pen = ImageDraw.Draw(panel)
    pen.rectangle(tuple(view.to_panel(found.boxes[row].reshape(2, 2)).ravel()), outline=(255, 255, 255))
    for x, y in view.keypoints(found)[list(found.parts[part])]:
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(60, 220, 255), outline=(0, 0, 0))
    return panel


def _brightness(maps: np.ndarray) -> np.ndarray:
    """Maps `(..., 28, 28)` to 0..1: 0 up to the weight of a uniform map, 1 at the map's maximum.

    A map whose maximum is less than [`_FOCUSED`] times that weight stays dark, so that it does not glow all over.
    """
    relative = maps * (maps.shape[-1] * maps.shape[-2])
    most = np.maximum(relative.max(axis=(-2, -1), keepdims=True), _FOCUSED)
    return np.clip((relative - 1.0) / (most - 1.0), 0.0, 1.0)


def _place(
    attention: np.ndarray, box: np.ndarray, view: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """A map that covers `box`, as seen in an image of `size` that shows `view`; zero outside of the box."""
    rows, columns = attention.shape
    per_x, per_y = columns / max(box[2] - box[0], 1e-6), rows / max(box[3] - box[1], 1e-6)
    # one cell of zeros all round, because Pillow does not interpolate with what lies outside of an image
    padded = Image.fromarray(np.pad(attention, 1).astype(np.float32), mode="F")
    left, right = ((x - box[0]) * per_x + 1 for x in view[::2])
    top, bottom = ((y - box[1]) * per_y + 1 for y in view[1::2])
    corners = (left, top, right, bottom)
    return np.asarray(padded.transform(size, Image.Transform.EXTENT, corners, Image.Resampling.BILINEAR))


def _blend(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image in dim grey, with the heat glowing on it."""
    heat = np.clip(heat, 0.0, 1.0)
    levels = np.linspace(0.0, 1.0, len(_HEAT))
    color = np.stack([np.interp(heat, levels, channel) for channel in _HEAT.T], axis=-1)
    ground = 0.62 * np.asarray(image.convert("L").convert("RGB"), dtype=float)
    alpha = (0.85 * np.sqrt(heat))[..., None]
    return Image.fromarray(np.rint(ground * (1 - alpha) + color * alpha).astype(np.uint8))


def _write(draw: ImageDraw.ImageDraw, text: str, middle: tuple[float, float], font: Any, width: float) -> None:
    """Writes centred text, on two lines where one is too long."""
    if draw.textlength(text, font) > width and " " in text:
        spaces = [index for index, letter in enumerate(text) if letter == " "]
        cut = min(spaces, key=lambda index: abs(index - len(text) / 2))
        text = f"{text[:cut]}\n{text[cut + 1 :]}"
    draw.multiline_text(middle, text, _INK, font, "mm", align="center", spacing=2)
