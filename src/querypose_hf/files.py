"""Reading JSON with errors that name the file, and writing it whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8 text or not JSON; the message names the file and the position.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error


def write_json(data: Any, path: str | os.PathLike, indent: int | None = None) -> None:
    """Writes `data` to `path` by way of a temporary file beside it, so that a reader never sees half a file.

    Missing folders are made.

    Raises:
        ValueError: `data` holds NaN or an infinity, which JSON does not have.
        TypeError: `data` holds something that is neither JSON nor a NumPy array or number.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            # one call of `dumps`, because `json.dump` never uses the encoder written in C
            file.write(json.dumps(data, indent=indent, allow_nan=False, default=_as_plain))
            file.write("\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
