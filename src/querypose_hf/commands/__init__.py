"""The commands of `querypose`, one file each.

`add_parser` of a file adds the command to the command line, and sets as `run` the function that takes its options.
Files import torch and Transformers inside that function, so that `--help` and usage errors answer at once.
"""
