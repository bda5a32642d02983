"""The arrows between the package's folders are those of the table in docs/architecture.md.

The imports are read from the source, those inside functions too. Nothing of the package is imported here.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from places import PROJECT


PACKAGE = "querypose_hf"
SOURCE = PROJECT / "src" / PACKAGE
#: Rooms are the package's folders and the modules beside them; `__init__` is a room, too.
ROOMS = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__pycache__"}


class Import(NamedTuple):
    """One import of a module: `target` is its full name, `room` is set for modules of the package."""

    place: str
    level: int
    target: str
    top_level: bool

    @property
    def room(self) -> str | None:
        names = self.target.split(".")
        if names[0] != PACKAGE:
            return None
        return names[1] if len(names) > 1 and names[1] in ROOMS else "__init__"


def imports(path: Path) -> Iterator[Import]:
    """Every import of a source file; `from .. import name` counts as an import of `name`."""
    package = [PACKAGE, *path.relative_to(SOURCE).parts[:-1]]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            level = node.level
            base = ".".join([*(package[: len(package) - level + 1] if level else []), *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(f"{path.relative_to(PROJECT)}:{node.lineno}", level, target, node in tree.body)


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def allowed_arrows() -> dict[str, set[str]]:
    """The table of docs/architecture.md: a room, and the rooms that it may import."""
    text = (PROJECT / "docs" / "architecture.md").read_text()
    [table] = re.findall(r"^\| room \| imports \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, flags=re.MULTILINE)
    rows = [row.split("|")[1:3] for row in table.splitlines()]
    return {room.strip(" `"): set(re.findall(r"`(\w+)`", targets)) for room, targets in rows}


ARROWS = allowed_arrows()
#: Modules without a row: every room but `model` may import them, and they import each other alone.
GROUND_FLOOR = ROOMS - ARROWS.keys()
SOURCE_FILES = sorted(SOURCE.rglob("*.py"))


def test_every_folder_has_its_row():
    assert {path.name for path in SOURCE.iterdir() if list(path.glob("*.py"))} <= ARROWS.keys()
    assert set().union(*ARROWS.values()) <= ARROWS.keys() <= ROOMS


def test_every_file_has_its_line_in_the_tree():
    text = (PROJECT / "docs" / "architecture.md").read_text()
    [tree] = re.findall(r"^src/querypose_hf/\n(.*?)^\S", text, flags=re.MULTILINE | re.DOTALL)
    folder, named = "", []
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0]
        if names.endswith("/"):
            folder = names
        indented = line.startswith("    ")
        named += [(folder if indented else "") + name for name in names.split(", ") if name.endswith(".py")]
    outer = [path for path in SOURCE_FILES if path.parent == SOURCE or path.stem != "__init__"]
    found = {path.relative_to(SOURCE).as_posix() for path in outer}
    assert len(named) == len(set(named))
    assert (found - set(named), set(named) - found) == (set(), set()), "without a line; without a file"


def test_files_that_the_page_names_are_there():
    named = re.findall(r"`([\w/]+\.(?:py|md))`", (PROJECT / "docs" / "architecture.md").read_text())
    assert named
    folders = (SOURCE, SOURCE / "model", PROJECT)
    assert [name for name in named if not any((folder / name).is_file() for folder in folders)] == []


def test_arrows_make_no_circle():
    assert list(TopologicalSorter(ARROWS).static_order())  # raises CycleError


def test_imports_are_the_arrows_of_the_table():
    faults, used = [], {room: set() for room in ARROWS}
    for path in SOURCE_FILES:
        room = room_of(path)
        known = {room, *ARROWS.get(room, ())} | (GROUND_FLOOR if room != "model" else set())
        for found in imports(path):
            if room in used and found.room not in {None, room, *GROUND_FLOOR}:
                used[room].add(found.room)
            if found.room not in {None, *known} and found.target != f"{PACKAGE}.__version__":
                faults.append(f"{found.place}: {room} must not import {found.target}")
    faults += [f"no import goes from {room} to {target}" for room in ARROWS for target in ARROWS[room] - used[room]]
    assert not faults, "\n".join(faults)


def test_source_imports_neither_scripts_nor_tests():
    outside = {
        path.stem for folder in ("scripts", "tests") for path in [PROJECT / folder, *(PROJECT / folder).iterdir()]
    }
    faults = [
        f"{found.place}: {found.target}"
        for path in SOURCE_FILES
        for found in imports(path)
        if found.target.split(".")[0] in outside
    ]
    assert not faults, "\n".join(faults)


def test_model_files_import_each_other_by_from_dot_name():
    """Transformers copies the files of a saved model by their `from .name import ...` lines."""
    faults = []
    for path in SOURCE.glob("model/*.py"):
        for found in imports(path):
            by_name = found.level == 1 and found.top_level and len(found.target.split(".")) == 4
            if found.room is not None and not by_name:
                faults.append(
                    f"{found.place}: {found.target}: expected `from .name import ...` at the top of the file"
                )
    assert not faults, "\n".join(faults)


def test_model_is_flat():
    assert not [path for path in (SOURCE / "model").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_test_files_have_names_of_their_own():
    """pytest imports them by name alone: of two of one name the second would not be collected."""
    names = [path.name for path in (PROJECT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
