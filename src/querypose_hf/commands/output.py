"""What commands write and print: names of drawn images, JSON lines, boxes in words."""

import contextlib
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit


# bytes of a name that come from its source: file systems allow 255 in all
_LONGEST_STEM = 200


def free_name(source: str, ending: str, taken: set[str]) -> str:
    """The name of a file made from a source, such as `street_poses.jpg`, or `street_2_poses.jpg` if that is taken."""
    stem, number = Path(urlsplit(source).path if "://" in source else source).stem, 1
    if len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = os.fsencode(stem)[:_LONGEST_STEM].decode("utf-8", "ignore")
    name = f"{stem}{ending}"
    while name in taken:
        number += 1
        name = f"{stem}_{number}{ending}"
    taken.add(name)
    return name


class JsonLines:
    """JSON lines in a file, or on the standard output for `-`. Each is there as soon as it is written.

    The file is made, or the one before it emptied, with the first line, or at the end of the block if there are none:
    a command that fails before leaves everything as it was.
    """

    def __init__(self, place: str):
        self._place = place
        self._opened = contextlib.ExitStack()
        self._file: TextIO | None = sys.stdout if place == "-" else None

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if self._file is None and kind is None:
            self._open()
        self._opened.close()

    def _open(self) -> TextIO:
        Path(self._place).parent.mkdir(parents=True, exist_ok=True)
        return self._opened.enter_context(Path(self._place).open("w", encoding="utf-8"))

    def write(self, record: dict[str, Any]) -> None:
        """Writes one line."""
        if self._file is None:
            self._file = self._open()
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()


class JsonList:
    """A JSON list on the standard output, entry by entry. It is closed at the end of the block, after errors, too.

    Nothing is printed if the block raises an error before the first entry.
    """

    def __init__(self) -> None:
        self._count = 0

    def __enter__(self) -> "JsonList":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if self._count:
            print("\n]", flush=True)
        elif kind is None:
            print("[]")

    def write(self, record: dict[str, Any]) -> None:
        """Prints one entry."""
        print(",\n" if self._count else "[\n", textwrap.indent(json.dumps(record, indent=2), "  "), sep="", end="")
        sys.stdout.flush()
        self._count += 1


def corners(box: Mapping[str, float]) -> str:
    """The corners of a box in whole pixels."""
    return ", ".join(f"{box[side]:.0f}" for side in ("xmin", "ymin", "xmax", "ymax"))
