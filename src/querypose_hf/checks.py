"""Checks of lists of JSON records. Errors name file, record, field and value."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


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
        raise ValueError(f"{source}: expected a list of {kind}s, got {shown(records)}")
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
) -> np.ndarray:
    """Reads one field of every record as finite numbers.

    Args:
        records: the records.
        field (`str`): the field to read.
        expected (`str`): what the field should hold, in words, for messages.
        source (`str`): the file or argument the records come from, for messages.
        kind (`str`): what messages call one record.
        length (`int`, *optional*): the field is a list of this many numbers; by default it is a single number.

    Returns:
        `np.ndarray` of float64: (records, length), or (records,) without `length`.

    Raises:
        ValueError: a record lacks the field, or it holds something else.
    """
    shape = (len(records),) if length is None else (len(records), length)
    values = [record.get(field) for record in records]
    if not values:
        return np.zeros(shape)
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind in "iuf" and array.shape == shape and np.isfinite(array).all():
        return array.astype(np.float64, copy=False)
    # something is wrong: find the record
    for index, (record, value) in enumerate(zip(records, values, strict=True)):
        where = f"{source}: {kind} {index}: `{field}`"
        if field not in record:
            raise ValueError(f"{where} is missing; expected {expected}")
        entries = [value] if length is None else value
        if not isinstance(entries, list | tuple | np.ndarray):
            raise ValueError(f"{where} is {shown(value)}; expected {expected}")
        if length is not None and len(entries) != length:
            raise ValueError(f"{where} has {len(entries)} values; expected {expected}")
        for position, entry in enumerate(entries):
            if not is_finite_number(entry):
                at = "" if length is None else f"[{position}]"
                raise ValueError(f"{where}{at} is {shown(entry)}; expected {expected}")
    return np.asarray(values, dtype=np.float64).reshape(shape)


def unique_ids(records: Sequence[Mapping[str, Any]], source: str, kind: str) -> list[int]:
    """The `id` of every record; arguments as in [`require_records`].

    Raises:
        ValueError: an `id` is not a whole number, or occurs twice.
    """
    seen: dict[int, None] = {}
    for index, record in enumerate(records):
        value: Any = record.get("id")
        if not is_identifier(value):
            raise ValueError(f"{source}: {kind} {index}: `id` is {shown(value)}; expected a whole number")
        if value in seen:
            raise ValueError(f"{source}: {kind} {index}: `id` {value} occurs twice; expected one {kind} per id")
        seen[value] = None
    return list(seen)


def is_finite_number(value: Any) -> bool:
    """Whether `value` is a number other than NaN and infinity; `True` and `False` are not numbers here."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def is_identifier(value: Any) -> bool:
    """Whether `value` is a whole number, as ids are; `True` and `False` are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """`value` as messages show it: its `repr`, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
