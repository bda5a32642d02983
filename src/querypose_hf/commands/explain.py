"""`querypose explain`: shows where the model looks."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inference.records import count_people
from ..inference.sources import check_image
from .options import (
    about,
    add_device_option,
    add_model_option,
    add_strict_option,
    add_threshold_option,
    count,
    device_of,
    require_folder,
    without_weights_bar,
)
from .output import free_name
from .tally import InputTally


if TYPE_CHECKING:
    from PIL.Image import Image

    from ..inference.explanation import PersonAttention


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
    add_strict_option(parser, "image")
    parser.add_argument("--top-k", type=count, metavar="N", help="at most so many people per image")
    parser.add_argument(
        "--stages", choices=("all", "last"), default="all", help="rows of panels to draw (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for the images (%(default)s)")
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    require_folder("--output", options.output)
    tally = InputTally(options.strict, "images")
    sources = [source for source in options.images if tally.attempt(source, _check, source)]
    if not sources:
        tally.require_some()
    from tqdm.auto import tqdm

    from ..inference.loading import load_model

    device = device_of(options)
    with about("--model"), without_weights_bar():
        model, image_processor = load_model(options.model, device=device)
    taken: set[str] = set()
    for source in tqdm(sources, desc="Explaining", unit="image", disable=len(sources) == 1):
        found = tally.attempt(source, _explain_image, options, model, image_processor, source)
        if found is not None:
            tally.add(has_people=bool(found[1]))
            tqdm.write(f"{source}: {_count(found[1], model.config)}, drawn to {_draw(options, source, *found, taken)}")
    return tally.finish()


def _check(source: str) -> bool:
    check_image(source)
    return True


def _explain_image(
    options: argparse.Namespace, model: Any, image_processor: Any, source: str
) -> tuple["Image", list["PersonAttention"]]:
    """The decoded image and its people."""
    from ..inference.explanation import explain_people
    from ..model.image_decoding_querypose import decode_pil_image

    image = decode_pil_image(source)
    people = explain_people(model, image_processor, image, threshold=options.threshold, top_k=options.top_k)
    return image, people


def _draw(
    options: argparse.Namespace, source: str, image: "Image", people: list["PersonAttention"], taken: set[str]
) -> str:
    """Draws the people of one image; returns the files, in words."""
    from ..files import write_image
    from ..inference.explanation_drawing import draw_part_attention, overlay_part_attention

    stages = [-1] if options.stages == "last" else None
    name = free_name(source, "_parts.png", taken)
    drawings = {name: overlay_part_attention(image, people)}
    for number, person in enumerate(people, start=1):
        drawings[name.replace("_parts.png", f"_person{number}_parts.png")] = draw_part_attention(
            image, person, stages=stages
        )
    for file, drawing in drawings.items():
        write_image(drawing, options.output / file)
    return ", ".join(str(options.output / file) for file in drawings)


def _count(people: list["PersonAttention"], config: Any) -> str:
    labels = [config.id2label[found.person["label"].item()] for found in people]
    return count_people(labels, list(config.id2label.values()))
