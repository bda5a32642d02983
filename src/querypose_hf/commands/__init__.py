"""The commands of `querypose`, a module each.

`add_parser` of a module adds the command to the command line's parsers and sets as `run` what is called with its
options. What is slow to import is imported where a command runs, so that `--help` and mistakes in the arguments answer
at once.
"""
