"""Crops around annotated people, each an image of its own."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from .annotated_image import AnnotatedImage
from .augmentation import FILL_COLOR
from .description import Described
from .pose_dataset import PoseDataset
from .sample import PoseSample


class PersonCropDataset(Described, Dataset[PoseSample]):
    """A crop around every person of a dataset. Other people who are visible in it are not annotated.

    Args:
        dataset ([`PoseDataset`]): the source.
        side (`int`, *optional*, defaults to 144): of a square crop, or the width of another, in pixels.
        context (`float`, *optional*, defaults to 1.6): side of the crop relative to the longer side of the box; for
            other crops, relative to the box extended to their aspect ratio.
        least_keypoints (`int`, *optional*, defaults to 5): people with fewer labelled keypoints are left out.
        least_size (`float`, *optional*, defaults to 28): people whose box is smaller are left out; the size of a box
            is the square root of its area, in pixels.
        height (`int`, *optional*): of a crop, in pixels; its width by default.
        in_memory (`bool`, *optional*, defaults to `True`): whether crops stay in shared memory (3 * side * height
            bytes each), so that images are decoded only once.

    Raises:
        ValueError: nobody is left, or the dataset skips images that cannot be read.

    Example:

    ```python
    >>> crops = PersonCropDataset(CocoPoseDataset("person_keypoints_train2017.json", "train2017"))
    >>> crops[0]["image"].size
    (144, 144)
    ```
    """

    def __init__(
        self,
        dataset: PoseDataset,
        side: int = 144,
        context: float = 1.6,
        least_keypoints: int = 5,
        least_size: float = 28.0,
        height: int | None = None,
        in_memory: bool = True,
    ):
        height = side if height is None else height
        for name, length in (("side", side), ("height", height)):
            if not length >= 32:
                raise ValueError(f"`{name}` is {length!r}; expected at least 32 pixels.")
        if not context >= 1:
            raise ValueError(f"`context` is {context!r}; expected at least 1, the longer side of the box.")
        if dataset.options.on_error == "skip":  # another image would stand in for one that cannot be read
            raise ValueError("`on_error` of the dataset is 'skip'; expected 'raise' where people are cropped.")
        self.dataset = dataset
        self.size = (side, height)
        self.in_memory = in_memory
        self.context = context
        self.description = dataset.description
        people, left_out = [], 0
        for index in range(len(dataset)):
            for number, entry in enumerate(dataset.annotations(index)):
                box_width, box_height = entry["bbox"][2:]
                labelled = int((np.asarray(entry.get("keypoints", ()))[2::3] > 0).sum())
                if entry.get("iscrowd") or labelled < least_keypoints or box_width * box_height < least_size**2:
                    left_out += 1
                    continue
                people.append((index, number))
        if not people:
            raise ValueError(
                f"nobody in the dataset has {least_keypoints} labelled keypoints and a box of {least_size} x "
                f"{least_size} pixels."
            )
        self._people = np.array(people)
        self.remarks = dataset.remarks
        self.left_out = {**dataset.left_out, "people_too_small_or_with_too_few_keypoints": left_out}
        # in shared memory: worker processes fill it for each other
        kept = len(people) if in_memory else 0
        self._pixels = torch.empty(kept, height, side, 3, dtype=torch.uint8).share_memory_()
        self._is_cut = torch.zeros(len(people), dtype=torch.bool).share_memory_()

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
        if self.in_memory:
            if not self._is_cut[index]:
                self._cut_image(int(image_index))
            image = PIL.Image.fromarray(self._pixels[index].numpy().copy())
        else:
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

    def _cut_image(self, image_index: int) -> None:
        """Crops all people of an image, so that it is read only once."""
        image = self.dataset.read_image(image_index)
        entries = self.dataset.annotations(image_index)
        for index in np.flatnonzero(self._people[:, 0] == image_index).tolist():
            corner, extent = self._window(entries[int(self._people[index, 1])])
            crop = _cut(image, corner, extent, self.size)
            self._pixels[index] = torch.from_numpy(np.asarray(crop).copy())
            self._is_cut[index] = True


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
