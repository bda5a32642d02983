"""A function in a process that is killed at a random time, and run again to its end."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from launching import start_process
from sandbox import Fault


def run_whole(output: Path, function: Callable[..., Any], *arguments: Any) -> float:
    """Runs a function in a process to its end; returns the seconds it took.

    Raises:
        Fault: it failed.
    """
    start = time.monotonic()
    process = start_process(output, {}, function, *arguments)
    process.join(180)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise Fault("hang", "the process does not end")
    if process.exitcode:
        raise Fault("traceback", f"status {process.exitcode}: {output.read_text()[-300:]}")
    return time.monotonic() - start


def kill_at_random(
    rng: np.random.Generator, longest: float, output: Path, function: Callable[..., Any], *arguments: Any
) -> str:
    """Runs a function in a process and kills it somewhere in `longest` seconds; returns when, in words."""
    delay = float(rng.uniform(0, longest))
    process = start_process(output, {}, function, *arguments)
    process.join(delay)
    process.kill()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return f"killed after {delay:.2f} of {longest:.2f} s"
    if process.exitcode:
        raise Fault("traceback", f"status {process.exitcode}: {output.read_text()[-300:]}")
    return "ended before it was killed"


def command_line(*arguments: str) -> None:
    """What a process does: a `querypose` command, on one thread."""
    import torch

    from querypose_hf.cli import main

    torch.set_num_threads(1)
    os._exit(main(arguments))


def command_of(*arguments: Any) -> Callable[[], None]:
    return partial(command_line, *map(str, arguments))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Fault("wrong", message)
