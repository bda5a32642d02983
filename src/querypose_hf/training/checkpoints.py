"""Checkpoints of a training run: everything that it needs to go on as if it had never stopped.

A checkpoint is one file, `step_<number>.pt`. It is written under another name, brought to the disk, and only then gets
its own: one that can be seen is whole, whenever the process was killed.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel


_FORMAT = 1
_UNFINISHED = ".part"
_SAVING = ".saving_"


def save_checkpoint(folder: str | Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes `state` as the checkpoint of an optimizer step, and deletes all but the newest `keep` checkpoints.

    Args:
        folder (`str` or `Path`): of the run's checkpoints; made if it does not exist.
        step (`int`): optimizer steps taken.
        state (`dict`): tensors, numbers, text, and lists, tuples and dicts of them.
        keep (`int`): at least 1.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(f".step_*{_UNFINISHED}"):  # of a process that was killed
        unfinished.unlink()
    path = folder / f"step_{step:09d}.pt"
    write_whole(path, lambda temporary: torch.save({"format": _FORMAT, **state}, temporary))
    for older in find_checkpoints(folder)[:-keep]:
        older.unlink()
    return path


def find_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    return sorted(Path(folder).glob("step_*.pt"))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint's state, its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint of a training run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common class for what can be wrong with a file
        raise ValueError(f"{path}: cannot be read as a checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"{path}: not a checkpoint of a training run; expected a dict with `format` {_FORMAT}.")
    return state


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` make a file under a temporary name, brings it to the disk, and gives it its own name."""
    temporary = path.with_name(f".{path.name}{_UNFINISHED}")
    write(temporary)
    _synchronize(temporary)
    os.replace(temporary, path)
    _synchronize(path.parent)


def save_model_folder(folder: str | Path, model: PreTrainedModel, image_processor: Any = None) -> None:
    """Saves a model, and its image processor, for `from_pretrained`; every file is replaced whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(f"{_SAVING}*"):  # of a process that was killed
        shutil.rmtree(unfinished)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SAVING) as name:
        temporary = Path(name)
        model.save_pretrained(temporary)
        if image_processor is not None:
            image_processor.save_pretrained(temporary)
        for file in sorted(temporary.iterdir()):
            _synchronize(file)
            os.replace(file, folder / file.name)
    _synchronize(folder)


def random_state() -> dict[str, Any]:
    """States of the random generators of Python, NumPy and torch (and CUDA's current device) in this process."""
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


def _synchronize(path: Path) -> None:
    """Has the operating system bring a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
