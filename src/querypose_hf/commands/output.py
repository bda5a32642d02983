"""What commands write and print: names of drawn images, JSON lines, people in words."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from ..files import replacing_file


def free_name(source: str, ending: str, taken: set[str]) -> str:
    """The name of a file made from a source, such as `street_poses.jpg`, or `street_2_poses.jpg` if that is taken."""
    stem, number = Path(urlsplit(source).path if "://" in source else source).stem, 1
    name = f"{stem}{ending}"
    while name in taken:
        number += 1
        name = f"{stem}_{number}{ending}"
    taken.add(name)
    return name


@contextlib.contextmanager
def json_lines(place: str | None) -> Iterator[TextIO | None]:
    """Opens the file that `--jsonl` names: None without the option, the standard output for `-`.

    The file appears at the end of the block.
    """
    if place is None or place == "-":
        yield None if place is None else sys.stdout
        return
    with replacing_file(place) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


def write_line(lines: TextIO | None, record: dict[str, Any]) -> None:
    """Writes a JSON line, if there is a file for them."""
    if lines is not None:
        lines.write(json.dumps(record, allow_nan=False) + "\n")
        lines.flush()


def count_people(people: Sequence[Any] | set[Any]) -> str:
    """`1 person`, `2 people`."""
    return f"{len(people)} {'person' if len(people) == 1 else 'people'}"


def corners(box: Mapping[str, float]) -> str:
    """The corners of a box in whole pixels."""
    return ", ".join(f"{box[side]:.0f}" for side in ("xmin", "ymin", "xmax", "ymax"))
