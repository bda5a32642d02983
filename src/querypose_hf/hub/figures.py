"""A model's figures: those that the authors published, and those that `querypose evaluate` measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from ..files import read_json
from .options import MetricsFile


PAPER = "https://arxiv.org/abs/2212.07855"
ORIGINAL_CODE = "https://github.com/buptxyb666/QueryPose"
COCO, CROWDPOSE = "COCO val2017", "CrowdPose test"

#: Published AP in %, by variant and version, then by dataset: the paper's, and for light versions the repository's.
PUBLISHED_AP: dict[tuple[str, str], dict[str, float]] = {
    ("r50", "full"): {COCO: 68.7},
    ("hrnet_w32", "full"): {COCO: 72.4},
    ("hrnet_w32", "light"): {COCO: 69.8},
    ("hrnet_w48", "full"): {
        COCO: 73.6,
        "COCO test-dev": 72.3,
        CROWDPOSE: 72.1,
        "CrowdPose test, easy": 79.8,
        "CrowdPose test, medium": 73.3,
        "CrowdPose test, hard": 63.0,
    },
    ("hrnet_w48", "light"): {COCO: 71.0},
    ("swin_l", "full"): {
        COCO: 73.3,
        "COCO test-dev": 72.2,
        CROWDPOSE: 72.7,
        "CrowdPose test, easy": 79.5,
        "CrowdPose test, medium": 73.4,
        "CrowdPose test, hard": 65.4,
    },
}
#: Milliseconds per image of the full version, as the paper reports them; the authors' README says on an A100.
PUBLISHED_MILLISECONDS = {"r50": 70, "hrnet_w32": 100, "swin_l": 117, "hrnet_w48": 105}

DATASET_IDS = {COCO: "detection-datasets/coco", CROWDPOSE: "crowdpose"}
# the evaluation sets of the field, known by protocol and number of images
_KNOWN_SETS = {("coco", 5000): COCO, ("crowdpose", 8000): CROWDPOSE}


@dataclass(frozen=True)
class MeasuredFigures:
    """What `querypose evaluate` measured of a model.

    Attributes:
        dataset_name (`str`): the dataset, for readers.
        dataset_id (`str`): the same for the card's metadata: its id on the Hub if it has one.
        metrics (`dict[str, float]`): fractions by name, without those that are not defined on the dataset.
        protocol (`dict`): how they were measured, as `metrics.json` says it.
    """

    dataset_name: str
    dataset_id: str
    metrics: dict[str, float]
    protocol: dict[str, Any]

    @classmethod
    def read(cls, source: MetricsFile) -> "MeasuredFigures | None":
        """Reads a `metrics.json` of `querypose evaluate`; `None` if `source` names no file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a `metrics.json`, or its dataset is neither known nor named.
        """
        path = source.path
        if path is None:
            return None
        content = read_json(path)
        metrics = content.get("metrics") if isinstance(content, Mapping) else None
        if not isinstance(metrics, Mapping) or not isinstance(metrics.get("AP"), int | float):
            raise ValueError(
                f'{path}: expected what `querypose evaluate` writes, {{"metrics": {{"AP": number, ...}}, ...}}, '
                "with a number as AP."
            )
        figures = {str(name): value for name, value in metrics.items() if value is not None}
        for name, value in figures.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
                raise ValueError(f"{path}: `metrics` has {name} = {value!r}; expected a fraction from 0 to 1.")
        protocol = dict(content.get("protocol") or {})
        dataset = source.dataset_name or _KNOWN_SETS.get((str(protocol.get("metric")), protocol.get("images", 0)))
        if dataset is None:
            raise ValueError(
                f"{path}: {protocol.get('images', 'an unknown number of')} images were scored by the protocol "
                f"{protocol.get('metric', 'unknown')!r}; that is not a known dataset. Name it (`dataset_name`, "
                "--dataset-name)."
            )
        slug = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")
        dataset_id = source.dataset_id or DATASET_IDS.get(dataset, slug)
        return cls(dataset, dataset_id, {name: float(value) for name, value in figures.items()}, protocol)

    def as_eval_results(self) -> list[EvalResult]:
        """The figures in %, with one decimal, as entries of a card's `model-index`."""
        return [
            eval_result(self.dataset_id, self.dataset_name, name, 100 * value) for name, value in self.metrics.items()
        ]


def eval_result(dataset_id: str, dataset_name: str, metric: str, percent: float, **source: str) -> EvalResult:
    """One figure as an entry of a card's `model-index`."""
    return EvalResult(
        task_type="keypoint-detection",
        task_name="Multi-person pose estimation",
        dataset_type=dataset_id,
        dataset_name=dataset_name,
        metric_type=metric.lower(),
        metric_name=f"keypoint {metric}, %",
        metric_value=round(percent, 1),
        **source,  # type: ignore[arg-type]
    )


__all__ = ["PUBLISHED_AP", "PUBLISHED_MILLISECONDS", "MeasuredFigures", "eval_result"]
