#!/usr/bin/env python
"""`querypose card` as a script; see `--help`."""

import sys

from querypose_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["card", *sys.argv[1:]]))
