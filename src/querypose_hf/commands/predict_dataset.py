"""What `querypose predict --dataset` does."""

import argparse
import sys
from pathlib import Path

from .. import settings
from ..inference.options import BulkOptions
from ..settings import UsageError
from .options import batch_size_of, load_pipeline, require_folder
from .tally import FAILED, SOME_SKIPPED


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("datasets", "Several processes (accelerate launch) share the images.")
    group.add_argument("--dataset", help="folder of images, saved dataset or Hub id, in place of IMAGE")
    group.add_argument("--output-parquet", type=Path, metavar="DIR", help="folder for its people; a run resumes there")
    group.add_argument("--split", help="such as train")
    group.add_argument("--image-column", help="column of the images; the first one that holds images by default")
    settings.add_options(group, BulkOptions)


def run(options: argparse.Namespace) -> int:
    """Finds the people of a dataset; under `accelerate launch`, this process's share of them.

    Returns the exit status. That of several processes is 0 even if images were skipped: launchers stop all processes
    where one ends otherwise.
    """
    _check_options(options)
    # these options are there for images and videos, too
    shared = {name: getattr(options, name) for name in ("threshold", "top_k", "strict")}
    bulk_options = settings.from_options(BulkOptions, options, batch_size=batch_size_of(options), **shared)
    from ..evaluation.time_spent import TimeSpent, describe_time
    from ..inference.bulk import predict_to_parquet
    from ..inference.image_dataset import open_image_dataset
    from ..processes import rank, world_size

    spent = TimeSpent()
    with spent.of("loading"):
        dataset = open_image_dataset(options.dataset, options.split, options.image_column)
        pose_estimator = load_pipeline(options)
    report = predict_to_parquet(
        pose_estimator,
        dataset,
        options.output_parquet,
        bulk_options,
        model_name=options.model,
        progress=not options.quiet,
        timed=spent.of,
    )
    spent.images = report.images
    process = f"process {rank() + 1} of {world_size()}: " if world_size() > 1 else ""
    if not options.quiet:
        print(
            f"{process}{describe_time(spent.as_dict())}; {report.skipped} were there already, "
            f"{report.unreadable} could not be read, {report.empty} are empty"
        )
    if not report.unreadable:
        return 0
    more = report.unreadable - len(report.reasons)
    print("could not be read: " + "; ".join(report.reasons) + (f"; and {more} more" if more else ""), file=sys.stderr)
    if world_size() > 1:
        return 0
    return FAILED if report.unreadable == report.images + report.skipped else SOME_SKIPPED


def _check_options(options: argparse.Namespace) -> None:
    if options.dataset is None or options.output_parquet is None:
        missing, given = ("--dataset", "--output-parquet")
        if options.dataset is not None:
            missing, given = given, missing
        raise UsageError(f"{given} needs {missing}, too.")
    if options.images or options.save_video or options.json or options.jsonl:
        raise UsageError("--dataset does not go with IMAGE, --save-video, --json or --jsonl.")
    require_folder("--output-parquet", options.output_parquet)
