"""`querypose export`, killed at a random time and repeated: where the description is there, the rest is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killing import command_of, kill_at_random, require, run_whole
from tiny import save_tiny_checkpoint

from querypose_hf.export.formats import METADATA_FILE


@dataclass
class State:
    arguments: tuple[Any, ...]
    names: list[str]
    seconds: float


def prepare(folder: Path) -> State:
    save_tiny_checkpoint(folder / "checkpoint", class_bias=0.5)
    arguments = ("export", "--model", str(folder / "checkpoint"), "--format", "torch-export", "--output")
    seconds = run_whole(folder / "output", command_of(*arguments, folder / "whole"))
    return State(arguments, _names(folder / "whole"), seconds)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    output = folder / "exported"
    function = command_of(*state.arguments, output)
    told = kill_at_random(rng, state.seconds * 1.05, folder / "printed", function)
    names = _names(output)
    if METADATA_FILE in names:
        require([name for name in names if ".part." not in name] == state.names, f"the folder has {names}")
    run_whole(folder / "printed", function)
    require(_names(output) == state.names, f"the folder has {_names(output)}")
    for path in output.glob("*.pt2"):
        torch.export.load(path)
    return told, True, ""
