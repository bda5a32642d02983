"""A function in a process that is killed at a random time, and run again to its end."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from launching import start_process
from sandbox import Fault


_MOST_TRIES = 10


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


def measure(folder: Path, function: Callable[[Path], Any]) -> float:
    """Runs a function of a folder twice, `folder / "whole"` and another; returns the seconds of the second run.

    The first one also waits for the server of processes to start.
    """
    run_whole(folder / "printed", function, folder / "whole")
    return run_whole(folder / "printed", function, folder / "again")


def kill_and_resume(
    rng: np.random.Generator,
    seconds: float,
    target: Path,
    function: Callable[[Path], Any],
    most: int = 1,
    check: Callable[[], Any] = lambda: None,
    remove: Callable[[Path], Any] = shutil.rmtree,
) -> tuple[str, int]:
    """Runs a function of a folder, kills it up to `most` times within `seconds`, and then runs it to its end.

    A run that ends before its first kill is removed and started anew, sooner to be killed. `check` is called after
    each kill.

    Returns:
        `tuple`: what was done, in words, and how often a run was killed.

    Raises:
        Fault: a run failed, or none could be killed.
    """
    printed, done, wanted = target.with_name("printed"), [], int(rng.integers(1, most + 1))
    for _ in range(_MOST_TRIES):
        delay, start = float(rng.uniform(0, seconds)), time.monotonic()
        process = start_process(printed, {}, function, target)
        process.join(delay)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            done.append(f"killed after {delay:.2f} of {seconds:.2f} s")
            check()
        elif process.exitcode:
            raise Fault("traceback", f"status {process.exitcode}: {printed.read_text()[-300:]}")
        elif not done:
            remove(target)
            seconds = min(seconds, time.monotonic() - start)
        if len(done) == wanted or (done and process.exitcode == 0):
            break
    if not done:
        raise Fault("not killed", f"{_MOST_TRIES} runs ended before they were killed")
    run_whole(printed, function, target)
    return "; ".join(done), len(done)


def command_line(*arguments: Any) -> None:
    """What a process does: a `querypose` command, on one thread."""
    import torch

    from querypose_hf.cli import main

    torch.set_num_threads(1)
    os._exit(main([str(argument) for argument in arguments]))


def command_of(*arguments: Any) -> Callable[..., None]:
    return partial(command_line, *map(str, arguments))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Fault("wrong", message)
