"""Two processes exchange objects; what one process does with a group of its own."""

import json

import pytest
import torch
from launching import run_two_processes

from querypose_hf.processes import own_device, process_group, rank, world_size


def exchange():
    before = rank(), world_size()
    with process_group() as group:
        answer = {
            "before": before,
            "within": (rank(), world_size()),
            "group": (group.rank, group.size),
            "broadcast": group.broadcast(f"from {group.rank}"),
            "gathered": group.gather({"number": group.rank}),
        }
    assert not torch.distributed.is_initialized()
    print(json.dumps(answer))


def test_two_processes_exchange_objects(tmp_path):
    answers = [json.loads(text.splitlines()[-1]) for text in run_two_processes(tmp_path / "printed", exchange)]
    for number, answer in enumerate(answers):
        assert answer["before"] == answer["within"] == answer["group"] == [number, 2]
        assert answer["broadcast"] == "from 0"
    assert [answer["gathered"] for answer in answers] == [[{"number": 0}, {"number": 1}], []]


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (rank(), world_size()) == (0, 1)
    with process_group() as group:
        assert group.broadcast("own") == "own"
        assert group.gather("own") == ["own"]
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("local_rank", "expected"), [(None, 0), ("1", 1), ("2", 0)])
def test_each_process_of_a_machine_has_a_device_of_its_own(monkeypatch, local_rank, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert own_device() == torch.device("cuda", expected)


def test_without_an_accelerator_the_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert own_device() == torch.device("cpu")
