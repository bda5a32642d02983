"""Where the time of a run goes."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


#: The parts that grow with the number of images.
_OF_IMAGES = ("reading", "model", "writing")


@dataclass
class TimeSpent:
    """Seconds of this process's run, by part, and how many images it looked at.

    Reading is waiting for images, which others prepare while the model runs. Model is from images, or their pixels, to
    people. Results that an interrupted run left behind count nowhere.
    """

    images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Adds the block's time to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def reading(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; the time that each is waited for is reading."""
        with self.of("reading"):  # starts worker processes
            iterator = iter(batches)
        while True:
            with self.of("reading"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def as_dict(self) -> dict[str, Any]:
        """`images`, `images_per_second` of reading, model and writing, `total_seconds` and `seconds` by part."""
        looking = sum(self.seconds.get(part, 0.0) for part in _OF_IMAGES)
        return {
            "images": self.images,
            "images_per_second": round(self.images / looking, 3) if looking > 0 else 0.0,
            "total_seconds": round(time.perf_counter() - self.start, 3),
            "seconds": {part: round(seconds, 3) for part, seconds in self.seconds.items()},
        }


def describe_time(spent: dict[str, Any], noun: str = "images") -> str:
    """[`TimeSpent.as_dict`] in words: `400 images, 9.7 per second; of 45.1 s 88 % model, 5 % loading`."""
    total = spent["total_seconds"] or 1.0
    shares = sorted(((value / total, part) for part, value in spent["seconds"].items()), reverse=True)
    told = ", ".join(f"{100 * share:.0f} % {part}" for share, part in shares)
    return f"{spent['images']} {noun}, {spent['images_per_second']:.2f} per second; of {total:.1f} s {told}"
