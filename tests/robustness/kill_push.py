"""A push to a Hub on the loopback, killed at a random time and repeated: the repository has all files, or none."""

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hub_server import TOKEN, run_hub
from huggingface_hub import HfApi, constants
from killing import kill_and_resume, measure, require
from tiny import save_tiny_checkpoint

from querypose_hf.hub.push import push_checkpoint


@dataclass
class State:
    function: Any
    opened: contextlib.ExitStack
    hub: Any
    expected: dict[str, str]
    seconds: float


def push(endpoint: str, checkpoint: Path, folder: Path) -> None:
    """What the process does; the repository has the folder's name."""
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True  # the server speaks LFS
    push_checkpoint(checkpoint, f"user/{folder.name}", examples=(), api=HfApi(endpoint=endpoint, token=TOKEN))


def prepare(folder: Path) -> State:
    checkpoint = folder / "checkpoint"
    save_tiny_checkpoint(checkpoint)
    opened = contextlib.ExitStack()
    hub = opened.enter_context(run_hub())
    function = partial(push, hub.endpoint, checkpoint)
    seconds = measure(folder, function)
    return State(function, opened, hub, _files(hub, "user/whole"), seconds)


def _files(hub: Any, repo_id: str) -> dict[str, str]:
    """Names and contents on the main branch; the card names its repository."""
    repository = hub.repositories.get(repo_id)
    commit = repository.find("main") if repository is not None else None
    files = {} if commit is None else commit.files
    return {name: stored.oid for name, stored in files.items() if name not in ("README.md", ".gitattributes")}


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str, int]:
    repo_id = f"user/{folder.name}"

    def check() -> None:
        files = _files(state.hub, repo_id)
        require(files in ({}, state.expected), f"the repository has {sorted(files)}")

    def remove(_: Path) -> None:
        state.hub.repositories.pop(repo_id, None)

    told, kills = kill_and_resume(rng, state.seconds, folder / folder.name, state.function, check=check, remove=remove)
    require(_files(state.hub, repo_id) == state.expected, f"the repository has {sorted(_files(state.hub, repo_id))}")
    return told, True, "", kills
