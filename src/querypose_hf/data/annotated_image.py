"""An image with its boxes and keypoints as arrays, and how they are mapped together.

torchvision's keypoints are not exact enough: its flip treats them as pixel indices (x becomes W - 1 - x), but its
resize as continuous coordinates, so one of the two is off by up to a pixel. Here everything is in continuous
coordinates, in which the pixel with index i reaches from i to i + 1, and every mapping is one affine matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image

from .pose_table import mended_boxes
from .sample import PoseSample


_KEPT_FIELDS = ("id", "image_id", "category_id", "iscrowd")


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its n objects of K keypoints, in continuous coordinates.

    Attributes:
        image (`PIL.Image.Image`): RGB.
        boxes (`np.ndarray`): (n, 4) float64, left, top, right, bottom.
        keypoints (`np.ndarray`): (n, K, 2) float64.
        visibility (`np.ndarray`): (n, K) int64: 0, 1 or 2.
        areas (`np.ndarray`): (n,) float64, in pixels.
        objects (`tuple[Mapping, ...]`): the n COCO objects, for the fields that no mapping changes.
    """

    image: PIL.Image.Image
    boxes: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    areas: np.ndarray
    objects: tuple[Mapping[str, Any], ...]

    @classmethod
    def from_sample(cls, sample: PoseSample) -> "AnnotatedImage":
        """Takes a sample apart. Objects without keypoints get K that are not labelled; people whose box has no area in
        the image get one from their keypoints.

        Raises:
            ValueError: objects have different numbers of keypoints, or a box is not four numbers.
        """
        objects = tuple(sample["annotations"])
        keypoints = [np.ravel(() if (points := entry.get("keypoints")) is None else points) for entry in objects]
        lengths = {len(points) for points in keypoints} - {0}
        if len(lengths) > 1 or any(length % 3 for length in lengths):
            raise ValueError(
                f"image_id {sample['image_id']}: `keypoints` of its objects have {sorted(lengths)} numbers; expected "
                "the same for all, 3 for each keypoint."
            )
        length = lengths.pop() if lengths else 0
        unlabelled = np.zeros(length)
        values = np.array([points if len(points) else unlabelled for points in keypoints], dtype=np.float64)
        values = values.reshape(len(objects), length // 3, 3)
        for number, entry in enumerate(objects):
            if len(entry["bbox"]) != 4:
                raise ValueError(
                    f"image_id {sample['image_id']}, object {number}: `bbox` is {entry['bbox']!r}; expected 4 "
                    "numbers: x, y, width, height."
                )
        boxes = np.array([entry["bbox"] for entry in objects], dtype=np.float64).reshape(-1, 4)
        given = [entry.get("area") for entry in objects]
        areas = np.array(
            [box[2] * box[3] if area is None else area for area, box in zip(given, boxes, strict=True)],
            dtype=np.float64,
        )
        iscrowd = np.array([bool(entry.get("iscrowd")) for entry in objects], dtype=bool)
        boxes, areas, _, _ = mended_boxes(boxes, values, areas, iscrowd, np.array(sample["image"].size))
        return cls(
            image=sample["image"],
            boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            keypoints=values[..., :2] + 0.5,
            visibility=values[..., 2].astype(np.int64),
            areas=areas,
            objects=objects,
        )

    def to_annotations(self) -> list[dict[str, Any]]:
        """The objects in COCO's form; keypoints that are not labelled are 0, 0, 0."""
        labelled = self.visibility[..., None] > 0
        keypoints = np.concatenate(
            [np.where(labelled, self.keypoints - 0.5, 0.0), self.visibility[..., None]], axis=2
        ).reshape(len(self.boxes), 3 * self.visibility.shape[1])
        boxes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        return [
            {
                **{field: entry[field] for field in _KEPT_FIELDS if field in entry},
                "bbox": bbox,
                "area": area,
                "keypoints": points,
            }
            for entry, bbox, area, points in zip(
                self.objects, boxes.tolist(), self.areas.tolist(), keypoints.tolist(), strict=True
            )
        ]

    def mapped(self, image: PIL.Image.Image, matrix: np.ndarray) -> "AnnotatedImage":
        """The same people in an affine map of the image.

        A box becomes the smallest upright box around its four mapped corners, clipped to the image. It is not refitted
        to what remains visible of the person. Objects whose box has no area left are dropped. Keypoints outside the
        image become unlabelled. Areas scale with the map, and with the share of the box that remains.

        Args:
            image (`PIL.Image.Image`): the mapped image.
            matrix (`np.ndarray`): (2, 3), from the old continuous coordinates to the new ones.
        """
        linear, shift = matrix[:, :2], matrix[:, 2]
        corners = self.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ linear.T + shift
        unclipped = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        boxes = np.clip(unclipped, 0.0, np.tile(image.size, 2))
        shown = _box_areas(boxes)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        keypoints = self.keypoints @ linear.T + shift
        inside = ((keypoints >= 0) & (keypoints <= image.size)).all(axis=2)
        areas = self.areas * abs(np.linalg.det(linear))
        areas = areas * np.divide(shown, _box_areas(unclipped), out=np.zeros_like(shown), where=kept)
        return AnnotatedImage(
            image=image,
            boxes=boxes[kept],
            keypoints=keypoints[kept],
            visibility=np.where(inside, self.visibility, 0)[kept],
            areas=areas[kept],
            objects=tuple(entry for entry, keep in zip(self.objects, kept, strict=True) if keep),
        )

    def resized(self, width: int, height: int) -> "AnnotatedImage":
        """Image and people resized, with PIL's antialiased bilinear filter."""
        old_width, old_height = self.image.size
        if (width, height) == (old_width, old_height):
            return self
        matrix = np.array([[width / old_width, 0.0, 0.0], [0.0, height / old_height, 0.0]])
        return self.mapped(self.image.resize((width, height), PIL.Image.Resampling.BILINEAR), matrix)

    def cropped(self, left: int, top: int, width: int, height: int) -> "AnnotatedImage":
        """The part of the image that begins at the pixel (`left`, `top`)."""
        matrix = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top]])
        return self.mapped(self.image.crop((left, top, left + width, top + height)), matrix)

    def mirrored(self, flip_indices: Sequence[int]) -> "AnnotatedImage":
        """The mirror image, with left and right keypoints swapped.

        Raises:
            ValueError: `flip_indices` does not have K entries.
        """
        if len(self.boxes) and self.visibility.shape[1] not in (0, len(flip_indices)):
            raise ValueError(
                f"objects have {self.visibility.shape[1]} keypoints where `flip_indices` has {len(flip_indices)}."
            )
        matrix = np.array([[-1.0, 0.0, self.image.width], [0.0, 1.0, 0.0]])
        mirror = self.mapped(self.image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), matrix)
        if mirror.visibility.size == 0:
            return mirror
        order = list(flip_indices)
        return replace(mirror, keypoints=mirror.keypoints[:, order], visibility=mirror.visibility[:, order])


def _box_areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
