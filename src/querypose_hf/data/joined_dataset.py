"""Several sources joined into one dataset, each weighted by a number of repeats."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .epochs import check_epoch, check_seed, shared_number
from .generated import GeneratedPeople
from .pose_dataset import image_sizes
from .sample import PoseSample


class JoinedPoseDataset(Dataset[PoseSample]):
    """Sources of samples, joined into one dataset with a fixed number of samples per epoch.

    A source of n images with the repeat r gives about r n samples per epoch. They come in passes over all its images
    in random order, and passes continue from epoch to epoch: with r = 0.5 every image comes once in two epochs, with
    r = 2 twice in each. An index that holds a wide image holds a wide one in every epoch, so that batches can be made
    by aspect ratio from [`sizes`].

    The sample at an index depends on `seed`, the epoch and the index alone.

    Args:
        sources (`Sequence[Dataset]`): map-style, of a known length, and with sizes as [`image_sizes`] understands
            them. [`GeneratedPeople`] draws new people in every pass.
        repeats (`Sequence[float]`, *optional*): how often the images of each source come in an epoch; by default once.
        category_ids (`Sequence[Sequence[int]]`, *optional*): for each source its category ids in the order of the
            model's classes. All samples get the first source's ids. By default ids stay as they are.
        seed (`int`, *optional*, defaults to 0): not negative.

    Raises:
        ValueError: the lists differ in length, a repeat is not above 0, or a source is empty.

    Example:

    ```python
    >>> joined = JoinedPoseDataset([photographs, GeneratedPeople(5000)], repeats=[2, 0.5])
    >>> train = AugmentedPoseDataset(joined, PoseAugmentation.from_recipe(COCO_17.flip_indices))
    ```
    """

    def __init__(
        self,
        sources: Sequence[Any],
        repeats: Sequence[float] | None = None,
        *,
        category_ids: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ):
        repeats = [1.0] * len(sources) if repeats is None else list(repeats)
        if not sources or len(repeats) != len(sources):
            raise ValueError(
                f"there are {len(sources)} `sources` and {len(repeats)} `repeats`; expected at least one, and as many."
            )
        if category_ids is not None and len({len(ids) for ids in category_ids}) != 1:
            raise ValueError(f"`category_ids` is {category_ids!r}; expected as many categories of every source.")
        self.sources = tuple(sources)
        self.seed = check_seed(seed)
        self._categories = None
        if category_ids is not None:
            self._categories = [dict(zip(ids, category_ids[0], strict=True)) for ids in category_ids]
        # the source, its wide or its other images, and how many samples these give per epoch
        self._groups: list[tuple[int, np.ndarray, int]] = []
        for number, (source, repeat) in enumerate(zip(self.sources, repeats, strict=True)):
            if not repeat > 0:
                raise ValueError(f"`repeats[{number}]` is {repeat!r}; expected a number above 0.")
            sizes = image_sizes(source)
            if not len(sizes):
                raise ValueError(f"source {number} is empty; expected at least one image.")
            is_wide = sizes[:, 0] > sizes[:, 1]
            for rows in (np.flatnonzero(is_wide), np.flatnonzero(~is_wide)):
                if len(rows):  # at least 1, so that every image is seen at some time
                    self._groups.append((number, rows, max(1, round(repeat * len(rows)))))
        self._ends = np.cumsum([count for _, _, count in self._groups])
        self._epoch = shared_number()
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> PoseSample:
        index = range(len(self))[index]
        group = int(np.searchsorted(self._ends, index, side="right"))
        number, rows, count = self._groups[group]
        place = int(self._epoch) * count + index - (int(self._ends[group]) - count)
        run, position = divmod(place, len(rows))
        row = int(rows[self._order(group, run)[position]])
        source = self.sources[number]
        sample = source.in_epoch(run, row) if isinstance(source, GeneratedPeople) else source[row]
        if self._categories is None:
            return sample
        names = self._categories[number]
        annotations = [{**item, "category_id": names[item["category_id"]]} for item in sample["annotations"]]
        return {**sample, "annotations": annotations}

    def _order(self, group: int, run: int) -> np.ndarray:
        key = (group, run)
        if key not in self._orders:
            if len(self._orders) > 4 * len(self._groups):  # most are of earlier epochs
                self._orders.clear()
            self._orders[key] = np.random.default_rng((self.seed, group, run)).permutation(len(self._groups[group][1]))
        return self._orders[key]

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) int64: width and height of an image with the same longer side as the one at each index."""
        parts = []
        for number, rows, count in self._groups:
            parts.append(image_sizes(self.sources[number])[np.resize(rows, count)])
        return np.concatenate(parts)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, in running worker processes too. Call it before iterating over the loader."""
        self._epoch.fill_(check_epoch(epoch))
