"""Two processes exchange objects; what one process does with a group of its own."""

import multiprocessing
import socket

import pytest
import torch

from querypose_hf.processes import own_device, process_group, rank, world_size


def _exchange(number, port, answers):
    import os

    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    before = (rank(), world_size())
    with process_group() as group:
        answers.put(
            (
                number,
                before,
                (rank(), world_size()),
                (group.rank, group.size),
                group.broadcast(f"from {number}"),
                group.gather({"number": number}),
                torch.distributed.is_initialized(),
            )
        )
    assert not torch.distributed.is_initialized()


def test_two_processes_exchange_objects():
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.Queue()
    running = [context.Process(target=_exchange, args=(number, port, answers)) for number in range(2)]
    for process in running:
        process.start()
    found = sorted(answers.get(timeout=60) for _ in running)
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    both = [{"number": 0}, {"number": 1}]
    assert found == [
        (0, (0, 2), (0, 2), (0, 2), "from 0", both, True),
        (1, (1, 2), (1, 2), (1, 2), "from 0", [], True),
    ]


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
