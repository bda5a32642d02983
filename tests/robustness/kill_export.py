"""`querypose export`, killed at a random time and repeated: where the description is there, the rest is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from killing import command_of, kill_and_resume, measure, require
from tiny import save_tiny_checkpoint

from querypose_hf.export.formats import METADATA_FILE


@dataclass
class State:
    command: Callable[..., None]
    names: list[str]
    seconds: float


def command(folder: Path) -> Callable[..., None]:
    """`export`; its last argument, the folder to write, is missing."""
    save_tiny_checkpoint(folder / "checkpoint", class_bias=0.5)
    return command_of("export", "--model", folder / "checkpoint", "--format", "torch-export", "--output")


def prepare(folder: Path) -> State:
    function = command(folder)
    seconds = measure(folder, function)
    return State(function, names_in(folder / "whole"), seconds)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str, int]:
    output = folder / "exported"

    def check() -> None:
        names = names_in(output)
        whole = [name for name in names if ".part." not in name] == state.names
        require(whole or METADATA_FILE not in names, f"the folder has {names}")

    told, kills = kill_and_resume(rng, state.seconds, output, state.command, check=check)
    require(names_in(output) == state.names, f"the folder has {names_in(output)}")
    for path in output.glob("*.pt2"):
        torch.export.load(path)
    return told, True, "", kills
