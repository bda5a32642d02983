"""What `querypose predict` does with a video."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import settings
from ..inference.options import VideoOptions
from ..inference.records import count_people, image_record
from ..settings import UsageError
from .options import batch_size_of, class_names, keypoint_threshold_of
from .output import JsonLines, corners
from .tally import InputTally


def add_options(parser: argparse.ArgumentParser) -> None:
    videos = parser.add_argument_group("videos")
    videos.add_argument("--save-video", action="store_true", help="write each video with its people drawn on it")
    settings.add_options(videos, VideoOptions)


def check_options(options: argparse.Namespace, videos: Sequence[str]) -> None:
    """Raises an error if options cannot be used, or a package is missing that videos need."""
    settings.from_options(VideoOptions, options, batch_size=options.batch_size or 1)
    if options.save_video and not videos:
        raise UsageError("--save-video needs a video, a stream or a webcam, but IMAGE names none.")
    if not videos:
        return
    from ..inference.tracking import PersonTracker
    from ..inference.video import import_av

    import_av()
    if options.track:
        PersonTracker()


def check_video(source: str) -> None:
    """Raises an error if a video file cannot be opened; streams and webcams are not tried."""
    from ..inference.video import VideoReader

    if not (source.isdecimal() or "://" in source):
        VideoReader(source).close()


def _video_options(options: argparse.Namespace) -> VideoOptions:
    wanted = {"threshold": options.threshold, "top_k": options.top_k, "batch_size": batch_size_of(options)}
    return settings.from_options(VideoOptions, options, **wanted)


def run(
    options: argparse.Namespace,
    pose_estimator: Any,
    source: str,
    drawn: Path | None,
    lines: JsonLines | None,
    tally: InputTally,
) -> None:
    """Finds and follows the people of one video.

    Ctrl-C or an error ends the video early; what was found so far is kept.
    """
    from tqdm.auto import tqdm

    from ..evaluation.time_spent import TimeSpent, describe_time
    from ..inference.tracking import find_people_in_video
    from ..inference.video import VideoReader, VideoWriter
    from ..inference.visualization import draw_poses

    labels_of: dict[int, str] = {}
    with_people = 0
    spent = TimeSpent()
    skipped = len(tally.skipped)
    edges = pose_estimator.model.config.keypoint_edges
    keypoint_threshold = keypoint_threshold_of(options)
    with contextlib.ExitStack() as opened:
        reader = tally.attempt(source, lambda: VideoReader(source, strict=options.strict))
        if reader is None:
            return
        opened.enter_context(reader)
        writer = None if drawn is None else opened.enter_context(VideoWriter(drawn, reader.frame_rate))
        total = min(filter(None, (reader.num_frames, options.max_frames)), default=None)
        bar = tqdm(total=total, desc=Path(source).name, unit="frame", disable=options.quiet)
        progress = opened.enter_context(bar)
        found = find_people_in_video(pose_estimator, reader, _video_options(options), timed=spent.of)
        try:
            for frame, people in tally.items(source, found):
                with spent.of("writing"):
                    if lines is not None:
                        lines.write(image_record(source, frame.index, frame.image.size, people, time=frame.time))
                    if writer is not None:
                        image = draw_poses(frame.image, people, edges=edges, keypoint_threshold=keypoint_threshold)
                        writer.write(image, frame.time)
                    if lines is None and writer is None and not options.quiet:
                        tqdm.write(_describe_frame(frame.index, frame.time, people))
                spent.images += 1
                with_people += bool(people)
                labels_of |= {p["track_id"]: p["label"] for p in people if p.get("track_id") is not None}
                progress.update()
                progress.set_postfix(people=len(people))
        except KeyboardInterrupt:
            tqdm.write(f"{source}: stopped", file=sys.stderr)
        else:
            if not spent.images and len(tally.skipped) == skipped:
                tally.skip(source, ValueError("the video holds no frames"))
    if not spent.images:
        return
    tally.add(has_people=with_people > 0)
    if reader.damage:
        tally.add_in_part(f"{source}: damaged in {len(reader.damage)} places: {reader.damage[0]}")
    if options.quiet:
        return
    counted = count_people([*labels_of.values()], class_names(pose_estimator))
    followed = f", {counted} followed" if options.track else ""
    place = "" if drawn is None else f", drawn to {drawn}"
    told = f"{source}: {spent.images} frames{followed}{place}"
    tqdm.write(told, file=sys.stderr if options.jsonl == "-" else sys.stdout)
    tqdm.write(describe_time(spent.as_dict(), "frames"), file=sys.stderr)


def _describe_frame(index: int, time: float, people: Sequence[dict[str, Any]]) -> str:
    described = []
    for person in people:
        number = "" if person.get("track_id") is None else f" #{person['track_id']}"
        described.append(f"{person['label']}{number} {person['score']:.2f} ({corners(person['box'])})")
    return f"frame {index} ({time:.2f} s): {'; '.join(described) or 'nothing found'}"
