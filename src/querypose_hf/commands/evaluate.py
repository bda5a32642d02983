"""`querypose evaluate`: figures of a model or of its results."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from ..evaluation.options import PredictionOptions, ReportOptions, ScoringOptions
from ..settings import UsageError, add_options, from_options
from .options import add_model_option, add_strict_option, without_weights_bar
from .tally import SOME_SKIPPED


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a model or its results against annotations",
        description="Scores a model on a dataset's images, or results in COCO's format, by COCO's or CrowdPose's "
        "protocol. Several processes (accelerate launch) share the images. A run that was interrupted goes on where "
        "it stopped.",
    )
    parser.add_argument("--annotations", required=True, type=Path, help="ground truth, COCO keypoints JSON")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", type=Path, help="results to score, COCO results JSON")
    what.add_argument("--images", type=Path, help="folder of the images to find people in")
    add_model_option(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder for metrics.json and keypoints.json")
    add_options(parser, ScoringOptions)
    with_model = parser.add_argument_group("with --images")
    with_model.add_argument(
        "--test-dev", action="store_true", help="score nothing; write what COCO's evaluation server takes"
    )
    add_strict_option(with_model, "image")
    add_options(with_model, PredictionOptions)
    add_options(with_model, ReportOptions)
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from ..evaluation.evaluate import TEST_DEV_FILE, evaluate_model, evaluate_predictions, predict_test_dev
    from ..evaluation.image_list import read_image_list
    from ..evaluation.time_spent import describe_time
    from ..processes import world_size

    scoring = from_options(ScoringOptions, options)
    result: dict[str, Any] | None
    written = options.output / "metrics.json"
    if options.predictions is not None:
        result = evaluate_predictions(options.annotations, options.predictions, options.output, scoring)
    else:
        prediction = from_options(PredictionOptions, options)
        if options.test_dev:
            if dataclasses.replace(scoring, category_ids=None) != ScoringOptions():
                raise UsageError("--test-dev: nothing is scored; --metric, --sigmas, --boxes, --backend do not apply.")
            images = read_image_list(options.annotations, category_ids=scoring.category_ids)
            written = options.output / TEST_DEV_FILE
            with without_weights_bar():
                result = predict_test_dev(
                    options.model, images, options.images, options.output, prediction, strict=options.strict
                )
        else:
            what = (options.model, options.annotations, options.images, options.output)
            report = from_options(ReportOptions, options)
            if report.write:
                written = options.output / "report.html"
            with without_weights_bar():
                result = evaluate_model(*what, prediction, scoring, report, strict=options.strict)
    # only the first of several processes has a result
    for name, value in ((result or {}).get("metrics") or {}).items():
        print(f"{name:<10} {'-' if value is None else format(value, '.4f')}")
    if best := (result or {}).get("score_threshold"):
        print(
            f"best F1 at OKS 0.5: {best['f1']:.4f}, with the score threshold {best['value']:.4f} "
            f"(precision {best['precision']:.4f}, recall {best['recall']:.4f})"
        )
    if time_spent := (result or {}).get("time"):
        print(describe_time(time_spent), file=sys.stderr)
    if result is not None:
        print(f"Written to {written}", file=sys.stderr)
    skipped = (result or {}).get("prediction", {}).get("skipped_images", {})
    if not skipped:
        return 0
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    first = "; ".join([*skipped.values()][:3])
    print(f"{len(skipped)} images skipped, their people count as missed ({first}{more})", file=sys.stderr)
    return 0 if world_size() > 1 else SOME_SKIPPED  # launchers stop all processes where one ends otherwise
