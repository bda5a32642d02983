"""What `querypose predict` does with a video."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from .. import settings
from ..inference.options import VideoOptions
from ..settings import UsageError
from .output import corners, count_people, write_line


def add_options(parser: argparse.ArgumentParser) -> None:
    videos = parser.add_argument_group("videos")
    videos.add_argument("--save-video", action="store_true", help="write each video with its people drawn on it")
    settings.add_options(videos, VideoOptions)


def check_options(options: argparse.Namespace, videos: Sequence[str]) -> None:
    """Raises an error if options or videos cannot be used; opens each video file once."""
    video_options = _video_options(options)
    if options.save_video and not videos:
        raise UsageError("--save-video needs a video, a stream or a webcam, but IMAGE names none.")
    if not videos:
        return
    from ..inference.tracking import PersonTracker
    from ..inference.video import VideoReader

    for video in videos:
        if not (video.isdecimal() or "://" in video):
            VideoReader(video).close()
    if video_options.track:
        PersonTracker(options.threshold)


def _video_options(options: argparse.Namespace) -> VideoOptions:
    return settings.from_options(VideoOptions, options, threshold=options.threshold)


def run(
    options: argparse.Namespace, pose_estimator: Any, source: str, drawn: Path | None, lines: TextIO | None
) -> None:
    """Finds and follows the people of one video. Ctrl-C ends the video early; what was found so far is kept."""
    from tqdm.auto import tqdm

    from ..inference.tracking import find_people_in_video
    from ..inference.video import VideoReader, VideoWriter
    from ..inference.visualization import draw_poses, keypoint_threshold_for

    seen: set[int] = set()
    count = 0
    edges = pose_estimator.model.config.keypoint_edges
    keypoint_threshold = keypoint_threshold_for(options.threshold)
    with contextlib.ExitStack() as opened:
        reader = opened.enter_context(VideoReader(source))
        writer = None if drawn is None else opened.enter_context(VideoWriter(drawn, reader.frame_rate))
        total = min(filter(None, (reader.num_frames, options.max_frames)), default=None)
        progress = opened.enter_context(tqdm(total=total, desc=Path(source).name, unit="frame"))
        found = find_people_in_video(pose_estimator, reader, _video_options(options))
        try:
            for frame, people in found:
                time = round(frame.time, 6)
                write_line(lines, {"source": source, "frame": frame.index, "time": time, "people": people})
                if writer is not None:
                    image = draw_poses(frame.image, people, edges=edges, keypoint_threshold=keypoint_threshold)
                    writer.write(image, frame.time)
                if lines is None and writer is None:
                    tqdm.write(_describe_frame(frame.index, frame.time, people))
                count += 1
                seen |= {person["track_id"] for person in people if person.get("track_id") is not None}
                progress.update()
                progress.set_postfix(people=len(people))
        except KeyboardInterrupt:
            tqdm.write(f"{source}: stopped", file=sys.stderr)
    followed = f", {count_people(seen)} followed" if options.track else ""
    place = "" if drawn is None or not count else f", drawn to {drawn}"
    tqdm.write(f"{source}: {count} frames{followed}{place}", file=sys.stderr if options.jsonl == "-" else sys.stdout)


def _describe_frame(index: int, time: float, people: Sequence[dict[str, Any]]) -> str:
    described = []
    for person in people:
        number = "" if person.get("track_id") is None else f" #{person['track_id']}"
        described.append(f"{person['label']}{number} {person['score']:.2f} ({corners(person['box'])})")
    return f"frame {index} ({time:.2f} s): {'; '.join(described) or 'nobody'}"
