"""README and documentation: the commands are commands, and the Python runs as it stands."""

import importlib.util
import json
import logging
import re
import shlex
from pathlib import Path

import PIL.Image
import pytest
import torch
from places import OWN_SCRIPTS, PROJECT
from small_data import SAMPLE_PEOPLE, sample_coco
from tiny import people, save_tiny_checkpoint, tiny_config
from transformers import pipeline

from querypose_hf import CROWDPOSE_14, QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessorPil
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.cli import build_parser, main
from querypose_hf.data import CocoPoseDataset
from querypose_hf.weights import backbone_weights


#: What is not in the test extra, or need not be installed, by what a block imports.
OPTIONAL = ("bitsandbytes", "fiftyone", "pandas", "peft", "ray", "supervision", "torchao")
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
_SCRIPT = re.compile(r"^scripts/(\w+)\.py$")
#: The command whose script has another name.
_RENAMED = {"convert_querypose_original_to_hf": "convert"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `querypose` command in a page's shell blocks and tables, scripts under a launcher too."""
    found = []
    in_tables = re.findall(r"^\|.*`(querypose [^`]*)`", page.read_text(), flags=re.MULTILINE)
    for block in [*blocks(page, "bash"), *in_tables]:
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\||;", line):
                words = shlex.split(command, comments=True)
                for place, word in enumerate(words):
                    script = _SCRIPT.match(word)
                    if word == "querypose":
                        found.append(words[place + 1 :])
                    elif script and script[1] not in OWN_SCRIPTS:
                        name = _RENAMED.get(script[1], script[1].replace("_", "-"))
                        found.append([name, *words[place + 1 :]])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_commands(page, capsys):
    for arguments in commands(page):
        try:
            build_parser().parse_args(arguments)
        except SystemExit as stop:
            pytest.fail(f"{page.name}: querypose {shlex.join(arguments)}: {stop}: {capsys.readouterr().err}")


def test_pages_have_commands():
    assert len(commands(PROJECT / "README.md")) >= 8


def test_links_lead_somewhere():
    for page in [*PAGES, PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder with what the pages speak of."""
    checkpoint = tmp_path / "path" / "to" / "checkpoint"
    # sure of itself, so that there are people to speak of
    save_tiny_checkpoint(checkpoint, class_bias=4.0, longest_edge=96)
    (tmp_path / "photo.jpg").write_bytes(SAMPLE_IMAGE.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page, **names):
    """Runs a page's Python; gives its names, and the libraries for want of which some of it was left out."""
    namespace, missing = dict(names), set()
    for block in blocks(PROJECT / page, "python"):
        needed = {name for name in OPTIONAL if re.search(rf"^\s*(import|from) {name}\b", block, flags=re.MULTILINE)}
        if "int8_config" in block:
            needed.add("torchao")
        absent = {name for name in needed if importlib.util.find_spec(name) is None}
        missing |= absent
        if not absent:
            exec(compile(block, page, "exec"), namespace)
    return namespace, missing


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_five_lines(page, in_folder, capsys):
    run(page)
    assert "'xmin'" in capsys.readouterr().out  # with querypose-nano


def test_predict(in_folder):
    namespace, _ = run("docs/predict.md")
    assert namespace["people"]
    assert PIL.Image.open("photo_poses.jpg").size == PIL.Image.open("photo.jpg").size


def test_interoperability(in_folder):
    namespace, missing = run("docs/interoperability.md")
    count = len(namespace["people"])
    assert count > 0
    assert (in_folder / "results.json").is_file()
    if "supervision" not in missing:
        assert len(namespace["key_points"]) == len(namespace["detections"]) == count
    if "pandas" not in missing:
        assert len(namespace["noses"]) == len(namespace["one_row_each"]) == count


def test_serving(in_folder):
    namespace, _ = run("docs/serving.md")
    assert (in_folder / "path/to/checkpoint/handler.py").is_file()
    assert all(person["score"] >= 0.5 for person in namespace["people"])


def test_an_exported_file_runs_without_this_package(in_folder, capsys, caplog):
    """And the export says what it is doing, and nothing else."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    page = PROJECT / "docs" / "export.md"
    (command,) = (words for words in commands(page) if "people" in words)
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"Written to {Path('exported-people/model.onnx')}\n"
    assert "Tracing the model ...\nWriting model.onnx ...\n" in err
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

    (block,) = (block for block in blocks(page, "python") if "import onnxruntime" in block)
    assert "querypose" not in block and "torch" not in block
    namespace = {}
    exec(compile(block, page.name, "exec"), namespace)
    checkpoint = "path/to/checkpoint"
    pose_estimator = pipeline(
        "pose-estimation",
        model=QueryPoseForPoseEstimation.from_pretrained(checkpoint),
        image_processor=QueryPoseImageProcessorPil.from_pretrained(checkpoint),
    )
    expected = pose_estimator("photo.jpg")
    assert len(expected) == namespace["found"].sum() > 0
    for person, box, points in zip(expected, namespace["boxes"], namespace["keypoints"], strict=False):
        assert box == pytest.approx([person["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")], abs=0.05)
        assert points[:, 0] == pytest.approx([point["x"] for point in person["keypoints"]], abs=0.05)
        assert points[:, 1] == pytest.approx([point["y"] for point in person["keypoints"]], abs=0.05)


def test_adapters(in_folder):
    pytest.importorskip("peft", reason="PEFT is not installed")
    batch = {"pixel_values": torch.zeros(1, 3, 64, 64), "labels": [people(2)]}
    namespace, missing = run("docs/adapters.md", batch=batch)
    assert (in_folder / "merged" / "model.safetensors").is_file()
    assert (in_folder / "adapter" / "adapter_model.safetensors").is_file()
    if "torchao" not in missing:
        assert (in_folder / "int8" / "model.safetensors").is_file()
    assert type(namespace["merged"]) is QueryPoseForPoseEstimation


def test_explain(in_folder, capsys):
    run("docs/explain.md")
    assert "'left elbow'" in capsys.readouterr().out
    assert (in_folder / "person1.png").is_file()


def test_video(in_folder, capsys):
    pytest.importorskip("trackers", reason="trackers is not installed", exc_type=ImportError)
    pytest.importorskip("av", reason="PyAV is not installed", exc_type=ImportError)
    from clips import panned_scene, write_clip

    write_clip(in_folder / "clip.mp4", panned_scene(3))
    run("docs/video.md")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines] == ["0 ", "1 ", "2 "]
    assert re.search(r"\(\d+, 0\.\d+\)", lines[2])


def test_training(in_folder, monkeypatch):
    """A step of training; and annotations of CrowdPose's keypoints, made of COCO's, that the reader takes."""
    # the published model takes minutes for a step here, and its weights are on the Hub
    monkeypatch.setattr(QueryPoseConfig, "from_variant", lambda variant: tiny_config())
    loaded = []
    monkeypatch.setattr(backbone_weights, "load_backbone_weights", lambda *args, **kwargs: loaded.append(kwargs))
    Path("coco.json").write_text(json.dumps(sample_coco()))
    annotations = [{"image_id": 1, "annotations": SAMPLE_PEOPLE}]
    namespace, _ = run("docs/training.md", images=[PIL.Image.open(SAMPLE_IMAGE)], annotations=annotations)
    assert loaded and namespace["outputs"].loss.isfinite()
    assert namespace["config"].keypoint_flip_indices == [0, 2, 1, 3, 4]
    dataset = CocoPoseDataset("crowdpose_like.json", SAMPLE_IMAGE.parent)
    assert dataset.keypoint_names == CROWDPOSE_14.keypoint_names
    assert len(dataset.annotations(0)) == len(SAMPLE_PEOPLE)
