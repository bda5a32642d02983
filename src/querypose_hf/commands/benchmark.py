"""`querypose benchmark`: where the time goes, side by side with other ways."""

import argparse
from pathlib import Path
from typing import Any

from ..benchmark.settings import COMPARISONS, ENGINES, BenchmarkSettings
from ..settings import add_options, from_options
from .options import (
    VARIANTS,
    about,
    add_device_option,
    add_model_option,
    device_of,
    require_folder,
    without_weights_bar,
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure speed and memory, side by side",
        description="Measures each step of the work, and QueryPose side by side with full decoding and other models. "
        "The first value of each list is the setting that everything is compared at; --scaling varies the others one "
        "at a time. With --variant weights are random, and for N people the keypoints of N queries are decoded.",
    )
    add_model_option(parser)
    parser.add_argument("--variant", choices=VARIANTS, help="random weights of this published variant, not --model")
    parser.add_argument("--full-model", action="store_true", help="with --variant: full version, not light one")
    parser.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        default=BenchmarkSettings.image_sizes,
        dest="image_sizes",
        metavar="HEIGHTxWIDTH",
        help="of the model's input (800x1216 224x320 448x640 1344x2016)",
    )
    parser.add_argument(
        "--compare",
        nargs="*",
        default=COMPARISONS,
        metavar="WAY",
        help="some of full (every query decoded), plain (the same, nothing folded), keypoint-rcnn, and top-down "
        "(RT-DETR and ViTPose); all by default",
    )
    parser.add_argument(
        "--engines",
        nargs="*",
        choices=ENGINES,
        default=(),
        help="torch's compiler, ONNX Runtime and OpenVINO, side by side with torch as it is; the model is exported",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="in place of the rest, measure time and memory at every value of the lists, and draw the curves; a run "
        "that was stopped goes on where it was",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="of --scaling (OUTPUT/scaling.svg)")
    add_device_option(parser)
    add_options(parser, BenchmarkSettings)
    parser.add_argument("--output", type=Path, default=Path("benchmarks"), help="folder for results (%(default)s)")
    parser.set_defaults(run=_benchmark)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a size such as 800x1216, got {text!r}")
    return int(height), int(width)


def _benchmark(options: argparse.Namespace) -> None:
    random = {} if options.variant is None else {"variant": options.variant, "light": not options.full_model}
    settings = from_options(
        BenchmarkSettings,
        options,
        image_sizes=tuple(options.image_sizes),
        compare=tuple(options.compare),
        engines=tuple(options.engines),
        device=str(device_of(options)),
        **random,
    )
    from ..benchmark import describe_results, measure_scaling, run_benchmark, write_results
    from ..inference.loading import load_model

    require_folder("--output", options.output)
    if options.scaling:
        records, picture = options.output / "scaling.jsonl", options.picture or options.output / "scaling.svg"
        measure_scaling(settings, records, picture, options.model if options.variant is None else None)
        print(f"Written to {records} and {picture}")
        return
    model = None
    if options.variant is None:
        with about("--model"), without_weights_bar():
            model, _ = load_model(options.model, device="cpu", optimize=False)
    results = run_benchmark(settings, model)
    print(describe_results(results))
    for path in write_results(results, options.output):
        print(f"Written to {path}")
