"""Packages whose names are imported when they are first used."""

import ast
import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that imports its names when they are first used.

    The names are those that the package's `__init__.py` imports under `if TYPE_CHECKING`, where type checkers and
    editors see them, too.

    Args:
        package (`str`): the package's `__name__`.

    Example:

    ```python
    if TYPE_CHECKING:
        from .scoring import score_boxes, score_keypoints
    else:
        __getattr__, __dir__ = lazy_names(__name__)

    __all__ = ["score_boxes", "score_keypoints"]
    ```
    """
    module = sys.modules[package]
    modules = {
        alias.asname or alias.name: (f"{package}.{statement.module}", alias.name)
        for block in ast.parse(module.__loader__.get_source(package)).body  # type: ignore[union-attr]
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.level == 1
        for alias in statement.names
    }

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place, original = modules[name]
        value = getattr(importlib.import_module(place), original)
        setattr(module, name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(module), *modules})

    return get, names
