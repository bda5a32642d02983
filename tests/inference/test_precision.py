"""The number type `auto` is bfloat16 only where it is fast, and where people stay the same."""

import logging

import pytest
import torch
from tiny import save_tiny_checkpoint

from querypose_hf.inference import precision
from querypose_hf.inference.loading import load_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder, class_bias=2.0)
    return load_model(folder, device="cpu")


@pytest.fixture(autouse=True)
def with_units(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda device: True)


def choose(loaded, caplog) -> tuple[torch.dtype, str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        return precision.choose_dtype(*loaded), caplog.text


def test_bfloat16_where_people_stay_the_same(loaded, caplog, monkeypatch):
    monkeypatch.setattr(precision, "TOLERANCE", 100.0)
    assert choose(loaded, caplog) == (torch.bfloat16, "")
    assert loaded[0].dtype == torch.float32
    # through the loading function
    assert load_model(*loaded, dtype="auto")[0].dtype == torch.bfloat16
    loaded[0].to(torch.float32)


def test_float32_where_they_do_not(loaded, caplog, monkeypatch):
    monkeypatch.setattr(precision, "TOLERANCE", 1e-6)
    dtype, said = choose(loaded, caplog)
    assert dtype == torch.float32 and said.count("\n") == 1
    assert "float32 is used, because keypoints in bfloat16 are up to" in said
    find, counts = precision._find_people, iter([2, 1])
    monkeypatch.setattr(precision, "_find_people", lambda *arguments: find(*arguments)[: next(counts)])
    assert "because 1 people are found" in choose(loaded, caplog)[1]
    monkeypatch.setattr(precision, "_find_people", lambda *arguments: [])
    assert "because nobody is found" in choose(loaded, caplog)[1]


def test_float32_without_units(loaded, caplog, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda device: False)
    dtype, said = choose(loaded, caplog)
    assert dtype == torch.float32 and "because the cpu has no units for bfloat16" in said


def test_units_are_asked_of_torch(monkeypatch):
    monkeypatch.undo()
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for name in names:
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not precision.has_bfloat16_units(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, names[0], lambda: True)
    assert precision.has_bfloat16_units(torch.device("cpu"))
    monkeypatch.delattr(torch.cpu, names[0])
    assert not precision.has_bfloat16_units(torch.device("cpu"))
    assert not precision.has_bfloat16_units(torch.device("meta"))
