"""`querypose explain`: pictures of where the model looks."""

import argparse
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import PIL.Image
from tqdm.auto import tqdm

from . import add_model_option, add_threshold_option, threshold_of


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="show where the model looks",
        description="Draws, for each person found in a picture, the attention map of each body part in each stage of "
        "the decoder, and one picture with all of them.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files or URLs")
    add_model_option(parser)
    add_threshold_option(parser)
    parser.add_argument("--top-k", type=int, help="at most so many people of each picture")
    parser.add_argument(
        "--stages", choices=("all", "last"), default="all", help="rows of panels to draw (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for the pictures (%(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda:0 (%(default)s)")
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> None:
    options.threshold = threshold_of(options)
    if options.top_k is not None and options.top_k < 1:
        raise ValueError(f"--top-k must be at least 1, but is {options.top_k}.")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, but {options.output} is a file.")
    from ..inference.explanation import explain_people
    from ..inference.explanation_drawing import draw_part_attention, overlay_part_attention
    from ..inference.sources import check_image
    from ..model.image_decoding_querypose import decode_image
    from .predict import _check_device

    for source in options.images:
        check_image(source)
    _check_device(options.device)
    model, image_processor = _load(options.model, options.device)
    taken: set[str] = set()
    for source in tqdm(options.images, desc="Explaining", unit="picture", disable=len(options.images) == 1):
        picture = PIL.Image.fromarray(decode_image(source).permute(1, 2, 0).numpy())
        people = explain_people(model, image_processor, picture, threshold=options.threshold, top_k=options.top_k)
        stem = number = Path(urlsplit(source).path if "://" in source else source).stem
        count = 1
        while number in taken:
            count += 1
            number = f"{stem}_{count}"
        taken.add(number)
        drawn = [options.output / f"{number}_parts.png"]
        _save(overlay_part_attention(picture, people), drawn[0])
        stages = [-1] if options.stages == "last" else None
        for index, found in enumerate(people, start=1):
            drawn.append(options.output / f"{number}_person{index}_parts.png")
            _save(draw_part_attention(picture, found, stages=stages), drawn[-1])
        written = ", ".join(map(str, drawn))
        tqdm.write(f"{source}: {len(people)} {'person' if len(people) == 1 else 'people'}, drawn to {written}")


def _load(name: str, device: str) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModelForPoseEstimation

    try:
        model = AutoModelForPoseEstimation.from_pretrained(name).eval().to(device)
        return model, AutoImageProcessor.from_pretrained(name)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"--model must be the folder or Hub id of a QueryPose checkpoint, but {name} cannot be loaded: {error}"
        ) from error


def _save(picture: PIL.Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    picture.save(temporary)
    temporary.replace(path)
