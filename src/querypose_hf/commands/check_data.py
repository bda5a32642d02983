"""`querypose check-data`: checks a dataset before a model is trained on it."""

import argparse
from pathlib import Path
from typing import Any

from ..data.formats import COMMAND_LINE_FORMATS, SourceSettings, annotations_help, formats_with, open_source
from ..data.reading_options import ReadingOptions
from .options import add_strict_option, count
from .tally import InputTally


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "check-data",
        help="check a dataset before training",
        description="Reads a dataset and reports counts, broken images, and boxes and labels that are likely wrong.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--annotations", help=annotations_help())
    source.add_argument("--data", help="data.yaml; short for --format yolo --annotations")
    parser.add_argument("--images", help=f"folder of the images ({formats_with('images')})")
    parser.add_argument("--format", choices=COMMAND_LINE_FORMATS, default="coco", help="of the data (%(default)s)")
    parser.add_argument("--split", help=f"split of the dataset ({formats_with('split')}; by default train)")
    parser.add_argument(
        "--category",
        dest="category_ids",
        nargs="+",
        type=int,
        metavar="ID",
        help=f"check these categories only ({formats_with('category_ids')}; by default those that name keypoints)",
    )
    add_strict_option(parser, "image")
    parser.add_argument("--max-images", type=count, metavar="N", help="check only the first N images")
    parser.add_argument("--output", type=Path, help="folder for report.json and samples.png, a page of drawn images")
    parser.set_defaults(run=_check_data)


def _check_data(options: argparse.Namespace) -> int:
    from ..data import check_data

    settings = SourceSettings(
        format="yolo" if options.data is not None else options.format,
        annotations=options.annotations if options.data is None else options.data,
        images=options.images,
        split=options.split,
        category_ids=None if options.category_ids is None else tuple(options.category_ids),
    )
    reading = ReadingOptions(on_error="raise" if options.strict else "skip")
    dataset = open_source(settings, reading)
    report = check_data(dataset, output_dir=options.output, max_images=options.max_images, strict=options.strict)
    print(report.to_text())
    tally = InputTally(options.strict, "images")
    tally.read = report.num_images - len(report.unusable_images)
    tally.empty = tally.read - report.num_images_with_people
    tally.skipped = [*report.unusable_images, *report.left_out_images()]
    return tally.finish()
