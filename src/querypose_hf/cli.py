"""The `querypose` command."""

import argparse
import io
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from . import __version__
from .allocator import keep_freed_memory
from .commands import benchmark, card, check_data, convert, demo, evaluate, explain, export, predict, push, train
from .settings import UsageError


COMMANDS = (predict, explain, demo, train, evaluate, check_data, convert, export, benchmark, card, push)


class _CommandParser(argparse.ArgumentParser):
    """The parser of one command. Flags may be written with underscores, as some once were."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        namespace, unknown = super().parse_known_args([_hyphenated(argument) for argument in args], namespace)
        if unknown:  # told here, with this command's usage
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def _hyphenated(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line. The namespace has the command's function as `run`, its parser as `parser`."""
    parser = argparse.ArgumentParser(prog="querypose", description="Sparse multi-person pose estimation.")
    parser.add_argument("--version", action="version", version=f"querypose {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", parser_class=_CommandParser)
    for module in COMMANDS:
        module.add_parser(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a `querypose` command.

    Returns:
        `int`: its exit status: 1 if it skipped some of its inputs, 2 if it fails, 130 after Ctrl-C.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text that can be printed
    if options.command is None:
        parser.print_help()
        return 0
    keep_freed_memory()
    logging.getLogger("torch.utils._pytree").addFilter(_is_not_of_torchao)
    format_of_python, warnings.formatwarning = warnings.formatwarning, _format_warning
    try:
        return options.run(options) or 0
    except UsageError as error:
        options.parser.print_usage(sys.stderr)
        print(f"{options.parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        print(f"{options.parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{options.parser.prog}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130  # as shells have it: 128 + SIGINT
    finally:
        warnings.formatwarning = format_of_python


def _format_warning(message: Warning | str, *place: Any, **line: Any) -> str:
    """A warning without the line of code that it comes from."""
    return f"warning: {message}\n"


def _is_not_of_torchao(record: logging.LogRecord) -> bool:
    """Leaves out what torch says about torchao's own code, which Transformers imports wherever it is installed."""
    return "register_constant" not in record.getMessage()


if __name__ == "__main__":
    sys.exit(main())
