"""From a model and a file of annotations to figures and a report."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import write_json
from ..model.skeletons import SKELETONS
from ..processes import rank
from .coco_results import write_coco_results
from .ground_truth import KeypointGroundTruth
from .partial_results import PartialResults
from .prediction import check_prediction_options, load_model, predict_dataset, unsqueeze_annotations
from .protocols import resolve_sigmas
from .report import check_worst_images, write_report
from .scoring import check_backend, score_boxes, score_keypoints


#: What COCO's evaluation server expects of the results on test-dev: this name, and no other fields than these.
TEST_DEV_FILE = "person_keypoints_test-dev2017_querypose_results.json"
TEST_DEV_FIELDS = ("image_id", "category_id", "keypoints", "score")


def evaluate_model(
    model: str | os.PathLike | torch.nn.Module,
    annotations: str | os.PathLike | Mapping[str, Any],
    images_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    metric: str = "coco",
    sigmas: Sequence[float] | None = None,
    boxes: bool = False,
    backend: str = "pycocotools",
    test_dev: bool = False,
    image_processor: Any = None,
    image_ids: Iterable[int] | None = None,
    batch_size: int = 8,
    top_k: int = 20,
    flip_test: bool = False,
    scales: Sequence[float] | None = None,
    undo_squeeze: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    num_workers: int = 2,
    report: bool = True,
    worst_images: int = 12,
    progress: bool = True,
    verbose: bool = False,
) -> dict[str, Any] | None:
    """Finds the people of all images of an annotation file and scores them.

    Writes `metrics.json` and `keypoints.json` as [`evaluate_predictions`] does, and `report.html` and `report.json`
    ([`write_report`]). Until then finished images are kept in `predictions.part*.jsonl`: an interrupted run that is
    started again takes up from there. Under `torchrun` or `accelerate launch` the processes share the images.

    Args:
        model, annotations, images_dir, image_processor, image_ids, batch_size, top_k, flip_test, scales, undo_squeeze,
            device, dtype, num_workers: see [`predict_dataset`].
        output_dir (`str` or `os.PathLike`): the folder to write to.
        metric (`str`, *optional*, defaults to `"coco"`): `"coco"` or `"crowdpose"`.
        sigmas (`Sequence[float]`, *optional*): OKS sigmas, one per keypoint. By default the protocol's if the model
            has its keypoints, and else the model's own.
        boxes (`bool`, *optional*, defaults to `False`): whether to score the boxes, too.
        backend (`str`, *optional*, defaults to `"pycocotools"`): or `"faster-coco-eval"`.
        test_dev (`bool`, *optional*, defaults to `False`): whether the images are those of COCO's test-dev, which have
            no published annotations: nothing is scored, and what the evaluation server takes is written to
            [`TEST_DEV_FILE`].
        report (`bool`, *optional*, defaults to `True`): whether to write the report.
        worst_images (`int`, *optional*, defaults to 12): how many images the report shows.
        progress (`bool`, *optional*, defaults to `True`): whether to show progress bars.
        verbose (`bool`, *optional*, defaults to `False`): whether the backend may print.

    Returns:
        `dict` or `None`: what `metrics.json` holds: `metrics`, `box_metrics` with `boxes`, `protocol` and
        `prediction`, the settings of the model's part. With `test_dev` `prediction` and the number of `results`. In
        all processes but the first `None`.

    Raises:
        FileNotFoundError, ImportError, ValueError: as [`predict_dataset`] and [`evaluate_predictions`] raise them,
            before the first forward pass.

    Example:

    ```python
    >>> report = evaluate_model("path/to/checkpoint", "person_keypoints_val2017.json", "val2017", "scores")
    >>> report["metrics"]["AP"]
    ```
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output_dir` is {os.fspath(output_dir)!r}, which is a file; expected a folder.")
    check_prediction_options(batch_size, top_k, scales, num_workers)
    check_worst_images(worst_images)
    ground_truth = None
    if test_dev:
        if metric != "coco" or sigmas is not None or boxes:
            raise ValueError("`test_dev` is True: `metric` must be 'coco', and `sigmas` and `boxes` not be given.")
    else:
        check_backend(backend)
        content = unsqueeze_annotations(annotations) if undo_squeeze else annotations
        ground_truth = KeypointGroundTruth.read(content, metric, image_ids)
        if not isinstance(annotations, Mapping):
            ground_truth = dataclasses.replace(ground_truth, source=os.fspath(annotations))
    loaded, image_processor = load_model(model, image_processor, device, dtype)
    config = loaded.config
    if sigmas is None and tuple(config.keypoint_names) != SKELETONS[metric].keypoint_names:
        sigmas = tuple(config.keypoint_sigmas)
    if ground_truth is not None and config.num_keypoints == ground_truth.num_keypoints:
        resolve_sigmas(metric, ground_truth.num_keypoints, sigmas)  # `predict_dataset` says it if they are different

    results = predict_dataset(
        loaded,
        annotations if ground_truth is None else ground_truth,
        images_dir,
        metric=None if test_dev else metric,
        image_processor=image_processor,
        image_ids=image_ids if test_dev else None,
        batch_size=batch_size,
        top_k=top_k,
        flip_test=flip_test,
        scales=scales,
        undo_squeeze=undo_squeeze,
        num_workers=num_workers,
        output_dir=output_dir,
        progress=progress,
    )
    if rank() > 0:
        return None
    prediction = {
        "model": str(config.name_or_path or type(loaded).__name__) if _is_module(model) else str(model),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "batch_size": batch_size,
        "top_k": top_k,
        "flip_test": flip_test,
        "scales": None if scales is None else list(scales),
        "undo_squeeze": undo_squeeze,
    }
    if ground_truth is None:
        submission = [{field: result[field] for field in TEST_DEV_FIELDS} for result in results]
        write_coco_results(submission, folder / TEST_DEV_FILE)
        PartialResults(folder, {}).remove()
        return {"prediction": prediction, "results": len(results)}

    evaluation = score_keypoints(ground_truth, results, sigmas, backend, progress, verbose)
    box_metrics = score_boxes(ground_truth, results, backend, progress, verbose) if boxes else None
    figures: dict[str, Any] = {"metrics": evaluation.metrics}
    if box_metrics is not None:
        figures["box_metrics"] = box_metrics
    figures |= {"protocol": evaluation.protocol, "prediction": prediction}
    write_coco_results(results, folder / "keypoints.json")
    write_json(figures, folder / "metrics.json", indent=2)
    PartialResults(folder, {}).remove()
    if report:
        write_report(
            evaluation,
            ground_truth,
            results,
            folder,
            box_metrics=box_metrics,
            details=prediction,
            images_dir=images_dir,
            edges=config.keypoint_edges,
            keypoint_names=config.keypoint_names,
            worst_images=worst_images,
            progress=progress,
        )
    return figures


def _is_module(model: Any) -> bool:
    return isinstance(model, torch.nn.Module)
