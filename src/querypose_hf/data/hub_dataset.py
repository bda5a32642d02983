"""Datasets of the `datasets` library, from the Hub or a folder, read as a whole."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from .coco_records import recorded_sizes
from .description import DataDescription
from .hub_rows import (
    PoseColumns,
    category_names_of,
    category_names_that_occur,
    check_columns,
    first_number_of_keypoints,
    load_rows,
    no_objects,
    read_image_id,
    read_objects,
    rows_of,
    without_decoding,
)
from .pose_dataset import PoseDataset, logger
from .pose_table import PoseTable
from .reading_options import ReadingOptions
from .sample import UnusableImageError, check_size, read_image, read_image_size


if TYPE_CHECKING:
    import datasets


class HubPoseDataset(PoseDataset):
    """A dataset of the `datasets` library with a column of images and a column of objects.

    All objects are read and checked when it is made. Sizes of images come from the columns `width` and `height`, or
    else from the headers of the images.

    Args:
        dataset (`datasets.Dataset` or `str`): the data, or its name on the Hub or folder.
        split (`str` or `Sequence[str]`, *optional*): the split, such as `"train"`, of a dataset given by its name; of
            several the first that it has.
        columns ([`PoseColumns`], *optional*): names of the columns and fields.
        category_names (`Sequence[str]` or `dict[int, str]`, *optional*): the categories in the order of the model's
            classes. By default those in the dataset's features, or else every category that occurs.
        keypoint_names (`Sequence[str]`, *optional*): K names.
        edges (`Sequence[Sequence[int]]`, *optional*): limbs, as pairs of keypoint indices.
        flip_indices (`Sequence[int]`, *optional*): for each keypoint the index of its mirror image; by default found
            from the names.
        options ([`ReadingOptions`], *optional*): how images are read.

    Raises:
        ImportError: the `datasets` library is not installed and `dataset` is a name.
        UnusableImageError: the header of an image cannot be read, and `on_error` is `"raise"`.
        ValueError: a column or field is missing or wrong; the message names row, object, column or field, and value.

    Example:

    ```python
    >>> horses = HubPoseDataset("someone/horses", split="train", columns=PoseColumns(category="class"))
    ```
    """

    def __init__(
        self,
        dataset: "datasets.Dataset | str",
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
        rows: Any = load_rows(dataset, split, streaming=False) if isinstance(dataset, str) else dataset
        check_columns(rows.column_names, columns, self.source)
        self._image_column = columns.image
        self._rows = without_decoding(rows, columns)
        others = self._rows.remove_columns(columns.image)
        names = category_names_of(category_names, rows.features, columns)
        if names is None:
            names = category_names_that_occur(others, columns, self.source)
        self._sizes_recorded = {"width", "height"} <= set(others.column_names)
        num_keypoints = len(keypoint_names or ()) or first_number_of_keypoints(others, columns, self.source)
        table = self._read_table(others, columns, names, num_keypoints)
        description = DataDescription(table.num_keypoints, keypoint_names, edges, flip_indices, names)
        broken = np.zeros(len(table.image_ids), dtype=bool)
        if not self._sizes_recorded:
            broken = self._read_sizes(table, options)
        super().__init__(table, description, options, left_out={})
        broken = broken[self._source_rows]
        self._table.sizes[broken] = 1  # other images stand in for them
        self._unusable[torch.from_numpy(broken)] = True

    def _read_table(
        self, rows: Any, columns: PoseColumns, category_names: Mapping[int, str], num_keypoints: int
    ) -> PoseTable:
        parts, image_ids = [], []
        progress = tqdm(rows_of(rows, self.source), "reading objects", len(rows), leave=False, unit=" images")
        for index, row in enumerate(progress):
            place = f"{self.source}, row {index}"
            parts.append(read_objects(row, columns, category_names, num_keypoints, place))
            image_ids.append(read_image_id(row, columns, index, place))
        if len(set(image_ids)) != len(image_ids):
            raise ValueError(
                f"{self.source}: `{columns.image_id}` has a value twice; expected one row for each image."
            )
        sizes = np.zeros((len(image_ids), 2), dtype=np.int64)
        if self._sizes_recorded:
            sides = zip(rows["width"], rows["height"], strict=True)
            records = [{"width": width, "height": height} for width, height in sides]
            sizes = recorded_sizes(records, self.source, "row")
        counts = [len(part["boxes"]) for part in parts]
        parts.append(no_objects(num_keypoints))  # where there are no rows
        return PoseTable.from_rows(
            image_ids=np.array(image_ids, dtype=np.int64),
            sizes=sizes,
            image_rows=np.repeat(np.arange(len(counts)), counts),
            ids=np.arange(sum(counts)),
            **{field: np.concatenate([part[field] for part in parts]) for field in parts[-1]},
        )

    def _read_sizes(self, table: PoseTable, options: ReadingOptions) -> np.ndarray:
        """Fills in the sizes from the headers of the images, and returns the mask of those that have none."""
        broken = np.zeros(len(table.image_ids), dtype=bool)
        image_ids = tqdm(table.image_ids.tolist(), "reading image sizes", leave=False, unit=" images")
        for row, image_id in enumerate(image_ids):
            name = self._name(row, image_id)
            try:
                table.sizes[row] = read_image_size(self._image_source(row, name), name)
            except UnusableImageError as error:
                if options.on_error == "raise":
                    raise
                logger.warning("skipped: %s", error)
                broken[row] = True
        return broken

    def check_sizes(self, most: int = 5000) -> None:
        if self._sizes_recorded:  # else they are from the headers
            super().check_sizes(most)

    def read_size(self, index: int) -> tuple[int, int]:
        name = self.image_name(index)
        return read_image_size(self._image_source(int(self._source_rows[index]), name), name)

    def image_name(self, index: int) -> str:
        index = self._checked(index)
        return self._name(self._source_rows[index], self._table.image_ids[index])

    def _name(self, row: int, image_id: int) -> str:
        return f"{self.source}, row {row} (image_id {image_id})"

    def _image_source(self, row: int, name: str) -> Any:
        try:
            return self._rows[row][self._image_column]
        except Exception as error:  # the library raises errors of any kind for damaged files
            raise UnusableImageError(f"{name}: the row cannot be read: {error}") from error

    def read_image(self, index: int) -> PIL.Image.Image:
        name = self.image_name(index)
        image = read_image(self._image_source(int(self._source_rows[index]), name), name)
        check_size(image.size, tuple(self.sizes[index].tolist()), name)
        return image
