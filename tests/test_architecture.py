"""The package's folders import each other as the import table of docs/architecture.md says.

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
#: The parts of the package: its folders and the modules beside them; `__init__` is one, too.
PARTS = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__pycache__"}


class Import(NamedTuple):
    """One import of a module: `target` is its full name, `part` is set for modules of the package."""

    place: str
    level: int
    target: str
    top_level: bool

    @property
    def part(self) -> str | None:
        names = self.target.split(".")
        if names[0] != PACKAGE:
            return None
        return names[1] if len(names) > 1 and names[1] in PARTS else "__init__"


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


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def import_table() -> dict[str, set[str]]:
    """The import table of docs/architecture.md: a folder or module, and those that it may import."""
    text = (PROJECT / "docs" / "architecture.md").read_text()
    [table] = re.findall(r"^\| folder or module \| imports \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, flags=re.MULTILINE)
    rows = [row.split("|")[1:3] for row in table.splitlines()]
    return {name.strip(" `"): set(re.findall(r"`(\w+)`", targets)) for name, targets in rows}


IMPORT_TABLE = import_table()
#: Modules without a row: every folder but `model` may import them, and they import each other alone.
SHARED = PARTS - IMPORT_TABLE.keys()
SOURCE_FILES = sorted(SOURCE.rglob("*.py"))


def test_every_folder_has_its_row():
    assert {path.name for path in SOURCE.iterdir() if list(path.glob("*.py"))} <= IMPORT_TABLE.keys()
    assert set().union(*IMPORT_TABLE.values()) <= IMPORT_TABLE.keys() <= PARTS


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


def test_imports_make_no_circle():
    assert list(TopologicalSorter(IMPORT_TABLE).static_order())  # raises CycleError


def test_imports_are_those_of_the_table():
    faults, used = [], {part: set() for part in IMPORT_TABLE}
    for path in SOURCE_FILES:
        part = part_of(path)
        known = {part, *IMPORT_TABLE.get(part, ())} | (SHARED if part != "model" else set())
        for found in imports(path):
            if part in used and found.part not in {None, part, *SHARED}:
                used[part].add(found.part)
            if found.part not in {None, *known} and found.target != f"{PACKAGE}.__version__":
                faults.append(f"{found.place}: {part} must not import {found.target}")
    faults += [
        f"no import goes from {part} to {target}"
        for part in IMPORT_TABLE
        for target in IMPORT_TABLE[part] - used[part]
    ]
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
            if found.part is not None and not by_name:
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
