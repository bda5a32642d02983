"""What `querypose predict` does with videos, and which of its sources are videos."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from .. import settings
from ..inference.tracking import PersonTracker, VideoOptions, find_people_in_video
from ..inference.video import VideoReader, VideoWriter


def add_options(parser: argparse.ArgumentParser) -> None:
    videos = parser.add_argument_group("videos")
    videos.add_argument("--save-video", action="store_true", help="write each video with its people drawn in")
    videos.add_argument(
        "--jsonl", metavar="FILE", help="write a JSON line per picture and frame; - is the standard output"
    )
    settings.add_options(videos, VideoOptions)


def check_options(options: argparse.Namespace, videos: Sequence[str]) -> None:
    for name in ("max_frames", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, but is {value}.")
    if options.json and videos:
        raise ValueError(f"--json is for pictures: of a video such as {videos[0]}, --jsonl writes every frame.")
    if options.json and options.jsonl == "-":
        raise ValueError("--json and --jsonl - would both write to the standard output.")
    if options.jsonl not in (None, "-") and Path(options.jsonl).is_dir():
        raise ValueError(f"--jsonl must be a file, but {options.jsonl} is a folder.")
    if options.save_video and not videos:
        raise ValueError("--save-video needs a video, a stream or a webcam, but IMAGE names none.")
    for video in videos:
        if video.isdecimal() or "://" in video:
            continue
        VideoReader(video).close()
    if videos and options.track:
        PersonTracker(options.threshold)


@contextlib.contextmanager
def json_lines(place: str | None) -> Iterator[TextIO | None]:
    """The file that lines go to, which appears once all are written; what an interrupted command had is kept."""
    if place is None or place == "-":
        yield None if place is None else sys.stdout
        return
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_line(lines: TextIO | None, record: dict[str, Any]) -> None:
    if lines is not None:
        lines.write(json.dumps(record, allow_nan=False) + "\n")
        lines.flush()


def predict_on_video(
    options: argparse.Namespace, pose_estimator: Any, source: str, drawn: Path | None, lines: TextIO | None
) -> None:
    """Finds and follows the people of one video. Ctrl-C ends the video early, with all that was found."""
    from ..inference.visualization import draw_poses, keypoint_threshold_for

    seen: set[int] = set()
    count = 0
    edges = pose_estimator.model.config.keypoint_edges
    keypoint_threshold = keypoint_threshold_for(options.threshold)
    video_options = settings.from_options(VideoOptions, options, threshold=options.threshold)
    with contextlib.ExitStack() as opened:
        reader = opened.enter_context(VideoReader(source))
        writer = None if drawn is None else opened.enter_context(VideoWriter(drawn, reader.frame_rate))
        total = min(filter(None, (reader.num_frames, options.max_frames)), default=None)
        progress = opened.enter_context(tqdm(total=total, desc=Path(source).name, unit="frame"))
        try:
            for frame, people in find_people_in_video(pose_estimator, reader, video_options):
                write_line(
                    lines, {"source": source, "frame": frame.index, "time": round(frame.time, 6), "people": people}
                )
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
    followed = f", {len(seen)} {'person' if len(seen) == 1 else 'people'} followed" if options.track else ""
    place = "" if drawn is None or not count else f", drawn to {drawn}"
    tqdm.write(f"{source}: {count} frames{followed}{place}", file=sys.stderr if options.jsonl == "-" else sys.stdout)


def _describe_frame(index: int, time: float, people: Sequence[dict[str, Any]]) -> str:
    described = []
    for person in people:
        number = "" if person.get("track_id") is None else f" #{person['track_id']}"
        corners = ", ".join(f"{person['box'][side]:.0f}" for side in ("xmin", "ymin", "xmax", "ymax"))
        described.append(f"{person['label']}{number} {person['score']:.2f} ({corners})")
    return f"frame {index} ({time:.2f} s): {'; '.join(described) or 'nobody'}"
