"""The options of `querypose evaluate`, by subject; YAML, command line and Python read the same ones."""

from dataclasses import dataclass
from typing import Any, Literal

from ..checks import is_finite_number
from ..settings import option, require
from .protocols import Metric


@dataclass(frozen=True)
class PredictionOptions:
    """How a model finds the people of many images.

    Args:
        batch_size (`int`): images per forward pass.
        top_k (`int`): people kept per image, the best ones, whatever their score.
        flip_test (`bool`): find people in the mirrored image, too, and merge; see [`merge_views`].
        scales (`tuple[float, ...]`, *optional*): find people at each of these factors of the image processor's `size`,
            such as `(0.75, 1, 1.25)`, and merge.
        num_workers (`int`): processes that read images ahead; 0 reads them in this process.
        device (`str`, *optional*): by default the accelerator, one for each process, else the CPU; a model that is
            passed in stays where it is.
        dtype (`str`, *optional*): by default float32, in which the paper's figures were measured; `auto`: see
            [`choose_dtype`]; a model that is passed in stays as it is.

    Raises:
        ValueError: a value is out of range.
    """

    batch_size: int = option(8, "images per forward pass")
    top_k: int = option(20, "people kept per image")
    flip_test: bool = option(False, "merge with the people of the mirrored image")
    scales: tuple[float, ...] | None = option(None, "merge the people found at these factors of the size", metavar="X")
    num_workers: int = option(2, "processes that read images ahead", flag="--workers")
    device: str | None = option(None, "such as cpu or cuda:0; the first accelerator by default")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = option(
        None, "float32 by default; auto is bfloat16 where it is fast and the sample photograph's people stay the same"
    )

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("top_k", 1), ("num_workers", 0)):
            require(self, name, _is_count(getattr(self, name), least), f"a whole number of at least {least}")
        if self.scales is not None:
            numbers = len(self.scales) > 0 and all(is_finite_number(scale) and scale > 0 for scale in self.scales)
            require(self, "scales", numbers, "one or more numbers above 0")


@dataclass(frozen=True)
class ScoringOptions:
    """How results are scored against annotations.

    Args:
        metric (`str`): one of [`PROTOCOLS`].
        sigmas (`tuple[float, ...]`, *optional*): OKS sigmas, one per keypoint. By default the protocol's; the model's
            own if a model is scored whose keypoints are other ones than the protocol's.
        boxes (`bool`): score the boxes, too, by COCO's box protocol.
        backend (`str`): the package that matches results with annotations.
        image_ids (`tuple[int, ...]`, *optional*): score these images only; results on others are left out.
        category_ids (`tuple[int, ...]`, *optional*): score these categories only; by default those that name
            keypoints. Results of others are left out.
        area_ratio (`float`, *optional*): share of the box's area that stands in for an annotation's missing `area`.

    Raises:
        ValueError: a value is out of range.
    """

    metric: Metric = option("coco", "protocol")
    sigmas: tuple[float, ...] | None = option(
        None, "OKS sigmas of another skeleton than the protocol's, one per keypoint", metavar="X"
    )
    boxes: bool = option(False, "score the boxes, too")
    backend: Literal["pycocotools", "faster-coco-eval"] = option("pycocotools", "package that scores")
    image_ids: tuple[int, ...] | None = None
    category_ids: tuple[int, ...] | None = option(
        None, "score these categories only; by default those that name keypoints", flag="--category", metavar="ID"
    )
    area_ratio: float | None = option(None, "share of the box's area that stands in for a missing `area`", metavar="X")

    def __post_init__(self) -> None:
        check_area_ratio(self)


@dataclass(frozen=True)
class ReportOptions:
    """The report of a scoring run.

    Args:
        write (`bool`): write `report.html` and `report.json`.
        worst_images (`int`): how many of the images whose people were found worst are named and shown.

    Raises:
        ValueError: a value is out of range.
    """

    write: bool = option(True, "do not write report.html and report.json", flag="--no-report")
    worst_images: int = option(12, "images shown whose people were found worst")

    def __post_init__(self) -> None:
        require(self, "worst_images", _is_count(self.worst_images, 0), "a whole number of at least 0")


def check_area_ratio(settings: Any) -> None:
    """Raises `ValueError` unless `area_ratio` is above 0 or not given."""
    ratio = settings.area_ratio
    require(settings, "area_ratio", ratio is None or (is_finite_number(ratio) and ratio > 0), "a number above 0")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
