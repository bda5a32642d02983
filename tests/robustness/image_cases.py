"""Images as files: formats, modes, sizes, metadata, damage; `querypose predict` looks for people in them."""

import io
import json
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
from mutations import damage_bytes, pick
from sandbox import Fault, command, contents, reason
from tiny import save_tiny_checkpoint

from querypose_hf.assets import SAMPLE_IMAGE


#: Formats, and the modes that Pillow writes in each.
MODES = {
    "PNG": ("RGB", "L", "LA", "RGBA", "P", "1", "I;16", "I"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("RGB", "L", "RGBA", "CMYK", "P", "1", "I;16", "I", "F", "LAB", "YCbCr"),
    "BMP": ("RGB", "L", "P", "1", "RGBA"),
    "GIF": ("L", "P", "RGB"),
    "PPM": ("RGB", "L", "1"),
    "TGA": ("RGB", "L", "RGBA"),
    "JPEG2000": ("RGB", "L", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "ICO": ("RGBA", "RGB"),
    "PCX": ("RGB", "L", "P"),
    "SGI": ("RGB", "L", "RGBA"),
    "DDS": ("RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
    "EPS": ("RGB", "L"),
    "PDF": ("RGB",),
}
SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif", "PPM": ".ppm"}
_SIDES = (1, 2, 3, 7, 31, 32, 33, 64, 97, 128, 333, 1000)
_LONG = (3000, 9999, 20_000)


@dataclass
class State:
    checkpoint: Path
    scene: PIL.Image.Image
    what: str = ""


def keep_pipeline(checkpoint: Path) -> None:
    """Has `predict` use one pipeline, which is loaded once."""
    from querypose_hf.commands import predict
    from querypose_hf.inference.loading import load_pipeline

    pipeline, original = load_pipeline(checkpoint, device="cpu"), predict.load_pipeline

    def load(options):
        return pipeline if Path(options.model) == checkpoint else original(options)

    predict.load_pipeline = load


def prepare(folder: Path) -> State:
    checkpoint = folder / "checkpoint"
    save_tiny_checkpoint(checkpoint, class_bias=0.5)
    keep_pipeline(checkpoint)
    with PIL.Image.open(SAMPLE_IMAGE) as opened:
        scene = opened.convert("RGB").resize((128, 72))
    path = folder / "scene.png"
    scene.save(path)
    assert predicted(path, folder / "expected", checkpoint)[0]["people"]
    return State(checkpoint, scene)


def predicted(path: Path, output: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """The lines of JSON that `predict` writes of an image, or none where it fails; the message is `said`."""
    lines = output / "people.jsonl"
    output.mkdir(exist_ok=True)
    arguments = ["predict", str(path), "--model", str(checkpoint), "--threshold", "0.2", "--device", "cpu"]
    status, _, said = command([*arguments, "--output", str(output), "--jsonl", str(lines)])
    records = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    if status == 2:
        require_error(said, path)
        return [{"said": reason(said), "people": None, "records": len(records)}]
    if len(records) != 1:
        raise Fault("wrong", f"status {status} with {len(records)} lines: {reason(said)}")
    return [{**records[0], "status": status, "said": reason(said)}]


def require_drawn(path: Path) -> tuple[int, int]:
    """The size of an image file that can be read to its end."""
    with PIL.Image.open(path) as image:
        image.load()
        return image.size


def require_error(said: str, path: Path) -> None:
    """A message of one line that names the file."""
    if path.name not in reason(said):
        raise Fault("unclear", f"the message does not name {path.name}: {reason(said)!r}")


def require_people(people: list[dict[str, Any]], width: int, height: int) -> None:
    """People of an image of this size have finite numbers, and boxes and scores in range."""
    for person in people:
        box = person["box"]
        inside = 0 <= box["xmin"] <= box["xmax"] <= width and 0 <= box["ymin"] <= box["ymax"] <= height
        numbers = [person["score"], *(point[axis] for point in person["keypoints"] for axis in ("x", "y", "score"))]
        if not inside or not all(math.isfinite(number) for number in numbers) or not 0 <= person["score"] <= 1:
            raise Fault("wrong", f"a person of {width} x {height} pixels: {box}, {person['score']}")


def same_people(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    def numbers(people):
        return [
            [
                person["score"],
                *person["box"].values(),
                *(point[axis] for point in person["keypoints"] for axis in "xy"),
            ]
            for person in people
        ]

    return len(found) == len(expected) and np.allclose(numbers(found), numbers(expected), atol=1e-2)


def picture(rng: np.random.Generator, scene: PIL.Image.Image) -> PIL.Image.Image:
    """An image of any size: the scene, noise or one colour."""
    if rng.random() < 0.3:
        return scene.copy()
    if rng.random() < 0.05:
        size = (int(pick(rng, _LONG)), int(pick(rng, (1, 2, 50, 400))))
        size = size if rng.random() < 0.5 else size[::-1]
    else:
        size = (int(pick(rng, _SIDES)), int(pick(rng, _SIDES)))
    if rng.random() < 0.4:
        return scene.resize(size)
    if rng.random() < 0.5:
        return PIL.Image.new("RGB", size, tuple(int(value) for value in rng.integers(0, 256, 3)))
    return PIL.Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def plain(path: Path) -> PIL.Image.Image | None:
    """An image file as upright RGB by Pillow's means alone; None where Pillow has none, or there are several ways."""
    try:
        # of a path, Pillow maps some files into memory, and then does not turn them
        image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(path.read_bytes())))
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            values = np.asarray(image)
            deep = image.mode.startswith("I;16")
            if not (values.max() > 255 if deep else 1 < values.max() <= 255):  # white may be 1, 255 or 65535
                return None
            return PIL.Image.fromarray(np.rint(values / 257 if deep else values).astype(np.uint8)).convert("RGB")
        if image.has_transparency_data:
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except Exception:  # EXIF data are damaged, or the mode cannot be converted
        return None


def to_mode(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if mode == "I;16":
        return PIL.Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return image.convert("L").convert(mode)
    if mode == "LAB":
        return PIL.Image.merge("LAB", image.split())
    return image.convert(mode)


def _exif(rng: np.random.Generator) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = pick(rng, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 65535))
    exif[0x010E] = "text" * int(rng.integers(1, 50))
    content = exif.tobytes()
    return damage_bytes(content, rng)[0] if rng.random() < 0.5 else content


def _metadata(format_name: str, rng: np.random.Generator) -> dict[str, Any]:
    if format_name not in ("PNG", "JPEG", "WEBP", "TIFF"):
        return {}
    chosen: dict[str, Any] = {}
    if rng.random() < 0.5:
        chosen["exif"] = _exif(rng)
    if rng.random() < 0.5:
        chosen["icc_profile"] = rng.bytes(int(rng.integers(0, 3000)))
    return chosen


def png_of_size(width: int, height: int, depth: int = 8, colour: int = 2, content: bytes = b"") -> bytes:
    """A PNG whose header says any size; a few rows of zeros follow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = content or zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bomb(rng: np.random.Generator) -> tuple[bytes, str]:
    """A small file that says, or is, a very large image."""
    what = int(rng.integers(7))
    if what == 0:
        return png_of_size(100_000, 100_000), ".png"
    if what == 1:
        return png_of_size(2**31 - 1, 2**31 - 1), ".png"
    if what == 2:  # just below the limit of Pillow's error, and whole
        buffer = io.BytesIO()
        PIL.Image.new("1", (12_000, 9_000)).save(buffer, "PNG")
        return buffer.getvalue(), ".png"
    if what == 3:
        text = PIL.PngImagePlugin.PngInfo()
        text.add_text("comment", "x" * 30_000_000, zip=True)
        buffer = io.BytesIO()
        PIL.Image.new("L", (8, 8)).save(buffer, "PNG", pnginfo=text)
        return buffer.getvalue(), ".png"
    if what == 4:
        return b"BM" + struct.pack(
            "<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0
        ), ".bmp"
    if what == 5:
        return b"P6\n200000 200000\n255\n" + bytes(1000), ".ppm"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + frame + b"\x3b", ".gif"


def make(rng: np.random.Generator, state: Any) -> tuple[bytes, str, str, bool]:
    """A file: content, suffix, what it is, and whether it is as Pillow wrote it."""
    if rng.random() < 0.02:
        content, suffix = bomb(rng)
        return content, suffix, f"bomb{suffix}", False
    if rng.random() < 0.02:
        content = pick(rng, (b"", b"text", b"\xff\xd8\xff", rng.bytes(500), b"<svg></svg>", bytes(4096)))
        return content, pick(rng, (".jpg", ".png", ".tif", ".gif")), "no image", False
    image = picture(rng, state.scene)
    format_name = pick(rng, list(MODES))
    mode = pick(rng, MODES[format_name])
    what = f"{format_name} {mode} {image.width}x{image.height}"
    converted = to_mode(image, mode)
    metadata = _metadata(format_name, rng)
    options: dict[str, Any] = {}
    if format_name in ("GIF", "WEBP", "TIFF", "PNG") and rng.random() < 0.1 and mode in ("RGB", "L"):
        options = {"save_all": True, "append_images": [converted.rotate(90, expand=True)]}
    elif format_name == "JPEG":
        options = {"progressive": bool(rng.random() < 0.3), "quality": int(rng.integers(1, 96))}
    elif format_name == "TIFF" and mode in ("RGB", "L"):
        options = {"compression": pick(rng, ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"))}
    buffer = io.BytesIO()
    try:
        converted.save(buffer, format_name, **options, **metadata)
    except Exception:  # the format has no such image; what was written is a damaged one
        what += " unfinished"
    content = buffer.getvalue()
    good = "unfinished" not in what and format_name not in ("EPS", "PDF")
    suffix = SUFFIXES.get(format_name, "." + format_name.lower())
    if rng.random() < 0.5:
        content, done = damage_bytes(content, rng)
        return content, suffix, f"{what}, {done}", False
    if rng.random() < 0.1:
        suffix = pick(rng, (".jpg", ".png", ".bmp"))
        what += f" named {suffix}"
    return content, suffix, what, good


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    content, suffix, what, good = make(rng, state)
    state.what = what
    inputs = folder / "in"
    inputs.mkdir()
    path = inputs / f"image{suffix}"
    path.write_bytes(content)
    before = contents(inputs)
    output = folder / "out"
    [record] = predicted(path, output, state.checkpoint)
    if contents(inputs) != before:
        raise Fault("outside", "the folder of the images has changed")
    expected = plain(path) if good else None
    if record["people"] is None:
        if expected is not None:
            raise Fault("wrong", f"a good image is refused: {record['said']}")
        if list(output.glob("*_poses.jpg")):
            raise Fault("partial", "an image is drawn, and the status is 2")
        return what, False, record["said"]
    if record["status"] == 0:
        require_people(record["people"], *require_drawn(Path(record["drawn"])))
    elif list(output.glob("*_poses.jpg")):
        raise Fault("partial", f"an image is drawn all the same: {record['said']}")
    if expected is not None:
        other = folder / "plain.png"
        expected.save(other)
        [reference] = predicted(other, folder / "plain", state.checkpoint)
        if not same_people(record["people"], reference["people"]):
            raise Fault("wrong", f"{len(record['people'])} people in place of {len(reference['people'])}, or others")
    return what, True, record["said"]
