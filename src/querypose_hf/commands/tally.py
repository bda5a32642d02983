"""What became of each input of a command: read, empty, skipped; and the exit status that says so."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar


#: Exit statuses: some inputs were skipped; nothing could be done.
SOME_SKIPPED, FAILED = 1, 2

_Value = TypeVar("_Value")
_LISTED = 3


class InputTally:
    """Counts the inputs of a command, and goes on where one of them cannot be used, whatever the error.

    Args:
        strict (`bool`): raise the first error of an input.
        noun (`str`): what an input is, in the plural.
        quiet (`bool`): print no counts unless something is amiss.

    Attributes:
        read (`int`): inputs that were read, at least in part.
        empty (`int`): those of them in which nobody was found.
        skipped (`list[str]`): why the others were not.
        in_part (`list[str]`): which of those read are damaged.
    """

    def __init__(self, strict: bool, noun: str = "sources", quiet: bool = False):
        self.strict = strict
        self.quiet = quiet
        self.noun = noun
        self.read = 0
        self.empty = 0
        self.skipped: list[str] = []
        self.in_part: list[str] = []
        self._errors: list[Exception] = []

    def attempt(self, source: str, function: Callable[..., _Value], *arguments: Any) -> _Value | None:
        """What `function(*arguments)` returns, or None if it raises an error; the source is skipped then.

        Raises:
            OSError, ValueError: with `strict`.
        """
        try:
            return function(*arguments)
        except Exception as error:
            self.skip(source, error)
            return None

    def items(self, source: str, items: Iterable[_Value]) -> Iterator[_Value]:
        """The items of a source up to an error. A source with an item before the error counts as read in part.

        Raises:
            OSError, ValueError: with `strict`.
        """
        count = 0
        try:
            for item in items:
                count += 1
                yield item
        except Exception as error:
            if not count or self.strict:
                self.skip(source, error)
            else:
                self.add_in_part(_described(source, error))

    def add(self, has_people: bool) -> None:
        """Counts an input that was read."""
        self.read += 1
        self.empty += not has_people

    def add_in_part(self, reason: str) -> None:
        """Notes that an input is damaged. It counts as read."""
        self.in_part.append(reason)
        _say(f"read in part: {reason}")

    def require_some(self) -> None:
        """Raises the error of the only input, or one that names the first reasons, if nothing was read.

        Raises:
            ValueError, OSError: every input was skipped.
        """
        if self.read or not self.skipped:
            return
        if len(self._errors) == len(self.skipped) == 1:
            _raise(self._errors[0], self.skipped[0])
        raise ValueError(f"none of the {self.noun} can be used: {_first(self.skipped)}")

    def finish(self) -> int:
        """Prints the counts, where there are several inputs or something is amiss; returns the exit status."""
        self.require_some()
        amiss = self.skipped + self.in_part
        if amiss or (self.read > 1 and not self.quiet):
            counts = f"{self.read} {self.noun} read, {self.empty} of them empty; {len(self.skipped)} skipped"
            counts += f", {len(self.in_part)} read in part" if self.in_part else ""
            _say(f"{counts} ({_first(amiss)})" if amiss else counts)
        return SOME_SKIPPED if amiss else 0

    def skip(self, source: str, error: Exception) -> None:
        """Counts an input as skipped; with `strict` raises the error."""
        if self.strict:
            _raise(error, _described(source, error))
        self._errors.append(error)
        self.skipped.append(_described(source, error))
        _say(f"skipped: {self.skipped[-1]}")


def _raise(error: Exception, reason: str) -> NoReturn:
    """Raises an error, or a `ValueError` where it is of a class that commands do not tell, or names no source."""
    if isinstance(error, OSError | ValueError) and reason == str(error):
        raise error
    raise ValueError(reason) from error


def _described(source: str, error: Exception) -> str:
    said = str(error) or type(error).__name__
    return said if source in said else f"{source}: {said}"


def _first(reasons: list[str]) -> str:
    more = f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
    return "; ".join(reasons[:_LISTED]) + more


def _say(text: str) -> None:
    from tqdm.auto import tqdm

    # a plain `print` would break a progress bar
    tqdm.write(text, file=sys.stderr)
