"""The `querypose` command."""

import argparse
import sys
from collections.abc import Sequence

from .commands import benchmark, check_data, convert, evaluate, export, predict, train


COMMANDS = (predict, train, evaluate, convert, check_data, export, benchmark)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a `querypose` command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="querypose", description="Sparse multi-person pose estimation.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        module.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        print(f"querypose {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
