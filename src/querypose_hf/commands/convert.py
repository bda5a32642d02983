"""`querypose convert`: the authors' checkpoints to ours."""

import argparse
import json
from pathlib import Path
from typing import Any

from .options import VARIANTS


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert an authors' checkpoint",
        description="Converts a checkpoint of the authors into a folder for from_pretrained and checks every tensor.",
    )
    parser.add_argument("--checkpoint-path", required=True, type=Path, help="the authors' .pth file")
    parser.add_argument("--variant", required=True, choices=VARIANTS, help="backbone and neck")
    parser.add_argument("--output-dir", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--keypoint-parts",
        type=_json_list,
        metavar="JSON",
        help="keypoint indices of each part, a list of lists; needed unless the keypoints are grouped as in the paper",
    )
    parser.add_argument(
        "--keypoint-names", type=_json_list, metavar="JSON", help="list of names; needed unless they are COCO's"
    )
    parser.add_argument(
        "--query-feedback",
        choices=("always", "training"),
        help="which updated queries of a full checkpoint go on to the next stage: always (the authors' first "
        "published code) or training (their released code, the default)",
    )
    parser.set_defaults(run=_convert)


def _json_list(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise argparse.ArgumentTypeError(f"expected a JSON list, got {text!r}")
    return value


def _convert(options: argparse.Namespace) -> None:
    from ..weights.conversion import convert_checkpoint

    given = {"keypoint_names": options.keypoint_names, "query_feedback": options.query_feedback}
    overrides = {name: value for name, value in given.items() if value is not None}
    report = convert_checkpoint(
        options.checkpoint_path,
        options.variant,
        options.output_dir,
        keypoint_parts=options.keypoint_parts,
        **overrides,
    )
    print(report)
    print(f"Written to {options.output_dir}.")
