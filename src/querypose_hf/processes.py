"""This process among those that the program was started as, by `torchrun` or `accelerate launch`."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as distributed


if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> "PartialState":
    """Accelerate's account of this process, also before there is an `Accelerator`.

    `PartialState` alone would settle for a single process where several CPU processes were started
    (`ACCELERATE_USE_CPU=true torchrun ...`), and the `Accelerator` made later would take that over.
    """
    from accelerate import PartialState  # comes with an extra
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def rank() -> int:
    """The number of this process, from 0, whether or not there is a process group yet."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the program was started as, whether or not there is a process group yet."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def own_device() -> torch.device:
    """The accelerator that is this process's own among those on its machine, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that exchange Python objects; made by [`process_group`].

    Attributes:
        rank (`int`): the number of this process, from 0.
        size (`int`): how many there are.
    """

    rank: int = 0
    size: int = 1
    _group: Any = None

    def broadcast(self, value: Any) -> Any:
        """What the first process passes, in every process. No process returns before the first one has called."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """What every process passes, by rank, in the first process; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        distributed.gather_object(value, values, dst=0, group=self._group)
        return values or []


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Joins the processes that the program was started as, for the length of the block.

    The group works on CPUs and waits up to two days for its slowest process. Torch's default process group is used if
    there is one; otherwise one is made and taken down afterwards.
    """
    if world_size() == 1:
        yield ProcessGroup()
        return
    own = not distributed.is_initialized()
    if own:
        distributed.init_process_group("gloo")
    group = distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=2))
    try:
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size(), group)
        distributed.destroy_process_group(group)
    finally:
        if own:
            distributed.destroy_process_group()
