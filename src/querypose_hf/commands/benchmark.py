"""`querypose benchmark`: where the time goes, side by side with other ways."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure speed and memory, side by side",
        description="Measures each step of the work, and QueryPose side by side with full decoding and other models. "
        "Of every list the first value is what all is compared at; the others are varied one at a time. Unless "
        "--model is given weights are random, so that N people means that the keypoints of exactly N queries are "
        "decoded.",
    )
    parser.add_argument("--model", help="folder or Hub id of a checkpoint; random weights when left out")
    parser.add_argument("--variant", default="r50", help="the published model to build without --model (%(default)s)")
    parser.add_argument("--full-model", action="store_true", help="the full version and not the light one")
    parser.add_argument("--people", type=int, nargs="+", default=[8, 1, 2, 4, 20])
    parser.add_argument("--queries", type=int, nargs="+", default=[100, 300], help="without --model")
    parser.add_argument("--sizes", nargs="+", default=["800x1216", "480x640"], metavar="HEIGHTxWIDTH")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--full-rounds", type=int, default=3, help="of full decoding, which is slow (%(default)s)")
    parser.add_argument(
        "--compare",
        nargs="*",
        default=["full", "plain", "keypoint-rcnn", "top-down"],
        metavar="WAY",
        help="of full (every query decoded), plain (and nothing folded), keypoint-rcnn, top-down (RT-DETR, ViTPose)",
    )
    parser.add_argument("--exported", nargs="*", default=[], metavar="DIR", help="what `querypose export` wrote")
    parser.add_argument("--compile", action="store_true", help="also time the model compiled by torch")
    parser.add_argument(
        "--training", action="store_true", help="also time a training step, next to one that decodes every query"
    )
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads on the CPU")
    parser.add_argument("--output", type=Path, default=Path("benchmarks"), help="folder for results (%(default)s)")
    parser.set_defaults(run=_benchmark)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--sizes must be such as 800x1216, but is {text!r}.")
    return int(height), int(width)


def _benchmark(options: argparse.Namespace) -> None:
    sizes = [_size(text) for text in options.sizes]
    from ..benchmark import BenchmarkSettings, describe_results, run_benchmark, write_results
    from ..inference.loading import load_model

    settings = BenchmarkSettings(
        variant=options.variant,
        light=not options.full_model,
        people=options.people,
        queries=options.queries,
        image_sizes=sizes,
        batch_sizes=options.batch_sizes,
        rounds=options.rounds,
        full_rounds=options.full_rounds,
        compare=options.compare,
        exported=options.exported,
        compile=options.compile,
        training=options.training,
        device=options.device,
        dtype=options.dtype,
        num_threads=options.threads,
    )
    model = None
    if options.model is not None:
        model, _ = load_model(options.model, device="cpu")
    results = run_benchmark(settings, model)
    print(describe_results(results))
    for path in write_results(results, options.output):
        print(f"Written to {path}")
