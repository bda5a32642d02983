"""The checkpoint that comes with the package."""

from pathlib import Path


#: Folder of querypose-nano, a small model for `from_pretrained`; its `README.md` says what it can and how it was made.
QUERYPOSE_NANO = str(Path(__file__).parent / "assets" / "querypose-nano")
