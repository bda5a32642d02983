"""The commands in README and documentation are run in a folder with what they name; training is shortened."""

import json
import runpy
import shlex
import shutil
from pathlib import Path

import datasets
import PIL.Image
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from hub_rows import make_rows
from small_data import relabelled_for_crowdpose, small_experiment, write_rendered_coco
from test_documentation import PAGES, PROJECT, blocks, commands
from tiny import save_tiny_checkpoint, tiny_config

from querypose_hf import CROWDPOSE_14, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.cli import main
from querypose_hf.training.recipe import RECIPES


pytestmark = pytest.mark.slow

#: Commands that cannot run here, by how they begin, and what stands for them.
NOT_RUN = {
    "train --config configs/": "COCO and weights of the Hub; tests/training/test_published_experiments.py",
    "push": "a hub; tests/hub has one on loopback",
    "convert": "the authors' files; tests/weights/test_conversion.py",
    "benchmark": "minutes, or a GPU; tests/benchmark",
    "demo": "Gradio, and a browser; tests/inference/test_demo.py",
}
#: Options of training in place of the documented ones, so that it takes seconds: bfloat16 is slow on most CPUs.
SHORTENED = {"--epochs": "1", "--mixed-precision": "no"}
#: A file that each command leaves, by how it begins.
LEAVES = {
    "predict --dataset": "people/people-*.parquet",
    "predict clip.mp4": "people.jsonl",
    "predict photo.jpg": "outputs/photo_poses.jpg",
    "explain photo.jpg": "outputs/photo_parts.png",
    "train --config": "runs/mine/last/model.safetensors",
    "train": "runs/train/last/model.safetensors",
    "evaluate": "scores/metrics.json",
    "check-data": "report",
    "card": "runs/r50/best/README.md",
    "export": "exported*/config.json",
    "predict": "outputs/sample_poses.jpg",
}


def beginning(arguments, table):
    line = shlex.join(arguments)
    return next((start for start in table if line == start or line.startswith(start)), None)


def all_commands():
    seen = {}
    for page in PAGES:
        for arguments in commands(page):
            seen.setdefault(tuple(arguments), page.name)
    return [pytest.param(list(arguments), id=shlex.join(arguments)[:70]) for arguments in seen]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented")
    save_tiny_checkpoint(folder / "path" / "to" / "checkpoint", class_bias=2.0, longest_edge=96)
    source = write_rendered_coco(folder / "data", count=2)
    content = json.loads(Path(source["annotations"]).read_text())
    for name in ("train", "val", "images", "photos"):
        shutil.copytree(source["images"], folder / name)
    shutil.copyfile(folder / "photos" / "0.png", folder / "photo.png")
    PIL.Image.open(folder / "photo.png").convert("RGB").save(folder / "photo.jpg")
    for name in ("train.json", "val.json", "person_keypoints_val2017.json"):
        (folder / name).write_text(json.dumps(content))
    results = [
        {"image_id": one["image_id"], "category_id": 1, "keypoints": one["keypoints"], "score": 0.5}
        for one in content["annotations"]
    ]
    (folder / "results.json").write_text(json.dumps(results))
    crowd = relabelled_for_crowdpose(content)
    for image in crowd["images"]:
        image["crowdIndex"] = 0.3
    (folder / "crowdpose_test.json").write_text(json.dumps(crowd))
    rows = make_rows(keypoints=lambda i: [[3.0 + j, 4.0, 2.0, *[0.0] * 6] for j in range(i)])
    # a folder of this name stands for the dataset on the Hub
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(folder / "user" / "horses")
    (folder / "mine.yaml").write_text(yaml.safe_dump(small_experiment(source)))
    save_tiny_checkpoint(folder / "runs" / "r50" / "best")
    save_tiny_checkpoint(folder / "runs" / "train" / "best", class_bias=2.0, longest_edge=96)
    (folder / "scores").mkdir()
    metrics = {"metrics": {"AP": 0.5, "AP50": 0.8}, "protocol": {"metric": "coco", "images": 5000, "people": 11004}}
    (folder / "scores" / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def in_folder(prepared, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("arguments", all_commands())
def test_command(arguments, in_folder, capsys):
    if start := beginning(arguments, NOT_RUN):
        pytest.skip(f"needs {NOT_RUN[start]}")
    if "clip.mp4" in arguments:
        pytest.importorskip("trackers", reason="trackers is not installed", exc_type=ImportError)
        pytest.importorskip("av", reason="PyAV is not installed", exc_type=ImportError)
        from clips import panned_scene, write_clip

        write_clip(in_folder / "clip.mp4", panned_scene(3))
    if "--metric" in arguments and "crowdpose" in arguments:
        crowdpose_checkpoint(in_folder / "path" / "to" / "checkpoint")
    if arguments[0] == "card":
        (in_folder / "runs" / "r50" / "best" / "README.md").unlink(missing_ok=True)
    if arguments[0] == "evaluate":
        shutil.rmtree(in_folder / "scores")
    if arguments[0] == "train":
        arguments = [SHORTENED.get(before, word) for before, word in zip(["", *arguments], arguments, strict=False)]
        arguments += ["--set", "augmentation.short_sides=[64]"]
        if not {"--config", "--epochs", "--steps"} & set(arguments):
            arguments += ["--epochs", "1"]
    assert main(arguments) == 0, capsys.readouterr().err
    left = LEAVES[beginning(arguments, LEAVES)]
    assert list(in_folder.glob(left)), (left, sorted(path.name for path in in_folder.iterdir()))
    if arguments[0] == "predict" and "--dataset" in arguments:
        (block,) = (code for code in blocks(PROJECT / "docs" / "bulk.md", "python") if "pyarrow" in code)
        exec(compile(block, "bulk.md", "exec"), namespace := {})
        assert "threshold" in namespace["settings"]


def crowdpose_checkpoint(folder):
    torch.manual_seed(0)
    config = tiny_config(keypoint_names=list(CROWDPOSE_14.keypoint_names), keypoint_sigmas=list(CROWDPOSE_14.sigmas))
    QueryPoseForPoseEstimation(config).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    QueryPoseImageProcessor(size=size, num_keypoints=14).save_pretrained(folder)


def test_trainer_script(in_folder, monkeypatch):
    """Transformers' Trainer, by the line in docs/training.md, shortened."""
    line = "--annotations train.json --images train --val-annotations val.json --val-images val --output runs/trainer"
    text = (PROJECT / "docs" / "training.md").read_text().replace("\\\n    ", "")
    assert f"python scripts/train_with_trainer.py {line}\n" in text
    script = str(PROJECT / "scripts" / "train_with_trainer.py")
    short = ["--model", "path/to/checkpoint", "--max-steps", "1", "--workers", "0", "--cpu"]
    monkeypatch.setattr("sys.argv", [script, *shlex.split(line), *short])
    runpy.run_path(script, run_name="__main__")
    assert list((in_folder / "runs" / "trainer").rglob("model.safetensors"))
    saved = next((in_folder / "runs" / "trainer").rglob("training_args.bin"))
    arguments, recipe = torch.load(saved, weights_only=False), RECIPES["fine_tuning"]
    for name, expected in {
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_gradient_norm,
        "lr_scheduler_type": recipe.schedule.kind,
        "num_train_epochs": recipe.schedule.length,
        "warmup_steps": recipe.schedule.with_length(1, "step").warmup_steps,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "logging_steps": recipe.log_every,
    }.items():
        assert getattr(arguments, name) == expected, name
