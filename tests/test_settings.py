import argparse
from dataclasses import dataclass
from typing import Literal

import pytest

from querypose_hf.settings import add_options, from_options, given_options, option, require, with_assignments


@dataclass(frozen=True)
class Options:
    size: int = option(8, "images at once")
    scales: tuple[float, ...] | None = option(None, "factors of the size")
    mirrored: bool = option(False, "the mirrored image, too")
    report: bool = option(True, "leave out the report")
    workers: int = option(2, "processes", flag="--workers-of-loader")
    kind: Literal["small", "large"] = option("small", "kind of model")
    name: str | None = None
    inner: int = 3

    def __post_init__(self) -> None:
        require(self, "size", self.size >= 1, "at least 1")


def parse(*arguments, **fields):
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    return from_options(Options, parser.parse_args(arguments), **fields)


def test_defaults_are_those_of_the_dataclass():
    assert parse() == Options()


def test_every_kind_of_field():
    found = parse(
        *"--size 4 --scales 0.5 1 --mirrored --no-report --workers-of-loader 0 --kind large".split(), name="a", inner=1
    )
    assert found == Options(4, (0.5, 1.0), True, False, 0, "large", "a", 1)


def test_values_are_checked():
    with pytest.raises(ValueError, match="`size` is 0; expected at least 1"):
        parse("--size", "0")
    with pytest.raises(SystemExit):
        parse("--kind", "huge")


def test_help_tells_defaults(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert "images at once (8)" in text and "factors of the size\n" in text and "(small)" in text


def test_only_what_is_given(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, Options, changes=Options(size=16))
    assert given_options(Options, parser.parse_args("--size 8 --scales 0.5 --no-report".split())) == {
        "size": 8,
        "scales": (0.5,),
        "report": False,
    }
    assert given_options(Options, parser.parse_args([])) == {}
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "images at once (16)\n" in capsys.readouterr().out


def test_assignments():
    values = {"training": {"seed": 1}, "data": {"train": [{"repeat": 1}]}}
    assignments = ["training.seed=2", "training.rate=1e-4", "data.train.0.repeat=[1, 2]", "new.field=no"]
    assert with_assignments(values, assignments) == {
        "training": {"seed": 2, "rate": "1e-4"},
        "data": {"train": [{"repeat": [1, 2]}]},
        "new": {"field": False},
    }
    assert values == {"training": {"seed": 1}, "data": {"train": [{"repeat": 1}]}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [("training", "expected FIELD=VALUE"), ("data.train.1.repeat=2", "there is no '1' in"), ("a=[", "not YAML")],
)
def test_bad_assignments(assignment, message):
    values = {"data": {"train": [{"repeat": 1}]}}
    with pytest.raises(ValueError, match=message):
        with_assignments(values, [assignment])
    assert values == {"data": {"train": [{"repeat": 1}]}}
