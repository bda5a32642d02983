"""Where the model looks: the spatial attention map of each part over each person (Figures 5 to 8 of the paper).

The keypoint decoder pools a person's box into a grid, and each part gathers its embedding from it with weights that
sum to one (SPEGM, Section 3.2). These weights, laid back over the box in the photograph, show what was looked at.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..model.image_decoding_querypose import decode_image
from .visualization import draw_poses


# black over red and yellow to white: brighter is always more, in grey too
_HEAT = np.array([(0, 0, 0), (110, 10, 60), (225, 50, 20), (255, 165, 0), (255, 235, 90), (255, 255, 240)], float)
_FOCUSED = 6.0  # times the mean
_INK, _PAPER = (30, 30, 34), (255, 255, 255)
_GAP = 6  # pixels between panels


@dataclass(frozen=True)
class PersonAttention:
    """What the decoder looked at for one person.

    Attributes:
        person (`dict`): as [`~QueryPoseImageProcessor.post_process_pose_estimation`] returns it, in pixels.
        query (`int`): the instance query that stands for the person.
        boxes (`np.ndarray` of shape `(stages, 4)`): the box of each stage, x1, y1, x2, y2 in continuous pixel
            coordinates, not clipped.
        maps (`np.ndarray` of shape `(stages, num_parts, 28, 28)`): what each part's attention weighs in that box. Each
            map sums to 1; rows run from top to bottom.
        stages (`tuple[int, ...]`): which decoder stages these are, counted from 0.
        part_names (`tuple[str, ...]`): such as `left elbow, wrist`.
        parts (`tuple[tuple[int, ...], ...]`): the keypoints of each part.
        edges (`tuple[tuple[int, int], ...]`): the skeleton's limbs.
    """

    person: dict[str, torch.Tensor]
    query: int
    boxes: np.ndarray
    maps: np.ndarray
    stages: tuple[int, ...]
    part_names: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int], ...]


def name_parts(keypoint_names: Sequence[str], parts: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Names each part by its keypoints; a side that they share is said once, and dropped where both are there.

    Example:

    ```python
    >>> name_parts(["nose", "left_eye", "right_eye", "left_elbow", "left_wrist"], [[0, 1, 2], [3, 4]])
    ('nose, eye', 'left elbow, wrist')
    ```
    """
    names = []
    for part in parts:
        words = [keypoint_names[index].replace("_", " ").split(" ", 1) for index in part]
        sides = {first if rest and first in ("left", "right") else "" for first, *rest in words}
        if len(words) == 1:
            names.append(" ".join(words[0]))
            continue
        plain = [
            rest[0] if rest and first in ("left", "right") else " ".join([first, *rest]) for first, *rest in words
        ]
        side = sides.pop() if len(sides) == 1 else ""
        names.append(f"{side} {', '.join(dict.fromkeys(plain))}".strip())
    return tuple(names)


@torch.inference_mode()
def explain_people(
    model: Any,
    image_processor: Any,
    image: Any,
    *,
    threshold: float = 0.3,
    top_k: int | None = None,
) -> list[PersonAttention]:
    """Finds people in a picture and what each of their parts looked at in every stage.

    Args:
        model ([`QueryPoseForPoseEstimation`]): in evaluation mode.
        image_processor ([`QueryPoseImageProcessor`]): the model's.
        image: a path, URL, PIL image or array, as the image processor takes it.
        threshold (`float`, *optional*, defaults to 0.3): least score of a person.
        top_k (`int`, *optional*): at most so many people.

    Returns:
        `list[PersonAttention]`: best first. Without `auxiliary_outputs` (`config.auxiliary_loss` is off) only the last
        stage's box is known, and only its maps are there.

    Raises:
        ValueError: the model is in training mode, where only matched queries look at anything.

    Example:

    ```python
    >>> for found in explain_people(model, image_processor, "street.jpg"):
    ...     draw_part_attention("street.jpg", found).save(f"person_{found.query}.png")
    ```
    """
    if model.training:
        raise ValueError("`model` must be in evaluation mode: call `model.eval()`.")
    pixels = decode_image(image)
    height, width = pixels.shape[-2:]
    batch = image_processor(pixels, input_data_format="channels_first", return_tensors="pt")
    batch = {name: value.to(model.device) for name, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    outputs = model(**batch, output_attentions=True)
    people = image_processor.post_process_pose_estimation(
        outputs, threshold=threshold, target_sizes=[(height, width)], top_k=top_k
    )[0]
    if not people:
        return []

    size = torch.tensor([width, height], dtype=torch.float32)
    keypoints = outputs.pred_keypoints[0].float().cpu() * size - 0.5
    decoded = outputs.keypoint_query_mask[0].cpu()
    found = torch.stack([person["keypoints"].float() for person in people])
    # post-processing does not say which query a person is, but the keypoints do
    distance = torch.cdist(found.flatten(1), keypoints.flatten(1)).masked_fill(~decoded, math.inf)
    queries = distance.argmin(dim=1)
    earlier = outputs.auxiliary_outputs or []
    boxes = torch.stack([stage["pred_boxes"][0].float().cpu() for stage in [*earlier, outputs]])[:, queries]
    centers, extents = boxes.split(2, dim=-1)
    corners = torch.cat([centers - extents / 2, centers + extents / 2], dim=-1) * size.repeat(2)
    maps = torch.stack([stage[0, queries.to(stage.device)].float().cpu() for stage in outputs.part_attentions])
    maps = maps[-len(boxes) :]
    config = model.config
    parts = tuple(tuple(part) for part in config.keypoint_parts)
    total = len(outputs.part_attentions)
    return [
        PersonAttention(
            person=person,
            query=int(query),
            boxes=corners[:, index].numpy(),
            maps=maps[:, index].numpy(),
            stages=tuple(range(total - len(boxes), total)),
            part_names=name_parts(config.keypoint_names, parts),
            parts=parts,
            edges=tuple((a, b) for a, b in config.keypoint_edges),
        )
        for index, (person, query) in enumerate(zip(people, queries, strict=True))
    ]


def overlay_part_attention(
    image: Any, people: Sequence[PersonAttention], *, part: int | None = None, stage: int = -1
) -> Image.Image:
    """Lays attention maps over the whole photograph.

    Args:
        image: the picture that was explained.
        people (`Sequence[PersonAttention]`): from [`explain_people`].
        part (`int`, *optional*): the part; by default the strongest of all parts at each place.
        stage (`int`, *optional*, defaults to -1): index into the stages.

    Returns:
        `PIL.Image.Image`: RGB, of the photograph's size. What a map weighs no more than its mean is dark, its
        maximum bright; a map that looks everywhere alike is dark all over.
    """
    picture = _open(image)
    heat = np.zeros((picture.height, picture.width))
    for found in people:
        chosen = found.maps[stage] if part is None else found.maps[stage, [part]]
        scaled = _brightness(chosen).max(axis=0)
        heat = np.maximum(heat, _place(scaled, found.boxes[stage], (0, 0, *picture.size), picture.size))
    return _blend(picture, heat)


def draw_part_attention(
    image: Any,
    found: PersonAttention,
    *,
    stages: Sequence[int] | None = None,
    panel_height: int = 220,
) -> Image.Image:
    """Draws one person's maps as panels, a row per stage and a column per part; the pose comes first.

    Args:
        image: the picture that was explained.
        found (`PersonAttention`): from [`explain_people`].
        stages (`Sequence[int]`, *optional*): which rows, as indices into `found.stages`; all by default.
        panel_height (`int`, *optional*, defaults to 220): pixels.

    Returns:
        `PIL.Image.Image`: RGB. A frame shows the box of the stage, and dots the part's keypoints in the end. Maps are
        as bright as in [`overlay_part_attention`].

    Raises:
        ValueError: a stage does not exist.
    """
    rows = list(range(len(found.stages))) if stages is None else list(stages)
    if wrong := [row for row in rows if not -len(found.stages) <= row < len(found.stages)]:
        raise ValueError(f"`stages` holds {wrong[0]}, but there are {len(found.stages)} stages.")
    picture = _open(image)
    view = _view([found.boxes[row] for row in rows], found.person)
    scale = panel_height / (view[3] - view[1])
    size = (max(60, round((view[2] - view[0]) * scale)), panel_height)
    crop = picture.transform(size, Image.Transform.EXTENT, view, Image.Resampling.BICUBIC)

    def to_panel(points: np.ndarray) -> np.ndarray:
        return (points - np.array(view[:2])) * np.array(size) / (np.array(view[2:]) - np.array(view[:2]))

    points = to_panel(found.person["keypoints"].double().numpy() + 0.5)
    moved = dict(found.person, keypoints=torch.from_numpy(points - 0.5))
    moved["bbox"] = torch.from_numpy(to_panel(found.person["bbox"].double().numpy().reshape(2, 2)).ravel())
    pose = draw_poses(crop, [moved], edges=found.edges, keypoint_threshold=0.0, draw_boxes=False, draw_scores=False)

    font = ImageFont.load_default(13)
    header, margin = 40, 64
    columns = len(found.parts) + 1
    sheet = Image.new(
        "RGB",
        (margin + columns * (size[0] + _GAP), header + len(rows) * (size[1] + _GAP)),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate((f"score {float(found.person['score']):.2f}", *found.part_names)):
        x = margin + column * (size[0] + _GAP)
        _write(draw, name, (x + size[0] / 2, header / 2), font, size[0])
    for line, row in enumerate(rows):
        y = header + line * (size[1] + _GAP)
        draw.text((margin / 2, y + size[1] / 2), f"stage {found.stages[row] + 1}", _INK, font, "mm")
        sheet.paste(pose, (margin, y))
        corners = to_panel(found.boxes[row].reshape(2, 2))
        for column, part in enumerate(found.parts):
            attention = found.maps[row, column]
            heat = _place(_brightness(attention), found.boxes[row], view, size)
            panel = _blend(crop, heat)
            pen = ImageDraw.Draw(panel)
            pen.rectangle((*corners[0], *corners[1]), outline=(255, 255, 255))
            for x, point_y in points[list(part)]:
                pen.ellipse((x - 3, point_y - 3, x + 3, point_y + 3), fill=(60, 220, 255), outline=(0, 0, 0))
            sheet.paste(panel, (margin + (column + 1) * (size[0] + _GAP), y))
    return sheet


def _open(image: Any) -> Image.Image:
    return Image.fromarray(decode_image(image).permute(1, 2, 0).numpy())


def _view(boxes: Sequence[np.ndarray], person: Mapping[str, torch.Tensor]) -> tuple[float, float, float, float]:
    """What of the photograph a panel shows: the last box and a margin, no slimmer than half its height."""
    x1, y1, x2, y2 = (float(value) for value in boxes[-1])
    width, height = 1.2 * max(x2 - x1, 1.0), 1.2 * max(y2 - y1, 1.0)
    width, height = max(width, 0.5 * height), max(height, 0.5 * width)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _brightness(maps: np.ndarray) -> np.ndarray:
    """Maps `(..., 28, 28)` to 0..1: 0 up to what a place gets that looks everywhere alike, 1 at the map's maximum.

    A map without a clear maximum, of less than [`_FOCUSED`] times that, stays dark instead of glowing all over.
    """
    per_place = maps * (maps.shape[-1] * maps.shape[-2])
    most = np.maximum(per_place.max(axis=(-2, -1), keepdims=True), _FOCUSED)
    return np.clip((per_place - 1.0) / (most - 1.0), 0.0, 1.0)


def _place(
    attention: np.ndarray, box: np.ndarray, view: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """A map that covers `box`, as seen in a picture of `size` that shows `view`; zero outside of the box."""
    rows, columns = attention.shape
    per_x, per_y = columns / max(box[2] - box[0], 1e-6), rows / max(box[3] - box[1], 1e-6)
    extent = ((view[0] - box[0]) * per_x, (view[1] - box[1]) * per_y, (view[2] - box[0]) * per_x)
    # one cell of zeros all round, because Pillow does not interpolate with what lies outside of a picture
    padded = Image.fromarray(np.pad(attention, 1).astype(np.float32), mode="F")
    corners = (extent[0] + 1, extent[1] + 1, extent[2] + 1, (view[3] - box[1]) * per_y + 1)
    return np.asarray(padded.transform(size, Image.Transform.EXTENT, corners, Image.Resampling.BILINEAR))


def _blend(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Greys and dims the photograph and lets the heat glow on it."""
    heat = np.clip(heat, 0.0, 1.0)
    levels = np.linspace(0.0, 1.0, len(_HEAT))
    color = np.stack([np.interp(heat, levels, channel) for channel in _HEAT.T], axis=-1)
    ground = 0.62 * np.asarray(picture.convert("L").convert("RGB"), dtype=float)
    alpha = (0.85 * np.sqrt(heat))[..., None]
    return Image.fromarray(np.rint(ground * (1 - alpha) + color * alpha).astype(np.uint8))


def _write(draw: ImageDraw.ImageDraw, text: str, middle: tuple[float, float], font: Any, width: float) -> None:
    """Writes centred text, on two lines where one is too long."""
    if draw.textlength(text, font) > width and " " in text:
        spaces = [index for index, letter in enumerate(text) if letter == " "]
        cut = min(spaces, key=lambda index: abs(index - len(text) / 2))
        text = f"{text[:cut]}\n{text[cut + 1 :]}"
    draw.multiline_text(middle, text, _INK, font, "mm", align="center", spacing=2)
