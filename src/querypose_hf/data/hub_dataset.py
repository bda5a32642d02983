"""Data sets of the `datasets` library, from the Hub or local, whole or streamed."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image
import torch
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm

from ..checks import is_identifier, shown
from ..model.skeletons import flip_indices_from_names
from .pose_dataset import OnError, PoseDataset, check_flip_indices, check_on_error
from .pose_table import PoseTable
from .sample import PoseSample, UnusableImageError, read_image, read_image_size


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoseColumns:
    """Where a data set of the `datasets` library keeps what.

    Attributes:
        image (`str`): the column of images: of type `datasets.Image`, or of file names.
        objects (`str`): the column of objects: a dict of lists, or a list of dicts.
        image_id (`str`): a column of whole numbers; rows are counted where the data has no such column.
        bbox, keypoints, category, area, iscrowd (`str`): the fields of an object. `bbox` is four numbers in pixels;
            `keypoints` 3 K numbers (x and y as pixel indices, visibility), K triples, or K pairs, which count as
            visible unless both are 0; `category` a number or a name, or missing where there is one category only;
            `area` and `iscrowd` may be missing.
        bbox_format (`"xywh"` or `"xyxy"`): a corner and the size, or two corners.
    """

    image: str = "image"
    objects: str = "objects"
    image_id: str = "image_id"
    bbox: str = "bbox"
    keypoints: str = "keypoints"
    category: str = "category"
    area: str = "area"
    iscrowd: str = "iscrowd"
    bbox_format: Literal["xywh", "xyxy"] = "xywh"

    def __post_init__(self) -> None:
        if self.bbox_format not in ("xywh", "xyxy"):
            raise ValueError(f'`bbox_format` is {self.bbox_format!r}; expected "xywh" or "xyxy".')


class HubPoseDataset(PoseDataset):
    """A data set of the `datasets` library with a column of images and a column of objects.

    All objects are read and checked when it is made. Sizes of images come from the columns `width` and `height` where
    there are such, and from the headers of the images, the first time they are asked for, where there are not.

    Args:
        dataset (`datasets.Dataset` or `str`): the data, or its name on the Hub or folder.
        split (`str`, *optional*): which split of a data set that is given by its name, such as `"train"`.
        columns ([`PoseColumns`], *optional*): names of the columns and fields.
        category_names (`Sequence[str]` or `dict[int, str]`, *optional*): the categories in the order of the model's
            classes. By default what the data's features say, or else every category that occurs.
        keypoint_names (`Sequence[str]`, *optional*): K names.
        edges (`Sequence[Sequence[int]]`, *optional*): limbs, as pairs of keypoint indices.
        flip_indices (`Sequence[int]`, *optional*): for each keypoint the index of its mirror image; by default found
            from the names.
        only_with_people (`bool`, *optional*, defaults to `False`): whether to leave out pictures without an object
            that is no crowd region.
        exhaustive (`bool`, *optional*, defaults to `True`): whether everybody in the pictures is annotated.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`): whether a picture that is broken stops the
            run, or is named and skipped.

    Raises:
        ImportError: the `datasets` library is not installed and `dataset` is a name.
        ValueError: a column or field is missing or wrong; the message names row, object, field and value.

    Example:

    ```python
    >>> horses = HubPoseDataset("someone/horses", split="train", columns=PoseColumns(category="class"))
    ```
    """

    def __init__(
        self,
        dataset: "datasets.Dataset | str",
        split: str | None = None,
        *,
        columns: PoseColumns | None = None,
        category_names: Sequence[str] | Mapping[int, str] | None = None,
        keypoint_names: Sequence[str] | None = None,
        edges: Sequence[Sequence[int]] = (),
        flip_indices: Sequence[int] | None = None,
        only_with_people: bool = False,
        exhaustive: bool = True,
        on_error: OnError = "raise",
    ):
        columns = columns or PoseColumns()
        self.source = dataset if isinstance(dataset, str) else "dataset"
        rows: Any = _load(dataset, split, streaming=False) if isinstance(dataset, str) else dataset
        _check_columns(rows.column_names, columns, self.source)
        self._image_column = columns.image
        self._rows = _undecoded(rows, columns)
        others = self._rows.remove_columns(columns.image)
        names = _category_names(category_names, rows.features, columns)
        if names is None:
            names = _names_that_occur(others, columns, self.source)
        num_keypoints = None if keypoint_names is None else len(keypoint_names)
        parts, image_ids = [], []
        for index, row in enumerate(tqdm(others, desc="reading objects", unit=" images", leave=False)):
            place = f"{self.source}, row {index}"
            objects = _read_objects(row, columns, names, num_keypoints, place)
            if num_keypoints is None and objects is not None:
                num_keypoints = objects["keypoints"].shape[1]
            parts.append(objects)
            image_ids.append(_image_id(row, columns, index, place))
        if num_keypoints is None:
            raise ValueError(f"{self.source}: no row has an object with `{columns.keypoints}`; expected at least one.")
        if len(set(image_ids)) != len(image_ids):
            raise ValueError(
                f"{self.source}: `{columns.image_id}` has a value twice; expected one row for each image."
            )
        sizes = np.zeros((len(image_ids), 2), dtype=np.int64)
        self._sizes_known = {"width", "height"} <= set(others.column_names)
        if self._sizes_known:
            sizes = np.stack([np.asarray(others[side], dtype=np.int64) for side in ("width", "height")], axis=1)
        counts = [0 if part is None else len(part["boxes"]) for part in parts]
        present = [part for part in parts if part is not None]
        table = PoseTable.from_rows(
            image_ids=np.array(image_ids, dtype=np.int64),
            sizes=sizes,
            image_rows=np.repeat(np.arange(len(counts)), counts),
            ids=np.arange(sum(counts)),
            **{
                field: np.concatenate([part[field] for part in present])
                if present
                else _no_objects(num_keypoints)[field]
                for field in _no_objects(num_keypoints)
            },
        )
        super().__init__(
            table,
            category_names=names,
            keypoint_names=keypoint_names,
            edges=edges,
            flip_indices=flip_indices,
            only_with_people=only_with_people,
            exhaustive=exhaustive,
            on_error=on_error,
            left_out={},
        )

    @property
    def sizes(self) -> np.ndarray:
        if not self._sizes_known:
            for index in tqdm(range(len(self)), desc="reading image sizes", unit=" images", leave=False):
                try:
                    size = read_image_size(self._image_source(index), self.image_name(index))
                except UnusableImageError:
                    if self.on_error == "raise":
                        raise
                    # another picture takes its place
                    self._unusable[index] = True
                    size = (1, 1)
                self._table.sizes[index] = size
            self._sizes_known = True
        return self._table.sizes

    def image_name(self, index: int) -> str:
        index = self._checked(index)
        return f"{self.source}, row {self._source_rows[index]} (image_id {self._table.image_ids[index]})"

    def _image_source(self, index: int) -> Any:
        return self._rows[int(self._source_rows[self._checked(index)])][self._image_column]

    def read_image(self, index: int) -> PIL.Image.Image:
        name = self.image_name(index)
        image = read_image(self._image_source(index), name)
        width, height = self._table.sizes[index].tolist()
        if self._sizes_known and image.size != (width, height):
            raise UnusableImageError(
                f"{name}: the upright image has {image.width} x {image.height} pixels; expected {width} x {height}."
            )
        return image


class HubPoseStream(IterableDataset[PoseSample]):
    """A streamed data set of the `datasets` library with a column of images and a column of objects.

    Rows are read, checked and forgotten. The worker processes of a loader share the data set's shards. To shuffle,
    pass a data set that was shuffled; [`set_epoch`] is handed on to it. Rows of a data set without an id column are
    counted in each worker, so their ids depend on the number of workers.

    Attributes:
        category_names, num_keypoints, keypoint_names, edges, flip_indices, exhaustive: as in [`PoseDataset`].

    Args:
        dataset (`datasets.IterableDataset` or `str`): the data, or its name on the Hub or folder.
        split (`str`, *optional*): which split of a data set that is given by its name, such as `"train"`.
        num_keypoints (`int`, *optional*): number of keypoints K; needed where there are no `keypoint_names`.
        category_names (`Sequence[str]` or `dict[int, str]`, *optional*): the categories in the order of the model's
            classes; needed where the data's features do not tell.
        columns, keypoint_names, edges, flip_indices, only_with_people, exhaustive, on_error: as in [`HubPoseDataset`].

    Example:

    ```python
    >>> stream = HubPoseStream("someone/people", split="train", keypoint_names=COCO_17.keypoint_names)
    >>> loader = DataLoader(stream, batch_size=4, num_workers=2, collate_fn=PoseCollator(image_processor))
    ```
    """

    def __init__(
        self,
        dataset: "datasets.IterableDataset | str",
        split: str | None = None,
        *,
        columns: PoseColumns | None = None,
        category_names: Sequence[str] | Mapping[int, str] | None = None,
        num_keypoints: int | None = None,
        keypoint_names: Sequence[str] | None = None,
        edges: Sequence[Sequence[int]] = (),
        flip_indices: Sequence[int] | None = None,
        only_with_people: bool = False,
        exhaustive: bool = True,
        on_error: OnError = "raise",
    ):
        self.columns = columns or PoseColumns()
        self.source = dataset if isinstance(dataset, str) else "dataset"
        rows: Any = _load(dataset, split, streaming=True) if isinstance(dataset, str) else dataset
        if rows.column_names is not None:
            _check_columns(rows.column_names, self.columns, self.source)
        names = _category_names(category_names, rows.features or {}, self.columns)
        if names is None:
            raise ValueError("`category_names` is needed: the features of this data set do not tell its categories.")
        if keypoint_names is not None:
            if num_keypoints not in (None, len(keypoint_names)):
                raise ValueError(f"`num_keypoints` is {num_keypoints}, but there are {len(keypoint_names)} names.")
            num_keypoints = len(keypoint_names)
            flip_indices = flip_indices_from_names(keypoint_names) if flip_indices is None else flip_indices
        if num_keypoints is None:
            raise ValueError("`num_keypoints` or `keypoint_names` is needed: a stream cannot be looked through first.")
        self.category_names = names
        self.num_keypoints = num_keypoints
        self.keypoint_names = None if keypoint_names is None else tuple(keypoint_names)
        self.edges = tuple((int(a), int(b)) for a, b in edges)
        self.flip_indices = None if flip_indices is None else check_flip_indices(flip_indices, num_keypoints)
        self.only_with_people = only_with_people
        self.exhaustive = bool(exhaustive)
        self.on_error = check_on_error(on_error)
        self._rows = _undecoded(rows, self.columns)
        # shared memory: counted in worker processes, asked for in the main one
        self._counts = torch.zeros(2, dtype=torch.int64).share_memory_()

    @property
    def category_ids(self) -> list[int]:
        """Ids of the categories, in the order of the model's classes."""
        return list(self.category_names)

    @property
    def left_out(self) -> dict[str, int]:
        """How many rows gave no sample so far, in all worker processes together, by reason."""
        unusable, without_people = self._counts.tolist()
        return {"unusable_images": unusable, "images_without_people": without_people}

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's order of a data set that was shuffled."""
        self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[PoseSample]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, row in enumerate(self._rows):
            index = first + number * step
            place = f"{self.source}, row {index}"
            image_id = _image_id(row, self.columns, index, place)
            objects = _read_objects(row, self.columns, self.category_names, self.num_keypoints, place)
            objects = _no_objects(self.num_keypoints) if objects is None else objects
            if self.only_with_people and not (~objects["iscrowd"]).any():
                self._counts[1] += 1
                continue
            try:
                image = read_image(row[self.columns.image], f"{place} (image_id {image_id})")
            except UnusableImageError as error:
                if self.on_error == "raise":
                    raise
                self._counts[0] += 1
                logger.warning("skipped: %s", error)
                continue
            table = PoseTable.from_rows(
                image_ids=np.array([image_id]),
                sizes=np.array([image.size]),
                image_rows=np.zeros(len(objects["boxes"]), dtype=np.int64),
                ids=np.arange(len(objects["boxes"])),
                **objects,
            )
            yield {
                "image": image,
                "image_id": image_id,
                "annotations": table.annotations(0),
                "exhaustive": self.exhaustive,
            }


def _load(name: str, split: str | None, streaming: bool) -> Any:
    import datasets

    if split is None:
        raise ValueError(f"`split` is needed with the data set {name!r}, for example `split='train'`.")
    if (Path(name) / "dataset_dict.json").is_file():
        return _as_stream(datasets.load_from_disk(name)[split], streaming)
    if (Path(name) / "state.json").is_file():
        return _as_stream(datasets.load_from_disk(name), streaming)
    return datasets.load_dataset(name, split=split, streaming=streaming)


def _as_stream(dataset: Any, streaming: bool) -> Any:
    return dataset.to_iterable_dataset() if streaming else dataset


def _check_columns(column_names: Iterable[str], columns: PoseColumns, source: str) -> None:
    for field in ("image", "objects"):
        if getattr(columns, field) not in column_names:
            raise ValueError(
                f"{source}: there is no column `{getattr(columns, field)}` but {sorted(column_names)}; name the "
                f"column with `PoseColumns({field}=...)`."
            )


def _undecoded(rows: Any, columns: PoseColumns) -> Any:
    import datasets

    if rows.features is not None and isinstance(rows.features[columns.image], datasets.Image):
        # decoded here instead, as the image processor decodes, so that a broken image can be named
        return rows.cast_column(columns.image, datasets.Image(decode=False))
    return rows


def _category_names(
    given: Sequence[str] | Mapping[int, str] | None, features: Mapping[str, Any], columns: PoseColumns
) -> dict[int, str] | None:
    if given is not None:
        pairs = list(given.items() if isinstance(given, Mapping) else enumerate(given))
        if not pairs or not all(is_identifier(number) for number, _ in pairs):
            raise ValueError(f"`category_names` is {given!r}; expected names, or names by whole numbers.")
        return {int(number): str(name) for number, name in pairs}
    objects = features.get(columns.objects)
    # a list of dicts is a `List` of a dict of features, a dict of lists a dict of `List`s
    fields = getattr(objects, "feature", objects)
    if not isinstance(fields, Mapping):
        return None
    if columns.category not in fields:
        return {0: "person"}
    feature = getattr(fields[columns.category], "feature", fields[columns.category])
    names = getattr(feature, "names", None)
    return None if names is None else dict(enumerate(names))


def _names_that_occur(rows: Any, columns: PoseColumns, source: str) -> dict[int, str]:
    found: set[Any] = set()
    for index, row in enumerate(rows):
        found.update(_lists(row[columns.objects], f"{source}, row {index}").get(columns.category) or ())
    if all(is_identifier(value) for value in found):
        return {value: str(value) for value in sorted(found)} or {0: "person"}
    if all(isinstance(value, str) for value in found):
        return dict(enumerate(sorted(found)))
    raise ValueError(
        f"{source}: `{columns.category}` has the values {shown(found)}; expected whole numbers, or names."
    )


def _lists(objects: Any, place: str) -> dict[str, list]:
    if objects is None:
        return {}
    if isinstance(objects, Mapping):
        return dict(objects)
    if isinstance(objects, list) and all(isinstance(entry, Mapping) for entry in objects):
        return {field: [entry.get(field) for entry in objects] for field in (objects[0] if objects else ())}
    raise ValueError(f"{place}: the objects are {shown(objects)}; expected a dict of lists or a list of dicts.")


def _image_id(row: Mapping[str, Any], columns: PoseColumns, default: int, place: str) -> int:
    value = row.get(columns.image_id, default)
    if not is_identifier(value):
        raise ValueError(
            f"{place}: `{columns.image_id}` is {shown(value)}; expected a whole number. Name another column with "
            "`PoseColumns(image_id=...)`; where it does not exist, rows are counted."
        )
    return int(value)


def _no_objects(num_keypoints: int) -> dict[str, np.ndarray]:
    return {
        "boxes": np.zeros((0, 4)),
        "keypoints": np.zeros((0, num_keypoints, 3)),
        "areas": np.zeros(0),
        "category_ids": np.zeros(0, dtype=np.int64),
        "iscrowd": np.zeros(0, dtype=bool),
    }


def _read_objects(
    row: Mapping[str, Any],
    columns: PoseColumns,
    category_names: Mapping[int, str],
    num_keypoints: int | None,
    place: str,
) -> dict[str, np.ndarray] | None:
    """The columns of a [`PoseTable`] for the objects of one row, `None` where it has no objects."""
    lists = _lists(row[columns.objects], place)
    count = len(lists.get(columns.bbox) or ())
    for field, values in lists.items():
        if (
            field in (columns.keypoints, columns.category, columns.area, columns.iscrowd)
            and len(values or ()) != count
        ):
            raise ValueError(
                f"{place}: `{field}` has {len(values or ())} entries and `{columns.bbox}` {count}; expected one each."
            )
    if count == 0:
        return None
    if columns.keypoints not in lists:
        raise ValueError(f"{place}: the objects have no `{columns.keypoints}` but {sorted(lists)}.")

    boxes = np.stack(
        [
            _floats(value, (4,), f"{place}, object {number}", columns.bbox, "4 numbers")
            for number, value in enumerate(lists[columns.bbox])
        ]
    )
    if columns.bbox_format == "xyxy":
        boxes[:, 2:] -= boxes[:, :2]
    if (boxes[:, 2:] < 0).any():
        number = int((boxes[:, 2:] < 0).any(axis=1).argmax())
        raise ValueError(
            f"{place}, object {number}: `{columns.bbox}` is {lists[columns.bbox][number]}, of negative size; expected "
            f"numbers in the format {columns.bbox_format}."
        )
    keypoints = [
        _keypoints(value, columns.keypoints, f"{place}, object {number}")
        for number, value in enumerate(lists[columns.keypoints])
    ]
    for number, points in enumerate(keypoints):
        num_keypoints = len(points) if num_keypoints is None else num_keypoints
        if len(points) != num_keypoints:
            raise ValueError(
                f"{place}, object {number}: `{columns.keypoints}` has {len(points)} keypoints; expected "
                f"{num_keypoints}."
            )
    number_of = {name: number for number, name in category_names.items()}
    # where there is one category, data often does not write it
    categories = lists.get(columns.category) or [next(iter(category_names))] * count
    category_ids = [number_of.get(value, -1) if isinstance(value, str) else value for value in categories]
    for number, value in enumerate(category_ids):
        if value not in category_names:
            raise ValueError(
                f"{place}, object {number}: `{columns.category}` is {shown(categories[number])}; expected one of "
                f"{shown(dict(category_names))}."
            )
    areas = boxes[:, 2:].prod(axis=1)
    for number, value in enumerate(lists.get(columns.area) or ()):
        if value is not None:
            areas[number] = _floats(value, (), f"{place}, object {number}", columns.area, "a number of pixels")
    return {
        "boxes": boxes,
        "keypoints": np.stack(keypoints),
        "areas": areas,
        "category_ids": np.array(category_ids, dtype=np.int64),
        "iscrowd": np.array([bool(value) for value in lists.get(columns.iscrowd) or [False] * count], dtype=bool),
    }


def _keypoints(value: Any, field: str, place: str) -> np.ndarray:
    """(K, 3), from 3 K numbers, K triples or K pairs."""
    expected = "3 numbers for each keypoint, triples, or pairs"
    points = _floats(value, None, place, field, expected)
    if points.ndim == 1 and len(points) % 3 == 0:
        points = points.reshape(-1, 3)
    elif points.ndim == 2 and points.shape[1] == 2:
        points = np.concatenate([points, 2.0 * (points != 0).any(axis=1, keepdims=True)], axis=1)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{place}: `{field}` has the shape {points.shape}; expected {expected}.")
    if (strange := ~np.isin(points[:, 2], (0, 1, 2))).any():
        first = int(strange.argmax())
        raise ValueError(
            f"{place}: `{field}` has visibility {points[first, 2]:g} at keypoint {first}; expected 0 (not labelled), "
            "1 (hidden) or 2 (visible)."
        )
    return points


def _floats(value: Any, shape: tuple[int, ...] | None, place: str, field: str, expected: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not np.isfinite(array).all() or (shape is not None and array.shape != shape):
        raise ValueError(f"{place}: `{field}` is {shown(value)}; expected {expected}.")
    return array
