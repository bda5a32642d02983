"""`querypose predict`: finds people in images and videos."""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..assets import SAMPLE_IMAGE
from ..inference.reading_ahead import read_ahead
from ..inference.records import count_people, find_people_in_batch, image_record
from ..inference.sources import check_image, expand_sources, is_video
from ..settings import UsageError
from . import predict_dataset, predict_video
from .options import (
    add_device_option,
    add_dtype_option,
    add_engine_option,
    add_model_option,
    add_strict_option,
    add_threshold_option,
    batch_size_of,
    class_names,
    count,
    keypoint_threshold_of,
    load_pipeline,
    require_folder,
    score,
)
from .output import JsonLines, JsonList, corners, free_name
from .tally import InputTally


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="find people in images and videos",
        description="Finds people in images, says how many, and draws them on copies of the images. In videos it "
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
    parser.add_argument("--top-k", type=count, metavar="N", help="at most so many people per image or frame")
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="images or frames per forward pass (8; 1 on a CPU)"
    )
    add_device_option(parser)
    add_dtype_option(parser)
    add_engine_option(parser)
    add_strict_option(parser)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for drawn images (%(default)s)")
    parser.add_argument("--no-draw", action="store_true", help="draw no images")
    parser.add_argument(
        "--keypoint-threshold",
        type=score,
        help="least score of a keypoint that is drawn (0.3, or the score threshold if that is lower)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list with the record of each image")
    parser.add_argument(
        "--jsonl", metavar="FILE", help="write the record of each image and frame as a line of JSON; - prints them"
    )
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--verbose", action="store_true", help="print a line for each person, too")
    told.add_argument("--quiet", action="store_true", help="print nothing but what goes wrong, and JSON")
    predict_video.add_options(parser)
    predict_dataset.add_options(parser)
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    if options.dataset is not None or options.output_parquet is not None:
        return predict_dataset.run(options)
    require_folder("--output", options.output)
    tally = InputTally(options.strict, quiet=options.quiet)
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
    if options.threshold is None:
        options.threshold = pose_estimator.score_threshold
    # a drawn image must replace neither another one nor an image that is read
    taken = {Path(source).name for source in sources if Path(source).resolve().parent == options.output.resolve()}
    few = len(sources) == 1 or options.quiet
    with contextlib.ExitStack() as opened:
        lines = None if options.jsonl is None else opened.enter_context(JsonLines(options.jsonl))
        results = opened.enter_context(JsonList()) if options.json else None
        bar = opened.enter_context(tqdm(total=len(sources), desc="Finding people", unit="source", disable=few))
        finder = _ImageFinder(options, pose_estimator, taken, lines, results, tally)
        for batch in _batches(sources, batch_size_of(options), tally):
            if isinstance(batch, str):
                drawn = options.output / free_name(batch, "_poses.mp4", taken) if options.save_video else None
                predict_video.run(options, pose_estimator, batch, drawn, lines, tally)
                bar.update()
            else:
                finder.find(batch)
                bar.update(len(batch))
        tally.require_some()


class _Image(NamedTuple):
    """An image, its source, and the place of that among the sources."""

    place: int
    source: str
    image: Any


def _batches(sources: Sequence[str], size: int, tally: InputTally) -> Iterator[str | list[_Image]]:
    """Images that follow one another, decoded ahead and in batches, and each video by itself.

    Images before an error come before the error.
    """
    batch: list[_Image] = []
    for index, (source, decoded) in enumerate(read_ahead(_decode, sources, size)):
        try:
            image = None if is_video(source) else tally.attempt(source, decoded.result)
        except Exception:
            if batch:
                yield batch
            raise
        if image is not None:
            batch.append(_Image(index, source, image))
        if batch and (len(batch) == size or is_video(source)):
            yield batch
            batch = []
        if is_video(source):
            yield source
    if batch:
        yield batch


def _decode(source: str) -> Any:
    from ..model.image_decoding_querypose import decode_pil_image

    return None if is_video(source) else decode_pil_image(source)


@dataclass(frozen=True)
class _ImageFinder:
    """Finds the people of images, and prints, writes and draws them as the options say."""

    options: argparse.Namespace
    pose_estimator: Any
    taken: set[str]
    lines: JsonLines | None
    results: JsonList | None
    tally: InputTally

    def find(self, batch: Sequence[_Image]) -> None:
        """Finds the people of a batch; an image that the model cannot take is skipped."""
        images = [one.image for one in batch]
        options = self.options
        for one, found in zip(
            batch, find_people_in_batch(self.pose_estimator, images, options.threshold, options.top_k), strict=True
        ):
            if isinstance(found, Exception):
                self.tally.skip(one.source, found)
            else:
                self.report(one, found)

    def report(self, one: _Image, people: Sequence[dict[str, Any]]) -> None:
        """Prints, writes and draws the people of one image."""
        from tqdm.auto import tqdm

        self.tally.add(has_people=bool(people))
        drawn = None if self.options.no_draw else self.options.output / free_name(one.source, "_poses.jpg", self.taken)
        if drawn is not None:
            try:
                self.draw(one.image, people, drawn)
            except OSError as error:
                if error.errno is not None:  # of the disk, not of the image, such as one too large for JPEG
                    raise
                self.tally.add_in_part(f"{one.source}: its people cannot be drawn: {error}")
                drawn = None
        place = None if drawn is None else str(drawn)
        record = image_record(one.source, one.place, one.image.size, people, drawn=place)
        if self.lines is not None:
            self.lines.write(record)
        if self.results is not None:
            self.results.write(record)
        elif self.options.jsonl != "-" and not self.options.quiet:
            # a plain `print` would break the progress bar
            tqdm.write(self.describe(one.source, place, people))

    def draw(self, image: Any, people: Sequence[dict[str, Any]], drawn: Path) -> None:
        """Draws the people on a copy of the image."""
        from ..files import write_image
        from ..inference.visualization import draw_poses

        edges, least = self.pose_estimator.model.config.keypoint_edges, keypoint_threshold_of(self.options)
        write_image(draw_poses(image, people, edges=edges, keypoint_threshold=least), drawn, quality=92)

    def describe(self, source: str, drawn: str | None, people: Sequence[dict[str, Any]]) -> str:
        """One line about the image, and with `--verbose` one for each of its people."""
        counted = count_people([person["label"] for person in people], class_names(self.pose_estimator))
        lines = [f"{source}: {counted}" + (f", drawn to {drawn}" if drawn else "")]
        if self.options.verbose:
            lines += [f"  {p['label']} {p['score']:.2f}, box ({corners(p['box'])})" for p in people]
        return "\n".join(lines)
