"""`querypose evaluate`, killed at a random time and run again: the figures and results of an undisturbed run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from killing import command_of, kill_at_random, require, run_whole
from small_data import write_rendered_coco
from tiny import save_tiny_checkpoint


@dataclass
class State:
    arguments: tuple[Any, ...]
    reference: Path
    seconds: float


def prepare(folder: Path) -> State:
    save_tiny_checkpoint(folder / "checkpoint", class_bias=0.5)
    source = write_rendered_coco(folder, count=40)
    arguments = ("evaluate", "--annotations", source["annotations"], "--images", source["images"])
    arguments += ("--model", str(folder / "checkpoint"), "--batch-size", "1", "--workers", "0", "--output")
    reference = folder / "whole"
    return State(arguments, reference, run_whole(folder / "output", command_of(*arguments, reference)))


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    output = folder / "scores"
    function = command_of(*state.arguments, output)
    times = [
        kill_at_random(rng, state.seconds * 1.05, folder / "printed", function) for _ in range(int(rng.integers(1, 4)))
    ]
    run_whole(folder / "printed", function)
    for name in ("metrics.json", "keypoints.json"):
        files = [json.loads((path / name).read_text()) for path in (output, state.reference)]
        if name == "metrics.json":
            files = [content["metrics"] for content in files]
        require(files[0] == files[1], f"{name} differs")
    names = sorted(path.name for path in output.iterdir())
    require(names == sorted(path.name for path in state.reference.iterdir()), f"the folder has {names}")
    return "; ".join(times), True, ""
