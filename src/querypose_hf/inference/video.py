"""Videos and streams: frames are decoded ahead in a thread, people are found in them, and pictures become a video.

FFmpeg does the decoding and the encoding, through PyAV (extra `video`).
"""

import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import PIL.Image

from .tracking import PersonTracker


VIDEO_SUFFIXES = frozenset(".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
STREAM_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://", "srt://")
_WEBCAMS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
_TIME_BASE = Fraction(1, 90_000)  # of MPEG: every usual frame rate is a whole number of these


@dataclass(frozen=True)
class VideoFrame:
    """One picture of a video.

    Attributes:
        index (`int`): how many frames came before it; those that a live stream had to drop count, too.
        time (`float`): seconds since the first frame.
        image (`PIL.Image.Image`): RGB, turned upright.
    """

    index: int
    time: float
    image: PIL.Image.Image


class VideoReader:
    """Reads the frames of a video file, a network stream or a webcam, which a thread decodes ahead.

    At most `ahead` decoded frames wait, so that memory does not grow with the video. Of a live source old frames are
    dropped when they are not taken in time; of a file none is.

    Args:
        source (`str`, `os.PathLike` or `int`): a file, a URL that FFmpeg can open, or a webcam's number.
        ahead (`int`, *optional*, defaults to 8): at most so many frames are decoded ahead.

    Attributes:
        size (`tuple[int, int]`): width and height in pixels, before a frame is turned upright.
        frame_rate (`fractions.Fraction`): frames per second, on average; 30 where the source does not say.
        num_frames (`int` or `None`): as the file says or its length suggests; None where nobody knows.
        is_live (`bool`): whether frames come in their own time and without end.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: there is no such file or webcam.
        ValueError: the source is no video; while reading, that a frame cannot be decoded.

    Example:

    ```python
    >>> with VideoReader("clip.mp4") as reader:
    ...     for frame in reader:
    ...         print(frame.index, frame.time, frame.image.size)
    ```
    """

    def __init__(self, source: str | os.PathLike | int, *, ahead: int = 8):
        if ahead < 1:
            raise ValueError(f"`ahead` must be at least 1, but is {ahead}.")
        av = _import_av()
        self.source = source
        self._ahead = ahead
        self._av = av
        name, container_format = os.fspath(source) if not isinstance(source, int) else "", None
        is_webcam = isinstance(source, int) or name.isdecimal()
        if is_webcam:
            if sys.platform not in _WEBCAMS:
                raise ValueError(f"a webcam cannot be opened by its number on {sys.platform}; got {source}.")
            container_format, place = _WEBCAMS[sys.platform]
            name = place.format(int(os.fspath(source) if not isinstance(source, int) else source))
        self.is_live = is_webcam or name.startswith(STREAM_SCHEMES)
        if not self.is_live and "://" not in name and not Path(name).is_file():
            raise FileNotFoundError(f"there is no video file {name}.")
        try:
            self._container = av.open(name, format=container_format, timeout=(30.0, 30.0))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no {'webcam' if is_webcam else 'video'} {source}.") from error
        except av.FFmpegError as error:
            raise ValueError(f"{source} cannot be opened as a video: {error}") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{source} cannot be opened as a video: it holds no pictures.")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.size = (self._stream.width, self._stream.height)
        self.frame_rate = Fraction(self._stream.average_rate or self._stream.base_rate or 30)
        self.num_frames = None if self.is_live else self._count_frames()
        self._waiting: queue.Queue[VideoFrame | Exception | None] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def _count_frames(self) -> int | None:
        if self._stream.frames:
            return self._stream.frames
        if self._container.duration:
            return max(1, round(self._container.duration / self._av.time_base * self.frame_rate))
        return None

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread and closes the source."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._container.close()

    def __iter__(self) -> Iterator[VideoFrame]:
        if self._thread is not None:
            raise ValueError(f"the frames of {self.source} can be read once; open it again.")
        self._thread = threading.Thread(target=self._decode, name="querypose-video", daemon=True)
        self._thread.start()
        while True:
            item = self._waiting.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def _decode(self) -> None:
        index, start = 0, None
        try:
            for frame in self._container.decode(self._stream):
                time = frame.time if frame.time is not None else float(index / self.frame_rate)
                start = time if start is None else start
                image = frame.to_image()
                if frame.rotation % 360:
                    image = image.rotate(frame.rotation, expand=True)
                if not self._put(VideoFrame(index, time - start, image)):
                    return
                index += 1
            self._put(None)
        except Exception as error:
            # whatever it is, it must reach the reader, who would wait for ever
            if isinstance(error, self._av.FFmpegError):
                broken = ValueError(f"{self.source}: the frame after {index} others cannot be decoded: {error}")
                broken.__cause__ = error
                error = broken
            self._put(error)

    def _put(self, item: VideoFrame | Exception | None) -> bool:
        """Hands an item to the reader; False when nobody wants it any more."""
        while not self._stopped.is_set():
            try:
                self._waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                if self.is_live:
                    try:
                        self._waiting.get_nowait()
                    except queue.Empty:
                        pass
        return False


class VideoWriter:
    """Writes pictures as an MP4 video (H.264 where FFmpeg has it, else MPEG-4).

    The file appears when the writer is left without an error; until then, and if there is one, it does not exist or
    is the one that was there before. Sound is not carried over.

    Args:
        path (`str` or `os.PathLike`): ends in `.mp4`; missing folders are made.
        frame_rate (`fractions.Fraction` or `float`): nominal frames per second.

    Example:

    ```python
    >>> with VideoWriter("drawn.mp4", frame_rate=25) as writer:
    ...     for number, picture in enumerate(pictures):
    ...         writer.write(picture, time=number / 25)
    ```
    """

    def __init__(self, path: str | os.PathLike, frame_rate: Fraction | float):
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"a video is written as .mp4, but the path is {self.path}.")
        if frame_rate <= 0:
            raise ValueError(f"`frame_rate` must be above 0, but is {frame_rate}.")
        self._av = _import_av()
        self.frame_rate = Fraction(frame_rate).limit_denominator(1001)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._container = self._av.open(str(self._temporary), "w", format="mp4")
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is None and self._stream is not None:
            try:
                self._container.mux(self._stream.encode())
                self._container.close()
                self._temporary.replace(self.path)
            finally:
                self._temporary.unlink(missing_ok=True)
            return
        try:
            self._container.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, image: PIL.Image.Image, time: float) -> None:
        """Adds a picture.

        Args:
            image (`PIL.Image.Image`): of the first picture's size; what is not is scaled to it.
            time (`float`): when it is shown, in seconds since the start; later than the one before.
        """
        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codec.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=self.frame_rate)
            # 4:2:0 colours need even sides
            self._stream.width, self._stream.height = (side + side % 2 for side in image.size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = _TIME_BASE
            self._size = image.size
        if image.size != self._size:
            image = image.resize(self._size)
        if image.size != (self._stream.width, self._stream.height):
            padded = PIL.Image.new("RGB", (self._stream.width, self._stream.height))
            padded.paste(image)
            image = padded
        frame = self._av.VideoFrame.from_image(image.convert("RGB"))
        frame.pts = self._last = max(round(time / _TIME_BASE), self._last + 1)
        frame.time_base = _TIME_BASE
        self._container.mux(self._stream.encode(frame))


def find_people_in_frames(
    pose_estimator: Any,
    frames: Iterable[VideoFrame],
    *,
    threshold: float = 0.3,
    batch_size: int = 1,
    tracker: PersonTracker | None = None,
) -> Iterator[tuple[VideoFrame, list[dict[str, Any]]]]:
    """Finds people in frames, one batch after the other, and follows them.

    Args:
        pose_estimator ([`PoseEstimationPipeline`]): what `pipeline("pose-estimation", ...)` returns.
        frames (`Iterable[VideoFrame]`): such as a [`VideoReader`].
        threshold (`float`, *optional*, defaults to 0.3): least score of a person.
        batch_size (`int`, *optional*, defaults to 1): frames per forward pass. A live stream is best served with 1.
        tracker ([`~tracking.PersonTracker`], *optional*): gives each person a `track_id`; by then people with less
            than `threshold` are kept, too, while they are followed.

    Yields:
        `tuple[VideoFrame, list[dict]]`: each frame with its people, as the pipeline gives them.

    Example:

    ```python
    >>> with VideoReader("clip.mp4") as reader:
    ...     tracker = PersonTracker(threshold=0.3, frame_rate=float(reader.frame_rate))
    ...     for frame, people in find_people_in_frames(pose_estimator, reader, tracker=tracker):
    ...         print(frame.time, [person["track_id"] for person in people])
    ```
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, but is {batch_size}.")
    lowest = threshold if tracker is None else tracker.lowest_score
    remaining = iter(frames)
    while batch := list(islice(remaining, batch_size)):
        found = pose_estimator([frame.image for frame in batch], threshold=lowest, batch_size=batch_size)
        for frame, people in zip(batch, found, strict=True):
            yield frame, people if tracker is None else tracker.update(people, frame.time)


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError('videos need PyAV: pip install "querypose-hf[video]".') from error
    return av
