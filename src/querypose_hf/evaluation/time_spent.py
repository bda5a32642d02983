"""Where the time of an evaluation goes."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


#: What is timed, in order.
PARTS = ("loading", "reading", "model", "scoring")


@dataclass
class TimeSpent:
    """Seconds of this process's run, by part, and how many images it looked at.

    Reading is waiting for images, which worker processes prepare while the model runs. Model is from their pixels to
    people. Results that an interrupted run left behind count nowhere.
    """

    images: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Adds the block's time to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def reading(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; the time that each is waited for is reading."""
        iterator = iter(batches)
        while True:
            with self.of("reading"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def as_dict(self) -> dict[str, Any]:
        """`images`, `images_per_second`, of reading and model, and `seconds` by part."""
        looking = self.seconds["reading"] + self.seconds["model"]
        return {
            "images": self.images,
            "images_per_second": round(self.images / looking, 3) if looking > 0 else 0.0,
            "seconds": {part: round(seconds, 3) for part, seconds in self.seconds.items()},
        }


def describe_time(spent: dict[str, Any]) -> str:
    """[`TimeSpent.as_dict`] in words: `400 images, 9.7 per second; of 45.1 s 88 % model, 5 % loading`."""
    seconds = spent["seconds"]
    total = sum(seconds.values()) or 1.0
    shares = sorted(((value / total, part) for part, value in seconds.items()), reverse=True)
    told = ", ".join(f"{100 * share:.0f} % {part}" for share, part in shares)
    return f"{spent['images']} images, {spent['images_per_second']:.2f} per second; of {total:.1f} s {told}"
