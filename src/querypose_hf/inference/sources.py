"""What people are looked for in: images and videos as files, folders, patterns, URLs, streams and webcams.

Nothing here needs torch, so that a wrong source is told at once.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import PIL.Image


VIDEO_SUFFIXES = frozenset(".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
#: Images that Pillow reads with a plugin alone; without it they are told, like any image that cannot be read.
_OTHER_SUFFIXES = frozenset(".heic .heif .jxl".split())
STREAM_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://", "srt://")


def is_url(source: str) -> bool:
    """Whether a source is fetched from the web."""
    return source.startswith(("http://", "https://"))


def is_video(source: str) -> bool:
    """Whether a source is a video: by its suffix, as a stream, or as a webcam's number."""
    if source.startswith(STREAM_SCHEMES):
        return True
    if source.isdecimal() and not os.path.exists(source):
        return True
    place = urlsplit(source).path if is_url(source) else source
    return Path(place).suffix.lower() in VIDEO_SUFFIXES


def check_image(source: str) -> None:
    """Reads an image's header, unless the image is in the web.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image.
    """
    if is_url(source):
        return
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file; expected an image file or a URL.")
    try:
        with PIL.Image.open(source):
            pass
    except Exception as error:  # what the readers of damaged files raise has no end
        raise ValueError(f"{source} cannot be read; expected an image file or a URL: {error}") from error


def image_files(paths: Iterable[Path], suffixes: Iterable[str] = ()) -> list[str]:
    """Those of `paths` that are image files by their suffix, or have one of `suffixes`, in order of their names.

    A link that leads nowhere is one of them, so that it is told.
    """
    wanted = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
    wanted = (wanted - {".pdf", ".mpg", ".mpeg"}) | {*suffixes}
    return [str(path) for path in sorted(paths) if path.suffix.lower() in wanted and not path.is_dir()]


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Replaces each folder by the images and videos in it, and each pattern by the files that match.

    Raises:
        FileNotFoundError: a pattern matches nothing.
        ValueError: a folder holds neither images nor videos.
    """
    expanded = []
    for source in sources:
        if os.path.isdir(source):
            files = image_files(Path(source).iterdir(), VIDEO_SUFFIXES | _OTHER_SUFFIXES)
            if not files:
                raise ValueError(f"the folder {source} holds neither images nor videos.")
            expanded += files
        elif "://" not in source and not os.path.exists(source) and glob.has_magic(source):
            matches = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
            if not matches:
                raise FileNotFoundError(f"nothing matches {source}; expected image or video files.")
            expanded += matches
        else:
            expanded.append(source)
    return expanded
