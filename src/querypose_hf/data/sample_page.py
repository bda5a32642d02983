"""A page of samples with their annotations drawn."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import PIL.Image

from ..files import write_image
from ..inference.visualization import draw_poses
from .annotated_image import AnnotatedImage
from .sample import PoseSample


#: Samples on a page.
NUM_DRAWN = 16

_THUMBNAIL = 320
_COLUMNS = 4


def draw_sample(sample: PoseSample, edges: Iterable[Sequence[int]], names: Sequence[str] | None) -> PIL.Image.Image:
    """A small copy of an image with its annotations.

    Args:
        sample ([`PoseSample`]): the image.
        edges (`Iterable[Sequence[int]]`): limbs, as pairs of keypoint indices.
        names (`Sequence[str]`, *optional*): names of the keypoints.
    """
    people = AnnotatedImage.from_sample(sample)
    image = people.image.copy()
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    people = people.resized(*image.size)
    drawn = [
        {"score": 1.0, "bbox": box, "keypoints": points - 0.5, "scores": (visibility > 0).astype(float)}
        for box, points, visibility in zip(people.boxes, people.keypoints, people.visibility, strict=True)
    ]
    return draw_poses(image, drawn, edges=edges, keypoint_names=names, draw_scores=False)


def save_page(drawings: Sequence[PIL.Image.Image], path: Path) -> None:
    """Writes drawings as one image file, in rows of four."""
    rows = max(1, -(-len(drawings) // _COLUMNS))
    page = PIL.Image.new("RGB", (_COLUMNS * _THUMBNAIL, rows * _THUMBNAIL), (32, 32, 36))
    for i, drawing in enumerate(drawings):
        page.paste(drawing, (i % _COLUMNS * _THUMBNAIL, i // _COLUMNS * _THUMBNAIL))
    write_image(page, path)
