"""Data sets whose samples are augmented, the same way in every run."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from .augmentation import Mosaic, PoseAugmentation
from .pose_dataset import image_sizes
from .sample import PoseSample


class AugmentedPoseDataset(Dataset[PoseSample]):
    """A map-style data set whose samples are augmented when they are asked for.

    The chances of a sample depend on `seed`, the epoch and its index alone: neither the number of worker processes
    nor the place where a run was resumed changes them.

    Args:
        dataset (`Dataset`): gives samples by index.
        augmentation ([`PoseAugmentation`]): what is done to each.
        seed (`int`, *optional*, defaults to 0): not negative.
        mosaic ([`Mosaic`], *optional*): joins a sample, before its augmentation, with three others.

    Example:

    ```python
    >>> train = AugmentedPoseDataset(dataset, PoseAugmentation.from_recipe(COCO_17.flip_indices), seed=42)
    >>> train.set_epoch(3)
    ```
    """

    def __init__(self, dataset: Any, augmentation: PoseAugmentation, *, seed: int = 0, mosaic: Mosaic | None = None):
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = check_seed(seed)
        self.mosaic = mosaic
        self._epoch = shared_number()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PoseSample:
        index = range(len(self))[index]
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        sample = self.dataset[index]
        if self.mosaic is not None and rng.random() < self.mosaic.probability:
            others = [self.dataset[int(other)] for other in rng.integers(len(self), size=3)]
            sample = self.mosaic([sample, *others], rng)
        return self.augmentation(sample, rng)

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) int64: width and height of every picture before augmentation."""
        return image_sizes(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, here and in the data set, for worker processes that already run too.

        Call it before the loader is run through.
        """
        self._epoch.fill_(check_epoch(epoch))
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


class AugmentedPoseStream(IterableDataset[PoseSample]):
    """An iterable data set whose samples are augmented as they come.

    The chances of a sample depend on `seed`, the epoch and its `image_id` alone.

    Args:
        dataset (`Iterable`): gives samples, such as [`HubPoseStream`] or [`SyntheticPeopleStream`].
        augmentation ([`PoseAugmentation`]): what is done to each.
        seed (`int`, *optional*, defaults to 0): not negative.
    """

    def __init__(self, dataset: Iterable[PoseSample], augmentation: PoseAugmentation, *, seed: int = 0):
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = check_seed(seed)
        self._epoch = shared_number()

    def __iter__(self) -> Iterator[PoseSample]:
        for sample in self.dataset:
            # a generator's seed cannot be negative, an id can
            image_id = sample["image_id"] % 2**63
            yield self.augmentation(sample, np.random.default_rng((self.seed, int(self._epoch), image_id)))

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, here and in the data set, before the loader is run through."""
        self._epoch.fill_(check_epoch(epoch))
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def check_seed(seed: int) -> int:
    """Returns `seed` if it is a whole number of at least 0, and raises `ValueError` otherwise."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"`seed` is {seed!r}; expected a whole number of at least 0.")
    return int(seed)


def check_epoch(epoch: int) -> int:
    """Returns `epoch` if it is a whole number of at least 0, and raises `ValueError` otherwise."""
    if not isinstance(epoch, int | np.integer) or isinstance(epoch, bool) or epoch < 0:
        raise ValueError(f"`epoch` is {epoch!r}; expected a whole number of at least 0.")
    return int(epoch)


def shared_number() -> torch.Tensor:
    """A zero that a process and its workers share."""
    # in shared memory: worker processes that live on from epoch to epoch have to see the change
    return torch.zeros((), dtype=torch.int64).share_memory_()
