"""Scores of checked results: a protocol's figures, precision-recall curves, the worst images."""

import importlib
import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .ground_truth import KeypointGroundTruth
from .protocols import BOX_METRICS, resolve_sigmas
from .score_threshold import ScoreThreshold, best_score_threshold


#: For each backend: the module and class here that drive it, its distribution, and how to install it.
_BACKENDS = {
    "pycocotools": ("pycocotools_scorer", "PycocotoolsScorer", "pycocotools", "querypose-hf[evaluation]"),
    "faster-coco-eval": ("faster_coco_eval_scorer", "FasterCocoEvalScorer", "faster-coco-eval", "faster-coco-eval"),
}

#: Groups of images by their least and greatest number of people; `None` is no limit.
PEOPLE_GROUPS: tuple[tuple[int, int | None], ...] = ((1, 1), (2, 2), (3, 4), (5, 9), (10, None))


class _Scorer(Protocol):
    def accumulate(self, image_ids: Collection[int] | None = None) -> tuple[np.ndarray, np.ndarray]: ...

    def matches(self) -> list[tuple[int, float]]: ...

    def results(self) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision at each level of recall and each OKS threshold, people of all sizes, the mean over categories.

    Attributes:
        thresholds (`np.ndarray`): (10,), OKS 0.50 to 0.95.
        recall (`np.ndarray`): (101,), 0 to 1.
        precision (`np.ndarray`): (10, 101); 0 at recalls that were not reached, NaN if there was nobody to find.
    """

    thresholds: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class PeopleGroup:
    """The images with a certain number of people to be found.

    Attributes:
        first (`int`), last (`int` or `None`): least and greatest number of people; `None` is no limit.
        images (`int`), people (`int`): how many of each there are.
        average_precision (`float` or `None`): AP on these images alone; `None` without any.
    """

    first: int
    last: int | None
    images: int
    people: int
    average_precision: float | None


@dataclass(frozen=True)
class ImageError:
    """How well the people of one image were found.

    Attributes:
        image_id (`int`), file_name (`str` or `None`): the image.
        people (`int`): people to be found.
        missed (`int`): those without a match at OKS 0.5.
        mean_oks (`float`): mean over the people of the OKS of their match; a missed one counts 0.
    """

    image_id: int
    file_name: str | None
    people: int
    missed: int
    mean_oks: float


@dataclass(frozen=True)
class KeypointEvaluation:
    """Keypoint scores; made by [`score_keypoints`].

    Attributes:
        metrics (`dict[str, float | None]`): the protocol's figures ([`KEYPOINT_METRICS`]) as fractions. `None` stands
            for pycocotools' -1: the annotations have nobody of that size or group.
        protocol (`dict`): how they were made, as it goes into `metrics.json`.
        ground_truth ([`KeypointGroundTruth`]): the annotations scored against.
        results (`Sequence[Mapping]`): the COCO results that were scored.
    """

    metrics: dict[str, float | None]
    protocol: dict[str, Any]
    ground_truth: KeypointGroundTruth = field(repr=False)
    results: Sequence[Mapping[str, Any]] = field(repr=False)
    _scorer: _Scorer = field(repr=False)

    def precision_recall(self) -> PrecisionRecall:
        """The precision-recall curves. AP is their mean."""
        precision, _ = self._scorer.accumulate()
        return PrecisionRecall(
            thresholds=np.linspace(0.5, 0.95, precision.shape[0]),
            recall=np.linspace(0, 1, precision.shape[1]),
            precision=_mean_over_categories(precision[:, :, :, 0, -1]),
        )

    def best_score_threshold(self) -> ScoreThreshold | None:
        """The score threshold with the best F1 at OKS 0.5; `None` if nobody is found."""
        return best_score_threshold(*self._scorer.results(), sum(self.ground_truth.people_per_image().values()))

    def average_precision_by_people(self) -> list[PeopleGroup]:
        """AP of the images with few and with many people, in the groups of [`PEOPLE_GROUPS`].

        Images without anybody to be found are in no group: results there lower the overall AP alone.
        """
        counts = self.ground_truth.people_per_image()
        rows = []
        for first, last in PEOPLE_GROUPS:
            chosen = [image for image, count in counts.items() if first <= count and (last is None or count <= last)]
            average_precision = _average_precision(self._scorer, chosen)
            rows.append(
                PeopleGroup(first, last, len(chosen), sum(counts[image] for image in chosen), average_precision)
            )
        return rows

    def worst_images(self, count: int = 20) -> list[ImageError]:
        """The images whose people were found worst: by mean OKS, then by the number missed.

        Args:
            count (`int`): how many images to return at most.
        """
        people = self.ground_truth.people_per_image()
        oks: dict[int, list[float]] = {image_id: [] for image_id in people}
        for image_id, value in self._scorer.matches():
            oks[image_id].append(value)
        errors = [
            ImageError(
                image_id=image["id"],
                file_name=image.get("file_name"),
                people=people[image["id"]],
                missed=people[image["id"]] - len(oks[image["id"]]),
                mean_oks=sum(oks[image["id"]]) / people[image["id"]],
            )
            for image in self.ground_truth.images
            if people[image["id"]] > 0
        ]
        return sorted(errors, key=lambda error: (error.mean_oks, -error.missed))[:count]


def score_keypoints(
    ground_truth: KeypointGroundTruth,
    results: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float] | None = None,
    backend: str = "pycocotools",
    progress: bool = True,
) -> KeypointEvaluation:
    """Scores keypoint results by the protocol that the ground truth was read for.

    Of each image the 20 results with the highest scores count. CrowdPose's own tool rounds `AP_easy`, `AP_medium` and
    `AP_hard` to four digits; here no figure is rounded.

    Args:
        ground_truth ([`KeypointGroundTruth`]): the annotations.
        results (`Sequence[Mapping]`): COCO results as [`read_coco_results`] returns them; those on images that the
            ground truth does not score are left out.
        sigmas (`Sequence[float]`, *optional*): OKS sigmas, one per keypoint; without them the protocol's own.
        backend (`str`): `"pycocotools"`, or `"faster-coco-eval"`, which gives the same figures.
        progress (`bool`): show a progress bar.

    Raises:
        ImportError: the backend is not installed.
        ValueError: the backend is unknown, or `sigmas` does not fit the annotations.

    Example:

    ```python
    >>> ground_truth = KeypointGroundTruth.read("annotations/person_keypoints_val2017.json")
    >>> results = read_coco_results(
    ...     "keypoints.json", ground_truth.num_keypoints, ground_truth.known_image_ids, ground_truth.category_ids
    ... )
    >>> score_keypoints(ground_truth, results).metrics["AP"]
    ```
    """
    protocol = ground_truth.protocol
    results = ground_truth.results_to_score(results)
    resolved = resolve_sigmas(ground_truth.metric, ground_truth.num_keypoints, sigmas)
    scorer = _scorer_class(backend)(ground_truth, results, "keypoints", resolved, protocol.size_ranges, progress)
    precision, recall = scorer.accumulate()
    metrics = {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[0, :, :, 0]),
        "AP75": _mean(precision[5, :, :, 0]),
        "AR": _mean(recall[:, :, 0]),
        "AR50": _mean(recall[0, :, 0]),
        "AR75": _mean(recall[5, :, 0]),
    }
    if protocol.size_ranges:
        for size, index in (("M", 1), ("L", 2)):
            metrics[f"AP{size}"] = _mean(precision[:, :, :, index])
            metrics[f"AR{size}"] = _mean(recall[:, :, index])
    for group, image_ids in ground_truth.image_groups.items():
        metrics[f"AP_{group}"] = _average_precision(scorer, image_ids)
    account = {
        "metric": ground_truth.metric,
        "images": len(ground_truth.images),
        "people": sum(ground_truth.people_per_image().values()),
        "results": len(results),
        "results_per_image": 20,
        "sigmas": resolved.tolist(),
        "area": _meaning_of_area(ground_truth),
        "backend": backend,
        "backend_version": importlib.metadata.version(_BACKENDS[backend][2]),
    }
    return KeypointEvaluation(
        {name: metrics[name] for name in protocol.figures}, account, ground_truth, results, scorer
    )


def _meaning_of_area(ground_truth: KeypointGroundTruth) -> str:
    if (ratio := ground_truth.protocol.box_area_ratio) is not None:
        return f"{ratio} * box width * box height"
    if (ratio := ground_truth.area_ratio) is not None:
        return f"annotation; where missing, {ratio} * box width * box height"
    return "annotation"


def score_boxes(
    ground_truth: KeypointGroundTruth,
    results: Sequence[Mapping[str, Any]],
    backend: str = "pycocotools",
    progress: bool = True,
) -> dict[str, float | None]:
    """Scores the boxes of the same results by COCO's box protocol; people without keypoints count, too.

    Args: as in [`score_keypoints`].

    Returns:
        `dict[str, float | None]`: [`BOX_METRICS`] as fractions, `None` where there is nothing to find.

    Raises:
        ImportError: the backend is not installed.
        ValueError: the backend is unknown, or the results have no `bbox`.
    """
    results = ground_truth.results_to_score(results)
    check_boxes(results)
    scorer = _scorer_class(backend)(ground_truth, results, "bbox", None, True, progress)
    precision, recall = scorer.accumulate()
    best = precision[..., -1]  # the 100 best of each image
    metrics = {"AP": _mean(best[:, :, :, 0]), "AP50": _mean(best[0, :, :, 0]), "AP75": _mean(best[5, :, :, 0])}
    for index, limit in enumerate((1, 10, 100)):
        metrics[f"AR{limit}"] = _mean(recall[:, :, 0, index])
    for index, size in enumerate("SML", start=1):
        metrics[f"AP{size}"] = _mean(best[:, :, :, index])
        metrics[f"AR{size}"] = _mean(recall[:, :, index, -1])
    return {name: metrics[name] for name in BOX_METRICS}


def check_boxes(results: Sequence[Mapping[str, Any]]) -> None:
    """Raises `ValueError` if the results have no boxes; all have them or none ([`read_coco_results`] checks that)."""
    if results and "bbox" not in results[0]:
        raise ValueError("results: `bbox` is missing; box AP needs x, y, width, height in every record")


def check_backend(backend: str) -> None:
    """Imports a scoring backend, so that a missing one is noticed before work starts.

    Raises:
        ImportError: it is not installed; the message tells how to install it.
        ValueError: there is no such backend.
    """
    _scorer_class(backend)


def _scorer_class(backend: str) -> Any:
    if backend not in _BACKENDS:
        raise ValueError(f"`backend` is {backend!r}; expected one of {', '.join(map(repr, _BACKENDS))}")
    module, name, distribution, requirement = _BACKENDS[backend]
    try:
        return getattr(importlib.import_module(f".{module}", __package__), name)
    except ImportError as error:
        raise ImportError(f"Scoring needs {distribution}; install it with `pip install {requirement}`") from error


def _mean(values: np.ndarray) -> float | None:
    present = values[values > -1]
    return float(present.mean()) if present.size else None


def _average_precision(scorer: _Scorer, image_ids: Collection[int]) -> float | None:
    return _mean(scorer.accumulate(image_ids)[0][:, :, :, 0]) if image_ids else None


def _mean_over_categories(values: np.ndarray) -> np.ndarray:
    present = values > -1
    total = np.where(present, values, 0).sum(axis=-1)
    return np.divide(total, present.sum(axis=-1), out=np.full(total.shape, np.nan), where=present.any(axis=-1))
