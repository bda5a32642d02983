"""`querypose evaluate`: figures of a model or of its results."""

import argparse
from pathlib import Path
from typing import Any

from . import add_model_option


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a model or its results against annotations",
        description="Scores a model on a data set's pictures, or results in COCO's format, by COCO's or CrowdPose's "
        "protocol. Several processes (accelerate launch) share the pictures; a run that was stopped goes on.",
    )
    parser.add_argument("--annotations", required=True, type=Path, help="ground truth, COCO keypoints JSON")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", type=Path, help="results to score, COCO results JSON")
    what.add_argument("--images", type=Path, help="folder of the pictures to find people in")
    add_model_option(parser)
    parser.add_argument("--metric", choices=("coco", "crowdpose"), default="coco", help="protocol (%(default)s)")
    parser.add_argument("--output", required=True, type=Path, help="folder for metrics.json and keypoints.json")
    parser.add_argument("--sigmas", type=float, nargs="+", help="OKS constants of another skeleton, one per keypoint")
    parser.add_argument("--boxes", action="store_true", help="box AP, too")
    parser.add_argument("--backend", choices=("pycocotools", "faster-coco-eval"), default="pycocotools")
    with_model = parser.add_argument_group("with --images")
    with_model.add_argument("--test-dev", action="store_true", help="write a submission; there is nothing to score")
    with_model.add_argument("--batch-size", type=int, default=8, help="pictures per forward pass (%(default)s)")
    with_model.add_argument("--top-k", type=int, default=20, help="people kept per picture (%(default)s)")
    with_model.add_argument("--flip-test", action="store_true", help="merge with the mirrored picture's people")
    with_model.add_argument("--scales", type=float, nargs="+", help="merge people found at these factors of the size")
    with_model.add_argument("--undo-squeeze", action="store_true", help="resize to orig_width and orig_height first")
    with_model.add_argument("--device", help="such as cpu or cuda:0; the first accelerator by default")
    with_model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="float32 by default")
    with_model.add_argument("--workers", type=int, default=2, help="processes that read ahead (%(default)s)")
    with_model.add_argument("--no-report", action="store_true", help="do not write report.html and report.json")
    with_model.add_argument("--worst-images", type=int, default=12, help="drawn in the report (%(default)s)")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    import torch

    from ..evaluation import evaluate_model, evaluate_predictions

    shared = {"metric": options.metric, "sigmas": options.sigmas, "boxes": options.boxes, "backend": options.backend}
    result: dict[str, Any] | None
    if options.predictions is not None:
        result = evaluate_predictions(options.annotations, options.predictions, output_dir=options.output, **shared)
    else:
        result = evaluate_model(
            options.model,
            options.annotations,
            options.images,
            options.output,
            test_dev=options.test_dev,
            batch_size=options.batch_size,
            top_k=options.top_k,
            flip_test=options.flip_test,
            scales=options.scales,
            undo_squeeze=options.undo_squeeze,
            device=options.device,
            dtype=None if options.dtype is None else getattr(torch, options.dtype),
            num_workers=options.workers,
            report=not options.no_report,
            worst_images=options.worst_images,
            **shared,
        )
    # processes other than the first have nothing to tell
    for name, value in ((result or {}).get("metrics") or {}).items():
        print(f"{name:<10} {'-' if value is None else format(value, '.4f')}")
