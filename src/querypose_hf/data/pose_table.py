"""The annotations of a whole dataset as a few arrays.

Worker processes would slowly copy hundreds of thousands of small dicts and lists, because counting references writes
to their memory. Arrays stay shared.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PoseTable:
    """Annotations of n images with m objects of K keypoints.

    Attributes:
        image_ids (`np.ndarray`): (n,) int64.
        sizes (`np.ndarray`): (n, 2) int64, width and height of the upright images in pixels.
        offset (`np.ndarray`): (n + 1,) int64; the objects of image i are the rows `offset[i]` to `offset[i + 1]`.
        ids (`np.ndarray`): (m,) int64.
        boxes (`np.ndarray`): (m, 4) float64, x, y, width, height in pixels.
        keypoints (`np.ndarray`): (m, K, 3) float64, x and y as pixel indices and visibility 0, 1 or 2.
        areas (`np.ndarray`): (m,) float64, in pixels.
        category_ids (`np.ndarray`): (m,) int64.
        iscrowd (`np.ndarray`): (m,) bool.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    offset: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    areas: np.ndarray
    category_ids: np.ndarray
    iscrowd: np.ndarray

    @classmethod
    def from_rows(
        cls, image_ids: np.ndarray, sizes: np.ndarray, image_rows: np.ndarray, **objects: np.ndarray
    ) -> "PoseTable":
        """Makes a table of objects in any order; `image_rows` (m,) says which image each belongs to."""
        order = np.argsort(image_rows, kind="stable")
        offset = np.zeros(len(image_ids) + 1, dtype=np.int64)
        np.cumsum(np.bincount(image_rows, minlength=len(image_ids)), out=offset[1:])
        return cls(image_ids, sizes, offset, **{name: values[order] for name, values in objects.items()})

    @property
    def num_keypoints(self) -> int:
        return self.keypoints.shape[1]

    def with_images(self, kept: np.ndarray) -> "PoseTable":
        """The images that the mask `kept` (n,) chooses, with their objects."""
        counts = np.diff(self.offset)
        objects = np.repeat(kept, counts)
        return PoseTable(
            image_ids=self.image_ids[kept],
            sizes=self.sizes[kept],
            offset=np.concatenate([[0], np.cumsum(counts[kept])]),
            ids=self.ids[objects],
            boxes=self.boxes[objects],
            keypoints=self.keypoints[objects],
            areas=self.areas[objects],
            category_ids=self.category_ids[objects],
            iscrowd=self.iscrowd[objects],
        )

    def people_per_image(self) -> np.ndarray:
        """(n,): the number of objects of each image that are not crowd regions."""
        people = np.concatenate([[0], np.cumsum(~self.iscrowd)])
        return people[self.offset[1:]] - people[self.offset[:-1]]

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The objects of one image in COCO's form."""
        rows = slice(self.offset[index], self.offset[index + 1])
        image_id = int(self.image_ids[index])
        return [
            {
                "id": object_id,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": bbox,
                "area": area,
                "keypoints": keypoints,
                "iscrowd": int(iscrowd),
            }
            for object_id, category_id, bbox, area, keypoints, iscrowd in zip(
                self.ids[rows].tolist(),
                self.category_ids[rows].tolist(),
                self.boxes[rows].tolist(),
                self.areas[rows].tolist(),
                self.keypoints[rows].reshape(-1, 3 * self.num_keypoints).tolist(),
                self.iscrowd[rows].tolist(),
                strict=True,
            )
        ]
