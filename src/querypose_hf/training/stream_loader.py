"""Batches of a streamed dataset for one training process."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from ..data import AugmentedPoseStream, PoseCollator
from .recipe import TrainingConfig


logger = logging.getLogger(__name__)


class StreamLoader:
    """Endless batches of a stream on the device of this process.

    Batches mix aspect ratios, because sizes are not known in advance. Processes and their workers share the stream's
    shards; a process has no more workers than shards.

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
            # of its own, because starting workers draws a number
            generator=torch.Generator().manual_seed(config.seed),
        )

    def batches_after(self, skipped: int) -> Iterator[dict[str, Any]]:
        """The batches that follow the first `skipped`, as a run that is resumed needs them.

        The rows of skipped batches are read again, their images in general not decoded; see [`HubPoseStream.passes`].
        """
        # workers give batches in turn: each skips as many, and what is more than whole rounds is read and dropped
        rounds, rest = divmod(skipped, max(1, self.num_workers))
        self.stream.skipped = rounds * self.batch_size
        for batch in itertools.islice(self._loader, rest, None):
            yield send_to_device(batch, self.device, non_blocking=True)
