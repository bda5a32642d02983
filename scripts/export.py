#!/usr/bin/env python
"""`querypose export` as a script; see `--help`."""

import sys

from querypose_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
