"""This process among those that the program was started as."""

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def this_process() -> PartialState:
    """Accelerate's account of this process, also before there is an `Accelerator`.

    `PartialState` alone would settle for a single process where several CPU processes were started
    (`ACCELERATE_USE_CPU=true torchrun ...`), and the `Accelerator` made later would take that over.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
