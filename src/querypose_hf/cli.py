"""The `querypose` command."""

import argparse
import sys
from collections.abc import Sequence

from .commands import benchmark, card, check_data, convert, demo, evaluate, explain, export, predict, push, train


COMMANDS = (predict, explain, demo, train, evaluate, check_data, convert, export, benchmark, card, push)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; what it gives has as `run` the function that the options are for."""
    parser = argparse.ArgumentParser(prog="querypose", description="Sparse multi-person pose estimation.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a `querypose` command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        print(f"querypose {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
