"""Checkpoints of a training run: everything it needs to go on as if it had never stopped.

A checkpoint is one file, `step_<number>.pt`. It gets this name only once it is whole and on the disk: a process may be
killed at any time.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..files import filling_folder, remove_unfinished, replacing_file, write_text


_FORMAT = 1


def save_checkpoint(folder: str | Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes `state` as the checkpoint of an optimizer step, and deletes all but the newest `keep` checkpoints.

    Args:
        folder (`str` or `Path`): the run's checkpoints; made if it does not exist.
        step (`int`): optimizer steps taken.
        state (`dict`): tensors, numbers, text, and lists, tuples and dicts of them.
        keep (`int`): at least 1.
    """
    folder = Path(folder)
    remove_unfinished(folder)
    path = folder / f"step_{step:09d}.pt"
    with _writing(path), replacing_file(path, durable=True) as temporary:
        torch.save({"format": _FORMAT, **state}, temporary)
    for older in find_checkpoints(folder)[:-keep]:
        older.unlink()
    return path


def find_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    return sorted(Path(folder).glob("step_*.pt"))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint, with its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of a training run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many classes for a damaged file
        raise ValueError(f"{path}: cannot be read as a checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"{path}: not a checkpoint of a training run; expected a dict with `format` {_FORMAT}.")
    return state


def save_model_folder(
    folder: str | Path, model: PreTrainedModel, image_processor: Any = None, texts: Mapping[str, str] | None = None
) -> None:
    """Saves a model, its image processor and texts by file name, for `from_pretrained`; files are replaced whole."""
    with _writing(folder), filling_folder(folder, durable=True, alone=True) as temporary:
        model.save_pretrained(temporary)
        if image_processor is not None:
            image_processor.save_pretrained(temporary)
        for name, text in (texts or {}).items():
            write_text(text, temporary / name)


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Makes an `OSError` of what torch and safetensors make of a full disk."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written; is the disk full? What was there is whole: {error}") from error


def random_state() -> dict[str, Any]:
    """The states of this process's random generators: Python's, NumPy's, torch's and the current CUDA device's."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Sets the random generators to what [`random_state`] gave."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
