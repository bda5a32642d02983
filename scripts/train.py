#!/usr/bin/env python
"""`querypose train` as a script, for `accelerate launch`; see `--help`."""

import sys

from querypose_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
