"""`querypose evaluate`, killed at a random time and run again: the figures and results of an undisturbed run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from killing import command_of, kill_and_resume, measure, require
from small_data import write_rendered_coco
from tiny import save_tiny_checkpoint


@dataclass
class State:
    command: Callable[..., None]
    reference: Path
    seconds: float


def prepare(folder: Path) -> State:
    save_tiny_checkpoint(folder / "checkpoint", class_bias=0.5)
    source = write_rendered_coco(folder, count=40)
    arguments = ("evaluate", "--annotations", source["annotations"], "--images", source["images"])
    function = command_of(*arguments, "--model", folder / "checkpoint", "--batch-size", 1, "--workers", 0, "--output")
    return State(function, folder / "whole", measure(folder, function))


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str, int]:
    output = folder / "scores"
    told, kills = kill_and_resume(rng, state.seconds, output, state.command, most=3)
    for name in ("metrics.json", "keypoints.json"):
        files = [json.loads((path / name).read_text()) for path in (output, state.reference)]
        if name == "metrics.json":
            files = [content["metrics"] for content in files]
        require(files[0] == files[1], f"{name} differs")
    names = sorted(path.name for path in output.iterdir())
    require(names == sorted(path.name for path in state.reference.iterdir()), f"the folder has {names}")
    return told, True, "", kills
