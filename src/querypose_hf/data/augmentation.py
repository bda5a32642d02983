"""Random changes to images and their people, and the paper's recipe of them.

Each step takes an [`AnnotatedImage`] and a numpy random generator and returns a new [`AnnotatedImage`]. All randomness
comes from that generator, so a seed gives the same result in every process.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision.transforms import v2
from transformers.image_utils import SizeDict

from ..model.image_processing_base_querypose import get_resized_size
from ..settings import require
from .annotated_image import AnnotatedImage
from .description import check_flip_indices
from .sample import PoseSample


Step = Callable[[AnnotatedImage, np.random.Generator], AnnotatedImage]

#: Fills what lies beyond the image; ImageNet's mean, which becomes 0 in the model's input.
FILL_COLOR = (124, 116, 104)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors the image and swaps left and right keypoints.

    Args:
        flip_indices (`Sequence[int]` or `None`): for each keypoint the index of its mirror image. With `None` no image
            is mirrored, and a warning says so.
        probability (`float`, *optional*, defaults to 0.5): how often.
    """

    flip_indices: Sequence[int] | None
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if self.flip_indices is not None:
            check_flip_indices(self.flip_indices)
        elif self.probability > 0:
            warnings.warn(
                "No image is mirrored: the skeleton has no `flip_indices`, which say which keypoints to swap. Give "
                "them, or keypoint names that tell left from right.",
                stacklevel=3,
            )

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        if rng.random() >= self.probability or self.flip_indices is None:
            return annotated
        return annotated.mirrored(self.flip_indices)


@dataclass(frozen=True)
class RandomCrop:
    """Resizes the short side to one of a few lengths and cuts out a window at a random place.

    Args:
        short_sides (`Sequence[int]`, *optional*, defaults to (400, 500, 600)): lengths in pixels to choose from.
        window (`tuple[int, int]`, *optional*, defaults to (384, 600)): smallest and largest side of the window. Width
            and height are drawn independently and are at most the image's.
        probability (`float`, *optional*, defaults to 0.5): how often.
    """

    short_sides: Sequence[int] = (400, 500, 600)
    window: Sequence[int] = (384, 600)
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        _check_lengths("short_sides", self.short_sides)
        _check_lengths("window", self.window)
        if len(self.window) != 2 or self.window[0] > self.window[1]:
            raise ValueError(f"`window` is {self.window!r}; expected a smallest and a largest side.")

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        if rng.random() >= self.probability:
            return annotated
        annotated = _with_short_side(annotated, int(rng.choice(self.short_sides)), None)
        full = annotated.image.size
        width, height = (
            int(rng.integers(min(length, self.window[0]), min(length, self.window[1]) + 1)) for length in full
        )
        left, top = int(rng.integers(full[0] - width + 1)), int(rng.integers(full[1] - height + 1))
        return annotated.cropped(left, top, width, height)


@dataclass(frozen=True)
class ResizeShortSide:
    """Resizes the short side to one of a few lengths, keeping the aspect ratio.

    Args:
        short_sides (`Sequence[int]`, *optional*, defaults to (480, 512, ..., 800)): lengths in pixels to choose from.
        longest_side (`int`, *optional*, defaults to 1333): the long side is at most this long.
    """

    short_sides: Sequence[int] = tuple(range(480, 801, 32))
    longest_side: int | None = 1333

    def __post_init__(self) -> None:
        _check_lengths("short_sides", self.short_sides)
        if self.longest_side is not None:
            _check_lengths("longest_side", (self.longest_side,))

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        return _with_short_side(annotated, int(rng.choice(self.short_sides)), self.longest_side)


@dataclass(frozen=True)
class ScaleJitter:
    """Enlarges or shrinks what the image shows, and keeps the image's size.

    An enlarged image is cropped, and a shrunken one is put at a random place on a plain background.

    Args:
        scale (`tuple[float, float]`): smallest and largest factor; its logarithm is uniform.
    """

    scale: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] or not math.isfinite(self.scale[1]):
            raise ValueError(f"`scale` is {self.scale!r}; expected a smallest and a largest factor above 0.")

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        factor = math.exp(rng.uniform(*np.log(self.scale)))
        width, height = annotated.image.size
        new_width, new_height = (max(1, round(length * factor)) for length in (width, height))
        across, down = rng.random(2)
        # where the corner of the resized image lies: outside if it is larger, inside if it is smaller
        left, top = round(across * (width - new_width)), round(down * (height - new_height))
        scale_x, scale_y = new_width / width, new_height / height
        # only the part of the old image that remains is resized
        seen = (
            max(0.0, -left / scale_x),
            max(0.0, -top / scale_y),
            min(float(width), (width - left) / scale_x),
            min(float(height), (height - top) / scale_y),
        )
        size = (min(width, new_width), min(height, new_height))
        image = annotated.image.resize(size, PIL.Image.Resampling.BILINEAR, box=seen)
        if image.size != (width, height):
            canvas = PIL.Image.new("RGB", (width, height), FILL_COLOR)
            canvas.paste(image, (max(left, 0), max(top, 0)))
            image = canvas
        return annotated.mapped(image, np.array([[scale_x, 0.0, left], [0.0, scale_y, top]]))


@dataclass(frozen=True)
class Rotation:
    """Rotates the image about its centre, keeps its size, and fills the corners with a plain background.

    A box becomes the smallest upright box around its rotated corners, clipped to the image. It is larger than the
    person, so prefer small angles.

    Args:
        degrees (`float`): the largest angle in either direction.
        probability (`float`, *optional*, defaults to 0.5): how often.
    """

    degrees: float
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"`degrees` is {self.degrees!r}; expected an angle from 0 to 180.")

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        if rng.random() >= self.probability:
            return annotated
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        center = np.array(annotated.image.size) / 2
        matrix = np.column_stack([linear, center - linear @ center])
        # PIL wants the inverse, from the new image's continuous coordinates to the old one's
        inverse = np.column_stack([linear.T, center - linear.T @ center])
        image = annotated.image.transform(
            annotated.image.size,
            PIL.Image.Transform.AFFINE,
            tuple(inverse.ravel().tolist()),
            resample=PIL.Image.Resampling.BILINEAR,
            fillcolor=FILL_COLOR,
        )
        return annotated.mapped(image, matrix)


@dataclass(frozen=True)
class Photometric:
    """Changes colours by any transform of torchvision that does not move pixels.

    Args:
        transform (`Callable`): takes and returns a PIL image, such as `torchvision.transforms.v2.ColorJitter(0.4)`.
    """

    transform: Callable[[PIL.Image.Image], Any]

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        # torchvision draws from torch's global CPU generator: seed it for the transform, then restore it.
        # `torch.manual_seed` would seed the GPUs' generators too.
        state = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            image = self.transform(annotated.image)
        finally:
            torch.default_generator.set_state(state)
        if not isinstance(image, PIL.Image.Image) or image.size != annotated.image.size:
            raise ValueError(
                f"{self.transform!r} gave {image!r:.80}; expected a PIL image of {annotated.image.size} pixels."
            )
        return replace(annotated, image=image)


@dataclass(frozen=True)
class AugmentationRecipe:
    """Which augmentation a training run uses; the paper's by default.

    Args:
        short_sides, longest_side: see [`ResizeShortSide`]; smaller ones suit small models.
        crop_short_sides, crop_window, crop_probability: see [`RandomCrop`]; scale them with `short_sides`.
        flip_probability (`float`): how often images are mirrored.
        scale_jitter (`tuple[float, float]`, *optional*): see [`ScaleJitter`]; not in the paper.
        rotation (`float`): see [`Rotation`]; not in the paper.
        color_jitter (`float`): brightness, contrast and saturation change by up to this share, hue by a tenth of it;
            not in the paper.
    """

    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    longest_side: int | None = 1333
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_window: tuple[int, ...] = (384, 600)
    flip_probability: float = 0.5
    crop_probability: float = 0.5
    scale_jitter: tuple[float, ...] | None = None
    rotation: float = 0.0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip_probability", "crop_probability", "color_jitter"):
            require(self, name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        require(self, "rotation", 0 <= self.rotation <= 180, "an angle from 0 to 180")
        PoseAugmentation.from_recipe((), self)  # checks the rest


class PoseAugmentation:
    """Applies steps to a sample, one after the other.

    Args:
        steps (`Sequence[Step]`): the steps, such as [`HorizontalFlip`] and [`ResizeShortSide`]. If one of them is a
            [`ResizeShortSide`], samples are marked as resized, and the image processor keeps their size.

    Example:

    ```python
    >>> flip = HorizontalFlip(COCO_17.flip_indices)
    >>> augmentation = PoseAugmentation([flip, Rotation(20), ResizeShortSide((256, 320))])
    >>> sample = augmentation(dataset[0], np.random.default_rng(0))
    ```
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = tuple(steps)
        self.resizes = any(isinstance(step, ResizeShortSide) for step in self.steps)

    @classmethod
    def from_recipe(
        cls,
        flip_indices: Sequence[int] | None,
        recipe: AugmentationRecipe | None = None,
    ) -> "PoseAugmentation":
        """By default the paper's augmentation: a flip, half the time a crop, and a resize.

        Args:
            flip_indices (`Sequence[int]` or `None`): see [`HorizontalFlip`].
            recipe ([`AugmentationRecipe`], *optional*): what differs from the paper's.

        Example:

        ```python
        >>> augmentation = PoseAugmentation.from_recipe(COCO_17.flip_indices, AugmentationRecipe(rotation=15.0))
        ```
        """
        recipe = AugmentationRecipe() if recipe is None else recipe
        steps: list[Step] = [HorizontalFlip(flip_indices, recipe.flip_probability)]
        if recipe.scale_jitter is not None:
            steps.append(ScaleJitter(recipe.scale_jitter))
        if recipe.rotation:
            steps.append(Rotation(recipe.rotation))
        steps.append(RandomCrop(recipe.crop_short_sides, recipe.crop_window, recipe.crop_probability))
        steps.append(ResizeShortSide(recipe.short_sides, recipe.longest_side))
        if recipe.color_jitter:
            jitter = recipe.color_jitter
            steps.append(Photometric(v2.ColorJitter(jitter, jitter, jitter, jitter / 10)))
        return cls(steps)

    def __call__(self, sample: PoseSample, rng: np.random.Generator) -> PoseSample:
        annotated = AnnotatedImage.from_sample(sample)
        for step in self.steps:
            annotated = step(annotated, rng)
        return {
            "image": annotated.image,
            "image_id": sample["image_id"],
            "annotations": annotated.to_annotations(),
            "exhaustive": sample.get("exhaustive", True),
            "resized": self.resizes or sample.get("resized", False),
        }


def _with_short_side(annotated: AnnotatedImage, short_side: int, longest_side: int | None) -> AnnotatedImage:
    width, height = annotated.image.size
    # the image processor's rounding, so that training and inference agree
    height, width = get_resized_size(height, width, SizeDict(shortest_edge=short_side, longest_edge=longest_side))
    return annotated.resized(width, height)


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` is {probability!r}; expected a number from 0 to 1.")


def _check_lengths(field: str, lengths: Sequence[int]) -> None:
    if len(lengths) == 0 or not all(isinstance(length, int | np.integer) and length >= 1 for length in lengths):
        raise ValueError(f"`{field}` is {lengths!r}; expected whole numbers of pixels, at least 1.")
