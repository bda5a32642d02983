#!/usr/bin/env python
"""`querypose benchmark` as a script; see `--help`."""

import sys

from querypose_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
