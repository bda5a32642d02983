"""Training, killed at a random time and resumed: the same bits in log, weights, moving average, `best` and `last`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killing import kill_and_resume, measure, require
from sandbox import Fault
from small_run import read_log, small_config, small_loop


LENGTH = 12
MEASURED = ("images_per_second", "data_wait", "memory_gib")


@dataclass
class State:
    reference: Path
    seconds: float


def train(folder: Path) -> None:
    """What the process does."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)

    def figure(model: Any) -> dict[str, float]:
        # depends on every bit of a weight, and goes up and down
        return {"AP": float(model.model.decoder.part_queries.double().abs().sum() * 1e5 % 1)}

    config = small_config(LENGTH, evaluate_every=2, trackers=())
    loop = small_loop(folder, config, evaluate=figure)
    loop.run(resume=True)
    torch.save({"model": loop.model.state_dict(), "average": loop.average.module.state_dict()}, folder / "weights.pt")


def prepare(folder: Path) -> State:
    return State(folder / "whole", measure(folder, train))


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str, int]:
    run_folder = folder / "run"
    told, kills = kill_and_resume(rng, state.seconds, run_folder, train, most=3)  # also a run that had been resumed
    compare(run_folder, state.reference)
    return told, True, "", kills


def compare(folder: Path, reference: Path) -> None:
    logs = [
        [{key: value for key, value in record.items() if key not in MEASURED} for record in read_log(path)]
        for path in (folder, reference)
    ]
    require(logs[0] == logs[1], "the logs differ")
    found, expected = torch.load(folder / "weights.pt"), torch.load(reference / "weights.pt")
    for kind, weights in expected.items():
        same = all(torch.equal(found[kind][name], value) for name, value in weights.items())
        require(same, f"the weights of {kind} differ")
    for kind in ("best", "last"):
        names = sorted(os.listdir(folder / kind))
        require(names == sorted(os.listdir(reference / kind)), f"{kind} has {names}")
        same = all((folder / kind / name).read_bytes() == (reference / kind / name).read_bytes() for name in names)
        require(same, f"{kind} has other content")
    names = sorted(os.listdir(folder / "checkpoints"))
    require(names == sorted(os.listdir(reference / "checkpoints")), f"checkpoints are {names}")
    left = [path.name for path in folder.rglob("*.part.*")]
    if left:
        raise Fault("partial", f"{left[:3]}")
