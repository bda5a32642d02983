"""`querypose card`: the model card of a checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from ..hub.options import CardFields, MetricsFile
from ..settings import UsageError, add_options, from_options
from .options import VARIANTS, add_model_option


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "card",
        help="write a checkpoint's model card",
        description="Writes README.md, the model card, into a checkpoint's folder or elsewhere.",
    )
    add_model_option(parser)
    add_options(parser, MetricsFile)
    parser.add_argument(
        "--converted",
        choices=VARIANTS,
        metavar="VARIANT",
        help="the weights are the authors', converted, of this variant: the card gives their figures as theirs",
    )
    parser.add_argument("--repo", help="the model's id on the Hub, for the snippets")
    add_options(parser, CardFields)
    parser.add_argument("--output", type=Path, help="file to write; by default README.md in the checkpoint's folder")
    parser.add_argument("--force", action="store_true", help="replace a card that is there")
    parser.set_defaults(run=_card)


def _card(options: argparse.Namespace) -> None:
    folder = Path(options.model)
    if options.output is None and not folder.is_dir():
        raise UsageError(f"--output is needed, because {options.model} is not a folder.")
    output = options.output or folder / "README.md"
    from transformers import AutoConfig

    from ..checks import telling
    from ..files import write_text
    from ..hub.figures import MeasuredFigures
    from ..hub.model_card import build_model_card, check_model_card, has_card_of_training, own_card
    from ..model.configuration_querypose import QueryPoseConfig

    with telling(f"--model is {options.model!r}; expected a QueryPose checkpoint"):
        config = AutoConfig.from_pretrained(options.model)
    if not isinstance(config, QueryPoseConfig):
        raise UsageError(f"--model must be a QueryPose checkpoint, but {options.model} is of {config.model_type!r}.")
    if output.exists() and not options.force and not (output == folder / "README.md" and has_card_of_training(folder)):
        raise UsageError(f"{output} exists; --force replaces it.")
    fields, figures = from_options(CardFields, options), MeasuredFigures.read(from_options(MetricsFile, options))
    if options.converted is None:
        card = own_card(options.model, fields, figures=figures, repo_id=options.repo)
    else:
        variant = options.converted
        card = build_model_card(config, "converted", fields, variant=variant, figures=figures, repo_id=options.repo)
    check_model_card(card)
    write_text(str(card), output)
    print(output)
