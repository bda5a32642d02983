"""The annotations of a whole dataset as a few arrays.

Worker processes would slowly copy hundreds of thousands of small dicts and lists, because counting references writes
to their memory. Arrays stay shared.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..model.annotations_querypose import usable_boxes


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
        offset = np.concatenate([[0], np.cumsum(counts[kept])])
        return PoseTable(self.image_ids[kept], self.sizes[kept], offset, **self._objects(objects))

    def _objects(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of the objects that a mask (m,) chooses."""
        columns = ("ids", "boxes", "keypoints", "areas", "category_ids", "iscrowd")
        return {name: getattr(self, name)[chosen] for name in columns}

    def with_usable_boxes(self) -> tuple["PoseTable", np.ndarray, np.ndarray]:
        """The table with a box in the image for everybody, taken from the keypoints where the annotated one has no
        area there, see [`usable_boxes`]; without people who have neither. Crowd regions stay as they are.

        Returns:
            [`PoseTable`]; and the rows of this table whose box was taken from the keypoints, and those left out.
        """
        # a size of 0 is not known yet
        extents = np.repeat(np.where(self.sizes > 0, self.sizes, np.inf), np.diff(self.offset), axis=0)
        boxes, areas, replaced, lost = mended_boxes(self.boxes, self.keypoints, self.areas, self.iscrowd, extents)
        if not (replaced | lost).any():
            return self, np.flatnonzero(replaced), np.flatnonzero(lost)
        image_rows = np.repeat(np.arange(len(self.image_ids)), np.diff(self.offset))
        kept = replace(self, boxes=boxes, areas=areas)._objects(~lost)
        table = PoseTable.from_rows(self.image_ids, self.sizes, image_rows[~lost], **kept)
        return table, np.flatnonzero(replaced), np.flatnonzero(lost)

    def remarks(self) -> dict[str, int]:
        """How many people with labelled keypoints have annotations by which scoring cannot find them, by kind."""
        people = (self.keypoints[..., 2] > 0).any(axis=1) & ~self.iscrowd
        without_area = int((people & (self.areas == 0)).sum())
        return {"people_with_area_0": without_area} if without_area else {}

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


def mended_boxes(
    boxes: np.ndarray, keypoints: np.ndarray, areas: np.ndarray, iscrowd: np.ndarray, extents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) and areas (n,) by [`usable_boxes`], the mask of those taken from keypoints, and of those lost.

    An area of 0 becomes that of the new box. Crowd regions stay as they are.
    """
    mended, replaced, lost = usable_boxes(boxes, keypoints, extents)
    replaced, lost = replaced & ~iscrowd, lost & ~iscrowd
    boxes = np.where(replaced[:, None], mended, boxes)
    return boxes, np.where(replaced & (areas == 0), boxes[:, 2:].prod(axis=1), areas), replaced, lost
