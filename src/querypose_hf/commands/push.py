"""`querypose push`: a checkpoint to the Hub."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="upload a checkpoint to the Hub",
        description="Uploads a checkpoint with its image processor, code, model card, scores and example pictures to "
        "a model repository on the Hub, in one commit. Log in with `hf auth login` first, or set HF_TOKEN.",
    )
    parser.add_argument("model", type=Path, metavar="FOLDER", help="folder of the checkpoint")
    parser.add_argument("repo_id", metavar="REPO", help="user/name, or name for one of your own; made if it is new")
    parser.add_argument("--metrics", type=Path, help="metrics.json of querypose evaluate, for the card's results")
    parser.add_argument("--dataset-name", help="what was scored, where it is not COCO val2017 or CrowdPose test")
    parser.add_argument("--dataset-id", help="its id on the Hub")
    parser.add_argument(
        "--examples",
        nargs="*",
        metavar="PICTURE",
        help="images to show people in (the photograph that comes with the package; none when nothing follows)",
    )
    parser.add_argument("--license", default="mit", help="licence of the weights, for a new card (%(default)s)")
    parser.add_argument("--base-model", help="Hub id of what training started from, for a new card")
    parser.add_argument("--datasets", nargs="+", help="Hub ids of the data sets trained on, for a new card")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--revision", help="branch to commit to; made if it is new")
    target.add_argument("--create-pr", action="store_true", help="open a pull request with the commit")
    parser.add_argument("--message", help="commit message")
    parser.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    from ..assets import SAMPLE_IMAGE
    from ..hub.push import push_checkpoint

    commit = push_checkpoint(
        options.model,
        options.repo_id,
        metrics=options.metrics,
        dataset_name=options.dataset_name,
        dataset_id=options.dataset_id,
        examples=[SAMPLE_IMAGE] if options.examples is None else options.examples,
        license=options.license,
        base_model=options.base_model,
        datasets=options.datasets,
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
        commit_message=options.message,
    )
    print(commit.pr_url or commit.commit_url)
