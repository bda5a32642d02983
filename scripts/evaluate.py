#!/usr/bin/env python
"""`querypose evaluate` as a script; see `--help`."""

import sys

from querypose_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
