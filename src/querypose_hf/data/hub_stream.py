"""Datasets of the `datasets` library, streamed: rows are read, used and forgotten."""

import contextlib
import copy
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .description import DataDescription, Described
from .epochs import check_epoch, shared_number
from .hub_rows import (
    PoseColumns,
    category_names_of,
    check_columns,
    first_number_of_keypoints,
    load_rows,
    read_image_id,
    read_objects,
    rows_of,
    without_decoding,
)
from .pose_table import PoseTable
from .reading_options import ReadingOptions
from .sample import PoseSample, UnusableImageError, read_image, read_image_size


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)


# what a stream counts: three reasons to leave something out, and kinds of remarks
_COUNTED = (
    *("unusable_images", "images_without_people", "people_without_usable_box"),
    *("boxes_taken_from_keypoints", "people_with_area_0"),
)


class _Row(NamedTuple):
    """A row that was checked, its image not decoded yet."""

    image: Any
    image_id: int
    table: PoseTable
    name: str


class HubPoseStream(Described, IterableDataset[PoseSample]):
    """A streamed dataset of the `datasets` library with a column of images and a column of objects.

    Iterating gives one pass over the rows, each read and checked as it comes. The worker processes of a loader share
    the dataset's shards, so more workers than [`num_shards`] are idle. Without an id column, rows are counted in each
    process and worker, so their ids depend on how many of these there are.

    Args:
        dataset (`datasets.IterableDataset` or `str`): the data, or its name on the Hub or folder.
        category_names (`Sequence[str]` or `dict[int, str]`, *optional*): the categories in the order of the model's
            classes; needed if they are not in the dataset's features.
        split, columns, keypoint_names, edges, flip_indices, options: as in [`HubPoseDataset`]. Without names, the
            first object says how many keypoints there are.

    Example:

    ```python
    >>> stream = HubPoseStream("someone/people", split="train", keypoint_names=COCO_17.keypoint_names)
    >>> loader = DataLoader(stream.shuffled(seed=0), batch_size=4, collate_fn=PoseCollator(image_processor))
    ```
    """

    def __init__(
        self,
        dataset: "datasets.IterableDataset | str",
        split: str | Sequence[str] | None = None,
        *,
        columns: PoseColumns = PoseColumns(),
        category_names: Sequence[str] | Mapping[int, str] | None = None,
        keypoint_names: Sequence[str] | None = None,
        edges: Sequence[Sequence[int]] = (),
        flip_indices: Sequence[int] | None = None,
        options: ReadingOptions = ReadingOptions(),
    ):
        self.source = dataset if isinstance(dataset, str) else "dataset"
        self.columns = columns
        self.options = options
        rows: Any = load_rows(dataset, split, streaming=True) if isinstance(dataset, str) else dataset
        if rows.column_names is not None:
            check_columns(rows.column_names, columns, self.source)
        names = category_names_of(category_names, rows.features or {}, columns)
        if names is None:
            raise ValueError(
                f"{self.source}: `category_names` is needed: the features of this dataset do not name its categories."
            )
        self._rows = without_decoding(rows, columns)
        num_keypoints = len(keypoint_names or ()) or first_number_of_keypoints(self._rows, columns, self.source)
        self.description = DataDescription(num_keypoints, keypoint_names, edges, flip_indices, names)
        self._shuffling: tuple[int, int] | None = None
        self._process = (0, 1)
        self._epoch = shared_number()
        # in shared memory: worker processes count, the main process reads
        self._counts = torch.zeros(len(_COUNTED), dtype=torch.int64).share_memory_()

    @property
    def left_out(self) -> dict[str, int]:
        """The number of rows that gave no sample so far, in all worker processes, by reason."""
        counts = dict(zip(_COUNTED[:3], self._counts[:3].tolist(), strict=True))
        return {name: count for name, count in counts.items() if count or name != "people_without_usable_box"}

    @property
    def remarks(self) -> dict[str, int]:
        """The number of doubtful or mended annotations so far, in all worker processes, by kind."""
        counts = dict(zip(_COUNTED[3:], self._counts[3:].tolist(), strict=True))
        return {name: count for name, count in counts.items() if count}

    def _table(self, image_id: int, objects: dict[str, np.ndarray], image: Any, name: str) -> PoseTable:
        """The objects of a row, their boxes mended and counted."""
        count, size = len(objects["boxes"]), (0, 0)
        with contextlib.suppress(UnusableImageError):  # told about where it is decoded
            size = read_image_size(image, name)
        table, replaced, lost = PoseTable.from_rows(
            image_ids=np.array([image_id]),
            sizes=np.array([size], dtype=np.int64),
            image_rows=np.zeros(count, dtype=np.int64),
            ids=np.arange(count),
            **objects,
        ).with_usable_boxes()
        found = {"people_without_usable_box": len(lost), "boxes_taken_from_keypoints": len(replaced)}
        for kind, number in (found | table.remarks()).items():
            self._counts[_COUNTED.index(kind)] += number
        return table

    @property
    def num_shards(self) -> int:
        """The number of shards that the worker processes of this process can share."""
        return self._rows.num_shards

    def shuffled(self, seed: int, buffer_size: int = 1000) -> "HubPoseStream":
        """The same stream with shards in a random order, and rows drawn from a buffer; each pass differs.

        Args:
            seed (`int`): not negative.
            buffer_size (`int`): rows held back in each worker, their images undecoded, from which the next is drawn.
        """
        stream = copy.copy(self)
        stream._shuffling = (seed, buffer_size)
        return stream

    def for_process(self, index: int, num_processes: int) -> "HubPoseStream":
        """The part of the stream that is for one of several training processes."""
        from datasets.distributed import split_dataset_by_node

        stream = copy.copy(self)
        if num_processes > 1:
            stream._rows = split_dataset_by_node(self._rows, rank=index, world_size=num_processes)
            stream._process = (index, num_processes)
        return stream

    def set_epoch(self, epoch: int) -> None:
        """Chooses the pass that iterating gives, whose order differs if the stream is shuffled."""
        self._epoch.fill_(check_epoch(epoch))

    def __iter__(self) -> Iterator[PoseSample]:
        for row in self._pass(int(self._epoch)):
            sample = self._decoded(row)
            if sample is not None:
                yield sample

    def passes(self, skipped: int = 0) -> Iterator[tuple[int, PoseSample]]:
        """Pass after pass without end, each sample with the number of its pass.

        Args:
            skipped (`int`): leave out so many samples at the start, to go on where an earlier iteration stopped. Their
                rows are read again; their images are decoded only if `on_error` is `"skip"`, to find the broken ones.

        Raises:
            ValueError: a whole pass gave no sample.
        """
        for number in itertools.count():
            empty = True
            for row in self._pass(number):
                if skipped and self.options.on_error == "raise":
                    skipped, empty = skipped - 1, False
                    continue
                sample = self._decoded(row)
                if sample is None:
                    continue
                empty = False
                if skipped:
                    skipped -= 1
                else:
                    yield number, sample
            if empty:
                raise ValueError(f"{self.source}: a pass over the rows gave no sample; {self.left_out}.")

    def _pass(self, number: int) -> Iterator[_Row]:
        rows = self._rows
        if self._shuffling is not None:
            # not by `set_epoch`, which all workers share: one may be a pass ahead of another
            seed, buffer_size = self._shuffling
            rows = rows.shuffle(generator=np.random.default_rng((seed, number)), buffer_size=buffer_size)
        worker = get_worker_info()
        worker_index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        process_index, num_processes = self._process
        first, step = process_index * num_workers + worker_index, num_processes * num_workers
        for count, row in enumerate(rows_of(rows, self.source)):
            index = first + count * step
            place = f"{self.source}, row {index}"
            image_id = read_image_id(row, self.columns, index, place)
            objects = read_objects(row, self.columns, self.category_names, self.num_keypoints, place)
            name = f"{place} (image_id {image_id})"
            table = self._table(image_id, objects, row[self.columns.image], name)
            if self.options.only_with_people and not table.people_per_image().any():
                self._counts[1] += 1
                continue
            yield _Row(row[self.columns.image], image_id, table, name)

    def _decoded(self, row: _Row) -> PoseSample | None:
        """The sample of a row; `None` if its image is to be skipped."""
        try:
            image = read_image(row.image, row.name)
        except UnusableImageError as error:
            if self.options.on_error == "raise":
                raise
            self._counts[0] += 1
            logger.warning("skipped: %s", error)
            return None
        return {
            "image": image,
            "image_id": row.image_id,
            "annotations": row.table.annotations(0),
            "exhaustive": self.options.exhaustive,
        }
