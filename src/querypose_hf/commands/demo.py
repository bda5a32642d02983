"""`querypose demo`: the Gradio app, or the files of a Space that runs it."""

import argparse
from pathlib import Path
from typing import Any

from . import add_model_option, add_threshold_option, threshold_of


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="start a web page to try a model on",
        description="Starts a web page that finds people in pictures, before the webcam and in videos. With --space "
        "it writes the files of a Hugging Face Space that does so instead.",
    )
    add_model_option(parser)
    add_threshold_option(parser)
    parser.add_argument("--max-frames", type=int, default=300, help="frames of a video to look at (%(default)s)")
    parser.add_argument("--device", help="such as cpu or cuda:0; the first accelerator by default")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 is all (%(default)s)")
    parser.add_argument("--port", type=int, help="the first free one from 7860 by default")
    parser.add_argument("--space", type=Path, metavar="DIR", help="write a Space's files into this new folder")
    parser.add_argument(
        "--requirement",
        default="querypose-hf[demo]",
        help="what the Space installs the package from, as pip names it (%(default)s)",
    )
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from safetensors import SafetensorError

    from ..inference import demo

    gradio = demo.import_gradio()
    if options.space is not None:
        from ..hub.space import write_space

        folder = write_space(
            options.space, options.model, requirement=options.requirement, gradio_version=gradio.__version__
        )
        print(f"A Space: {folder}")
        return
    options.threshold = threshold_of(options, least=0.05)
    if options.max_frames < 1:
        raise ValueError(f"--max-frames must be at least 1, but is {options.max_frames}.")
    try:
        app = demo.build_demo(
            options.model, demo.DemoOptions(options.threshold, options.max_frames), device=options.device
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"--model must be the folder or Hub id of a QueryPose checkpoint, but {options.model} cannot be loaded: "
            f"{error}"
        ) from error
    app.launch(server_name=options.host, server_port=options.port, **demo.launch_options())
