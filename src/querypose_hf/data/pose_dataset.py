"""What the map-style readers have in common: lazy pictures, known sizes, and an account of what is left out."""

import logging
import operator
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from ..model.skeletons import flip_indices_from_names
from .pose_table import PoseTable
from .sample import PoseSample, UnusableImageError, read_image


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


class PoseDataset(Dataset[PoseSample]):
    """A map-style source of annotated pictures, which are opened when asked for and not before.

    Readers derive from it and say how a picture is read; users make a reader.

    Attributes:
        category_names (`dict[int, str]`): the names of the categories by their ids, in the order of the model's
            classes: `list(category_names)` is the image processor's `category_ids`.
        num_keypoints (`int`): number of keypoints K of every object.
        keypoint_names (`tuple[str, ...]` or `None`): K names where the data tells them.
        edges (`tuple[tuple[int, int], ...]`): limbs as pairs of keypoint indices, empty where the data has none.
        flip_indices (`tuple[int, ...]` or `None`): for each keypoint the index of its mirror image, if known.
        exhaustive (`bool`): whether everybody in the pictures is annotated; every sample carries it.
        left_out (`dict[str, int]`): how many of the records read are in no sample, by reason.
    """

    def __init__(
        self,
        table: PoseTable,
        *,
        category_names: Mapping[int, str],
        keypoint_names: Sequence[str] | None,
        edges: Sequence[Sequence[int]],
        flip_indices: Sequence[int] | None,
        only_with_people: bool,
        exhaustive: bool,
        on_error: OnError,
        left_out: Mapping[str, int],
    ):
        num_keypoints = table.num_keypoints
        if keypoint_names is not None and len(keypoint_names) != num_keypoints:
            raise ValueError(
                f"`keypoint_names` has {len(keypoint_names)} names where the annotations have {num_keypoints} "
                "keypoints."
            )
        if flip_indices is None and keypoint_names is not None:
            flip_indices = flip_indices_from_names(keypoint_names)
        if flip_indices is not None:
            flip_indices = check_flip_indices(flip_indices, num_keypoints)
        self.category_names = dict(category_names)
        self.num_keypoints = num_keypoints
        self.keypoint_names = None if keypoint_names is None else tuple(keypoint_names)
        self.edges = tuple((int(a), int(b)) for a, b in edges)
        self.flip_indices = flip_indices
        self.exhaustive = bool(exhaustive)
        self.on_error = check_on_error(on_error)
        self.left_out = dict(left_out)
        kept = np.ones(len(table.image_ids), dtype=bool)
        if only_with_people:
            kept = table.people_per_image() > 0
            self.left_out["images_without_people"] = int((~kept).sum())
        self._table = table.with_images(kept)
        self._source_rows = np.flatnonzero(kept)
        # shared memory: what a worker process of a loader finds unusable is known here too
        self._unusable = torch.zeros(len(self._source_rows), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._unusable)

    def __getitem__(self, index: int) -> PoseSample:
        """Reads one sample.

        With `on_error="skip"` the next usable picture takes the place of one that is not, so that batches keep their
        size; [`unusable_images`] names those that were met.

        Raises:
            IndexError: there is no such sample.
            UnusableImageError: the picture cannot be read or has another size than its annotations say, and
                `on_error` is `"raise"`; or no picture can be used.
        """
        index = self._checked(index)
        for candidate in (*range(index, len(self)), *range(index)):
            if self._unusable[candidate]:
                continue
            try:
                image = self.read_image(candidate)
            except UnusableImageError as error:
                if self.on_error == "raise":
                    raise
                self._unusable[candidate] = True
                logger.warning("skipped: %s", error)
                continue
            return {
                "image": image,
                "image_id": self.image_id(candidate),
                "annotations": self.annotations(candidate),
                "exhaustive": self.exhaustive,
            }
        raise UnusableImageError(f"none of the {len(self)} images can be used.")

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} does not exist: there are {len(self)}")
        return index % len(self)

    @property
    def category_ids(self) -> list[int]:
        """Ids of the categories, in the order of the model's classes."""
        return list(self.category_names)

    @property
    def unusable_images(self) -> list[str]:
        """Names of the pictures skipped so far, in any worker process."""
        return [self.image_name(index) for index in self._unusable.nonzero()[:, 0].tolist()]

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) int64: width and height of every upright picture, in pixels."""
        return self._table.sizes

    def image_id(self, index: int) -> int:
        """Id of one picture."""
        return int(self._table.image_ids[self._checked(index)])

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The COCO objects of one picture, which is not opened for them."""
        return self._table.annotations(self._checked(index))

    @abstractmethod
    def image_name(self, index: int) -> str:
        """What one picture is called in messages: its file, where it has one."""

    @abstractmethod
    def read_image(self, index: int) -> PIL.Image.Image:
        """Reads one picture, RGB and upright; raises [`UnusableImageError`]."""


class PoseFileDataset(PoseDataset):
    """A [`PoseDataset`] of picture files.

    Args:
        table ([`PoseTable`]): the annotations of all pictures.
        files (`Sequence[str]`): the files, in the table's order.
        kwargs: what describes the data, see [`PoseDataset`].
    """

    def __init__(self, table: PoseTable, files: Sequence[str], **kwargs: Any):
        super().__init__(table, **kwargs)
        self._files = np.array(files, dtype=np.str_)[self._source_rows]

    def image_name(self, index: int) -> str:
        return str(self._files[self._checked(index)])

    def read_image(self, index: int) -> PIL.Image.Image:
        name = self.image_name(index)
        width, height = self._table.file_sizes[index].tolist()
        image = read_image(name, name)
        if image.size != (width, height):
            raise UnusableImageError(
                f"{name}: the upright image has {image.width} x {image.height} pixels; expected {width} x {height}, "
                "which its annotations are made for."
            )
        size = tuple(self.sizes[index].tolist())
        return image if image.size == size else image.resize(size, PIL.Image.Resampling.BILINEAR)


def image_sizes(dataset: Any) -> np.ndarray:
    """Width and height of every picture of a data set, (n, 2) int64.

    `torch.utils.data.ConcatDataset` and `Subset` are looked into; any other data set tells by an attribute `sizes`.

    Raises:
        ValueError: a data set does not tell.
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


def check_on_error(on_error: str) -> OnError:
    """Returns `on_error` if it is `"raise"` or `"skip"`, and raises `ValueError` otherwise."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f'`on_error` is {on_error!r}; expected "raise" or "skip".')
    return on_error  # type: ignore[return-value]


def check_flip_indices(flip_indices: Sequence[int], num_keypoints: int | None = None) -> tuple[int, ...]:
    """Returns `flip_indices` as integers if every keypoint's mirror image has that keypoint as its own.

    Raises:
        ValueError: it is no such list, or not one of `num_keypoints` entries where that is given.
    """
    indices = tuple(int(index) for index in flip_indices)
    length = len(indices) if num_keypoints is None else num_keypoints
    if len(indices) != length or any(not 0 <= i < length or indices[i] != k for k, i in enumerate(indices)):
        raise ValueError(
            f"`flip_indices` is {list(indices)}; expected for each of {length} keypoints the index of its mirror "
            "image, whose mirror image in turn is that keypoint."
        )
    return indices
