"""What a user does with `querypose train`."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from launching import run_two_processes
from places import PROJECT, SHARED
from small_data import relabelled_for_crowdpose, small_experiment, write_rendered_coco
from transformers import AutoModelForPoseEstimation

from querypose_hf import CROWDPOSE_14, QueryPoseImageProcessor
from querypose_hf.cli import main
from querypose_hf.hub.model_card import has_card_of_training
from querypose_hf.training import run
from querypose_hf.training.checkpoints import find_checkpoints, load_checkpoint
from querypose_hf.training.recipe import RECIPES


MEASURED = ("images_per_second", "data_wait", "memory_gib")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on how many threads share them
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rendered_coco(tmp_path_factory.mktemp("rendered"))


@pytest.fixture(scope="module")
def config(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(small_experiment(source)))
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train("--config", config, "--output", folder) == 0
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return folder


def train(*arguments) -> int:
    return main(["train", *map(str, arguments)])


def computed(folder) -> list[dict]:
    records = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def weights(folder):
    return AutoModelForPoseEstimation.from_pretrained(folder).state_dict()


def assert_same_weights(folder, reference):
    expected = weights(reference)
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder).items())


def test_a_run_leaves_models_a_log_and_its_description(finished):
    records = computed(finished)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    assert [record["step"] for record in records if "evaluation/AP" in record] == [2, 4]
    for folder in ("best", "last"):
        processor = QueryPoseImageProcessor.from_pretrained(finished / folder)
        assert (processor.num_keypoints, processor.size.shortest_edge) == (17, 48)
        weights(finished / folder)
    description = yaml.safe_load((finished / "experiment.yaml").read_text())
    assert description["training"]["ema_decay"] == 0.9
    assert (finished / "querypose").is_dir()  # TensorBoard's
    report = (finished / "report.html").read_text()
    assert report.count("<svg") == 2  # curves of the loss terms and of AP
    assert all(f">{name} " in report for name in ("loss", "loss_keypoint", "AP", "AP50"))
    assert report.count('<img alt="annotated"') == report.count('<img alt="found"') == 6
    card = (finished / "best" / "README.md").read_text()
    assert "Trained with querypose-hf." in card and "without non-maximum" in card and "license: mit" in card
    assert re.search(r"^Training scored this model: AP \d.* on 6 images of `people.json`\.$", card, re.MULTILINE)
    assert has_card_of_training(finished / "best")


def test_flags_come_after_the_file(config, tmp_path, capsys):
    flags = ["--steps", 3, "--learning-rate", 0.5, "--batch-size", 3, "--seed", 4, "--set", "training.log_every=9"]
    assert train("--config", config, "--output", tmp_path / "run", "--check", *flags) == 0
    assert not (tmp_path / "run").exists()
    assert "6 images in an epoch, of 6 in 1 sources" in capsys.readouterr().out
    assert train("--config", config, "--output", tmp_path / "run", "--set", "training.save_every=7", *flags) == 0
    settings = yaml.safe_load((tmp_path / "run" / "experiment.yaml").read_text())["training"]
    assert settings["schedule"]["length"] == 3
    assert [settings[name] for name in ("learning_rate", "batch_size", "seed", "log_every")] == [0.5, 3, 4, 9]


@pytest.fixture
def experiments(monkeypatch):
    """The experiments that would run."""
    found = []
    monkeypatch.setattr(run, "run_experiment", lambda experiment, *_, **__: found.append(experiment) or {})
    return found


def test_without_a_model_querypose_nano_is_fine_tuned(source, tmp_path, experiments):
    flags = ["--annotations", source["annotations"], "--images", source["images"], "--output", tmp_path]
    for more in ([], ["--steps", 50], ["--epochs", 5], ["--patience", 2, "--batch-size", 3]):
        assert train(*flags, *more) == 0
    assert train(*flags, "--model", "r50") == 0
    plain, steps, epochs, changed, variant = experiments
    assert plain.model.checkpoint == "querypose-nano" and plain.training == RECIPES["fine_tuning"]
    sides = plain.augmentation.short_sides
    assert min(sides) < 344 < max(sides)  # that of its image processor
    for one, length in ((steps, ("step", 50)), (epochs, ("epoch", 5))):
        schedule = one.training.schedule
        assert (schedule.unit, schedule.length, schedule.kind) == (*length, "cosine")
        assert dataclasses.replace(one.training, schedule=plain.training.schedule) == plain.training
    assert (changed.training.patience, changed.training.batch_size, changed.training.learning_rate) == (2, 3, 2e-4)
    assert variant.training == RECIPES["paper_1x"]


def test_an_interrupted_run_says_how_to_go_on(config, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt("Stopped at step 3 of 9. Run the same command with --resume to go on.")

    monkeypatch.setattr(run, "run_experiment", interrupted)
    assert train("--config", config, "--output", tmp_path / "run") == 130
    error = capsys.readouterr().err
    assert error == "querypose train: Stopped at step 3 of 9. Run the same command with --resume to go on.\n"


def test_ctrl_c_in_a_terminal(config, tmp_path):
    """It reaches the workers, too, which prepare data for the step at hand."""
    folder, output = tmp_path / "run", tmp_path / "output"
    settings = ["training.evaluate_every=100000", "training.save_every=100000", "training.trackers=[]"]
    flags = ["--config", str(config), "--output", str(folder), "--steps", "100000", "--workers", "2"]
    command = [sys.executable, "-m", "querypose_hf", "train", *flags]
    command += [argument for setting in settings for argument in ("--set", setting)]
    path = os.pathsep.join([str(PROJECT / "src"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with output.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while not (folder / "training_log.jsonl").is_file():
            assert process.poll() is None and time.monotonic() < end, output.read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 130, output.read_text()
    finally:
        process.kill()
    said = output.read_text()
    assert "Traceback" not in said
    assert re.search(r"querypose train: Stopped at step \d+ of 100000\. .* --resume to go on\.\n$", said)


def test_splits_of_a_yolo_dataset(tmp_path, experiments):
    flags = ["--model", "r50", "--output", tmp_path / "run", "--format", "yolo", "--annotations", tmp_path / "a.yaml"]
    for fields, more in (
        ({"train": "a", "val": "b"}, []),
        ({"train": "a", "val": None}, []),
        ({"train": "a", "val": "b"}, ["--val-annotations", "b.yaml"]),
    ):
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(fields))
        assert train(*flags, *more) == 0
    data = [experiment.data for experiment in experiments]
    assert [list(one.train[0].splits) for one in data] == [["train"]] * 3
    assert data[0].validation.annotations == str(tmp_path / "a.yaml") and data[0].validation.splits == ("val",)
    assert data[1].validation is None
    assert data[2].validation.annotations == "b.yaml"
    assert data[2].validation.splits == ("validation", "val", "test")


def test_resumed_goes_on_as_if_never_stopped(config, finished, tmp_path, capsys):
    # that a run which is killed leaves such a folder is tested with the loop, in tests/training/test_checkpoints.py
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoints" / "step_000000004.pt").unlink()
    assert train("--config", config, "--output", folder, "--resume", "--stop-after", 3) == 0
    assert "Stopped at step 3 of 4. The checkpoint is in" in capsys.readouterr().out
    assert train("--config", config, "--output", folder, "--resume") == 0
    assert "Finished at step 4 of 4. Models are in" in capsys.readouterr().out
    assert computed(folder) == computed(finished)
    assert_same_weights(folder / "last", finished / "last")


def test_two_processes(config, tmp_path):
    folder = tmp_path / "run"
    arguments = ["train", "--config", str(config), "--output", str(folder), "--steps", "3"]
    printed = run_two_processes(tmp_path / "output", main, arguments)
    assert ["6 images in an epoch" in text for text in printed] == [True, False]  # only the first process speaks
    records = [record for record in computed(folder) if "loss" in record]
    # six images in batches of two: with two processes an epoch has two steps, with one it has three
    assert [(record["step"], record["epoch"]) for record in records] == [(1, 0), (2, 0), (3, 1)]
    (checkpoint,) = find_checkpoints(folder / "checkpoints")[-1:]
    assert load_checkpoint(checkpoint)["origin"]["number of processes"] == 2
    assert [record["step"] for record in computed(folder) if "evaluation/AP" in record] == [2, 3]
    weights(folder / "best")


class TestOtherKeypoints:
    def fine_tune(self, checkpoint, annotations, images, output, *flags):
        files = ["--annotations", annotations, "--images", images]
        files += ["--val-annotations", annotations, "--val-images", images]
        small = ["augmentation.short_sides=[48]", "augmentation.crop_probability=0", "data.validation.num_workers=0"]
        assignments = [argument for text in small for argument in ("--set", text)]
        workers = ["--workers", 0]
        return train("--model", checkpoint, *files, *workers, *assignments, "--output", output, *flags)

    def test_rendered_people(self, finished, source, tmp_path, capsys):
        path = tmp_path / "crowdpose_like.json"
        path.write_text(json.dumps(relabelled_for_crowdpose(json.loads(Path(source["annotations"]).read_text()))))
        assert self.fine_tune(finished / "last", path, source["images"], tmp_path / "run", "--epochs", 1) == 0
        said = capsys.readouterr().out
        assert "keypoints carried over: 12 of 14; newly initialised: head, neck" in said
        assert "parts carried over: 6 of 7; newly initialised: head+neck" in said
        model = AutoModelForPoseEstimation.from_pretrained(tmp_path / "run" / "best")
        assert model.config.skeleton == CROWDPOSE_14
        assert QueryPoseImageProcessor.from_pretrained(tmp_path / "run" / "best").num_keypoints == 14
        assert computed(tmp_path / "run")[-1]["evaluation/AP"] >= 0
        assert [record["step"] for record in computed(tmp_path / "run")] == [1, 1]  # a batch of at most eight

    def test_photographs(self, finished, tmp_path, capsys):
        data = SHARED / "data" / "coco_fullres"
        if not data.is_dir():
            pytest.skip(f"no photographs at {data}; QUERYPOSE_SHARED can name the folder of `data`")
        content = relabelled_for_crowdpose(json.loads((data / "person_keypoints.json").read_text()))
        assert all(len(person["keypoints"]) == 42 for person in content["annotations"])
        path = tmp_path / "photographs.json"
        path.write_text(json.dumps(content))
        few = ["--steps", 2, "--set", "data.train.0.max_images=4", "--set", "data.validation.max_images=2"]
        assert self.fine_tune(finished / "last", path, data / "images", tmp_path / "run", *few) == 0
        assert "keypoints carried over: 12 of 14; newly initialised: head, neck" in capsys.readouterr().out
        assert [record["step"] for record in computed(tmp_path / "run")] == [1, 1, 2, 2]  # scored after each epoch


class TestStreaming:
    @pytest.fixture(scope="class")
    def rows(self, source, tmp_path_factory):
        """The rendered people as a saved dataset of the `datasets` library."""
        content = json.loads(Path(source["annotations"]).read_text())
        images = [str(Path(source["images"]) / image["file_name"]) for image in content["images"]]
        people = [[one for one in content["annotations"] if one["image_id"] == i] for i in range(len(images))]
        objects = [
            {field: [one[field] for one in group] for field in ("bbox", "keypoints", "area")} for group in people
        ]
        objects[0]["area"][0] = 0
        folder = tmp_path_factory.mktemp("rows") / "saved"
        dataset = datasets.Dataset.from_dict({"image": images, "objects": objects})
        datasets.DatasetDict({"train": dataset.cast_column("image", datasets.Image())}).save_to_disk(folder)
        return folder

    def flags(self, rows, *more):
        return ["--format", "hub", "--annotations", rows, "--streaming", "--steps", 5, *more]

    def test_resumed_goes_on_as_if_never_stopped(self, config, rows, tmp_path, capsys):
        flags = self.flags(rows, "--workers", 2, "--set", "data.train.0.shuffle_buffer=3")
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        assert train("--config", config, "--output", whole, *flags) == 0
        said = capsys.readouterr().out
        assert "a stream of images" in said and re.search(r"the stream has: \d+ people with area 0", said)
        assert train("--config", config, "--output", parts, *flags, "--stop-after", 3) == 0
        assert train("--config", config, "--output", parts, *flags, "--resume") == 0
        assert [record["step"] for record in computed(whole)] == [1, 2, 3, 4, 5]
        assert computed(parts) == computed(whole)
        assert_same_weights(parts / "last", whole / "last")
        capsys.readouterr()
        assert train("--config", config, "--output", parts, *flags, "--resume", "--workers", 1) == 2
        assert "`number of workers` was 2 in this run and is 1 now" in capsys.readouterr().err

    def test_two_processes(self, config, rows, tmp_path):
        arguments = ["train", "--config", config, "--output", tmp_path / "run", *self.flags(rows)]
        run_two_processes(tmp_path / "output", main, [str(argument) for argument in arguments])
        assert [record["step"] for record in computed(tmp_path / "run")] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--epochs", 1], "`training.schedule.unit` is 'epoch'; expected 'step'"),
            (["--set", "data.train.0.max_images=2"], "in `data.train[0]`: `max_images` is 2; expected nothing"),
            (["--set", "data.train.0.repeat=2"], "`repeat` is 2.0; expected 1 with `streaming`"),
            (["--set", "data.train.0.shuffle_buffer=0"], "`shuffle_buffer` is 0; expected at least 1"),
            (["--set", "model.initial_boxes=training_people"], "`model.initial_boxes` is 'training_people'; expected"),
            (["--set", "data.validation={format: hub, annotations: x, streaming: true}"], "`streaming` is True; exp"),
            (["--format", "coco", "--images", "x"], "`streaming` is True; format 'coco' does not have it"),
        ],
    )
    def test_what_does_not_go_with_it(self, flags, message, config, tmp_path, capsys):
        source = ["--format", "hub", "--annotations", "nowhere", "--streaming"]
        assert train("--config", config, "--output", tmp_path / "run", *source, *flags) == 2
        assert message in capsys.readouterr().err

    def test_beside_another_source(self, config, tmp_path, capsys):
        both = "data.train=[{format: hub, annotations: x, streaming: true}, {format: hub, annotations: y}]"
        assert train("--config", config, "--output", tmp_path / "run", "--set", both) == 2
        assert "`train` has 2 sources, one with `streaming`; expected it alone" in capsys.readouterr().err


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--config", "none.yaml"], "none.yaml: no such file"),
            (["--model", "r50"], "command line: `data` is missing"),
            (["--model", "r50", "--annotations", "none.json", "--images", "."], "`data.train[0]`: none.json: no such"),
            (
                ["--model", "nowhere", "--annotations", "PEOPLE", "--images", "IMAGES"],
                "`model.checkpoint` is 'nowhere'",
            ),
            (["--model", "r50", "--images", "."], "--images is given without --annotations"),
            (["--config", "CONFIG", "--set", "training.trackers=[none]"], "`trackers` holds 'none'"),
            (
                [
                    "--config",
                    "CONFIG",
                    "--set",
                    "model.initial_boxes=training_people",
                    "--set",
                    "data.train=[{format: generated, length: 2}]",
                ],
                "only generated images; expected a source with annotated images",
            ),
            (["--config", "CONFIG", "--output", "CONFIG"], "which is a file; expected a folder"),
            (["--config", "CONFIG", "--push-to-hub", "a b/c"], "`--push-to-hub` is 'a b/c'"),
            (["--config", "CONFIG", "--push-to-hub", "me/model"], "you are not logged in to the Hub"),
            (["--config", "CONFIG", "--set", "data.validation.annotations=none.json"], "none.json: no such file"),
        ],
    )
    def test_before_work_starts(self, arguments, message, config, source, tmp_path, capsys):
        places = {"CONFIG": str(config), "PEOPLE": source["annotations"], "IMAGES": source["images"]}
        output = tmp_path / "run"
        assert train("--output", output, *[places.get(argument, argument) for argument in arguments]) == 2
        assert message in capsys.readouterr().err
        assert not output.exists()

    def test_a_run_is_not_overwritten(self, config, finished, capsys):
        before = computed(finished)
        assert train("--config", config, "--output", finished) == 2
        assert "holds checkpoints of a run; expected an empty folder, or `--resume`" in capsys.readouterr().err
        assert train("--config", config, "--output", finished, "--resume", "--set", "data.train.0.repeat=2") == 2
        assert "`data.train.0.repeat` was 1.0 in this run and is 2.0 now" in capsys.readouterr().err
        assert computed(finished) == before


class KnownUser:
    def whoami(self):
        return {"name": "me"}


def test_push_to_hub(config, tmp_path, monkeypatch):
    # how a checkpoint is uploaded is tested in tests/test_hub.py
    uploads = []

    def push(folder, repo_id, **options):
        uploads.append((folder, repo_id, options["commit"].private, sorted(path.name for path in folder.iterdir())))
        return SimpleNamespace(commit_url="address")

    monkeypatch.setattr(run, "HfApi", KnownUser)
    monkeypatch.setattr(run, "push_checkpoint", push)
    flags = ["--steps", 1, "--push-to-hub", "me/model", "--private", "--set", "training.trackers=[]"]
    assert train("--config", config, "--output", tmp_path / "run", *flags) == 0
    ((folder, repo_id, private, files),) = uploads
    assert (folder, repo_id, private) == (tmp_path / "run" / "best", "me/model", True)
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_querypose.py"} <= set(files)
