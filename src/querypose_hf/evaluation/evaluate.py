"""From a file of annotations and a file of predictions to `metrics.json`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_json
from .coco_results import read_coco_results, write_coco_results
from .ground_truth import KeypointGroundTruth
from .protocols import resolve_sigmas
from .scoring import check_backend, check_boxes, score_boxes, score_keypoints


def evaluate_predictions(
    annotations: str | os.PathLike | Mapping[str, Any],
    predictions: str | os.PathLike | Sequence[Mapping[str, Any]],
    metric: str = "coco",
    sigmas: Sequence[float] | None = None,
    output_dir: str | os.PathLike | None = None,
    image_ids: Iterable[int] | None = None,
    boxes: bool = False,
    backend: str = "pycocotools",
    progress: bool = True,
    verbose: bool = False,
) -> dict[str, Any]:
    """Scores COCO keypoint results against annotations.

    Args:
        annotations: a COCO keypoints JSON file, or what one holds. Nothing in it is changed.
        predictions: COCO keypoint results, a JSON file or a list.
        metric (`str`): `"coco"`, or `"crowdpose"` for the protocol of CrowdPose's own tool.
        sigmas (`Sequence[float]`, *optional*): OKS sigmas, one per keypoint; needed for any skeleton but the
            protocol's own.
        output_dir (`str` or `os.PathLike`, *optional*): where to write `metrics.json`, what this function returns, and
            `keypoints.json`, the results that were scored.
        image_ids (`Iterable`, *optional*): score these images only; results on others are left out.
        boxes (`bool`): also score the boxes by COCO's box protocol, under `box_metrics`.
        backend (`str`): `"pycocotools"` or `"faster-coco-eval"`.
        progress (`bool`): show a progress bar.
        verbose (`bool`): let the backend print.

    Returns:
        `dict`: `metrics`, the figures as fractions (`None`, in the file `null`, where the annotations have nobody of
        that size or group); `box_metrics` with `boxes`; `protocol`: the metric, the numbers of images, people and
        results, the sigmas, the area that OKS divides by, and the backend with its version.

    Raises:
        FileNotFoundError: a file does not exist.
        ImportError: the backend is not installed.
        ValueError: something in the input is wrong; the message names file, record, field and value.

    Example:

    ```python
    >>> from querypose_hf.evaluation import evaluate_predictions
    >>> report = evaluate_predictions("crowdpose_test.json", "keypoints.json", metric="crowdpose", output_dir="scores")
    >>> report["metrics"]["AP_hard"]
    ```
    """
    check_backend(backend)
    if output_dir is not None and Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise ValueError(f"`output_dir` is {os.fspath(output_dir)!r}, which is a file; expected a folder")
    ground_truth = KeypointGroundTruth.read(annotations, metric, image_ids)
    resolve_sigmas(metric, ground_truth.num_keypoints, sigmas)
    results = read_coco_results(
        predictions, ground_truth.num_keypoints, ground_truth.known_image_ids, ground_truth.category_ids
    )
    results = ground_truth.results_to_score(results)
    if boxes:
        check_boxes(results)

    evaluation = score_keypoints(ground_truth, results, sigmas, backend, progress, verbose)
    report: dict[str, Any] = {"metrics": evaluation.metrics}
    if boxes:
        report["box_metrics"] = score_boxes(ground_truth, results, backend, progress, verbose)
    report["protocol"] = evaluation.protocol
    if output_dir is not None:
        write_coco_results(results, Path(output_dir) / "keypoints.json")
        write_json(report, Path(output_dir) / "metrics.json", indent=2)
    return report
