import json
import os
import random
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from launching import start_process
from small_run import read_log, run_or_resume
from tiny import tiny_config

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.training.checkpoints import (
    find_checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    save_model_folder,
    set_random_state,
)


#: Records that differ between equal runs.
MEASURED = ("images_per_second", "data_wait", "memory_gib")


def start(folder, **options):
    return start_process(f"{folder}.output", {}, partial(run_or_resume, folder, **options))


def run_to_the_end(folder) -> None:
    threads = torch.get_num_threads()
    try:
        run_or_resume(folder)
    finally:
        torch.set_num_threads(threads)


def kill_when(process, is_time) -> None:
    deadline = time.monotonic() + 120
    while not is_time():
        assert process.is_alive() and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def computed(folder) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in read_log(folder)]


def data_order(folder) -> dict[tuple[int, int], list[int]]:
    order = {}
    for line in (folder / "order_0.jsonl").read_text().splitlines():
        record = json.loads(line)
        # batches that a killed run had already taken come again after it is resumed, and then with the same images
        assert order.setdefault((record["epoch"], record["batch"]), record["images"]) == record["images"]
    return order


def assert_same_run(folder, reference) -> None:
    assert computed(folder) == computed(reference)
    assert data_order(folder) == data_order(reference)
    found, expected = torch.load(folder / "weights.pt"), torch.load(reference / "weights.pt")
    for kind, weights in expected.items():
        assert list(found[kind]) == list(weights)
        assert all(torch.equal(found[kind][name], value) for name, value in weights.items()), kind


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_to_the_end(folder)
    return folder


class TestKilledRun:
    def test_reference_learns_and_sees_every_image_once_an_epoch(self, reference):
        losses = [record["loss"] for record in computed(reference) if "loss" in record]
        assert len(losses) == 14
        assert len(set(losses)) == 14
        first_epoch = [image for (epoch, _), images in data_order(reference).items() if epoch == 0 for image in images]
        assert sorted(first_epoch) == list(range(11))

    def test_killed_at_a_random_step_and_resumed(self, reference, tmp_path):
        folder = tmp_path / "run"
        records = random.SystemRandom().randint(4, 11)  # the first checkpoint is that of step 3
        log = folder / "training_log.jsonl"
        process = start(folder)
        kill_when(process, lambda: log.exists() and log.read_text().count("\n") >= records)
        run_to_the_end(folder)
        assert_same_run(folder, reference)

    def test_killed_while_a_checkpoint_is_written(self, reference, tmp_path):
        folder = tmp_path / "run"
        process = start(folder, hang_in_checkpoint=2)
        kill_when(process, (folder / "hanging").exists)
        checkpoints = folder / "checkpoints"
        assert [path.name for path in find_checkpoints(checkpoints)] == ["step_000000003.pt"]
        assert len(os.listdir(checkpoints)) == 2  # the other is half of the next one
        assert load_checkpoint(checkpoints / "step_000000003.pt")["step"] == 3
        run_to_the_end(folder)
        assert_same_run(folder, reference)
        assert sorted(os.listdir(checkpoints)) == ["step_000000012.pt", "step_000000014.pt"]


class TestFiles:
    def test_the_newest_are_kept(self, tmp_path):
        for step in (5, 10, 1000, 20):
            save_checkpoint(tmp_path, step, {"step": step}, keep=2)
        assert [load_checkpoint(path)["step"] for path in find_checkpoints(tmp_path)] == [20, 1000]

    def test_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such checkpoint"):
            load_checkpoint(tmp_path / "none.pt")
        (tmp_path / "text.pt").write_text("no checkpoint")
        with pytest.raises(ValueError, match=r"text\.pt: cannot be read"):
            load_checkpoint(tmp_path / "text.pt")
        torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other\.pt: not a checkpoint"):
            load_checkpoint(tmp_path / "other.pt")

    def test_random_state_through_a_file(self, tmp_path):
        def draw():
            return random.random(), np.random.rand(), torch.rand(()).item()

        path = save_checkpoint(tmp_path, 1, {"random": random_state()}, keep=1)
        expected = draw()
        assert draw() != expected
        set_random_state(load_checkpoint(path)["random"])
        assert draw() == expected

    def test_model_folder(self, tmp_path):
        model = QueryPoseForPoseEstimation(tiny_config())
        (tmp_path / ".part.left_by_a_kill").mkdir()
        save_model_folder(tmp_path, model)
        torch.nn.init.ones_(model.model.decoder.part_queries)
        save_model_folder(tmp_path, model)
        loaded = QueryPoseForPoseEstimation.from_pretrained(tmp_path)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
