"""Videos: containers, codecs, frame rates, damage; `querypose predict --save-video` follows people in them."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
from clips import panned_scene, write_clip
from image_cases import keep_pipeline, require_error
from mutations import damage_bytes, pick
from sandbox import Fault, command, contents, reason
from tiny import save_tiny_checkpoint


CONTAINERS = (
    (".mp4", "mp4", ("libx264", "mpeg4")),
    (".mov", "mov", ("libx264", "mpeg4")),
    (".avi", "avi", ("mpeg4", "mjpeg")),
    (".mkv", "matroska", ("libx264", "mpeg4", "ffv1")),
    (".ts", "mpegts", ("libx264", "mpeg2video")),
    (".webm", "webm", ("libvpx",)),
    (".flv", "flv", ("flv",)),
    (".mpg", "mpeg", ("mpeg2video",)),
)


@dataclass
class State:
    checkpoint: Path
    what: str = ""


def prepare(folder: Path) -> State:
    checkpoint = folder / "checkpoint"
    save_tiny_checkpoint(checkpoint, class_bias=0.5)
    keep_pipeline(checkpoint)
    # once, so that what is imported for videos is no case's
    path = write_clip(folder / "clip.mp4", panned_scene(2, (64, 48)))
    command(["predict", str(path), "--model", str(checkpoint), "--output", str(folder), "--save-video"])
    return State(checkpoint)


def make(rng: np.random.Generator, folder: Path) -> tuple[Path, str, int]:
    """A whole video; returns it, what it is, and its number of frames."""
    suffix, container_format, codecs = pick(rng, CONTAINERS)
    codec = pick(rng, codecs)
    count, rate = int(pick(rng, (1, 2, 5, 12))), Fraction(pick(rng, ("1", "10", "25", "30000/1001", "60")))
    size = pick(rng, ((64, 48), (48, 64), (160, 120), (16, 16), (96, 32)))
    if codec == "mpeg2video":
        rate = Fraction(25)
    path = folder / f"clip{suffix}"
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if rng.random() < 0.2:
            stream.codec_context.sample_aspect_ratio = Fraction(pick(rng, ("4/3", "1/2", "16/11")))
        for number, image in enumerate(panned_scene(count, size)):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path, f"{codec} in {suffix}, {count} frames of {size}", count


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    inputs, output = folder / "in", folder / "out"
    inputs.mkdir()
    output.mkdir()
    draw = rng.random()
    if draw < 0.05:
        path = inputs / pick(rng, ("clip.mp4", "clip.avi", "clip.mkv"))
        content = pick(rng, (b"", b"text", bytes(5000), rng.bytes(5000)))
        path.write_bytes(content)
        what, count, whole = "no video", 0, False
    else:
        path, what, count = make(rng, inputs)
        whole = draw < 0.2 and _is_recognised(path)
        if not whole:
            damaged, done = damage_bytes(path.read_bytes(), rng)
            path.write_bytes(damaged)
            what += f", {done}"
    state.what = what
    before = contents(inputs)
    lines = output / "people.jsonl"
    arguments = ["predict", str(path), "--model", str(state.checkpoint), "--threshold", "0.2", "--device", "cpu"]
    # a damaged header may say that there are years of frames
    status, _, said = command(
        [*arguments, "--output", str(output), "--jsonl", str(lines), "--save-video", "--max-frames", "100"]
    )
    if contents(inputs) != before:
        raise Fault("outside", "the folder of the videos has changed")
    records = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    records = [record for record in records if record.get("error") is None]
    drawn = sorted(output.glob("*.mp4"))
    if whole and (status or len(records) != count):
        raise Fault("wrong", f"{len(records)} frames of {count}, status {status}: {reason(said)}")
    if status:
        require_error(said, path)
    if records and (len(drawn) != 1 or _frames(drawn[0]) == 0):
        raise Fault("partial", f"{len(records)} frames are found, and none is in the video that was drawn")
    if status == 2 and drawn:
        raise Fault("partial", f"a video is drawn, and the status is 2: {reason(said)}")
    return what, bool(records), reason(said)


def _is_recognised(path: Path) -> bool:
    """Whether FFmpeg itself opens a file: it does not see that a few packets in `.ts` are a video."""
    try:
        av.open(str(path)).close()
    except av.FFmpegError:
        return False
    return True


def _frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for frame in container.decode(video=0) if isinstance(frame.to_image(), PIL.Image.Image))
