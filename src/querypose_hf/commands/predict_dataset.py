"""What `querypose predict --dataset` does."""

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data sets", "Several processes (accelerate launch) share the pictures.")
    group.add_argument("--dataset", help="folder of pictures, saved data set or Hub id, instead of IMAGE")
    group.add_argument("--output-parquet", type=Path, metavar="DIR", help="folder for its people; resumes there")
    group.add_argument("--split", help="such as train")
    group.add_argument("--image-column", help="column of the pictures; the first of images by default")
    group.add_argument("--rows-per-shard", type=int, default=1024, help="pictures per file (%(default)s)")


def check_options(options: argparse.Namespace) -> None:
    if options.dataset is None or options.output_parquet is None:
        missing, given = ("--dataset", "--output-parquet")
        if options.dataset is not None:
            missing, given = given, missing
        raise ValueError(f"{given} needs {missing}, too.")
    if options.images or options.save_video or options.json or options.jsonl:
        raise ValueError("--dataset goes with --output-parquet alone: leave out IMAGE, --save-video, --json, --jsonl.")
    for name in ("rows_per_shard", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, but is {getattr(options, name)}.")
    if options.output_parquet.exists() and not options.output_parquet.is_dir():
        raise ValueError(f"--output-parquet must be a folder, but {options.output_parquet} is a file.")


def run(options: argparse.Namespace) -> None:
    from accelerate import PartialState
    from transformers import pipeline

    from ..inference.bulk import BulkOptions, predict_to_parquet
    from ..inference.image_dataset import open_image_dataset

    dataset = open_image_dataset(options.dataset, options.split, options.image_column)
    state = PartialState(cpu=options.device == "cpu")
    pose_estimator = pipeline(  # type: ignore[call-overload]
        "pose-estimation", model=options.model, device=options.device or state.device
    )
    report = predict_to_parquet(
        pose_estimator,
        dataset,
        options.output_parquet,
        BulkOptions(options.threshold, options.batch_size, options.rows_per_shard),
        model_name=options.model,
    )
    process = f"process {state.process_index + 1} of {state.num_processes}: " if state.num_processes > 1 else ""
    print(
        f"{process}{report.images} pictures in {report.seconds:.1f} s ({report.images_per_second:.2f} per second), "
        f"{report.skipped} were there already, {report.unreadable} could not be read"
    )
    state.wait_for_everyone()
    if state.num_processes > 1:
        state.destroy_process_group()
