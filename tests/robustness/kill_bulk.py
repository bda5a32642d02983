"""`querypose predict --dataset`, killed at a random time and run again: each image once, as in an undisturbed run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from killing import command_of, kill_at_random, require, run_whole
from small_data import write_rendered_coco
from tiny import save_tiny_checkpoint


@dataclass
class State:
    arguments: tuple[Any, ...]
    reference: list[dict[str, Any]]
    seconds: float


def prepare(folder: Path) -> State:
    save_tiny_checkpoint(folder / "checkpoint", class_bias=0.5)
    source = write_rendered_coco(folder, count=40)
    arguments = ("predict", "--dataset", source["images"], "--model", str(folder / "checkpoint"))
    arguments += ("--batch-size", "2", "--rows-per-shard", "5", "--device", "cpu", "--output-parquet")
    seconds = run_whole(folder / "output", command_of(*arguments, folder / "whole"))
    return State(arguments, rows(folder / "whole"), seconds)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        row for path in sorted(folder.glob("people-*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()
    ]


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    output = folder / "people"
    function = command_of(*state.arguments, output)
    times = [
        kill_at_random(rng, state.seconds * 1.05, folder / "printed", function) for _ in range(int(rng.integers(1, 4)))
    ]
    if output.exists():
        rows(output)  # whatever is there is whole
    run_whole(folder / "printed", function)
    found = rows(output)
    require(found == state.reference, f"{len(found)} rows in place of {len(state.reference)}, or others")
    return "; ".join(times), True, ""
