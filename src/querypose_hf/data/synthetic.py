"""Pictures of made-up people with exact keypoints, as many as one likes: a source of training data without downloads.

People are articulated bodies with volume, skin, clothes, hair and faces, drawn in front of random backgrounds, with
depth order, things in the way and the traces of a camera. Their poses and places come from a built-in prior or from
the keypoints of real people in a file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .synthetic_arrangements import arrange, arrangement_from_layout
from .synthetic_layouts import read_layouts
from .synthetic_scene import render


_DEFAULT_SIZE = (640, 480)


class SyntheticPeople(Dataset):
    """Rendered people with COCO annotations, made on demand.

    Sample i depends on `seed`, i and the other arguments alone, whatever the process and the order of access. Without
    a `length` there is a sample for every non-negative integer; [`SyntheticPeopleStream`] runs through them.

    Args:
        seed (`int`, *optional*, defaults to 0): non-negative.
        size (`tuple[int, int]`, *optional*): width and height of the pictures in pixels. By default 640 x 480 with the
            built-in prior, and each layout's own size with `layouts`.
        layouts (`str` or `Path`, *optional*): a COCO keypoints JSON or an `.npz` of compact arrays to take poses and
            places from, see [`~data.synthetic_layouts.read_layouts`]. Every layout is drawn once before any comes
            again. Keypoints keep the given coordinates and those not labelled stay so; whether one is visible or
            hidden (2 or 1) follows from the rendered picture. By default, the built-in prior.
        people (`tuple[int, int]`, *optional*, defaults to (1, 4)): smallest and largest number of people per picture
            of the built-in prior.
        length (`int`, *optional*): how many samples there are; by default endlessly many.

    A sample is `{"image": PIL.Image.Image, "image_id": int, "annotations": list[dict]}` with COCO's annotations:
    `bbox` (x, y, width, height) encloses the drawn silhouette inside the picture, `area` counts its visible pixels,
    `keypoints` holds 17 times x, y (pixel indices) and visibility: 2 seen, 1 inside the picture but hidden, 0 outside.
    People of whom hardly anything is seen are left out.

    Example:

    ```python
    >>> people = SyntheticPeople(seed=7, size=(384, 384), length=1000)
    >>> sample = people[3]
    >>> sample["image"].size
    (384, 384)
    ```
    """

    def __init__(
        self,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        layouts: str | Path | None = None,
        people: tuple[int, int] = (1, 4),
        length: int | None = None,
    ):
        if not _is_integer(seed) or seed < 0:
            raise ValueError(f"`seed` must be a non-negative integer, got {seed!r}")
        if size is not None and not (_are_two_integers(size) and min(size) >= 16):
            raise ValueError(f"`size` must be a width and a height of at least 16 pixels, got {size!r}")
        if not (_are_two_integers(people) and 1 <= people[0] <= people[1]):
            raise ValueError(f"`people` must be a smallest and a largest number, 1 or more, got {people!r}")
        if length is not None and (not _is_integer(length) or length < 1):
            raise ValueError(f"`length` must be a positive integer or None, got {length!r}")
        self.seed = int(seed)
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.people = (int(people[0]), int(people[1]))
        self.length = None if length is None else int(length)
        self.layouts = None if layouts is None else read_layouts(layouts)
        self._order = None if self.layouts is None else np.random.default_rng(self.seed).permutation(len(self.layouts))

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("SyntheticPeople without a `length` has no end: give one, or use SyntheticPeopleStream")
        return self.length

    def sizes(self, count: int) -> np.ndarray:
        """(count, 2) int64: width and height of the first pictures, in pixels, without rendering them."""
        if self.layouts is None or self._order is None or self.size is not None:
            return np.tile(np.array(self.size or _DEFAULT_SIZE, dtype=np.int64), (count, 1))
        return self.layouts.size[np.resize(self._order, count)].astype(np.int64)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if index < 0 or (self.length is not None and index >= self.length):
            raise IndexError(f"sample {index} does not exist: expected 0 <= index < {self.length or 'infinity'}")
        rng = np.random.default_rng((self.seed, index))
        if self.layouts is None or self._order is None:
            size = self.size or _DEFAULT_SIZE
            arrangement = arrange(rng, size, self.people)
        else:
            layout = int(self._order[index % len(self._order)])
            arrangement, size = arrangement_from_layout(rng, self.layouts, layout, self.size)
        image, annotations = render(rng, arrangement, size)
        for position, annotation in enumerate(annotations):
            annotation.update(id=index * 1000 + position, image_id=index)
        return {"image": image, "image_id": index, "annotations": annotations}


class SyntheticPeopleStream(IterableDataset):
    """Runs through the samples of [`SyntheticPeople`], without end if it has none, shared out among loader workers.

    Args:
        source ([`SyntheticPeople`]): where samples come from.
        start (`int`, *optional*, defaults to 0): the first sample; a resumed run starts where the last one ended.
        step (`int`, *optional*, defaults to 1): the distance from one sample to the next; process r of n reads its own
            share with `start=r, step=n`.

    Example:

    ```python
    >>> stream = SyntheticPeopleStream(SyntheticPeople(seed=7))
    >>> loader = torch.utils.data.DataLoader(stream, batch_size=4, num_workers=2, collate_fn=list)
    ```
    """

    def __init__(self, source: SyntheticPeople, start: int = 0, step: int = 1):
        if not _is_integer(start) or start < 0:
            raise ValueError(f"`start` must be a non-negative integer, got {start!r}")
        if not _is_integer(step) or step < 1:
            raise ValueError(f"`step` must be a positive integer, got {step!r}")
        self.source = source
        self.start = int(start)
        self.step = int(step)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        index = self.start + number * self.step
        while self.source.length is None or index < self.source.length:
            yield self.source[index]
            index += self.step * workers


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _are_two_integers(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_integer, value))
