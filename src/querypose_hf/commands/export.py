"""`querypose export`: writes a model for ONNX Runtime, OpenVINO, or torch without this package."""

import argparse
from pathlib import Path
from typing import Any

from . import add_model_option


# `export.FORMATS`, whose import would make `--help` wait for torch
_FORMATS = ("onnx", "openvino", "torch-export")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a model for ONNX Runtime, OpenVINO or torch.export",
        description="Writes a model's graph for another engine, with its configuration and its image processor's "
        "settings. Batch size and image size stay open.",
    )
    add_model_option(parser)
    parser.add_argument("--format", choices=_FORMATS, default="onnx", help="(%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the graph and what belongs to it")
    parser.add_argument(
        "--outputs",
        choices=("raw", "people"),
        default="raw",
        help="the model's tensors, as the pipeline takes them, or people in pixels, best first (%(default)s)",
    )
    parser.add_argument(
        "--keypoint-top-k",
        type=int,
        metavar="N",
        help="decode keypoints of the N queries of the highest class scores (20, or all where queries feed back)",
    )
    parser.add_argument("--num-people", type=int, metavar="N", help="people per image with --outputs people")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, but {options.output} is a file.")
    if options.num_people is not None and options.outputs != "people":
        raise ValueError("--num-people is for --outputs people.")
    from transformers import AutoImageProcessor, AutoModelForPoseEstimation

    from ..export import export_model

    try:
        model = AutoModelForPoseEstimation.from_pretrained(options.model).eval()
        image_processor = AutoImageProcessor.from_pretrained(options.model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model must be the folder or Hub id of a QueryPose checkpoint, but {options.model} cannot be loaded: "
            f"{error}"
        ) from error
    path = export_model(
        model,
        image_processor,
        options.output,
        options.format,
        outputs=options.outputs,
        keypoint_top_k=options.keypoint_top_k,
        num_people=options.num_people,
    )
    print(f"Written to {path}")
