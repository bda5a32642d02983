"""A disk that is full: predict, bulk prediction and export say so, leave nothing by halves, and go on later."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kill_bulk
import kill_export
import numpy as np
from failing_runs import limit_files
from image_cases import require_drawn
from killing import command_of, require, run_whole
from launching import start_process
from mutations import pick
from sandbox import Fault, reason


@dataclass
class Command:
    function: Callable[..., None]
    read: Callable[[Path], Any]  # the folder it has written
    reference: Any


def prepare(folder: Path) -> dict[str, Command]:
    bulk = kill_bulk.command(folder)
    source = [folder / "images", "--model", folder / "checkpoint", "--threshold", 0.2, "--device", "cpu"]
    functions: dict[str, tuple[Callable[..., None], Callable[[Path], Any]]] = {
        "predict": (command_of("predict", *source, "--jsonl", folder / "people.jsonl", "--output"), _drawn),
        "bulk": (bulk, kill_bulk.rows),
        "export": (kill_export.command(folder), kill_export.names_in),
    }
    commands = {}
    for name, (function, read) in functions.items():
        run_whole(folder / "printed", function, folder / name)
        commands[name] = Command(function, read, read(folder / name))
    return commands


def _drawn(folder: Path) -> list[str]:
    """The images drawn, each of them whole."""
    return sorted(path.name for path in folder.glob("*.jpg") if require_drawn(path))


def with_little_disk(largest: int, function: Callable[..., None], output: Path) -> None:
    """What the process does."""
    limit_files(largest)
    function(output)


def run(rng: np.random.Generator, folder: Path, state: dict[str, Command]) -> tuple[str, bool, str]:
    name = pick(rng, sorted(state))
    command = state[name]
    largest = int(10 ** rng.uniform(3.1, 6.0))
    output, printed = folder / "output", folder / "printed"
    process = start_process(printed, {}, with_little_disk, largest, command.function, output)
    process.join(180)
    process.kill()
    process.join()
    said = printed.read_text()
    if process.exitcode not in (0, 2):
        raise Fault("traceback", f"status {process.exitcode}: {said[-300:]}")
    if process.exitcode == 2 and os.strerror(errno.EFBIG) not in reason(said):
        raise Fault("unclear", reason(said))
    left = [path.name for path in output.rglob("*") if ".part." in path.name]
    if left:
        raise Fault("partial", f"{left[:3]}")
    found = command.read(output)  # whatever is there is whole
    if process.exitcode == 0:
        require(found == command.reference, "another result, and the status is 0")
    run_whole(printed, command.function, output)
    require(command.read(output) == command.reference, "another result after the disk had room")
    return f"{name}, {largest} bytes", process.exitcode == 0, reason(said)
