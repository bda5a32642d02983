"""What `querypose predict` does with videos, and which of its sources are videos."""

import argparse
import contextlib
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import PIL.Image
from tqdm.auto import tqdm

from ..inference.video import STREAM_SCHEMES, VIDEO_SUFFIXES, VideoReader, VideoWriter, find_people_in_frames


def add_options(parser: argparse.ArgumentParser) -> None:
    videos = parser.add_argument_group("videos")
    videos.add_argument("--save-video", action="store_true", help="write each video with its people drawn in")
    videos.add_argument(
        "--jsonl", metavar="FILE", help="write a JSON line per picture and frame; - is the standard output"
    )
    videos.add_argument("--no-track", action="store_true", help="do not follow people from frame to frame")
    videos.add_argument("--max-frames", type=int, help="stop each video after so many frames")
    videos.add_argument("--batch-size", type=int, default=1, help="frames or pictures per forward pass (%(default)s)")


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
    if videos and not options.no_track:
        from ..inference.tracking import PersonTracker

        PersonTracker(options.threshold)


def is_video(source: str) -> bool:
    if source.startswith(STREAM_SCHEMES):
        return True
    if source.isdecimal() and not os.path.exists(source):
        return True
    place = urlsplit(source).path if source.startswith(("http://", "https://")) else source
    return Path(place).suffix.lower() in VIDEO_SUFFIXES


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Puts the pictures and videos in place of the folders and patterns that stand for them, in order of their names.

    Raises:
        FileNotFoundError: a pattern matches nothing.
        ValueError: a folder holds neither pictures nor videos.
    """
    pictures = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
    pictures -= {".pdf", ".mpg", ".mpeg"}
    expanded = []
    for source in sources:
        if os.path.isdir(source):
            files = sorted(path for path in Path(source).iterdir() if path.is_file())
            wanted = [str(path) for path in files if path.suffix.lower() in pictures | VIDEO_SUFFIXES]
            if not wanted:
                raise ValueError(f"IMAGE must be pictures or videos, but the folder {source} holds neither.")
            expanded += wanted
        elif "://" not in source and not os.path.exists(source) and glob.has_magic(source):
            matches = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
            if not matches:
                raise FileNotFoundError(f"IMAGE must be pictures or videos, but nothing matches {source}.")
            expanded += matches
        else:
            expanded.append(source)
    return expanded


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


def find_people_in_video(
    options: argparse.Namespace, pose_estimator: Any, source: str, drawn: Path | None, lines: TextIO | None
) -> None:
    """Finds and follows the people of one video. Ctrl-C ends the video early, with all that was found."""
    from ..inference.tracking import PersonTracker
    from ..inference.visualization import draw_poses

    seen: set[int] = set()
    count, tracker = 0, None
    edges = pose_estimator.model.config.keypoint_edges
    keypoint_threshold = min(0.3, options.threshold)
    with contextlib.ExitStack() as opened:
        reader = opened.enter_context(VideoReader(source))
        if not options.no_track:
            tracker = PersonTracker(options.threshold, frame_rate=float(reader.frame_rate))
        writer = None if drawn is None else opened.enter_context(VideoWriter(drawn, reader.frame_rate))
        total = options.max_frames if reader.num_frames is None else reader.num_frames
        if options.max_frames is not None and total is not None:
            total = min(total, options.max_frames)
        progress = opened.enter_context(tqdm(total=total, desc=Path(source).name, unit="frame"))
        found = find_people_in_frames(
            pose_estimator,
            reader,
            threshold=options.threshold,
            batch_size=1 if reader.is_live else options.batch_size,
            tracker=tracker,
        )
        try:
            for frame, people in found:
                write_line(
                    lines, {"source": source, "frame": frame.index, "time": round(frame.time, 6), "people": people}
                )
                if writer is not None:
                    picture = draw_poses(frame.image, people, edges=edges, keypoint_threshold=keypoint_threshold)
                    writer.write(picture, frame.time)
                if lines is None and writer is None:
                    tqdm.write(_describe_frame(frame.index, frame.time, people))
                count += 1
                seen |= {person["track_id"] for person in people if person.get("track_id") is not None}
                progress.update()
                progress.set_postfix(people=len(people))
                if count == options.max_frames:
                    break
        except KeyboardInterrupt:
            tqdm.write(f"{source}: stopped", file=sys.stderr)
    followed = "" if tracker is None else f", {len(seen)} {'person' if len(seen) == 1 else 'people'} followed"
    place = "" if drawn is None or not count else f", drawn to {drawn}"
    tqdm.write(f"{source}: {count} frames{followed}{place}", file=sys.stderr if options.jsonl == "-" else sys.stdout)


def _describe_frame(index: int, time: float, people: Sequence[dict[str, Any]]) -> str:
    described = []
    for person in people:
        number = "" if person.get("track_id") is None else f" #{person['track_id']}"
        corners = ", ".join(f"{person['box'][side]:.0f}" for side in ("xmin", "ymin", "xmax", "ymax"))
        described.append(f"{person['label']}{number} {person['score']:.2f} ({corners})")
    return f"frame {index} ({time:.2f} s): {'; '.join(described) or 'nobody'}"
