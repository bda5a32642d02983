#!/usr/bin/env python
"""`querypose check-data` as a script; see `--help`."""

import sys

from querypose_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["check-data", *sys.argv[1:]]))
