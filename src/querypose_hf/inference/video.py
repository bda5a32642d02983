"""Reading and writing videos with FFmpeg, through PyAV (extra `video`). A thread decodes frames ahead."""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import PIL.Image

from ..files import replacing_file
from .sources import STREAM_SCHEMES


_WEBCAMS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
_TIME_BASE = Fraction(1, 90_000)  # of MPEG: every usual frame rate is a whole number of these
_MOST_OBLONG = 8  # a pixel of a greater ratio of width and height is a damaged header's
_SHORT_BY = 0.1  # of its length; a file that ends earlier breaks off
# what is written can be read a second later, whatever happens to the process; a usual index follows at the end
_AS_WRITTEN = {"movflags": "hybrid_fragmented+delay_moov", "frag_duration": "1000000", "flush_packets": "1"}
_MOST_FAILURES = 100  # in a row, after which the rest of a file is given up


@dataclass(frozen=True)
class VideoFrame:
    """One image of a video.

    Attributes:
        index (`int`): from 0; dropped frames of a live stream count, too.
        time (`float`): seconds since the first frame.
        image (`PIL.Image.Image`): RGB, in square pixels, turned upright.
    """

    index: int
    time: float
    image: PIL.Image.Image


class VideoReader:
    """Reads the frames of a video file, a network stream or a webcam.

    A thread decodes up to `ahead` frames before they are asked for. A live source drops the oldest of these when more
    arrive; a file waits. Where pixels are not square, frames are stretched until they are. Frames that cannot be
    decoded are left out, but counted.

    Args:
        source (`str`, `os.PathLike` or `int`): a file, a URL that FFmpeg can open, or a webcam's number.
        ahead (`int`, *optional*, defaults to 8): how many decoded frames may wait.
        strict (`bool`, *optional*, defaults to `False`): raise an error at the first frame that cannot be decoded.

    Attributes:
        size (`tuple[int, int]`): width and height in square pixels, before a frame is turned upright.
        frame_rate (`fractions.Fraction`): frames per second, on average; 30 where the source does not say.
        num_frames (`int` or `None`): as the file says or its length suggests; None where it is not known.
        is_live (`bool`): whether the source is a stream or a webcam.
        damage (`list[str]`): what could not be read so far: a reason for each frame, and whether the file breaks off.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: there is no such file or webcam.
        ValueError: the source is no video, or, while reading, no frame can be decoded, or not the next one and
            `strict` is set, or the source breaks off.

    Example:

    ```python
    >>> with VideoReader("clip.mp4") as reader:
    ...     for frame in reader:
    ...         print(frame.index, frame.time, frame.image.size)
    ```
    """

    def __init__(self, source: str | os.PathLike | int, *, ahead: int = 8, strict: bool = False):
        if ahead < 1:
            raise ValueError(f"`ahead` must be at least 1, but is {ahead}.")
        av = import_av()
        self.source = source
        self.strict = strict
        self.damage: list[str] = []
        self._av = av
        name, container_format = _place_of(source)
        self.is_live = container_format is not None or name.startswith(STREAM_SCHEMES)
        if not self.is_live and "://" not in name and not Path(name).is_file():
            raise FileNotFoundError(f"there is no video file {name}.")
        try:
            self._container = av.open(name, format=container_format, timeout=(30.0, 30.0))
        except FileNotFoundError as error:
            kind = "video" if container_format is None else "webcam"
            raise FileNotFoundError(f"there is no {kind} {source}.") from error
        except av.FFmpegError as error:
            raise ValueError(f"{source} cannot be opened as a video: {error}") from error
        streams = self._container.streams.video
        if not streams or streams[0].codec_context is None:
            self._container.close()
            what = "of a codec that FFmpeg knows" if streams else "at all"
            raise ValueError(f"{source} cannot be opened as a video: it holds no images {what}.")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"
        self.size = self._in_square_pixels(self._stream.width, self._stream.height)
        self.frame_rate = Fraction(self._stream.average_rate or self._stream.base_rate or 30)
        self.num_frames = None if self.is_live else self._count_frames()
        self._end = 0.0  # of what was read, sound included
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

    def _in_square_pixels(self, width: int, height: int) -> tuple[int, int]:
        """The size of a frame whose pixels are made square: one side grows, none shrinks."""
        ratio = self._stream.sample_aspect_ratio
        if not ratio or not 1 / _MOST_OBLONG <= ratio <= _MOST_OBLONG:
            return width, height
        return (round(width * ratio), height) if ratio >= 1 else (width, round(height / ratio))

    def _breaks_off(self, end: float) -> str | None:
        """Says so if the images, which end after `end` seconds, or all streams together, end before the file says."""
        if self._stream.duration and self._stream.time_base:
            length = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration:
            # perhaps that of its sound
            length, end = self._container.duration / self._av.time_base, max(end, self._end)
        else:
            length = 0.0
        # an AVI file's duration is guessed from its size; MP4 counts frames, too, that are not to be shown
        if not self._container.format.name.startswith("mov"):
            length = max(length, float(self._stream.frames / self.frame_rate))
        if length - end <= max(_SHORT_BY * length, 1 + 1 / float(self.frame_rate)):
            return None
        return f"it breaks off after {end:.1f} of {length:.1f} seconds"

    def _decode(self) -> None:
        index, start, end = 0, None, 0.0
        try:
            for frame in self._frames():
                image = None if frame is None else self._image_of(frame)
                if frame is not None and image is not None:
                    time = frame.time if frame.time is not None else float(index / self.frame_rate)
                    start = time if start is None else start
                    end = max(end, time - start)
                    if not self._put(VideoFrame(index, time - start, image)):
                        return
                elif self.strict:
                    raise ValueError(f"{self.source}: damaged after {index} frames: {self.damage[0]}")
                elif self._stopped.is_set():
                    return
                index += 1
            if start is None and self.damage:
                raise ValueError(f"{self.source}: no frame can be decoded: {self.damage[0]}")
            broken_off = None if self.is_live else self._breaks_off(end)
            if broken_off is not None:
                self.damage.append(broken_off)
                if self.strict:
                    raise ValueError(f"{self.source}: {self.damage[-1]}")
            self._put(None)
        except Exception as error:
            # every error must reach the reader, who would wait for ever
            if isinstance(error, self._av.FFmpegError):
                broken = ValueError(f"{self.source}: breaks off after {index} frames: {error}")
                broken.__cause__ = error
                error = broken
            self._put(error)

    def _frames(self) -> Iterator[Any]:
        """FFmpeg's frames, and None for each that cannot be decoded."""
        failures = 0
        while True:
            try:
                for packet in self._container.demux():
                    self._note_end(packet)
                    if packet.stream.index != self._stream.index:
                        continue
                    try:
                        frames = packet.decode()
                    except self._av.FFmpegError as error:
                        self.damage.append(str(error))
                        yield None
                        continue
                    failures = 0
                    yield from frames
                return
            except self._av.InvalidDataError as error:
                failures += 1
                if self.is_live or failures > _MOST_FAILURES:
                    raise
                self.damage.append(str(error))  # what follows may be whole
                yield None

    def _note_end(self, packet: Any) -> None:
        if packet.pts is not None and packet.time_base is not None:
            start = (self._container.start_time or 0) / self._av.time_base
            self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base) - start)

    def _image_of(self, frame: Any) -> PIL.Image.Image | None:
        """A frame as an upright image, or None if it cannot be made into one."""
        width, height = self._in_square_pixels(frame.width, frame.height)
        try:
            image = frame.to_image(width=width, height=height)
        except (self._av.FFmpegError, MemoryError, ValueError) as error:
            self.damage.append(str(error))
            return None
        return image.rotate(frame.rotation, expand=True) if frame.rotation % 360 else image

    def _put(self, item: VideoFrame | Exception | None) -> bool:
        """Hands an item to the reader; False once the reader is closed."""
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
    """Writes images as an MP4 video (H.264 where FFmpeg has it, else MPEG-4), without sound.

    The file appears, or replaces the one before it, at the end of the `with` block, with all images that were written
    until then, also if the block raises an error; unless no image was written. Until then a file beside it, named
    `.part.<process>.<name>`, holds them; it stays, and can be played, where the process is killed. Pixels are square.

    Args:
        path (`str` or `os.PathLike`): ends in `.mp4`; missing folders are made.
        frame_rate (`fractions.Fraction` or `float`): nominal frames per second.

    Example:

    ```python
    >>> with VideoWriter("drawn.mp4", frame_rate=25) as writer:
    ...     for number, image in enumerate(images):
    ...         writer.write(image, time=number / 25)
    ```
    """

    def __init__(self, path: str | os.PathLike, frame_rate: Fraction | float):
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"a video is written as .mp4, but the path is {self.path}.")
        if frame_rate <= 0:
            raise ValueError(f"`frame_rate` must be above 0, but is {frame_rate}.")
        self._av = import_av()
        self.frame_rate = Fraction(frame_rate).limit_denominator(1001)
        self._opened = contextlib.ExitStack()  # of the file, from the first image on
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if self._stream is None:
            self._opened.__exit__(kind, *error)
            return
        try:
            with self._opened:
                self._container.mux(self._stream.encode())
        except Exception:
            if kind is None:  # else what the block raised says more
                raise

    def write(self, image: PIL.Image.Image, time: float) -> None:
        """Adds an image.

        Args:
            image (`PIL.Image.Image`): scaled to the size of the first one.
            time (`float`): when it is shown, in seconds since the start; later than the one before.
        """
        if self._stream is None:
            temporary = self._opened.enter_context(replacing_file(self.path))
            opened = self._av.open(str(temporary), "w", format="mp4", options=_AS_WRITTEN)
            self._container = self._opened.enter_context(opened)
            codec = "libx264" if "libx264" in self._av.codec.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=self.frame_rate)
            # 4:2:0 colours need even sides
            self._stream.width, self._stream.height = (side + side % 2 for side in image.size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.sample_aspect_ratio = Fraction(1)
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


def _place_of(source: str | os.PathLike | int) -> tuple[str, str | None]:
    """What FFmpeg opens, and for a webcam the format of its device."""
    name = str(source) if isinstance(source, int) else os.fspath(source)
    if not name.isdecimal():
        return name, None
    if sys.platform not in _WEBCAMS:
        raise ValueError(f"a webcam cannot be opened by its number on {sys.platform}; got {source}.")
    container_format, place = _WEBCAMS[sys.platform]
    return place.format(int(name)), container_format


def import_av() -> Any:
    """PyAV.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('videos need PyAV: pip install "querypose-hf[video]".') from error
    return av
