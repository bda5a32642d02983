"""The rows of a dataset of the `datasets` library: which columns hold what, and how a row becomes arrays."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..checks import is_identifier, is_whole_number, require_flags, shown, telling
from .coco_records import number_of_keypoints, read_areas, read_boxes, read_keypoints
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
            `area` and `iscrowd` may be missing. Null is as good as missing.
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
        ValueError: `split` is missing, the dataset does not have it, or it cannot be read.
    """
    import datasets

    if not split:
        raise ValueError(f"`split` is needed with the dataset {name!r}, for example `split='train'`.")
    wanted = [split] if isinstance(split, str) else split
    damaged = f"{name} cannot be read as a dataset"
    if not (Path(name) / "dataset_dict.json").is_file() and not (Path(name) / "state.json").is_file():
        if len(wanted) > 1:
            with telling(damaged):
                names = datasets.get_dataset_split_names(name)
            wanted = [find_split(wanted, names, name)]
        with telling(damaged):
            # the split may be more than a name, such as "train[:10%]", and has an error of its own
            return datasets.load_dataset(name, split=wanted[0], streaming=streaming)
    with telling(damaged):
        rows: Any = datasets.load_from_disk(name)
    if isinstance(rows, datasets.DatasetDict):
        rows = rows[find_split(wanted, list(rows), name)]
    # shards are what worker processes share
    return rows.to_iterable_dataset(num_shards=min(len(rows), 64)) if streaming else rows


def rows_of(rows: Iterable[Mapping[str, Any]], source: str) -> Iterator[Mapping[str, Any]]:
    """The rows one by one; what the library raises for damaged files becomes a `ValueError` that names the row."""
    iterator = iter(rows)
    for index in itertools.count():
        with telling(f"{source}, row {index} cannot be read"):
            row = next(iterator, None)
        if row is None:
            return
        yield row


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
    for index, row in enumerate(rows_of(rows, source)):
        place = f"{source}, row {index}"
        for number, value in enumerate(_lists(row, columns, place).get(columns.category, ())):
            if not isinstance(value, str) and not is_whole_number(value):
                field = f"{place}: object {number}: `{columns.category}`"
                raise ValueError(f"{field} is {shown(value)}; expected a whole number or a name.")
            found.add(value if isinstance(value, str) else int(value))
    names = {value for value in found if isinstance(value, str)}
    if names and names != found:
        raise ValueError(
            f"{source}: `{columns.category}` has the values {shown(found)}; expected whole numbers, or names."
        )
    return dict(enumerate(sorted(names))) if names else {value: str(value) for value in sorted(found)} or {0: "person"}


def first_number_of_keypoints(rows: Any, columns: PoseColumns, source: str) -> int:
    """K, of the first object that has keypoints.

    Raises:
        ValueError: there is none.
    """
    for index, row in enumerate(rows_of(rows, source)):
        place = f"{source}, row {index}"
        for number, value in enumerate(_lists(row, columns, place).get(columns.keypoints, ())):
            if flat := _flat(value):
                return number_of_keypoints(flat, f"{place}: object {number}: `{columns.keypoints}`")
    raise ValueError(f"{source}: no row has an object with `{columns.keypoints}`; expected at least one.")


def read_image_id(row: Mapping[str, Any], columns: PoseColumns, default: int, place: str) -> int:
    """The id of a row's image, or `default` without such a column; `place` names the row in messages."""
    value = row.get(columns.image_id, default)
    if not is_whole_number(value):
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
    row: Mapping[str, Any], columns: PoseColumns, category_names: Mapping[int, str], num_keypoints: int, place: str
) -> dict[str, np.ndarray]:
    """The objects of one row as columns of a [`PoseTable`], by the rules of [`CocoRecords`].

    Args:
        row (`dict`): the row.
        columns ([`PoseColumns`]): names of its columns and fields.
        category_names (`dict[int, str]`): the categories.
        num_keypoints (`int`): K.
        place (`str`): the row in messages.

    Raises:
        ValueError: a field is missing or wrong.
    """
    lists = _lists(row, columns, place)
    count = len(lists.get(columns.bbox, ()))
    for field, values in lists.items():
        if len(values) != count:
            raise ValueError(
                f"{place}: `{field}` has {len(values)} entries and `{columns.bbox}` {count}; expected one each."
            )
    if count == 0:
        return no_objects(num_keypoints)
    if columns.keypoints not in lists:
        raise ValueError(f"{place}: the objects have no `{columns.keypoints}` but {sorted(lists)}.")
    lists[columns.keypoints] = [_flat(value) for value in lists[columns.keypoints]]
    objects = [{field: values[number] for field, values in lists.items()} for number in range(count)]
    boxes = read_boxes(objects, columns.bbox, place, "object", corners=columns.bbox_format == "xyxy")
    areas = read_areas(objects, columns.area, place, "object")
    # data with a single category often does not store it
    categories = lists.get(columns.category) or [next(iter(category_names))] * count
    return {
        "boxes": boxes,
        "keypoints": read_keypoints(objects, columns.keypoints, num_keypoints, place, "object"),
        "areas": np.where(np.isnan(areas), boxes[:, 2:].prod(axis=1), areas),
        "category_ids": _category_ids(categories, columns.category, category_names, place),
        "iscrowd": require_flags(objects, columns.iscrowd, place, "object"),
    }


def _lists(row: Mapping[str, Any], columns: PoseColumns, place: str) -> dict[str, list]:
    """The fields of a row's objects as a dict of lists, whichever way they are stored; null ones are left out."""
    objects = row[columns.objects]
    fields = (columns.bbox, columns.keypoints, columns.category, columns.area, columns.iscrowd)
    if objects is None:
        return {}
    if isinstance(objects, list) and all(isinstance(entry, Mapping) for entry in objects):
        return {name: [one.get(name) for one in objects] for name in fields if any(name in one for one in objects)}
    if isinstance(objects, Mapping):
        lists = {name: _plain(objects[name]) for name in fields if objects.get(name) is not None}
        if all(isinstance(values, list) for values in lists.values()):
            return lists
    raise ValueError(f"{place}: the objects are {shown(objects)}; expected a dict of lists or a list of dicts.")


def _plain(values: Any) -> Any:
    """Arrays, which formatted datasets give, and tuples as lists."""
    return values.tolist() if hasattr(values, "tolist") else list(values) if isinstance(values, tuple) else values


def _category_ids(values: Sequence[Any], field: str, category_names: Mapping[int, str], place: str) -> np.ndarray:
    number_of = {name: number for number, name in category_names.items()}
    ids = []
    for number, value in enumerate(values):
        category_id = number_of.get(value) if isinstance(value, str) else value if is_whole_number(value) else None
        if category_id not in category_names:
            expected = f"one of {shown(dict(category_names))}"
            raise ValueError(f"{place}: object {number}: `{field}` is {shown(value)}; expected {expected}.")
        ids.append(category_id)
    return np.array(ids, dtype=np.int64)


def _flat(keypoints: Any) -> Any:
    """Keypoints as 3 K numbers, of triples or pairs; others stay as they are, to be checked."""
    keypoints = _plain(keypoints)
    points = [_plain(point) for point in keypoints] if isinstance(keypoints, list) else []
    lengths = {len(point) if isinstance(point, list) else 0 for point in points}
    if lengths == {2}:
        points = [[x, y, 2 if x != 0 or y != 0 else 0] for x, y in points]
    return [value for point in points for value in point] if lengths in ({2}, {3}) else keypoints
