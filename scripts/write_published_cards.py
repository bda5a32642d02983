#!/usr/bin/env python
"""Writes the model cards of all published variants."""

import argparse

from querypose_hf.hub.model_card import write_published_cards


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="model_cards", help="where to write them (%(default)s)")
    print(*write_published_cards(parser.parse_args().folder), sep="\n")
