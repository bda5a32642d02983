"""The rows of a dataset of the `datasets` library: which columns hold what, and how a row becomes arrays."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..checks import is_identifier, require_flags, shown
from .reading_options import find_split


@dataclass(frozen=True)
class PoseColumns:
    """Names of the columns and fields of a dataset of the `datasets` library.

    Attributes:
        image (`str`): the column of images: of type `datasets.Image`, or of file names.
        objects (`str`): the column of objects: a dict of lists, or a list of dicts.
        image_id (`str`): a column of whole numbers. Rows are counted if there is no such column.
        bbox, keypoints, category, area, iscrowd (`str`): the fields of an object. `bbox` is four numbers in pixels.
            `keypoints` is 3 K numbers (x and y as pixel indices, visibility), K triples, or K pairs, which count as
            visible unless both are 0. `category` is a number or a name, and may be missing if there is only one.
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

    @classmethod
    def from_mapping(cls, names: Mapping[str, Any] | None) -> "PoseColumns":
        """Columns from plain values, as YAML has them.

        Raises:
            ValueError: a field is unknown.
        """
        names = dict(names or {})
        known = [field.name for field in fields(cls)]
        if not set(names) <= set(known):
            raise ValueError(f"`columns` is {shown(names)}; expected fields of PoseColumns: {', '.join(known)}.")
        return cls(**names)


def load_rows(name: str, split: str | Sequence[str] | None, streaming: bool) -> Any:
    """Loads a dataset by its name on the Hub, or from its folder; of several splits the first that it has.

    Raises:
        ImportError: the `datasets` library is not installed.
        ValueError: `split` is missing, or the dataset does not have it.
    """
    import datasets

    if not split:
        raise ValueError(f"`split` is needed with the dataset {name!r}, for example `split='train'`.")
    wanted = [split] if isinstance(split, str) else split
    if not (Path(name) / "dataset_dict.json").is_file() and not (Path(name) / "state.json").is_file():
        if len(wanted) > 1:
            wanted = [find_split(wanted, datasets.get_dataset_split_names(name), name)]
        # which may be more than a name, such as "train[:10%]", and has an error of its own
        return datasets.load_dataset(name, split=wanted[0], streaming=streaming)
    rows: Any = datasets.load_from_disk(name)
    if isinstance(rows, datasets.DatasetDict):
        rows = rows[find_split(wanted, list(rows), name)]
    # shards are what worker processes share
    return rows.to_iterable_dataset(num_shards=min(len(rows), 64)) if streaming else rows


def check_columns(column_names: Iterable[str], columns: PoseColumns, source: str) -> None:
    """Raises `ValueError` unless there are columns of images and objects."""
    for field in ("image", "objects"):
        if getattr(columns, field) not in column_names:
            raise ValueError(
                f"{source}: there is no column `{getattr(columns, field)}` but {sorted(column_names)}; name the "
                f"column with `PoseColumns({field}=...)`."
            )


def without_decoding(rows: Any, columns: PoseColumns) -> Any:
    """The dataset with images as bytes or paths: we decode them, so that errors can name the row."""
    import datasets

    if rows.features is not None and isinstance(rows.features[columns.image], datasets.Image):
        return rows.cast_column(columns.image, datasets.Image(decode=False))
    return rows


def category_names_of(
    given: Sequence[str] | Mapping[int, str] | None, features: Mapping[str, Any], columns: PoseColumns
) -> dict[int, str] | None:
    """Category names by id: those given, or those in the dataset's features; `None` if these have none.

    Raises:
        ValueError: those given are empty, or not by whole numbers.
    """
    if given is not None:
        pairs = list(given.items() if isinstance(given, Mapping) else enumerate(given))
        if not pairs or not all(is_identifier(number) for number, _ in pairs):
            raise ValueError(f"`category_names` is {given!r}; expected names, or names by whole numbers.")
        return {int(number): str(name) for number, name in pairs}
    objects = features.get(columns.objects)
    # a list of dicts is a `List` of a dict of features; a dict of lists is a dict of `List`s
    fields = getattr(objects, "feature", objects)
    if not isinstance(fields, Mapping):
        return None
    if columns.category not in fields:
        return {0: "person"}
    feature = getattr(fields[columns.category], "feature", fields[columns.category])
    names = getattr(feature, "names", None)
    return None if names is None else dict(enumerate(names))


def category_names_that_occur(rows: Any, columns: PoseColumns, source: str) -> dict[int, str]:
    """Names of all categories in the rows, by id.

    Raises:
        ValueError: they are neither all whole numbers nor all names.
    """
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


def read_image_id(row: Mapping[str, Any], columns: PoseColumns, default: int, place: str) -> int:
    """The id of a row's image, or `default` without such a column; `place` names the row in messages."""
    value = row.get(columns.image_id, default)
    if not is_identifier(value):
        raise ValueError(
            f"{place}: `{columns.image_id}` is {shown(value)}; expected a whole number. Name another column with "
            "`PoseColumns(image_id=...)`; if there is no such column, rows are counted."
        )
    return int(value)


def no_objects(num_keypoints: int) -> dict[str, np.ndarray]:
    """What [`read_objects`] returns, for no objects."""
    return {
        "boxes": np.zeros((0, 4)),
        "keypoints": np.zeros((0, num_keypoints, 3)),
        "areas": np.zeros(0),
        "category_ids": np.zeros(0, dtype=np.int64),
        "iscrowd": np.zeros(0, dtype=bool),
    }


def read_objects(
    row: Mapping[str, Any],
    columns: PoseColumns,
    category_names: Mapping[int, str],
    num_keypoints: int | None,
    place: str,
) -> dict[str, np.ndarray] | None:
    """The objects of one row as columns of a [`PoseTable`]; `None` if there are none.

    Args:
        row (`dict`): the row.
        columns ([`PoseColumns`]): names of its columns and fields.
        category_names (`dict[int, str]`): the categories.
        num_keypoints (`int` or `None`): K, or `None` for that of the first object.
        place (`str`): the row in messages.

    Raises:
        ValueError: a field is missing or wrong.
    """
    lists = _lists(row[columns.objects], place)
    count = len(lists.get(columns.bbox) or ())
    for field in (columns.keypoints, columns.category, columns.area, columns.iscrowd):
        if field in lists and len(lists[field] or ()) != count:
            raise ValueError(
                f"{place}: `{field}` has {len(lists[field] or ())} entries and `{columns.bbox}` {count}; expected one "
                "each."
            )
    if count == 0:
        return None
    if columns.keypoints not in lists:
        raise ValueError(f"{place}: the objects have no `{columns.keypoints}` but {sorted(lists)}.")
    places = [f"{place}, object {number}" for number in range(count)]
    boxes = _boxes(lists[columns.bbox], columns, places)
    areas = boxes[:, 2:].prod(axis=1)
    for number, value in enumerate(lists.get(columns.area) or ()):
        if value is not None:
            areas[number] = _floats(value, (), places[number], columns.area, "a number of pixels")
            if areas[number] < 0:
                raise ValueError(f"{places[number]}: `{columns.area}` is {shown(value)}; expected at least 0 pixels.")
    return {
        "boxes": boxes,
        "keypoints": _all_keypoints(lists[columns.keypoints], columns.keypoints, num_keypoints, places),
        "areas": areas,
        "category_ids": _category_ids(lists.get(columns.category), columns.category, category_names, places),
        "iscrowd": require_flags(
            [{columns.iscrowd: value} for value in lists.get(columns.iscrowd) or [0] * count],
            columns.iscrowd,
            place,
            "object",
        ),
    }


def _lists(objects: Any, place: str) -> dict[str, list]:
    """The objects of a row as a dict of lists, whichever way they are stored."""
    if objects is None:
        return {}
    if isinstance(objects, Mapping):
        return dict(objects)
    if isinstance(objects, list) and all(isinstance(entry, Mapping) for entry in objects):
        return {field: [entry.get(field) for entry in objects] for field in (objects[0] if objects else ())}
    raise ValueError(f"{place}: the objects are {shown(objects)}; expected a dict of lists or a list of dicts.")


def _boxes(values: Sequence[Any], columns: PoseColumns, places: Sequence[str]) -> np.ndarray:
    """(m, 4): x, y, width, height."""
    boxes = np.stack(
        [_floats(value, (4,), place, columns.bbox, "4 numbers") for value, place in zip(values, places, strict=True)]
    )
    if columns.bbox_format == "xyxy":
        boxes[:, 2:] -= boxes[:, :2]
    if (boxes[:, 2:] < 0).any():
        number = int((boxes[:, 2:] < 0).any(axis=1).argmax())
        raise ValueError(
            f"{places[number]}: `{columns.bbox}` is {values[number]}, of negative size; expected numbers in the "
            f"format {columns.bbox_format}."
        )
    return boxes


def _category_ids(
    values: Sequence[Any] | None, field: str, category_names: Mapping[int, str], places: Sequence[str]
) -> np.ndarray:
    # data with a single category often does not store it
    values = values or [next(iter(category_names))] * len(places)
    number_of = {name: number for number, name in category_names.items()}
    ids = [number_of.get(value, -1) if isinstance(value, str) else value for value in values]
    for value, category_id, place in zip(values, ids, places, strict=True):
        if category_id not in category_names:
            raise ValueError(f"{place}: `{field}` is {shown(value)}; expected one of {shown(dict(category_names))}.")
    return np.array(ids, dtype=np.int64)


def _all_keypoints(values: Sequence[Any], field: str, num_keypoints: int | None, places: Sequence[str]) -> np.ndarray:
    """(m, K, 3)."""
    keypoints = [_keypoints(value, field, place) for value, place in zip(values, places, strict=True)]
    for points, place in zip(keypoints, places, strict=True):
        num_keypoints = len(points) if num_keypoints is None else num_keypoints
        if len(points) != num_keypoints:
            raise ValueError(f"{place}: `{field}` has {len(points)} keypoints; expected {num_keypoints}.")
    return np.stack(keypoints)


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
