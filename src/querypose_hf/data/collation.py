"""From samples to the model's inputs: batches of images with similar aspect ratios, and their collation."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from .epochs import check_epoch, check_seed
from .pose_dataset import image_sizes
from .sample import PoseSample


class PoseCollator:
    """Makes the model's inputs from a list of samples.

    Samples that augmentation has resized keep their size; the image processor resizes others. Each label also gets
    `exhaustive`, a boolean tensor: whether everybody in the image is annotated.

    Args:
        image_processor (`QueryPoseImageProcessor`): its `category_ids` and `num_keypoints` must be the data's. A batch
            without people does not tell them.

    Example:

    ```python
    >>> image_processor = QueryPoseImageProcessor(
    ...     category_ids=dataset.category_ids, num_keypoints=dataset.num_keypoints
    ... )
    >>> collator = PoseCollator(image_processor)
    >>> loader = DataLoader(dataset, batch_sampler=AspectRatioBatchSampler(dataset, 4), collate_fn=collator)
    >>> sorted(next(iter(loader)))
    ['labels', 'pixel_mask', 'pixel_values']
    ```
    """

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor

    def __call__(self, samples: Sequence[PoseSample]) -> dict[str, Any]:
        """Returns `pixel_values` (batch, 3, height, width), `pixel_mask` (batch, height, width) and `labels`, a list
        of one dict for each image.

        Raises:
            ValueError: there are no samples, or only some of them were resized.
        """
        if not samples:
            raise ValueError("there are no samples to collate.")
        resized = {bool(sample.get("resized", False)) for sample in samples}
        if len(resized) > 1:
            raise ValueError(
                "only some of the samples were resized by augmentation; expected all of a batch, or none: augment "
                "all joined sources, each with a `ResizeShortSide` among the steps."
            )
        # otherwise the image processor does what it is configured to do
        options = {"do_resize": False} if resized.pop() else {}
        batch = self.image_processor(
            images=[sample["image"] for sample in samples],
            annotations=[{"image_id": sample["image_id"], "annotations": sample["annotations"]} for sample in samples],
            return_tensors="pt",
            **options,
        )
        for label, sample in zip(batch["labels"], samples, strict=True):
            label["exhaustive"] = torch.tensor(bool(sample.get("exhaustive", True)))
        return dict(batch)


class AspectRatioBatchSampler(BatchSampler):
    """Batches of images that are all wider than tall, or all not, so that little of a batch is padding.

    The batches of an epoch depend on `seed` and the epoch alone. To resume at (epoch, batch), call `set_epoch` and
    skip batches, which reads no image: `accelerate.skip_first_batches(loader, batch)`. Accelerate's `prepare` shares
    the batches among processes.

    Images left over in the two groups at the end form mixed batches, so that none is lost.

    Args:
        dataset (`Dataset`): a dataset that [`image_sizes`] understands. It gets every [`set_epoch`] too.
        batch_size (`int`): images per batch; the last one may have fewer.
        shuffle (`bool`, *optional*, defaults to `True`): whether to shuffle.
        seed (`int`, *optional*, defaults to 0): not negative.

    Raises:
        ValueError: `batch_size` or `seed` is out of range, or the dataset does not tell its sizes.

    Example:

    ```python
    >>> loader = DataLoader(train, batch_sampler=AspectRatioBatchSampler(train, batch_size=16), collate_fn=collator)
    >>> for epoch in range(12):
    ...     loader.batch_sampler.set_epoch(epoch)
    ...     for batch in loader: ...
    ```
    """

    def __init__(self, dataset: Any, batch_size: int, *, shuffle: bool = True, seed: int = 0):
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size!r}; expected a whole number of at least 1.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = check_seed(seed)
        self.epoch = 0
        sizes = image_sizes(dataset)
        self._is_wide = sizes[:, 0] > sizes[:, 1]

    @property
    def sampler(self) -> "AspectRatioBatchSampler":  # type: ignore[override]
        """This object: Accelerate calls `set_epoch` on this attribute of the batch sampler that it wraps."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, here and in the dataset."""
        self.epoch = check_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self._is_wide) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        count = len(self._is_wide)
        order = np.random.default_rng((self.seed, self.epoch)).permutation(count) if self.shuffle else np.arange(count)
        groups: tuple[list[int], list[int]] = ([], [])
        for index, is_wide in zip(order.tolist(), self._is_wide[order].tolist(), strict=True):
            group = groups[is_wide]
            group.append(index)
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()
        rest = groups[0] + groups[1]
        for start in range(0, len(rest), self.batch_size):
            yield rest[start : start + self.batch_size]
