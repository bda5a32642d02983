"""`querypose predict`: finds people in images and videos."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..assets import SAMPLE_IMAGE
from ..inference.sources import check_image, expand_sources, is_video
from ..settings import UsageError
from . import predict_dataset, predict_video
from .options import (
    add_device_option,
    add_model_option,
    add_strict_option,
    add_threshold_option,
    load_pipeline,
    require_folder,
    threshold_of,
)
from .output import JsonLines, JsonList, corners, count_people, free_name
from .tally import InputTally


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="find people in images and videos",
        description="Finds people in images, prints them, and draws them on copies of the images. In videos it "
        "follows them, too.",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image or video files, folders, patterns, URLs, streams such as rtsp://..., or a webcam's number; the "
        "photograph that comes with the package by default",
    )
    add_model_option(parser)
    add_threshold_option(parser)
    add_device_option(parser)
    add_strict_option(parser)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for drawn images (%(default)s)")
    parser.add_argument("--json", action="store_true", help='print JSON: "image", "drawn" and "people" of each image')
    parser.add_argument(
        "--jsonl", metavar="FILE", help="write a JSON line per image and frame; - is the standard output"
    )
    predict_video.add_options(parser)
    predict_dataset.add_options(parser)
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    options.threshold = threshold_of(options)
    if options.dataset is not None or options.output_parquet is not None:
        return predict_dataset.run(options)
    require_folder("--output", options.output)
    tally = InputTally(options.strict)
    sources: list[str] = []
    for source in options.images or [str(SAMPLE_IMAGE)]:
        sources += tally.attempt(source, expand_sources, [source]) or []
    videos = [source for source in sources if is_video(source)]
    if options.json and videos:
        raise UsageError(f"--json is for images; --jsonl writes every frame of a video such as {videos[0]}.")
    if options.json and options.jsonl == "-":
        raise UsageError("--json and --jsonl - would both write to the standard output.")
    if options.jsonl not in (None, "-") and Path(options.jsonl).is_dir():
        raise UsageError(f"--jsonl must be a file, but {options.jsonl} is a folder.")
    predict_video.check_options(options, videos)
    # headers first, so that what is no image is told at once, and without a model where there is nothing else
    sources = [source for source in sources if tally.attempt(source, _check, source)]
    if sources:
        _find_people(options, sources, tally)
    return tally.finish()


def _check(source: str) -> bool:
    if is_video(source):
        predict_video.check_video(source)
    else:
        check_image(source)
    return True


def _find_people(options: argparse.Namespace, sources: Sequence[str], tally: InputTally) -> None:
    from tqdm.auto import tqdm

    pose_estimator = load_pipeline(options)
    # a drawn image must replace neither another one nor an image that is read
    taken = {Path(source).name for source in sources if Path(source).resolve().parent == options.output.resolve()}
    with contextlib.ExitStack() as opened:
        lines = None if options.jsonl is None else opened.enter_context(JsonLines(options.jsonl))
        results = opened.enter_context(JsonList()) if options.json else None
        for source in tqdm(sources, desc="Finding people", unit="source", disable=len(sources) == 1):
            if is_video(source):
                drawn = options.output / free_name(source, "_poses.mp4", taken) if options.save_video else None
                predict_video.run(options, pose_estimator, source, drawn, lines, tally)
                continue
            found = tally.attempt(source, _find_people_in_image, pose_estimator, source, options.threshold)
            if found is None:
                continue
            image, people = found
            drawn = options.output / free_name(source, "_poses.jpg", taken)
            tally.add(has_people=bool(people))
            try:
                _draw(pose_estimator, image, people, options.threshold, drawn)
            except OSError as error:
                if error.errno is not None:  # of the disk, not of the image, such as one too large for JPEG
                    raise
                tally.add_in_part(f"{source}: its people cannot be drawn: {error}")
            if lines is not None:
                lines.write({"source": source, "drawn": str(drawn), "people": people})
            if results is not None:
                results.write({"image": source, "drawn": str(drawn), "people": people})
            elif options.jsonl != "-":
                # a plain `print` would break the progress bar
                tqdm.write(_describe_people(source, drawn, people))
        tally.require_some()


def _find_people_in_image(pose_estimator: Any, source: str, threshold: float) -> tuple[Any, list[dict[str, Any]]]:
    """The decoded image and its people."""
    from ..model.image_decoding_querypose import decode_pil_image

    image = decode_pil_image(source)
    return image, pose_estimator(image, threshold=threshold)


def _draw(pose_estimator: Any, image: Any, people: Sequence[dict[str, Any]], threshold: float, drawn: Path) -> None:
    from ..files import replacing_file
    from ..inference.visualization import draw_poses, keypoint_threshold_for

    edges = pose_estimator.model.config.keypoint_edges
    with replacing_file(drawn) as temporary:
        with_people = draw_poses(image, people, edges=edges, keypoint_threshold=keypoint_threshold_for(threshold))
        with_people.save(temporary, quality=92)


def _describe_people(source: str, drawn: Path, people: Sequence[dict[str, Any]]) -> str:
    lines = [f"{source}: {count_people(people)}, drawn to {drawn}"]
    for person in people:
        lines.append(f"  {person['label']} {person['score']:.2f}, box ({corners(person['box'])})")
        for point in person["keypoints"]:
            lines.append(f"    {point['name']:<16} ({point['x']:7.1f}, {point['y']:7.1f})  {point['score']:.2f}")
    return "\n".join(lines)
