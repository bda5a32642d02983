"""The commands of `querypose`, a module each.

`add_parser` of a module adds the command to the command line's parsers and sets as `run` what is called with its
options. What is slow to import is imported where a command runs, so that `--help` and mistakes in the arguments answer
at once.
"""

import argparse

from ..assets import QUERYPOSE_NANO


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`, by default the checkpoint that comes with the package."""
    parser.add_argument(
        "--model",
        default=QUERYPOSE_NANO,
        help="folder or Hub id of a checkpoint; by default querypose-nano, which comes with the package",
    )


def add_threshold_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--threshold`; [`threshold_of`] reads it."""
    parser.add_argument(
        "--threshold", type=float, help="least score of a person (0.3; 0.15 with querypose-nano, whose scores are low)"
    )


def threshold_of(options: argparse.Namespace, least: float = 0.0) -> float:
    """What `--threshold` says, or the default for `--model`.

    Raises:
        ValueError: it is not from `least` to 1.
    """
    if options.threshold is None:
        return 0.15 if options.model == QUERYPOSE_NANO else 0.3
    if not least <= options.threshold <= 1:
        raise ValueError(f"--threshold must be from {least:g} to 1, but is {options.threshold}.")
    return float(options.threshold)
