"""Datasets whose samples are augmented, the same way in every run."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from .augmentation import PoseAugmentation
from .epochs import check_epoch, check_seed, shared_number
from .hub_stream import HubPoseStream
from .pose_dataset import image_sizes
from .sample import PoseSample


class AugmentedPoseDataset(Dataset[PoseSample]):
    """A map-style dataset whose samples are augmented when they are asked for.

    The random choices for a sample depend on `seed`, the epoch and its index alone, not on the number of worker
    processes or on where a run was resumed.

    Args:
        dataset (`Dataset`): gives samples by index.
        augmentation ([`PoseAugmentation`]): what is done to each sample.
        seed (`int`, *optional*, defaults to 0): not negative.

    Example:

    ```python
    >>> train = AugmentedPoseDataset(dataset, PoseAugmentation.from_recipe(COCO_17.flip_indices), seed=42)
    >>> train.set_epoch(3)
    ```
    """

    def __init__(self, dataset: Any, augmentation: PoseAugmentation, *, seed: int = 0):
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = check_seed(seed)
        self._epoch = shared_number()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PoseSample:
        index = range(len(self))[index]
        return self.augmentation(self.dataset[index], np.random.default_rng((self.seed, int(self._epoch), index)))

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) int64: width and height of every image before augmentation."""
        return image_sizes(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, here, in the dataset and in running worker processes.

        Call it before iterating over the loader.
        """
        self._epoch.fill_(check_epoch(epoch))
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


class AugmentedPoseStream(IterableDataset[PoseSample]):
    """Endless passes over a stream, whose samples are augmented as they come.

    The random choices for a sample depend on `seed`, the pass and its `image_id` alone.

    Args:
        stream ([`HubPoseStream`]): gives the samples.
        augmentation ([`PoseAugmentation`]): what is done to each sample.
        seed (`int`, *optional*, defaults to 0): not negative.
        skipped (`int`, *optional*, defaults to 0): see [`HubPoseStream.passes`]; each worker process of a loader
            leaves out so many samples.
    """

    def __init__(self, stream: HubPoseStream, augmentation: PoseAugmentation, *, seed: int = 0, skipped: int = 0):
        self.stream = stream
        self.augmentation = augmentation
        self.seed = check_seed(seed)
        self.skipped = skipped

    @property
    def num_shards(self) -> int:
        """The number of shards that the worker processes of this process can share."""
        return self.stream.num_shards

    def for_process(self, index: int, num_processes: int) -> "AugmentedPoseStream":
        """The part of the stream that is for one of several training processes."""
        stream = self.stream.for_process(index, num_processes)
        return AugmentedPoseStream(stream, self.augmentation, seed=self.seed, skipped=self.skipped)

    def __iter__(self) -> Iterator[PoseSample]:
        for number, sample in self.stream.passes(self.skipped):
            # a generator's seed must not be negative, but an id may be
            image_id = sample["image_id"] % 2**63
            yield self.augmentation(sample, np.random.default_rng((self.seed, number, image_id)))
