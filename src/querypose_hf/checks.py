"""Checks of lists of JSON records. Errors name file, record, field and value."""

import contextlib
import itertools
import math
import numbers
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Makes any error in the block a `ValueError` that begins with `what`.

    For libraries that read damaged files: what they raise has no end.
    """
    try:
        yield
    except Exception as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(f"{what}: {reason}") from error


def require_records(records: Any, source: str, kind: str) -> list[Mapping[str, Any]]:
    """Returns `records` if it is a list of JSON objects.

    Args:
        records: what was read.
        source (`str`): the file or argument it comes from, for messages.
        kind (`str`): what messages call one record, such as `"result"`.

    Raises:
        ValueError: `records` is not a list, or one of its entries is not an object.
    """
    if not isinstance(records, list | tuple):
        raise ValueError(f"{source}: expected a list, got {shown(records)}")
    for index, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"{source}: {kind} {index}: expected an object with named fields, got {shown(record)}")
    return list(records)


def require_numbers(
    records: Sequence[Mapping[str, Any]],
    field: str,
    expected: str,
    source: str,
    kind: str,
    length: int | None = None,
    *,
    missing: float | Sequence[float] | None = None,
    least: float = -math.inf,
    most: float = math.inf,
) -> np.ndarray:
    """Reads one field of every record as finite numbers; text and truth values are none.

    Args:
        records: the records.
        field (`str`): the field to read.
        expected (`str`): what the field should hold, in words, for messages.
        source (`str`): the file or argument the records come from, for messages.
        kind (`str`): what messages call one record.
        length (`int`, *optional*): the field is a list of this many numbers; by default it is a single number.
        missing (*optional*): stands in where the field is missing or null; by default that is an error.
        least, most (`float`, *optional*): the range of the numbers.

    Returns:
        `np.ndarray` of float64: (records, length), or (records,) without `length`.

    Raises:
        ValueError: a record lacks the field, or it holds something else.
    """
    shape = (len(records),) if length is None else (len(records), length)
    values = [record.get(field) for record in records]
    if missing is not None:
        values = [missing if value is None else value for value in values]
    if not values:
        return np.zeros(shape)
    try:
        array = np.asarray(values)
    except (OverflowError, ValueError):  # lists of different lengths, or integers beyond all bounds
        array = np.asarray(None)
    if array.dtype.kind in "iuf" and array.shape == shape:
        in_range = np.isfinite(array).all() and (array >= least).all() and (array <= most).all()
        # NumPy takes `True` among numbers for 1
        entries: Any = values
        kinds = set(map(type, entries if length is None else itertools.chain.from_iterable(entries)))
        if in_range and not kinds & {bool, np.bool_}:
            return array.astype(np.float64, copy=False)
    # something is wrong: find the record
    for index, (record, value) in enumerate(zip(records, values, strict=True)):
        where = f"{source}: {kind} {index}: `{field}`"
        if value is None and field not in record:
            raise ValueError(f"{where} is missing; expected {expected}")
        entries = [value] if length is None else value
        if not isinstance(entries, list | tuple | np.ndarray):
            raise ValueError(f"{where} is {shown(value)}; expected {expected}")
        if length is not None and len(entries) != length:
            raise ValueError(f"{where} has {len(entries)} values; expected {expected}")
        for position, entry in enumerate(entries):
            at = "" if length is None else f"[{position}]"
            if not is_finite_number(entry):
                raise ValueError(f"{where}{at} is {shown(entry)}; expected {expected}")
            if not least <= entry <= most:
                raise ValueError(f"{where}{at} is {shown(entry)}; expected at least {least:g} and at most {most:g}")
    return np.asarray(values, dtype=np.float64).reshape(shape)


def unique_ids(records: Sequence[Mapping[str, Any]], source: str, kind: str) -> list[int]:
    """The `id` of every record; arguments as in [`require_records`].

    Raises:
        ValueError: an `id` is not a whole number, or occurs twice.
    """
    ids = require_whole_numbers(records, "id", source, kind).tolist()
    check_unique(ids, range(len(ids)), source, kind)
    return ids


def check_unique(ids: Sequence[int], indices: Sequence[int], source: str, kind: str) -> None:
    """Raises `ValueError` if an id occurs twice; `indices` are the records that the ids belong to."""
    if len(set(ids)) == len(ids):
        return
    seen = set()
    for index, value in zip(indices, ids, strict=True):
        if value in seen:
            raise ValueError(f"{source}: {kind} {index}: `id` {value} occurs twice; expected one {kind} per id")
        seen.add(value)


def require_whole_numbers(
    records: Sequence[Mapping[str, Any]],
    field: str,
    source: str,
    kind: str,
    expected: str = "a whole number",
    *,
    least: int = -(2**63),
    most: int = 2**63 - 1,
) -> np.ndarray:
    """Reads one field of every record as whole numbers; arguments as in [`require_numbers`].

    5.0 is 5, as in pycocotools: tables with gaps are often saved that way.

    Returns:
        `np.ndarray` of int64: (records,).

    Raises:
        ValueError: a record lacks the field, or it holds something else.
    """
    values: list[Any] = [record.get(field) for record in records]
    if set(map(type, values)) <= {int} and all(least <= value <= most for value in values):
        return np.array(values, dtype=np.int64)
    for index, value in enumerate(values):
        if not is_whole_number(value) or not least <= value <= most:
            raise ValueError(f"{source}: {kind} {index}: `{field}` is {shown(value)}; expected {expected}")
    return np.array([int(value) for value in values], dtype=np.int64)


def require_flags(records: Sequence[Mapping[str, Any]], field: str, source: str, kind: str) -> np.ndarray:
    """Reads one field of every record as a bool; arguments as in [`require_numbers`].

    The field may be missing or null, which is no. 0 and 1, `False` and `True` are what they seem; text is an error,
    because pycocotools takes "0" for yes in one place and for no in another.

    Returns:
        `np.ndarray` of bool: (records,).

    Raises:
        ValueError: the field holds something else.
    """
    meaning = {None: False, 0: False, 1: True}  # `False` and 0.0 are found as 0, `True` and 1.0 as 1
    try:
        return np.array([meaning[record.get(field)] for record in records], dtype=bool)
    except (KeyError, TypeError):  # something is wrong: find the record
        pass
    for index, record in enumerate(records):
        value = record.get(field)
        if not isinstance(value, Hashable) or value not in meaning:
            raise ValueError(f"{source}: {kind} {index}: `{field}` is {shown(value)}; expected 0 or 1")
    raise AssertionError("unreachable")


def is_finite_number(value: Any) -> bool:
    """Whether `value` is a number other than NaN and infinity; `True` and `False` are not numbers here."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def is_whole_number(value: Any) -> bool:
    """Whether `value` is a whole number of 64 bits, as ids are; 5.0 is one."""
    return is_finite_number(value) and -(2**63) <= value < 2**63 and value == int(value)


def is_identifier(value: Any) -> bool:
    """Whether `value` is a whole number, as ids are; `True` and `False` are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """`value` as messages show it: its `repr`, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
