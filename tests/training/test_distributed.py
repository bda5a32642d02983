import json
import shutil
from pathlib import Path

import pytest
import torch
from gradients import CASES, gradients_of, model_and_batch, write_gradients
from launching import run_two_processes
from small_run import read_log, run_or_resume


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    run_two_processes(folder / "output", write_gradients, folder)
    return {case: torch.load(folder / f"{case}.pt") for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process_with_the_whole_batch(case, of_two_processes):
    model, batch = model_and_batch(case)
    loss = model(**batch).loss
    loss.backward()
    found = of_two_processes[case]
    assert found["processes"] == 2
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    expected = gradients_of(model)
    assert len(expected) > 50
    for name, gradient in expected.items():
        error = (found["gradients"][name] - gradient).norm() / gradient.norm().clamp(min=1e-30)
        assert error < 1e-8 or gradient.norm() < 1e-12, (name, error)
    assert all(not found["gradients"][name].any() for name in set(found["gradients"]) - set(expected))


def images_by_step(folder: Path) -> dict[tuple[int, int], list[int]]:
    order: dict[tuple[int, int], list[int]] = {}
    for rank in range(2):
        for line in (folder / f"order_{rank}.jsonl").read_text().splitlines():
            record = json.loads(line)
            order.setdefault((record["epoch"], record["batch"]), []).extend(record["images"])
    return order


def test_a_run_of_two_processes_goes_on_from_a_checkpoint(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_two_processes(tmp_path / "output", run_or_resume, whole, 5)
    shutil.copytree(whole, resumed)
    (resumed / "checkpoints" / "step_000000005.pt").unlink()
    run_two_processes(tmp_path / "output", run_or_resume, resumed, 5)
    images = images_by_step(whole)
    first_epoch = [image for (epoch, _), batch in images.items() if epoch == 0 for image in batch]
    # eleven images in three batches for each of two processes: one comes twice
    assert set(first_epoch) == set(range(11)) and len(first_epoch) == 12
    for rank in range(2):  # the batches after the checkpoint came again, the same
        lines = (resumed / f"order_{rank}.jsonl").read_text().splitlines()
        assert lines[5:] == lines[3:5]
    losses = [[record["loss"] for record in read_log(folder) if "loss" in record] for folder in (whole, resumed)]
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]
    weights = [torch.load(folder / "weights.pt") for folder in (whole, resumed)]
    for kind in weights[0]:
        assert all(torch.equal(value, weights[1][kind][name]) for name, value in weights[0][kind].items())
