"""`querypose card`: the model card of a checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from ..model.configuration_querypose import VARIANTS


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "card",
        help="write a checkpoint's model card",
        description="Writes README.md, the model card, into a checkpoint's folder or elsewhere.",
    )
    parser.add_argument("--model", required=True, type=Path, help="folder of the checkpoint")
    parser.add_argument("--metrics", type=Path, help="metrics.json of querypose evaluate")
    parser.add_argument("--dataset-name", help="what was scored, where it is not COCO val2017 or CrowdPose test")
    parser.add_argument("--dataset-id", help="its id on the Hub")
    parser.add_argument(
        "--converted",
        choices=sorted(VARIANTS),
        metavar="VARIANT",
        help="the weights are the authors', converted, of this variant: the card gives their figures as theirs",
    )
    parser.add_argument("--name", help="the model's name")
    parser.add_argument("--repo", help="where it will be on the Hub, for the snippets")
    parser.add_argument("--license", default="mit", help="licence of the weights (%(default)s)")
    parser.add_argument("--base-model", help="Hub id of what training started from")
    parser.add_argument("--datasets", nargs="+", help="Hub ids of the data sets trained on")
    parser.add_argument("--output", type=Path, help="file to write (README.md in the checkpoint's folder)")
    parser.add_argument("--force", action="store_true", help="replace a card that is there")
    parser.set_defaults(run=_card)


def _card(options: argparse.Namespace) -> None:
    from ..hub.model_card import MeasuredFigures, build_model_card, check_model_card, find_variant, save_model_card
    from ..hub.push import read_model_card_config

    output = options.output or options.model / "README.md"
    config = read_model_card_config(options.model)
    if output.exists() and not options.force:
        raise FileExistsError(f"{output} exists; --force replaces it.")
    figures = None
    if options.metrics is not None:
        figures = MeasuredFigures.read(options.metrics, options.dataset_name, options.dataset_id)
    card = build_model_card(
        config,
        origin="own" if options.converted is None else "converted",
        variant=options.converted or find_variant(config),
        name=options.name,
        figures=figures,
        repo_id=options.repo,
        license=options.license,
        datasets=options.datasets,
        base_model=options.base_model,
    )
    check_model_card(card)
    print(save_model_card(card, output))
