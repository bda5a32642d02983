"""A page of randomly chosen samples with their annotations drawn."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from ..files import replacing_file
from ..inference.visualization import draw_poses
from .annotated_image import AnnotatedImage
from .sample import PoseSample


_THUMBNAIL = 320
_COLUMNS = 4


class SamplePage:
    """A random choice of samples, drawn and laid out on one page. Every sample has the same chance.

    Args:
        edges (`Iterable[Sequence[int]]`): limbs, as pairs of keypoint indices.
        names (`Sequence[str]`, *optional*): names of the keypoints.
        size (`int`): the number of samples to draw.
        rng (`np.random.Generator`): chooses them.
    """

    def __init__(
        self,
        edges: Iterable[Sequence[int]],
        names: Sequence[str] | None,
        size: int,
        rng: np.random.Generator,
    ):
        self.edges = list(edges)
        self.names = names
        self.size = size
        self.rng = rng
        self.offered = 0
        self.drawings: list[PIL.Image.Image] = []

    def offer(self, sample: PoseSample) -> None:
        """Adds a sample to those to choose from."""
        self.offered += 1
        # reservoir sampling, because a stream does not tell how many samples will come
        place = len(self.drawings) if len(self.drawings) < self.size else int(self.rng.integers(self.offered))
        if place < self.size:
            self.drawings[place : place + 1] = [self._drawing(sample)]

    def _drawing(self, sample: PoseSample) -> PIL.Image.Image:
        people = AnnotatedImage.from_sample(sample)
        image = people.image.copy()
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        people = people.resized(*image.size)
        drawn = [
            {"score": 1.0, "bbox": box, "keypoints": points - 0.5, "scores": (visibility > 0).astype(float)}
            for box, points, visibility in zip(people.boxes, people.keypoints, people.visibility, strict=True)
        ]
        names = self.names if people.visibility.shape[1] else None
        edges = self.edges if people.visibility.shape[1] else ()
        return draw_poses(image, drawn, edges=edges, keypoint_names=names, draw_scores=False)

    def save(self, path: Path) -> None:
        """Writes the page as an image file."""
        rows = max(1, -(-len(self.drawings) // _COLUMNS))
        page = PIL.Image.new("RGB", (_COLUMNS * _THUMBNAIL, rows * _THUMBNAIL), (32, 32, 36))
        for i, drawing in enumerate(self.drawings):
            page.paste(drawing, (i % _COLUMNS * _THUMBNAIL, i // _COLUMNS * _THUMBNAIL))
        with replacing_file(path) as temporary:
            page.save(temporary)
