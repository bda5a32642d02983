"""Random changes to pictures and their people, and the paper's recipe of them.

Each step takes an [`AnnotatedImage`] and a numpy random generator and gives a new [`AnnotatedImage`]. All chance comes
from that generator, so that one seed gives one result, in whatever process.
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
from .annotated_image import AnnotatedImage
from .pose_dataset import check_flip_indices
from .sample import PoseSample


Step = Callable[[AnnotatedImage, np.random.Generator], AnnotatedImage]

#: Shown where a picture does not reach; ImageNet's mean, which becomes 0 in the model's input.
FILL_COLOR = (124, 116, 104)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors the picture and exchanges left and right keypoints.

    Args:
        flip_indices (`Sequence[int]` or `None`): for each keypoint the index of its mirror image. Where it is not
            known, nothing is ever mirrored, and a warning says so.
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
                "No image is mirrored: the skeleton has no `flip_indices`, which say where left and right keypoints "
                "go. Give them, or keypoint names that tell left from right.",
                stacklevel=3,
            )

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        if rng.random() >= self.probability or self.flip_indices is None:
            return annotated
        return annotated.mirrored(self.flip_indices)


@dataclass(frozen=True)
class RandomCrop:
    """Resizes the short side to one of a few lengths and cuts a window out, anywhere.

    Args:
        short_sides (`Sequence[int]`, *optional*, defaults to (400, 500, 600)): lengths in pixels to choose from.
        window (`tuple[int, int]`, *optional*, defaults to (384, 600)): smallest and largest side of the window; width
            and height are chosen independently, neither beyond the picture's.
        probability (`float`, *optional*, defaults to 0.5): how often.
    """

    short_sides: Sequence[int] = (400, 500, 600)
    window: tuple[int, int] = (384, 600)
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
        longest_side (`int`, *optional*, defaults to 1333): the long side becomes no longer than this.
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
    """Enlarges or shrinks what the picture shows, within a picture of the same size.

    An enlarged picture is cut off and a shrunken one put somewhere on plain ground.

    Args:
        scale (`tuple[float, float]`): smallest and largest factor; its logarithm is uniform.
    """

    scale: tuple[float, float]

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] or not math.isfinite(self.scale[1]):
            raise ValueError(f"`scale` is {self.scale!r}; expected a smallest and a largest factor above 0.")

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        factor = math.exp(rng.uniform(*np.log(self.scale)))
        width, height = annotated.image.size
        new_width, new_height = (max(1, round(length * factor)) for length in (width, height))
        across, down = rng.random(2)
        # what is too much at both sides, or too little
        left, top = round(across * (width - new_width)), round(down * (height - new_height))
        scale_x, scale_y = new_width / width, new_height / height
        # the part of the old picture that is seen; the rest need not be enlarged
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
    """Turns the picture about its centre; its size stays and corners are filled with plain ground.

    A box becomes the smallest upright box around its turned corners, clipped to the picture, which is larger than the
    person: prefer small angles.

    Args:
        degrees (`float`): the largest angle, either way.
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
        # PIL wants the way back, from the new picture's continuous coordinates to the old one's
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
    """Changes colours by any transform of torchvision that leaves every pixel in its place.

    Args:
        transform (`Callable`): takes and gives a PIL image, such as `torchvision.transforms.v2.ColorJitter(0.4)`.
    """

    transform: Callable[[PIL.Image.Image], Any]

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        # torchvision draws from torch's global generator, which is lent to it and put back; the graphics card's
        # generators, which `torch.manual_seed` would seed too, are left alone
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
class RandomErasing:
    """Covers a rectangle with a random plain colour; the visible keypoints under it become hidden ones.

    Args:
        probability (`float`): how often.
        area (`tuple[float, float]`, *optional*, defaults to (0.02, 0.15)): smallest and largest share of the picture.
        aspect_ratio (`tuple[float, float]`, *optional*, defaults to (0.3, 3.3)): of the rectangle.
    """

    probability: float
    area: tuple[float, float] = (0.02, 0.15)
    aspect_ratio: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"`area` is {self.area!r}; expected a smallest and a largest share above 0, up to 1.")
        if len(self.aspect_ratio) != 2 or not 0 < self.aspect_ratio[0] <= self.aspect_ratio[1]:
            raise ValueError(
                f"`aspect_ratio` is {self.aspect_ratio!r}; expected a smallest and a largest one above 0."
            )

    def __call__(self, annotated: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        if rng.random() >= self.probability:
            return annotated
        full = annotated.image.size
        pixels = rng.uniform(*self.area) * full[0] * full[1]
        ratio = math.exp(rng.uniform(*np.log(self.aspect_ratio)))
        sides = (math.sqrt(pixels * ratio), math.sqrt(pixels / ratio))
        width, height = (max(1, min(length, round(side))) for length, side in zip(full, sides, strict=True))
        left, top = int(rng.integers(full[0] - width + 1)), int(rng.integers(full[1] - height + 1))
        window = (left, top, left + width, top + height)
        image = annotated.image.copy()
        image.paste(tuple(rng.integers(256, size=3).tolist()), window)
        covered = ((annotated.keypoints > window[:2]) & (annotated.keypoints < window[2:])).all(axis=2)
        visibility = np.where(covered, np.minimum(annotated.visibility, 1), annotated.visibility)
        return replace(annotated, image=image, visibility=visibility)


@dataclass(frozen=True)
class Mosaic:
    """Joins four pictures into one square, which makes much of a small data set.

    The four meet at a random point. Each is resized to cover its rectangle and cut off where it is too long.

    Args:
        size (`int`): side of the square in pixels.
        probability (`float`, *optional*, defaults to 0.5): how often.
        center (`tuple[float, float]`, *optional*, defaults to (0.3, 0.7)): where the pictures meet, in x and in y,
            relative to the side.
    """

    size: int
    probability: float = 0.5
    center: tuple[float, float] = (0.3, 0.7)

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        _check_lengths("size", (self.size,))
        if len(self.center) != 2 or not 0 < self.center[0] <= self.center[1] < 1:
            raise ValueError(f"`center` is {self.center!r}; expected a smallest and a largest place between 0 and 1.")

    def __call__(self, samples: Sequence[PoseSample], rng: np.random.Generator) -> PoseSample:
        """Joins four samples; the result has the first one's id."""
        if len(samples) != 4:
            raise ValueError(f"a mosaic takes 4 samples, got {len(samples)}.")
        x, y = (min(max(1, round(self.size * place)), self.size - 1) for place in rng.uniform(*self.center, size=2))
        windows = ((0, 0, x, y), (x, 0, self.size, y), (0, y, x, self.size), (x, y, self.size, self.size))
        canvas = PIL.Image.new("RGB", (self.size, self.size))
        annotations = []
        for sample, window in zip(samples, windows, strict=True):
            annotated = AnnotatedImage.from_sample(sample)
            full, sides = np.array(annotated.image.size), np.array([window[2] - window[0], window[3] - window[1]])
            # rounding must not ask for a part beyond the picture
            seen = np.minimum(sides / (sides / full).max(), full)
            corner = rng.random(2) * (full - seen)
            box = (*corner.tolist(), *np.minimum(corner + seen, full).tolist())
            canvas.paste(annotated.image.resize(tuple(sides.tolist()), PIL.Image.Resampling.BILINEAR, box=box), window)
            scale = sides / seen
            matrix = np.column_stack([np.diag(scale), np.array(window[:2]) - scale * corner])
            annotations.extend(annotated.mapped(canvas, matrix, window).to_annotations())
        return {
            "image": canvas,
            "image_id": samples[0]["image_id"],
            "annotations": annotations,
            "exhaustive": all(sample.get("exhaustive", True) for sample in samples),
        }


class PoseAugmentation:
    """Applies steps one after the other to a sample.

    Args:
        steps (`Sequence[Step]`): the steps, such as [`HorizontalFlip`] and [`ResizeShortSide`]. Where one of them is a
            [`ResizeShortSide`], samples are marked as resized, and the image processor leaves their size as it is.

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
        *,
        short_sides: Sequence[int] = ResizeShortSide.short_sides,
        longest_side: int | None = ResizeShortSide.longest_side,
        crop_short_sides: Sequence[int] = RandomCrop.short_sides,
        crop_window: tuple[int, int] = RandomCrop.window,
        flip_probability: float = 0.5,
        crop_probability: float = 0.5,
        scale_jitter: tuple[float, float] | None = None,
        rotation: float = 0.0,
        color_jitter: float = 0.0,
        erasing_probability: float = 0.0,
    ) -> "PoseAugmentation":
        """The paper's augmentation by default: a flip, every other time a crop, and a resize.

        Args:
            flip_indices (`Sequence[int]` or `None`): see [`HorizontalFlip`].
            short_sides, longest_side: see [`ResizeShortSide`]; smaller ones for small models.
            crop_short_sides, crop_window, crop_probability: see [`RandomCrop`]; to be made smaller along.
            flip_probability (`float`, *optional*, defaults to 0.5): how often pictures are mirrored.
            scale_jitter (`tuple[float, float]`, *optional*): see [`ScaleJitter`]; not in the paper.
            rotation (`float`, *optional*, defaults to 0): see [`Rotation`]; not in the paper.
            color_jitter (`float`, *optional*, defaults to 0): brightness, contrast and saturation change by up to this
                share, hue by a tenth of it; not in the paper.
            erasing_probability (`float`, *optional*, defaults to 0): see [`RandomErasing`]; not in the paper.

        Example:

        ```python
        >>> augmentation = PoseAugmentation.from_recipe(COCO_17.flip_indices)
        ```
        """
        steps: list[Step] = [HorizontalFlip(flip_indices, flip_probability)]
        if scale_jitter is not None:
            steps.append(ScaleJitter(scale_jitter))
        if rotation:
            steps.append(Rotation(rotation))
        steps.append(RandomCrop(crop_short_sides, crop_window, crop_probability))
        steps.append(ResizeShortSide(short_sides, longest_side))
        if color_jitter:
            if not 0 < color_jitter <= 1:
                raise ValueError(f"`color_jitter` is {color_jitter!r}; expected a share from 0 to 1.")
            jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter, color_jitter / 10)
            steps.append(Photometric(jitter))
        if erasing_probability:
            steps.append(RandomErasing(erasing_probability))
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
