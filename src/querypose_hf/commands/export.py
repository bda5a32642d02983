"""`querypose export`: writes a model for ONNX Runtime, OpenVINO, or torch without this package."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .. import settings
from ..export.options import ExportOptions
from .options import about, add_model_option, require_folder, without_weights_bar


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a model for ONNX Runtime, OpenVINO or torch.export",
        description="Writes a model's graph for another engine, with its configuration and its image processor's "
        "settings. Batch size and image size stay open.",
    )
    add_model_option(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for the graph and what belongs to it")
    settings.add_options(parser, ExportOptions)
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    require_folder("--output", options.output)
    export_options = settings.from_options(ExportOptions, options)
    from ..export import export_model
    from ..inference.loading import load_model

    with about("--model"), without_weights_bar():
        model, image_processor = load_model(options.model, device="cpu", optimize=False)
    path = export_model(model, image_processor, options.output, export_options, _tell)
    print(f"Written to {path}")


def _tell(step: str) -> None:
    print(f"{step.capitalize()} ...", file=sys.stderr, flush=True)
