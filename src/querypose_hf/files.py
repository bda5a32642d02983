"""Files that are read with errors that name them, and written whole or not at all."""

import codecs
import contextlib
import glob
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image


# how the names of files and folders begin that are being written
_UNFINISHED = ".part."


def read_text(path: str | os.PathLike) -> str:
    """Reads text: UTF-8 with or without a byte order mark, or UTF-16 with one, as Windows' programs write.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is other text; the message names the file and the position.
    """
    content = Path(path).read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}") from error


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text or not JSON; the message names the file and the position.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error


def find_file(folder: str | os.PathLike, name: str) -> Path:
    r"""The file `name` in `folder`. A name such as `sub\1.jpg`, written on Windows, also finds `sub/1.jpg`.

    If there is neither, the path is the one that `name` says.
    """
    path = Path(folder, name)
    if "\\" in name and not path.exists():
        other = Path(folder, name.replace("\\", "/"))
        return other if other.exists() else path
    return path


def write_json(data: Any, path: str | os.PathLike, indent: int | None = None) -> None:
    """Writes `data` as JSON, see [`replacing_file`].

    Raises:
        ValueError: `data` holds NaN or infinity, which JSON does not have.
        TypeError: `data` holds something that is neither JSON nor a NumPy array or number.
    """
    # `dumps`, because `json.dump` never uses the encoder written in C
    write_text(json.dumps(data, indent=indent, allow_nan=False, default=_as_plain) + "\n", path)


def write_text(text: str, path: str | os.PathLike) -> None:
    """Writes text in UTF-8, see [`replacing_file`]."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_image(image: PIL.Image.Image, path: str | os.PathLike, **options: Any) -> None:
    """Writes an image in the format of the path's suffix, see [`replacing_file`].

    It is encoded in memory: where a disk takes a part of the last bytes alone, Pillow itself raises no error.

    Args:
        options: as in `PIL.Image.Image.save`, such as `quality`.
    """
    content = io.BytesIO()
    image.save(content, PIL.Image.registered_extensions()[Path(path).suffix.lower()], **options)
    with replacing_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


@contextlib.contextmanager
def replacing_file(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there becomes `path` at the end of the block.

    A reader sees the old file or the new one, never a part. After an error the old file is untouched and the temporary
    one is gone. Missing folders are made. The temporary name keeps the suffix, by which many choose a format.

    Args:
        path (`str` or `os.PathLike`): the file to write or replace.
        durable (`bool`): force the file to disk before it gets its name, so that it survives a power cut.

    Example:

    ```python
    >>> with replacing_file("outputs/graph.onnx") as temporary:
    ...     onnx.save(graph, temporary)
    ```
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_UNFINISHED}{os.getpid()}.{path.name}")
    try:
        yield temporary
        if durable:
            _synchronize(temporary)
        os.replace(temporary, path)
        if durable:
            _synchronize(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def filling_folder(
    folder: str | os.PathLike, last: str | None = None, durable: bool = False, alone: bool = False
) -> Iterator[Path]:
    """Gives an empty temporary folder; its files move into `folder` at the end of the block, each replaced whole.

    Other files in `folder` stay. After an error nothing has moved.

    Args:
        folder (`str` or `os.PathLike`): the folder to fill; made if it does not exist.
        last (`str`, *optional*): the file that moves last, the one by which readers know that the others are there.
        durable (`bool`): force each file to disk before it gets its name.
        alone (`bool`): no other process fills this folder, so that what a killed one left is removed first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if alone:
        remove_unfinished(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as name:
        temporary = Path(name)
        yield temporary
        files = [file for file in temporary.rglob("*") if not file.is_dir()]
        for file in sorted(files, key=lambda file: (file == temporary / (last or ""), file)):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            if durable:
                _synchronize(file)
            os.replace(file, target)
    if durable:
        _synchronize(folder)


@contextlib.contextmanager
def making_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary folder beside `folder`; it becomes `folder`, which must not exist, at the end of the block.

    Raises:
        FileExistsError: `folder` exists and is not an empty folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists; expected a new or empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{_UNFINISHED}{folder.name}."))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: str | os.PathLike, name: str = "") -> None:
    """Removes what killed processes left unfinished in a folder, or of its file `name`; no other process writes it."""
    for path in Path(folder).glob(f"{_UNFINISHED}*{glob.escape(name)}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _synchronize(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
