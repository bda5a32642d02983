"""Starts processes that need not import torch: one server imports the package once, and they are its forks."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["querypose_hf.training.run"])


def start_process(output: Path, environment: dict[str, str], function: Callable[..., Any], *arguments) -> BaseProcess:
    """Starts a process that calls a function of a module; what it prints goes to the file `output`."""
    process = _SERVER.Process(target=_call, args=(str(output), environment, function, arguments))
    process.start()
    return process


def run_two_processes(output: Path, function: Callable[..., Any], *arguments) -> list[str]:
    """Calls a function in two processes that find each other by gloo, as those of `accelerate launch --cpu` do.

    Returns:
        What each process printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, outputs = [], []
    for rank in range(2):
        environment = {
            "ACCELERATE_USE_CPU": "true",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        outputs.append(Path(f"{output}.{rank}"))
        processes.append(start_process(outputs[-1], environment, function, *arguments))
    try:
        for process, printed in zip(processes, outputs, strict=True):
            process.join(timeout=150)
            assert process.exitcode == 0, printed.read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [printed.read_text() for printed in outputs]


def _call(output: str, environment: dict[str, str], function: Callable[..., Any], arguments: tuple) -> None:
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    function(*arguments)
