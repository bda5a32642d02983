"""Settings as frozen dataclasses: one declaration of an option, read by YAML, command line and Python.

Errors name the field, its value and what is expected.
"""

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from .checks import shown
from .files import read_text


Settings = TypeVar("Settings")

# the types that `X | None` can have
_UNIONS = (types.UnionType, typing.Union)
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not text, or not YAML.
    """
    import yaml  # comes with an extra

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error


class UsageError(ValueError):
    """An option of the command line has a value that it cannot have."""


def option(default: Any, help: str, flag: str | None = None, metavar: str | None = None) -> Any:
    """A field of a settings dataclass that is also a command line option.

    Args:
        default: the field's default value.
        help (`str`): the text of `--help`, to which the default is added unless it is `None`.
        flag (`str`, *optional*): such as `"--workers"`. The default is the field's name with hyphens, after `--no-`
            for a field that is `True` by default.
        metavar (`str`, *optional*): the name of the value in `--help`.

    Example:

    ```python
    >>> @dataclass(frozen=True)
    ... class PredictionOptions:
    ...     batch_size: int = option(8, "images per forward pass")
    ...     flip_test: bool = option(False, "merge with the people of the mirrored image")
    ```
    """
    return dataclasses.field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar})


def add_options(parser: Any, kind: type, changes: Any = None) -> None:
    """Adds the fields of `kind` that were declared with [`option`] to a parser or one of its groups.

    Args:
        parser: an `argparse.ArgumentParser`, or a group of one.
        kind (`type`): a settings dataclass.
        changes (*optional*): for options that change settings from elsewhere, such as a YAML file, a `kind` whose
            values `--help` shows as defaults: what is not on the command line is not in the namespace, see
            [`given_options`].
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if "help" in field.metadata:
            flag = (
                field.metadata["flag"] or f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}"
            )
            arguments = _arguments_of_option(field, hints[field.name], changes)
            parser.add_argument(flag, dest=field.name, **arguments)


def given_options(kind: type, options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `kind` that are options, as far as the namespace has them, with their values."""
    names = {field.name for field in dataclasses.fields(kind) if "help" in field.metadata}
    given = {name: value for name, value in vars(options).items() if name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def from_options(kind: type[Settings], options: argparse.Namespace, **fields: Any) -> Settings:
    """The settings on the command line; `fields` are added or replace them.

    Raises:
        UsageError: a value is out of range.
    """
    try:
        return kind(**{**given_options(kind, options), **fields})
    except ValueError as error:
        raise UsageError(str(error)) from error


def _arguments_of_option(field: Any, hint: Any, changes: Any) -> dict[str, Any]:
    """The arguments of `add_argument` for a field of this type."""
    if typing.get_origin(hint) in _UNIONS:
        hint = typing.get_args(hint)[0]
    default = field.default if changes is None else getattr(changes, field.name)
    arguments: dict[str, Any] = {
        "default": default if changes is None else argparse.SUPPRESS,
        "help": field.metadata["help"],
    }
    if hint is bool:
        return {**arguments, "action": "store_false" if field.default else "store_true"}
    if default is not None:
        values = default if isinstance(default, tuple) else (default,)
        arguments["help"] += f" ({' '.join(map(str, values))})"
    if field.metadata["metavar"] is not None:
        arguments["metavar"] = field.metadata["metavar"]
    if typing.get_origin(hint) is Literal:
        return {**arguments, "choices": typing.get_args(hint)}
    if typing.get_origin(hint) is tuple:
        return {**arguments, "nargs": "+", "type": typing.get_args(hint)[0]}
    return {**arguments, "type": hint}


def with_assignments(values: Any, assignments: Iterable[str]) -> Any:
    """A copy of plain values with some fields set, each by `path=value`.

    A path joins names and positions in lists by points, such as `data.train.0.repeat`. The value is read as YAML.

    Raises:
        ValueError: an assignment has no `=`, its value is not YAML, or its path does not exist.
    """
    import yaml  # comes with an extra

    values = _copied(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ValueError(f"`--set {assignment}`: expected FIELD=VALUE, such as training.learning_rate=1e-4.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"`--set {assignment}`: the value is not YAML: {error}") from error
        set_field(values, path, value)
    return values


def set_field(values: Any, path: str, value: Any) -> None:
    """Sets one field of nested dicts and lists in place; see [`with_assignments`]."""
    place = values
    *way, last = path.split(".")
    for name in way:
        if isinstance(place, dict):
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
        else:
            place = place[_position(place, name, path)]
    if isinstance(place, dict):
        place[last] = value
    else:
        place[_position(place, last, path)] = value


def _position(place: Any, name: str, path: str) -> int:
    if not isinstance(place, list) or not name.isdecimal() or int(name) >= len(place):
        raise ValueError(f"`{path}`: there is no {name!r} in {shown(place)}.")
    return int(name)


def _copied(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copied(value) for key, value in values.items()}
    return [_copied(value) for value in values] if isinstance(values, list) else values


def plain_mapping(settings: Any) -> dict[str, Any]:
    """Settings as plain values, for YAML or JSON; [`build`] reads them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(settings))


def require(settings: Any, name: str, holds: bool, expected: str) -> None:
    """Raises a `ValueError` that names a field of `settings`, its value and what is expected, unless `holds`."""
    if not holds:
        raise ValueError(f"`{name}` is {shown(getattr(settings, name))}; expected {expected}.")


def build(kind: type[Settings], values: Any, source: str, prefix: str = "") -> Settings:
    """Settings from plain values; missing fields have their defaults.

    Args:
        kind (`type`): a dataclass whose fields are plain values, tuples of them, mappings, such dataclasses, or tuples
            of these.
        values (`Mapping`): field names and plain values.
        source (`str`): the file they come from, for messages.
        prefix (`str`): their place in the file, such as `"data."`, for messages.

    Raises:
        ValueError: a field is unknown or missing, or its value has the wrong type or range.
    """
    changes = _read_fields(kind, values, source, prefix)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not optional and field.name not in changes:
            raise ValueError(f"{source}: `{prefix}{field.name}` is missing.")
    return _checked(lambda: kind(**changes), source, prefix)


def changed(settings: Settings, values: Any, source: str, prefix: str = "") -> Settings:
    """`settings` with some fields replaced by plain values; arguments and errors are those of [`build`]."""
    changes = _read_fields(type(settings), values, source, prefix, settings)
    return _checked(lambda: dataclasses.replace(settings, **changes), source, prefix)  # type: ignore[type-var]


def _checked(make: Any, source: str, prefix: str) -> Any:
    try:
        return make()
    except ValueError as error:
        where = f"{source}: " if not prefix else f"{source}: in `{prefix.removesuffix('.')}`: "
        raise ValueError(f"{where}{error}") from None


def _read_fields(kind: Any, values: Any, source: str, prefix: str, settings: Any = None) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{source}: `{prefix.removesuffix('.')}` is {shown(values)}; expected fields with values."
            if prefix
            else f"{source}: expected fields with values, got {shown(values)}."
        )
    hints = typing.get_type_hints(kind)
    changes = {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(
                f"{source}: unknown field `{prefix}{name}` (value {shown(value)}); expected one of {sorted(hints)}."
            )
        hint, place = hints[name], f"{prefix}{name}"
        inner = _settings_class(hint)
        if dataclasses.is_dataclass(hint) and settings is not None:
            changes[name] = changed(getattr(settings, name), value, source, f"{place}.")
        elif inner is not None and typing.get_origin(hint) is tuple:
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise ValueError(f"{source}: `{place}` is {shown(value)}; expected a list of fields with values.")
            changes[name] = tuple(build(inner, item, source, f"{place}[{i}].") for i, item in enumerate(value))
        elif inner is not None:
            optional = typing.get_origin(hint) in _UNIONS
            changes[name] = None if value is None and optional else build(inner, value, source, f"{place}.")
        else:
            try:
                changes[name] = _read(value, hint)
            except TypeError as error:
                raise ValueError(f"{source}: `{place}` is {shown(value)}; expected {error}.") from None
    return changes


def _settings_class(hint: Any) -> Any:
    """The dataclass in `Kind`, `Kind | None` or `tuple[Kind, ...]`."""
    return next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)


def _read(value: Any, hint: Any) -> Any:
    """`value` as a field of type `hint` holds it; a `TypeError` says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:  # only `X | None` is in use
        try:
            return None if value is None else _read(value, arguments[0])
        except TypeError as error:
            raise TypeError(f"{error}, or nothing") from None
    if origin is Literal:
        # YAML reads a bare `no` as false
        value = "no" if value is False and "no" in arguments else value
        if not any(type(value) is type(one) and value == one for one in arguments):  # 1 is not True
            raise TypeError(f"one of {list(arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"a list, each of it {_NAMES[arguments[0]]}")
        try:
            return tuple(_read(item, arguments[0]) for item in value)
        except TypeError as error:
            raise TypeError(f"a list, each of it {error}") from None
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise TypeError("fields with values")
        return dict(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a point, as text
        try:
            value = float(value)
        except ValueError:
            raise TypeError(_NAMES[float]) from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise TypeError(_NAMES[hint])
    return value
