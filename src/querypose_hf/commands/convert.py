"""`querypose convert`: the authors' checkpoints to ours."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..model.configuration_querypose import VARIANTS


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert a checkpoint of the authors",
        description="Converts a checkpoint of the authors into a folder for from_pretrained, every tensor checked.",
    )
    parser.add_argument("--checkpoint_path", required=True, type=Path, help="the authors' .pth file")
    parser.add_argument("--variant", required=True, choices=sorted(VARIANTS), help="backbone and neck")
    parser.add_argument("--output_dir", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--keypoint_parts",
        type=_json_list,
        help="keypoint indices of each part as JSON, where they are none of the paper's groupings of COCO's",
    )
    parser.add_argument(
        "--keypoint_names", type=_json_list, help="JSON list of names, for a skeleton other than COCO's"
    )
    parser.set_defaults(run=_convert)


def _json_list(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise argparse.ArgumentTypeError(f"expected a JSON list, but got {text!r}")
    return value


def _convert(options: argparse.Namespace) -> None:
    from ..weights.conversion import convert_checkpoint

    overrides = {} if options.keypoint_names is None else {"keypoint_names": options.keypoint_names}
    report = convert_checkpoint(
        options.checkpoint_path,
        options.variant,
        options.output_dir,
        keypoint_parts=options.keypoint_parts,
        **overrides,
    )
    print(report)
    print(f"Written to {options.output_dir}.")
