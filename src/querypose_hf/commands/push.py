"""`querypose push`: a checkpoint to the Hub."""

import argparse
from pathlib import Path
from typing import Any

from ..hub.options import CardFields, CommitOptions, MetricsFile
from ..settings import add_options, from_options


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="upload a checkpoint to the Hub",
        description="Uploads a checkpoint with its image processor, code, model card, scores and example images to a "
        "model repository on the Hub, in one commit. Log in with `hf auth login` first, or set HF_TOKEN.",
    )
    parser.add_argument("model", type=Path, metavar="FOLDER", help="folder of the checkpoint")
    parser.add_argument("repo_id", metavar="REPO", help="user/name, or name in your account; made if it is new")
    parser.add_argument(
        "--examples",
        nargs="*",
        metavar="IMAGE",
        help="images to show people in (the photograph that comes with the package; none when nothing follows)",
    )
    add_options(parser, MetricsFile)
    add_options(parser.add_argument_group("for a new card"), CardFields)
    add_options(parser.add_argument_group("the commit"), CommitOptions)
    parser.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    from ..assets import SAMPLE_IMAGE
    from ..hub.push import push_checkpoint

    commit = push_checkpoint(
        options.model,
        options.repo_id,
        metrics=from_options(MetricsFile, options),
        examples=[SAMPLE_IMAGE] if options.examples is None else options.examples,
        card=from_options(CardFields, options),
        commit=from_options(CommitOptions, options),
    )
    print(commit.pr_url or commit.commit_url)
