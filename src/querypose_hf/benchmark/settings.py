"""What a benchmark measures."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..settings import option, require


COMPARISONS = ("full", "plain", "keypoint-rcnn", "top-down")
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured.

    The first value of each list is the setting that everything is compared at. Each of the others is measured with the
    first ones of the other lists.

    Attributes:
        variant, light: see [`QueryPoseConfig.from_variant`]; not used where a model is given.
        people: people in the image. With random weights the keypoints of exactly so many queries are decoded, as they
            are where a trained model sees as many people.
        queries: numbers of instance queries; a model that is given has its own.
        image_sizes: heights and widths of the model's input, multiples of 32.
        batch_sizes: images per forward pass.
        rounds, full_rounds: how often each alternative is timed, and full decoding, which is slow.
        compare: some of `"full"` (every query decoded, in the same build), `"plain"` (every query decoded, nothing
            folded), `"keypoint-rcnn"` and `"top-down"`, see [`rivals`].
        exported: folders that `querypose export` wrote.
        compile: also time the model compiled by torch.
        training: also time a training step.
        device, dtype: where the model runs, and in which precision.
        num_threads: threads on the CPU; by default torch's choice.
        overrides: further fields of the configuration; not used where a model is given.
    """

    variant: str = "r50"
    light: bool = True
    people: tuple[int, ...] = option((8, 1, 2, 4, 20), "people in the image")
    queries: tuple[int, ...] = option((100, 300), "instance queries, with --variant")
    image_sizes: tuple[tuple[int, int], ...] = ((800, 1216), (480, 640))
    batch_sizes: tuple[int, ...] = option((1, 2), "images per forward pass")
    rounds: int = option(5, "how often each alternative is timed")
    full_rounds: int = option(3, "how often full decoding is timed, which is slow")
    compare: tuple[str, ...] = COMPARISONS
    exported: tuple[str, ...] = ()
    compile: bool = option(False, "also time the model compiled by torch")
    training: bool = option(False, "also time a training step, next to one that decodes every query")
    device: str = "cpu"
    dtype: Precision = option("float32", "precision")
    num_threads: int | None = option(None, "threads on the CPU", flag="--threads")
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("people", "queries", "batch_sizes"):
            values = getattr(self, name)
            require(self, name, len(values) > 0 and min(values) >= 1, "one or more numbers of at least 1")
        fewest = min(self.queries)
        require(self, "people", max(self.people) <= fewest, f"at most {fewest}, the queries")
        sides = [side for size in self.image_sizes for side in size]
        require(self, "image_sizes", bool(sides) and all(side >= 32 and side % 32 == 0 for side in sides), _SIZES)
        for name in ("rounds", "full_rounds"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "compare", set(self.compare) <= set(COMPARISONS), f"some of {', '.join(COMPARISONS)}")
        require(self, "dtype", self.dtype in get_args(Precision), f"one of {', '.join(get_args(Precision))}")


_SIZES = "one or more heights and widths, multiples of 32"
