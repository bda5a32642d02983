"""Seeds and epochs of random data: checked, and the epoch shared with worker processes."""

import numpy as np
import torch


def check_seed(seed: int) -> int:
    """Returns `seed` if it is a whole number of at least 0, and raises `ValueError` otherwise."""
    return _check_whole("seed", seed)


def check_epoch(epoch: int) -> int:
    """Returns `epoch` if it is a whole number of at least 0, and raises `ValueError` otherwise."""
    return _check_whole("epoch", epoch)


def _check_whole(name: str, value: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
        raise ValueError(f"`{name}` is {value!r}; expected a whole number of at least 0.")
    return int(value)


def shared_number() -> torch.Tensor:
    """A zero in shared memory: worker processes that live for several epochs see it change."""
    return torch.zeros((), dtype=torch.int64).share_memory_()
