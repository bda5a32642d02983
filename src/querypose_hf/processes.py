"""This process among those that the program was started as."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def this_process() -> PartialState:
    """Accelerate's account of this process, also before there is an `Accelerator`.

    `PartialState` alone would settle for a single process where several CPU processes were started
    (`ACCELERATE_USE_CPU=true torchrun ...`), and the `Accelerator` made later would take that over.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def own_device() -> torch.device:
    """The accelerator that is this process's own among those on its machine, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())
