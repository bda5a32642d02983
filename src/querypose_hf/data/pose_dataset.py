"""What the map-style readers share: images opened on demand, known sizes, and a count of what is left out."""

import logging
import operator
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from .description import DataDescription, Described
from .pose_table import PoseTable
from .reading_options import ReadingOptions
from .sample import PoseSample, UnusableImageError, check_size, read_image, read_image_size


logger = logging.getLogger(__name__)


class PoseDataset(Described, Dataset[PoseSample]):
    """A map-style dataset of annotated images. Images are opened when a sample is asked for.

    This is the base class of the readers, which say how an image is read.

    Args:
        table ([`PoseTable`]): the annotations of all images.
        description ([`DataDescription`]): classes and keypoints; its fields are attributes of the dataset too.
        options ([`ReadingOptions`]): how images are read.
        left_out (`dict[str, int]`): the number of records that the reader left out, by reason.
        remarks (`dict[str, int]`, *optional*): the number of doubtful annotations, by kind. The table's own are added.

    People whose box has no area in the image get one from their keypoints, see [`PoseTable.with_usable_boxes`]; those
    without such keypoints are left out. Both are counted and listed in `mended_people`.
    """

    def __init__(
        self,
        table: PoseTable,
        description: DataDescription,
        options: ReadingOptions,
        left_out: Mapping[str, int],
        remarks: Mapping[str, int] | None = None,
    ):
        self.description = description
        self.options = options
        self.left_out = dict(left_out)
        self.remarks = dict(remarks or {})
        table = self._mended(table)
        self.remarks |= table.remarks()
        kept = np.ones(len(table.image_ids), dtype=bool)
        if options.only_with_people:
            kept = table.people_per_image() > 0
            self.left_out["images_without_people"] = int((~kept).sum())
        self._table = table.with_images(kept)
        self._source_rows = np.flatnonzero(kept)
        # in shared memory, so that this process knows what a worker process found unusable
        self._unusable = torch.zeros(len(self._source_rows), dtype=torch.bool).share_memory_()

    def _mended(self, given: PoseTable) -> PoseTable:
        table, replaced, lost = given.with_usable_boxes()
        self.mended_people: list[str] = []
        for rows, counts, name, outcome in (
            (replaced, self.remarks, "boxes_taken_from_keypoints", "the box is taken from its keypoints"),
            (lost, self.left_out, "people_without_usable_box", "left out, for it has no keypoints there"),
        ):
            if len(rows):
                counts[name] = len(rows)
            images = given.image_ids[np.searchsorted(given.offset, rows, side="right") - 1]
            self.mended_people += [
                f"image_id {image_id}, annotation {given.ids[row]}: `bbox` is {given.boxes[row].tolist()}, without "
                f"area in the image; {outcome}"
                for image_id, row in zip(images.tolist(), rows.tolist(), strict=True)
            ]
        return table

    def __len__(self) -> int:
        return len(self._unusable)

    def __getitem__(self, index: int) -> PoseSample:
        """Reads one sample.

        With `on_error="skip"` the next usable image stands in for an unusable one, so that batches keep their size.
        [`unusable_images`] names those met so far.

        Raises:
            IndexError: there is no such sample.
            UnusableImageError: the image cannot be read or has another size than its annotations say, and `on_error`
                is `"raise"`; or no image can be used.
        """
        index = self._checked(index)
        for candidate in (*range(index, len(self)), *range(index)):
            if self._unusable[candidate]:
                continue
            try:
                image = self.read_image(candidate)
            except UnusableImageError as error:
                if self.options.on_error == "raise":
                    raise
                self._unusable[candidate] = True
                logger.warning("skipped: %s", error)
                continue
            return {
                "image": image,
                "image_id": self.image_id(candidate),
                "annotations": self.annotations(candidate),
                "exhaustive": self.options.exhaustive,
            }
        raise UnusableImageError(f"none of the {len(self)} images can be used, such as {self.image_name(index)}.")

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} does not exist: there are {len(self)}")
        return index % len(self)

    def check_sizes(self, most: int = 5000) -> None:
        """Compares the sizes of images, from their headers, with those recorded with the annotations.

        With `on_error="skip"` images that cannot be used are logged, and other ones stand in for them.

        Args:
            most (`int`): look at so many images at most, spread over all.

        Raises:
            UnusableImageError: images cannot be read or have other sizes, and `on_error` is `"raise"`; the message
                counts them and describes the first.
        """
        chosen = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(np.int64)).tolist()
        with ThreadPoolExecutor() as pool:
            faults = [(i, fault) for i, fault in zip(chosen, pool.map(self._fault, chosen), strict=True) if fault]
        if not faults:
            return
        message = f"{len(faults)} of {len(chosen)} images cannot be used. {faults[0][1]}"
        if self.options.on_error == "raise":
            raise UnusableImageError(message)
        logger.warning("skipped: %s", message)
        self._unusable[[index for index, _ in faults]] = True

    def _fault(self, index: int) -> str | None:
        try:
            check_size(self.read_size(index), tuple(self.sizes[index].tolist()), self.image_name(index))
        except UnusableImageError as error:
            return str(error)
        return None

    @property
    def unusable_images(self) -> list[str]:
        """Names of the images skipped so far, in any worker process."""
        return [self.image_name(index) for index in self._unusable.nonzero()[:, 0].tolist()]

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) int64: width and height of every upright image, in pixels."""
        return self._table.sizes

    def image_id(self, index: int) -> int:
        """Id of one image."""
        return int(self._table.image_ids[self._checked(index)])

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The objects of one image in COCO's form. The image is not opened."""
        return self._table.annotations(self._checked(index))

    @abstractmethod
    def image_name(self, index: int) -> str:
        """The name of one image in messages: its file, if it has one."""

    @abstractmethod
    def read_size(self, index: int) -> tuple[int, int]:
        """Width and height of one upright image, from its header; raises [`UnusableImageError`]."""

    @abstractmethod
    def read_image(self, index: int) -> PIL.Image.Image:
        """Reads one image, RGB and upright; raises [`UnusableImageError`]."""


class PoseFileDataset(PoseDataset):
    """A [`PoseDataset`] of image files.

    Args:
        table, description, options, left_out, remarks: see [`PoseDataset`].
        files (`Sequence[str]`): the image files, in the table's order.
    """

    def __init__(
        self,
        table: PoseTable,
        description: DataDescription,
        options: ReadingOptions,
        left_out: Mapping[str, int],
        files: Sequence[str],
        remarks: Mapping[str, int] | None = None,
    ):
        super().__init__(table, description, options, left_out, remarks)
        self._files = np.array(files, dtype=np.str_)[self._source_rows]

    def image_name(self, index: int) -> str:
        return str(self._files[self._checked(index)])

    def read_image(self, index: int) -> PIL.Image.Image:
        name = self.image_name(index)
        image = read_image(name, name)
        check_size(image.size, tuple(self.sizes[index].tolist()), name)
        return image

    def read_size(self, index: int) -> tuple[int, int]:
        return read_image_size(self.image_name(index), self.image_name(index))


def image_sizes(dataset: Any) -> np.ndarray:
    """Width and height of every image of a dataset, (n, 2) int64.

    A `torch.utils.data.ConcatDataset` or `Subset` is looked into; any other dataset needs an attribute `sizes`.

    Raises:
        ValueError: a dataset has no `sizes`.
    """
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([image_sizes(part) for part in dataset.datasets])
    if isinstance(dataset, Subset):
        return image_sizes(dataset.dataset)[np.asarray(dataset.indices)]
    sizes = getattr(dataset, "sizes", None)
    if sizes is None:
        raise ValueError(
            f"{type(dataset).__name__} does not tell the sizes of its images; expected an attribute `sizes` of shape "
            "(images, 2), width and height."
        )
    return np.asarray(sizes)
