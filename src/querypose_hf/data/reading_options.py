"""How an annotated dataset is read: the options of every reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..settings import require


@dataclass(frozen=True)
class ReadingOptions:
    """How a reader treats the images of a dataset.

    Args:
        only_with_people (`bool`): leave out images without a person. Crowd regions do not count as people. The paper
            trains this way.
        exhaustive (`bool`): every person in the images is annotated. Where `False`, training does not punish a model
            for people found outside the annotations.
        on_error (`str`): `"raise"` stops at an image that is missing, broken or of an unexpected size; `"skip"` logs
            it and goes on.
    """

    only_with_people: bool = False
    exhaustive: bool = True
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        require(self, "on_error", self.on_error in ("raise", "skip"), "'raise' or 'skip'")


def find_split(wanted: Sequence[str], available: Sequence[str], source: str) -> str:
    """The first of the splits `wanted` that is `available` in the dataset called `source`.

    Raises:
        ValueError: there is none of them.
    """
    for split in wanted:
        if split in available:
            return split
    names = " or ".join(f"`{split}`" for split in wanted)
    raise ValueError(f"{source}: there is no split {names}; expected one of {list(available)}.")
