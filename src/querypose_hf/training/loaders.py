"""Batches for one training process: of a dataset in epochs, or of a stream without end."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from ..data import AspectRatioBatchSampler, AugmentedPoseStream, PoseCollator
from .recipe import TrainingConfig


logger = logging.getLogger(__name__)


class EpochLoader:
    """The batches of a map-style dataset, each of similar aspect ratios, on the device of this process.

    Attributes:
        batches_per_epoch (`int`): of this process.
        origin (`dict`): what has to be the same when a run is resumed, by name.

    Args:
        dataset: map-style, see [`AspectRatioBatchSampler`].
        image_processor (`QueryPoseImageProcessor`): see [`PoseCollator`].
        config ([`TrainingConfig`]): the settings.
        accelerator (`Accelerator`): the run's.
    """

    def __init__(self, dataset: Any, image_processor: Any, config: TrainingConfig, accelerator: Accelerator):
        batch_sampler = AspectRatioBatchSampler(dataset, config.batch_size, seed=config.seed)
        if not len(batch_sampler):
            raise ValueError("`dataset` is empty; expected at least one image.")
        loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=PoseCollator(image_processor),
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=accelerator.device.type == "cuda",
            generator=_own_generator(config),
        )
        self.device = accelerator.device
        self._loader = accelerator.prepare_data_loader(loader, device_placement=False)
        self.batches_per_epoch = len(self._loader)
        self.origin: dict[str, Any] = {"number of images": len(dataset)}

    def batches(self, epoch: int, skipped: int) -> Iterator[dict[str, Any]]:
        """The batches of an epoch after the first `skipped`."""
        self._loader.set_epoch(epoch)
        loader = skip_first_batches(self._loader, skipped) if skipped else self._loader
        return (to_device(batch, self.device) for batch in loader)


class StreamLoader:
    """Endless batches of a stream on the device of this process.

    Batches mix aspect ratios, because sizes are not known in advance. Processes and their workers share the stream's
    shards; a process has no more workers than shards.

    Attributes:
        batches_per_epoch (`None`): a stream is one endless epoch.
        origin (`dict`): what has to be the same when a run is resumed, by name.

    Args:
        stream ([`AugmentedPoseStream`]): the whole stream.
        image_processor (`QueryPoseImageProcessor`): see [`PoseCollator`].
        config ([`TrainingConfig`]): the settings.
        accelerator (`Accelerator`): the run's.
    """

    def __init__(
        self, stream: AugmentedPoseStream, image_processor: Any, config: TrainingConfig, accelerator: Accelerator
    ):
        self.device = accelerator.device
        self.batch_size = config.batch_size
        self.stream = stream.for_process(accelerator.process_index, accelerator.num_processes)
        self.num_workers = min(config.num_workers, self.stream.num_shards)
        if self.num_workers < config.num_workers:
            logger.warning(
                "`num_workers` is %d, but the data has %d shards for this process: it gets %d workers.",
                config.num_workers,
                self.stream.num_shards,
                self.num_workers,
            )
        self._loader: DataLoader = DataLoader(
            self.stream,
            batch_size=config.batch_size,
            collate_fn=PoseCollator(image_processor),
            num_workers=self.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            generator=_own_generator(config),
        )
        self.batches_per_epoch = None
        # the order of samples depends on it
        self.origin: dict[str, Any] = {"number of workers": self.num_workers}

    def batches(self, epoch: int, skipped: int) -> Iterator[dict[str, Any]]:
        """The batches after the first `skipped`.

        The rows of skipped batches are read again, but most of their images are not decoded; see
        [`HubPoseStream.passes`].
        """
        # workers give batches in turn: each skips its whole rounds, the rest is read and dropped
        rounds, rest = divmod(skipped, max(1, self.num_workers))
        self.stream.skipped = rounds * self.batch_size
        for batch in itertools.islice(self._loader, rest, None):
            yield to_device(batch, self.device)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its images on the device.

    Labels stay on the host: the model checks them there, without waiting for the device, and joins those of all images
    before it moves them.
    """
    return send_to_device(batch, device, non_blocking=True, skip_keys=["labels"])


def build_loader(
    dataset: Any, image_processor: Any, config: TrainingConfig, accelerator: Accelerator
) -> EpochLoader | StreamLoader:
    """The loader of a map-style dataset or an [`AugmentedPoseStream`]; see there for the arguments."""
    kind = StreamLoader if isinstance(dataset, AugmentedPoseStream) else EpochLoader
    return kind(dataset, image_processor, config, accelerator)


def _own_generator(config: TrainingConfig) -> torch.Generator:
    # every pass through a loader draws a number, by default from torch's global generator
    return torch.Generator().manual_seed(config.seed)
