"""What a benchmark measures."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..settings import option, require


COMPARISONS = ("full", "plain", "keypoint-rcnn", "top-down")
ENGINES = ("compile", "onnx", "openvino")
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured.

    The first value of each list is the setting that everything is compared at. [`measure_scaling`] measures each of
    the others with the first ones of the other lists.

    Attributes:
        variant, light: see [`QueryPoseConfig.from_variant`]; not used where a model is given.
        people: people in the image. With random weights the keypoints of exactly so many queries are decoded, as they
            are where a trained model sees as many people.
        queries: numbers of instance queries; a model that is given has its own.
        image_sizes: heights and widths of the model's input, multiples of 32.
        batch_sizes: images per forward pass.
        processes: that share a dataset; for scaling alone.
        rounds, full_rounds: how often each alternative is timed, and full decoding, which is slow.
        compare: some of `"full"` (every query decoded, in the same build), `"plain"` (every query decoded, nothing
            folded), `"keypoint-rcnn"` and `"top-down"`, see [`rivals`].
        engines: some of `"compile"` (torch's compiler), `"onnx"` and `"openvino"`, for which the model is exported.
        training: also time a training step, and a short fine-tuning by parts.
        device, dtype: where the model runs, and in which precision.
        num_threads: threads on the CPU, by default torch's choice. Engines are compared at each number, everything
            else is measured with the first.
        overrides: further fields of the configuration; not used where a model is given.
    """

    variant: str = "r50"
    light: bool = True
    people: tuple[int, ...] = option((8, 1, 20, 100), "people in the image")
    queries: tuple[int, ...] = option((100, 50, 300, 900), "instance queries, with --variant")
    image_sizes: tuple[tuple[int, int], ...] = ((800, 1216), (224, 320), (448, 640), (1344, 2016))
    batch_sizes: tuple[int, ...] = option((1, 8), "images per forward pass")
    processes: tuple[int, ...] = option((1, 2), "processes that share a dataset, with --scaling")
    rounds: int = option(5, "how often each alternative is timed")
    full_rounds: int = option(3, "how often full decoding is timed, which is slow")
    compare: tuple[str, ...] = COMPARISONS
    engines: tuple[str, ...] = ()
    training: bool = option(
        False, "also time a training step, side by side with plainer ones, and a short fine-tuning by parts"
    )
    device: str = "cpu"
    dtype: Precision = option("float32", "precision")
    num_threads: tuple[int, ...] = option((), "threads on the CPU; engines are compared at each", flag="--threads")
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def variant_name(self) -> str:
        """Such as "r50 light"."""
        return f"{self.variant} light" if self.light else self.variant

    def __post_init__(self) -> None:
        for name in ("people", "queries", "batch_sizes", "processes"):
            values = getattr(self, name)
            require(self, name, len(values) > 0 and min(values) >= 1, "one or more numbers of at least 1")
        # the first of each list goes with all of the other
        fits = max(self.people) <= self.queries[0] and self.people[0] <= min(self.queries)
        require(self, "people", fits, f"at most as many as the queries, {self.queries}")
        sides = [side for size in self.image_sizes for side in size]
        require(self, "image_sizes", bool(sides) and all(side >= 32 and side % 32 == 0 for side in sides), _SIZES)
        for name in ("rounds", "full_rounds"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "compare", set(self.compare) <= set(COMPARISONS), f"some of {', '.join(COMPARISONS)}")
        require(self, "dtype", self.dtype in get_args(Precision), f"one of {', '.join(get_args(Precision))}")
        require(self, "engines", set(self.engines) <= set(ENGINES), f"some of {', '.join(ENGINES)}")
        exact = self.dtype == "float32" and self.device == "cpu"
        require(self, "engines", exact or set(self.engines) <= {"compile"}, "'compile' alone, but on a CPU in float32")
        require(self, "num_threads", not self.num_threads or min(self.num_threads) >= 1, "numbers of at least 1")


_SIZES = "one or more heights and widths, multiples of 32"
