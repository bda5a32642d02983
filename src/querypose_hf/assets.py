"""The checkpoint that comes with the package."""

import os
from pathlib import Path


#: Folder of querypose-nano, a small model for `from_pretrained`; its `README.md` says what it can and how it was made.
QUERYPOSE_NANO = str(Path(__file__).parent / "assets" / "querypose-nano")


def resolve_checkpoint(checkpoint: str | os.PathLike) -> str:
    """What `from_pretrained` takes for a checkpoint: the name `querypose-nano` stands for the shipped folder."""
    name = os.fspath(checkpoint)
    return QUERYPOSE_NANO if name == Path(QUERYPOSE_NANO).name else name
