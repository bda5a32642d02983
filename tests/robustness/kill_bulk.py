"""`querypose predict --dataset`, killed at a random time and run again: each image once, as in an undisturbed run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from killing import command_of, kill_and_resume, measure, require
from small_data import write_rendered_coco
from tiny import save_tiny_checkpoint


@dataclass
class State:
    command: Callable[..., None]
    reference: list[dict[str, Any]]
    seconds: float


def command(folder: Path) -> Callable[..., None]:
    """`predict --dataset`; its last argument, the folder to write, is missing."""
    save_tiny_checkpoint(folder / "checkpoint", class_bias=0.5)
    source = write_rendered_coco(folder, count=40)
    arguments = ("predict", "--dataset", source["images"], "--model", folder / "checkpoint")
    return command_of(*arguments, "--batch-size", 2, "--rows-per-shard", 5, "--device", "cpu", "--output-parquet")


def prepare(folder: Path) -> State:
    function = command(folder)
    seconds = measure(folder, function)
    return State(function, rows(folder / "whole"), seconds)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        row for path in sorted(folder.glob("people-*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()
    ]


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str, int]:
    output = folder / "people"
    # whatever is there after a kill is whole
    told, kills = kill_and_resume(rng, state.seconds, output, state.command, most=3, check=lambda: rows(output))
    found = rows(output)
    require(found == state.reference, f"{len(found)} rows in place of {len(state.reference)}, or others")
    return told, True, "", kills
