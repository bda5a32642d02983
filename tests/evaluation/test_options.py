import argparse

import pytest

from querypose_hf.evaluation.options import PredictionOptions, ReportOptions, ScoringOptions
from querypose_hf.settings import add_options, from_options


KINDS = (PredictionOptions, ScoringOptions, ReportOptions)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    for kind in KINDS:
        add_options(parser, kind)
    options = parser.parse_args(arguments)
    return tuple(from_options(kind, options) for kind in KINDS)


def test_flags_are_the_fields():
    assert parse() == (PredictionOptions(), ScoringOptions(), ReportOptions())
    flags = "--batch-size 4 --top-k 5 --flip-test --scales 0.5 1 --workers 0 --device cpu --dtype bfloat16 "
    flags += "--metric crowdpose --sigmas 0.1 0.2 --boxes --backend faster-coco-eval --no-report --worst-images 3"
    assert parse(*flags.split()) == (
        PredictionOptions(4, 5, True, (0.5, 1.0), 0, "cpu", "bfloat16"),
        ScoringOptions("crowdpose", (0.1, 0.2), True, "faster-coco-eval"),
        ReportOptions(False, 3),
    )


@pytest.mark.parametrize(
    ("kind", "field", "value", "expected"),
    [
        (PredictionOptions, "batch_size", 0, "a whole number of at least 1"),
        (PredictionOptions, "top_k", True, "a whole number of at least 1"),
        (PredictionOptions, "num_workers", -1, "a whole number of at least 0"),
        (PredictionOptions, "scales", (), "one or more numbers above 0"),
        (PredictionOptions, "scales", (1, 0), "one or more numbers above 0"),
        (ReportOptions, "worst_images", -1, "a whole number of at least 0"),
    ],
)
def test_values_out_of_range(kind, field, value, expected):
    with pytest.raises(ValueError) as error:
        kind(**{field: value})
    assert str(error.value) == f"`{field}` is {value!r}; expected {expected}."
