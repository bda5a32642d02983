"""From annotations and results, or a model, to figures: `metrics.json`, `keypoints.json` and the report."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import write_json
from ..inference.loading import load_model
from ..processes import rank
from .coco_results import read_coco_results, write_coco_results
from .ground_truth import KeypointGroundTruth
from .image_list import ImageList
from .options import PredictionOptions, ReportOptions, ScoringOptions
from .partial_results import PartialResults
from .prediction import check_model, predict_dataset
from .protocols import resolve_sigmas
from .report import write_report
from .scoring import KeypointEvaluation, check_backend, check_boxes, score_boxes, score_keypoints
from .time_spent import TimeSpent


logger = logging.getLogger(__name__)

#: What COCO's evaluation server expects of the results on test-dev: this name, and no other fields than these.
TEST_DEV_FILE = "person_keypoints_test-dev2017_querypose_results.json"
TEST_DEV_FIELDS = ("image_id", "category_id", "keypoints", "score")


def evaluate_predictions(
    annotations: str | os.PathLike | Mapping[str, Any],
    predictions: str | os.PathLike | Sequence[Mapping[str, Any]],
    output_dir: str | os.PathLike | None = None,
    scoring: ScoringOptions = ScoringOptions(),
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores COCO keypoint results against annotations.

    Args:
        annotations: a COCO keypoints JSON file, or what one holds. Nothing in it is changed.
        predictions: COCO keypoint results, a JSON file or a list.
        output_dir (`str` or `os.PathLike`, *optional*): where to write `metrics.json`, what this function returns, and
            `keypoints.json`, the results that were scored.
        scoring ([`ScoringOptions`]): how results are scored. `sigmas` are needed for any skeleton but the protocol's.
        progress (`bool`): show a progress bar.

    Returns:
        `dict`: `metrics`, the figures as fractions (`None`, in the file `null`, where the annotations have nobody of
        that size or group); `box_metrics` with `boxes`; `score_threshold`, the threshold with the best F1 at OKS 0.5
        (`value`, `f1`, `precision`, `recall`; `None` if nobody is found); `protocol`: the metric, the numbers of
        images, people and results, the sigmas, the area that OKS divides by, and the backend with its version.

    Raises:
        FileNotFoundError: a file does not exist.
        ImportError: the backend is not installed.
        ValueError: something in the input is wrong; the message names file, record, field and value.

    Example:

    ```python
    >>> from querypose_hf.evaluation import ScoringOptions, evaluate_predictions
    >>> scoring = ScoringOptions(metric="crowdpose")
    >>> figures = evaluate_predictions("crowdpose_test.json", "keypoints.json", "scores", scoring)
    >>> figures["metrics"]["AP_hard"]
    ```
    """
    _require_folder(output_dir)
    check_backend(scoring.backend)
    ground_truth = _read_ground_truth(annotations, scoring)
    resolve_sigmas(scoring.metric, ground_truth.num_keypoints, scoring.sigmas)
    results = read_coco_results(
        predictions,
        ground_truth.num_keypoints,
        ground_truth.known_image_ids,
        ground_truth.known_category_ids,
        scored_category_ids=ground_truth.category_ids,
    )
    results = ground_truth.results_to_score(results)
    if scoring.boxes:
        check_boxes(results)
    _, figures = _score(ground_truth, results, scoring, progress)
    if output_dir is not None:
        write_coco_results(results, Path(output_dir) / "keypoints.json")
        write_json(figures, Path(output_dir) / "metrics.json", indent=2)
    return figures


def evaluate_model(
    model: str | os.PathLike | torch.nn.Module,
    annotations: str | os.PathLike | Mapping[str, Any],
    images_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    prediction: PredictionOptions = PredictionOptions(),
    scoring: ScoringOptions = ScoringOptions(),
    report: ReportOptions = ReportOptions(),
    *,
    image_processor: Any = None,
    strict: bool = True,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Finds the people of all images of an annotation file and scores them.

    Writes `metrics.json` and `keypoints.json` as [`evaluate_predictions`] does, and `report.html` and `report.json`
    ([`write_report`]). Until then finished images are kept in `predictions.part*.jsonl`: an interrupted run that is
    started again takes up from there. Under `torchrun` or `accelerate launch` the processes share the images.

    Args:
        model, images_dir, prediction, image_processor: see [`predict_dataset`].
        annotations: a COCO keypoints JSON file, or what one holds.
        output_dir (`str` or `os.PathLike`): the folder to write to.
        scoring ([`ScoringOptions`]): how the people found are scored.
        report ([`ReportOptions`]): whether to write the report, and what it shows.
        strict (`bool`): raise an error at an image that is missing, broken or of an unexpected size. Where `False`,
            nobody is found in it, so that its people count as missed, and `prediction` has it in `skipped_images`.
        progress (`bool`): show progress bars.

    Returns:
        `dict` or `None`: what `metrics.json` holds: what [`evaluate_predictions`] returns, `prediction`, how the
        people were found, and `time`, where that of the first process went ([`TimeSpent`]). In all processes but the
        first `None`.

    Raises:
        FileNotFoundError, ImportError, ValueError: as [`predict_dataset`] and [`evaluate_predictions`] raise them,
            before the first forward pass.

    Example:

    ```python
    >>> figures = evaluate_model("path/to/checkpoint", "person_keypoints_val2017.json", "val2017", "scores")
    >>> figures["metrics"]["AP"]
    ```
    """
    folder, spent = Path(output_dir), TimeSpent()
    _require_folder(output_dir)
    with spent.of("loading"):
        check_backend(scoring.backend)
        ground_truth = _read_ground_truth(annotations, scoring)
        loaded, image_processor = load_model(model, image_processor, prediction.device, prediction.dtype)
        check_model(loaded, image_processor, ground_truth, prediction)
    skeleton = loaded.config.skeleton
    sigmas = resolve_sigmas(scoring.metric, ground_truth.num_keypoints, scoring.sigmas, skeleton)
    skipped: dict[int, str] | None = None if strict else {}
    results = predict_dataset(
        loaded,
        ground_truth,
        images_dir,
        _as_loaded(prediction),
        image_processor=image_processor,
        output_dir=output_dir,
        skipped=skipped,
        spent=spent,
        progress=progress,
    )
    if rank() > 0:
        return None
    scoring = dataclasses.replace(scoring, sigmas=tuple(sigmas.tolist()))
    with spent.of("scoring"):
        evaluation, figures = _score(ground_truth, results, scoring, progress)
    figures["prediction"] = _how_predicted(model, loaded, prediction, skipped)
    with spent.of("report"):
        write_coco_results(results, folder / "keypoints.json")
        if report.write:
            write_report(
                evaluation,
                folder,
                report,
                images_dir=images_dir,
                skeleton=skeleton,
                box_metrics=figures.get("box_metrics"),
                details=figures["prediction"],
                progress=progress,
            )
    figures["time"] = spent.as_dict()
    write_json(figures, folder / "metrics.json", indent=2)
    PartialResults(folder, {}).remove()
    return figures


def predict_test_dev(
    model: str | os.PathLike | torch.nn.Module,
    images: str | os.PathLike | Mapping[str, Any] | ImageList,
    images_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    prediction: PredictionOptions = PredictionOptions(),
    *,
    image_processor: Any = None,
    strict: bool = True,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Finds the people of COCO's test-dev and writes [`TEST_DEV_FILE`], which the evaluation server takes.

    Nothing is scored: the annotations of test-dev are not published. An interrupted run takes up from where it was, as
    that of [`evaluate_model`] does.

    Args:
        model, images_dir, prediction, image_processor, progress: see [`predict_dataset`].
        images: COCO's `image_info_test-dev2017.json`, or what it holds.
        output_dir (`str` or `os.PathLike`): the folder to write to.
        strict (`bool`): see [`evaluate_model`].

    Returns:
        `dict` or `None`: `results`, their number, `prediction`, how they were found, and `time`, as
        [`evaluate_model`] returns it. In all processes but the first `None`.

    Raises:
        FileNotFoundError, ValueError: as [`predict_dataset`] raises them.
    """
    spent = TimeSpent()
    _require_folder(output_dir)
    with spent.of("loading"):
        loaded, image_processor = load_model(model, image_processor, prediction.device, prediction.dtype)
    skipped: dict[int, str] | None = None if strict else {}
    results = predict_dataset(
        loaded,
        images,
        images_dir,
        _as_loaded(prediction),
        image_processor=image_processor,
        output_dir=output_dir,
        skipped=skipped,
        spent=spent,
        progress=progress,
    )
    if rank() > 0:
        return None
    with spent.of("report"):
        submission = [{field: result[field] for field in TEST_DEV_FIELDS} for result in results]
        write_coco_results(submission, Path(output_dir) / TEST_DEV_FILE)
    PartialResults(output_dir, {}).remove()
    found = {"results": len(results), "prediction": _how_predicted(model, loaded, prediction, skipped)}
    return {**found, "time": spent.as_dict()}


def _as_loaded(prediction: PredictionOptions) -> PredictionOptions:
    """The options for a model that is where and as it shall be."""
    return dataclasses.replace(prediction, device=None, dtype=None)


def _require_folder(output_dir: str | os.PathLike | None) -> None:
    if output_dir is not None and Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise ValueError(f"`output_dir` is {os.fspath(output_dir)!r}, which is a file; expected a folder.")


def _read_ground_truth(
    annotations: str | os.PathLike | Mapping[str, Any], scoring: ScoringOptions
) -> KeypointGroundTruth:
    ground_truth = KeypointGroundTruth.read(
        annotations,
        scoring.metric,
        scoring.image_ids,
        category_ids=scoring.category_ids,
        area_ratio=scoring.area_ratio,
    )
    if rank() == 0:
        for remark in ground_truth.remarks():
            logger.warning("%s", remark)
    return ground_truth


def _score(
    ground_truth: KeypointGroundTruth, results: Sequence[Mapping[str, Any]], scoring: ScoringOptions, progress: bool
) -> tuple[KeypointEvaluation, dict[str, Any]]:
    evaluation = score_keypoints(ground_truth, results, scoring.sigmas, scoring.backend, progress)
    figures: dict[str, Any] = {"metrics": evaluation.metrics}
    if scoring.boxes:
        figures["box_metrics"] = score_boxes(ground_truth, results, scoring.backend, progress)
    best = evaluation.best_score_threshold()
    figures["score_threshold"] = None if best is None else dataclasses.asdict(best)
    return evaluation, {**figures, "protocol": evaluation.protocol}


def _how_predicted(
    model: Any, loaded: Any, prediction: PredictionOptions, skipped: Mapping[int, str] | None
) -> dict[str, Any]:
    """How people were found, for `metrics.json` and the report."""
    name = (loaded.config.name_or_path or type(loaded).__name__) if isinstance(model, torch.nn.Module) else model
    return {
        "model": str(name),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "batch_size": prediction.batch_size,
        "top_k": prediction.top_k,
        "flip_test": prediction.flip_test,
        "scales": None if prediction.scales is None else list(prediction.scales),
        **({"skipped_images": {str(image_id): reason for image_id, reason in skipped.items()}} if skipped else {}),
    }
