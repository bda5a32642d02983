#!/usr/bin/env python
"""`querypose explain` as a script; see `--help`."""

import sys

from querypose_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["explain", *sys.argv[1:]]))
