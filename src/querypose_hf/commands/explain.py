"""`querypose explain`: shows where the model looks."""

import argparse
from pathlib import Path
from typing import Any

from ..inference.sources import check_image
from .options import (
    about,
    add_device_option,
    add_model_option,
    add_threshold_option,
    count,
    device_of,
    require_folder,
    threshold_of,
)
from .output import count_people, free_name


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="show where the model looks",
        description="Draws the attention map of each body part in each stage of the decoder: one image per person, "
        "and one with all people.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files or URLs")
    add_model_option(parser)
    add_threshold_option(parser)
    add_device_option(parser)
    parser.add_argument("--top-k", type=count, metavar="N", help="at most so many people per image")
    parser.add_argument(
        "--stages", choices=("all", "last"), default="all", help="rows of panels to draw (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for the images (%(default)s)")
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> None:
    require_folder("--output", options.output)
    for source in options.images:
        check_image(source)
    from tqdm.auto import tqdm

    from ..inference.loading import load_model

    device = device_of(options)
    with about("--model"):
        model, image_processor = load_model(options.model, device=device)
    taken: set[str] = set()
    for source in tqdm(options.images, desc="Explaining", unit="image", disable=len(options.images) == 1):
        tqdm.write(_explain_image(options, model, image_processor, source, taken))


def _explain_image(options: argparse.Namespace, model: Any, image_processor: Any, source: str, taken: set[str]) -> str:
    """Draws the people of one image; returns the line to print."""
    import PIL.Image

    from ..files import replacing_file
    from ..inference.explanation import explain_people
    from ..inference.explanation_drawing import draw_part_attention, overlay_part_attention
    from ..model.image_decoding_querypose import decode_image

    image = PIL.Image.fromarray(decode_image(source).permute(1, 2, 0).numpy())
    people = explain_people(model, image_processor, image, threshold=threshold_of(options), top_k=options.top_k)
    stages = [-1] if options.stages == "last" else None
    name = free_name(source, "_parts.png", taken)
    drawings = {name: overlay_part_attention(image, people)}
    for number, person in enumerate(people, start=1):
        drawings[name.replace("_parts.png", f"_person{number}_parts.png")] = draw_part_attention(
            image, person, stages=stages
        )
    for file, drawing in drawings.items():
        with replacing_file(options.output / file) as temporary:
            drawing.save(temporary)
    written = ", ".join(str(options.output / file) for file in drawings)
    return f"{source}: {count_people(people)}, drawn to {written}"
