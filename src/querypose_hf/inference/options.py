"""Options of finding people, which the command line and Python share. Nothing here needs torch."""

from dataclasses import dataclass

from ..settings import option, require


#: The lowest score threshold that the demo's slider allows.
LOWEST_THRESHOLD = 0.05


@dataclass(frozen=True)
class VideoOptions:
    """How people are found in a video.

    Attributes:
        threshold (`float`, *optional*): people with a higher score are reported; by default the image processor's
            `score_threshold`.
        top_k (`int`, *optional*): at most so many people per frame.
        track (`bool`): whether to follow people from frame to frame.
        max_frames (`int`, *optional*): stop after so many frames.
        batch_size (`int`): frames per forward pass; a live stream is always looked at frame by frame.
    """

    threshold: float | None = None
    top_k: int | None = None
    track: bool = option(True, "do not follow people from frame to frame")
    max_frames: int | None = option(None, "stop each video after so many frames", metavar="N")
    batch_size: int = 1

    def __post_init__(self) -> None:
        require(self, "max_frames", self.max_frames is None or self.max_frames >= 1, "at least 1")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")


@dataclass(frozen=True)
class BulkOptions:
    """How the people of a dataset are found.

    Attributes:
        threshold (`float`, *optional*): people with a higher score are reported; by default the image processor's
            `score_threshold`.
        top_k (`int`, *optional*): at most so many people per image.
        batch_size (`int`): images per forward pass.
        rows_per_shard (`int`): images per file; a kill costs at most so many.
        strict (`bool`): raise an error at the first image that cannot be read.
    """

    threshold: float | None = None
    top_k: int | None = None
    batch_size: int = 8
    rows_per_shard: int = option(1024, "images per file")
    strict: bool = False

    def __post_init__(self) -> None:
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(self, "rows_per_shard", self.rows_per_shard >= 1, "at least 1")


@dataclass(frozen=True)
class DemoOptions:
    """What the page starts with.

    Attributes:
        threshold (`float`, *optional*): where the slider stands in the beginning; by default at the image processor's
            `score_threshold`.
        max_frames (`int`): how many frames of a video are looked at.
    """

    threshold: float | None = None
    max_frames: int = option(300, "frames of a video to look at")

    def __post_init__(self) -> None:
        in_range = self.threshold is None or LOWEST_THRESHOLD <= self.threshold <= 1
        require(self, "threshold", in_range, f"a number from {LOWEST_THRESHOLD} to 1")
        require(self, "max_frames", self.max_frames >= 1, "at least 1")
