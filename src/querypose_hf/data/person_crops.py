"""Crops around annotated people, each an image of its own."""

from typing import Any

import numpy as np
import PIL.Image
from torch.utils.data import Dataset

from .annotated_image import AnnotatedImage
from .augmentation import FILL_COLOR
from .description import Described
from .pose_dataset import PoseDataset
from .sample import PoseSample


class PersonCropDataset(Described, Dataset[PoseSample]):
    """A crop around every person with a labelled keypoint. Other people who are visible in it are not annotated.

    Args:
        dataset ([`PoseDataset`]): the source.
        size (`tuple[int, int]`): width and height of a crop, in pixels.
        context (`float`, *optional*, defaults to 1.7): size of what is cropped, relative to the box extended to the
            crop's aspect ratio.

    Raises:
        ValueError: nobody can be cropped, or the dataset skips images that cannot be read.

    Example:

    ```python
    >>> crops = PersonCropDataset(CocoPoseDataset("person_keypoints_train2017.json", "train2017"), (192, 256))
    >>> crops[0]["image"].size
    (192, 256)
    ```
    """

    def __init__(self, dataset: PoseDataset, size: tuple[int, int], context: float = 1.7):
        if min(size) < 32:
            raise ValueError(f"`size` is {tuple(size)}; expected at least 32 pixels on each side.")
        if not context >= 1:
            raise ValueError(f"`context` is {context!r}; expected at least 1, the whole box.")
        if dataset.options.on_error == "skip":  # another image would stand in for one that cannot be read
            raise ValueError("`on_error` of the dataset is 'skip'; expected 'raise' where people are cropped.")
        self.dataset = dataset
        self.size = size
        self.context = context
        self.description = dataset.description
        people, left_out = [], 0
        for index in range(len(dataset)):
            for number, entry in enumerate(dataset.annotations(index)):
                box_width, box_height = entry["bbox"][2:]
                labelled = (np.asarray(entry.get("keypoints", ()))[2::3] > 0).any()
                if entry.get("iscrowd") or not labelled or box_width * box_height < 1:
                    left_out += 1
                    continue
                people.append((index, number))
        if not people:
            raise ValueError("nobody in the dataset has a labelled keypoint and a box of at least a pixel.")
        self._people = np.array(people)
        self.remarks = dataset.remarks
        self.left_out = {**dataset.left_out, "people_without_keypoints_or_extent": left_out}

    def __len__(self) -> int:
        return len(self._people)

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) int64: width and height of every crop, in pixels."""
        return np.tile(self.size, (len(self), 1))

    def __getitem__(self, index: int) -> PoseSample:
        index = range(len(self))[index]
        image_index, number = self._people[index]
        entry = self.dataset.annotations(int(image_index))[int(number)]
        corner, extent = self._window(entry)
        image = _cut(self.dataset.read_image(int(image_index)), corner, extent, self.size)
        sample: PoseSample = {
            "image": image,
            "image_id": self.dataset.image_id(int(image_index)),
            "annotations": [entry],
        }
        scale = self.size[0] / extent[0]
        matrix = np.column_stack([np.diag([scale, scale]), -scale * corner])
        crop = AnnotatedImage.from_sample(sample).mapped(image, matrix)
        return {**sample, "annotations": crop.to_annotations(), "exhaustive": False}

    def _window(self, entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Left upper corner, and width and height, of what is cropped for a person."""
        x, y, width, height = entry["bbox"]
        aspect = self.size[0] / self.size[1]
        across = self.context * max(width, height * aspect)
        down = across / aspect
        return np.array([x + (width - across) / 2, y + (height - down) / 2]), np.array([across, down])


def _cut(image: PIL.Image.Image, corner: np.ndarray, extent: np.ndarray, size: tuple[int, int]) -> PIL.Image.Image:
    """A window of an image, resized; plain background where it reaches beyond the image."""
    low, high = np.maximum(corner, 0), np.minimum(corner + extent, image.size)
    left, top = np.round((low - corner) * size / extent).astype(int).tolist()
    right, bottom = np.round((high - corner) * size / extent).astype(int).tolist()
    inner = (max(1, right - left), max(1, bottom - top))
    part = image.resize(inner, PIL.Image.Resampling.BILINEAR, box=(*low.tolist(), *high.tolist()))
    if inner == size:
        return part
    canvas = PIL.Image.new("RGB", size, FILL_COLOR)
    canvas.paste(part, (left, top))
    return canvas
