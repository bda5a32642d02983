"""`querypose demo`: the web page, or the files of a Space that runs it."""

import argparse
from pathlib import Path
from typing import Any

from ..inference.options import DemoOptions
from ..settings import add_options, from_options
from .options import add_device_option, add_dtype_option, add_model_option, add_threshold_option, load_pipeline


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="start a web page to try a model on",
        description="Starts a web page that finds people in images, videos and in front of the webcam. With --space "
        "it writes the files of a Hugging Face Space that does so instead.",
    )
    add_model_option(parser)
    add_threshold_option(parser)
    add_device_option(parser)
    add_dtype_option(parser)
    add_options(parser, DemoOptions)
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
    demo_options = from_options(DemoOptions, options, threshold=options.threshold)
    from ..inference import demo

    gradio = demo.import_gradio()
    if options.space is not None:
        from ..hub.space import write_space

        folder = write_space(
            options.space, options.model, requirement=options.requirement, gradio_version=gradio.__version__
        )
        print(f"A Space: {folder}")
        return
    print(f"Loading {options.model} ...", flush=True)
    app = demo.build_demo(load_pipeline(options), demo_options)
    # its own lines are replaced by one that says that the page is there
    app.launch(
        server_name=options.host,
        server_port=options.port,
        prevent_thread_lock=True,
        quiet=True,
        **demo.launch_options(),
    )
    print(f"Ready: open {app.local_url} in a browser. Ctrl-C ends it.", flush=True)
    app.block_thread()
