"""README and documentation: the commands are commands, and the Python, JSON and YAML do what the pages say."""

import importlib.util
import json
import logging
import re
import shlex
import tomllib
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from places import OWN_SCRIPTS, PROJECT
from small_data import SAMPLE_PEOPLE, write_rendered_coco
from tiny import people, save_tiny_checkpoint
from transformers import pipeline

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessorPil
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.cli import build_parser, main
from querypose_hf.data import CocoPoseDataset
from querypose_hf.data.yolo_pose import YoloPoseDataset
from querypose_hf.hub.endpoint_handler import EndpointHandler
from querypose_hf.training.experiment import Experiment


#: What is not in the test extra, or need not be installed, by what a block imports.
OPTIONAL = ("bitsandbytes", "fastapi", "fiftyone", "pandas", "peft", "ray", "supervision", "torchao")
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
#: Pages whose Python other tests run.
PYTHON_ELSEWHERE = {
    "docs/bulk.md": "test_documented_commands.py, where there is a table to read, and tests/inference/test_ray.py",
    "docs/hub.md": "tests/hub/test_push.py, with a hub on loopback",
}
_SCRIPT = re.compile(r"^scripts/(\w+)\.py$")
#: The command whose script has another name.
_RENAMED = {"convert_querypose_original_to_hf": "convert"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def command_lines(page: Path) -> list[list[str]]:
    """The words of every command in a page's shell blocks, and of every `querypose` command in its tables."""
    rows = re.findall(r"^\|.*\|$", page.read_text(), flags=re.MULTILINE)
    in_tables = [command for row in rows for command in re.findall(r"`(querypose [^`]*)`", row)]
    lines = []
    for block in [*blocks(page, "bash"), *in_tables]:
        for line in block.replace("\\\n", " ").splitlines():
            lines += [shlex.split(command, comments=True) for command in re.split(r"&&|\||;", line)]
    return lines


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `querypose` command of a page, scripts under a launcher too."""
    found = []
    for words in command_lines(page):
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
    assert len(commands(PROJECT / "README.md")) >= 12


def test_own_scripts_have_the_flags_of_the_pages():
    """Of the scripts that are no command of `querypose`; their own tests run them."""
    seen = set()
    for page in PAGES:
        for words in command_lines(page):
            scripts = [word for word in words if (found := _SCRIPT.match(word)) and found[1] in OWN_SCRIPTS]
            for script in scripts:
                seen.add(script)
                flags = {word for word in words[words.index(script) :] if word.startswith("--")} - {"--help"}
                known = set(re.findall(r'"(--[\w-]+)"', (PROJECT / script).read_text()))
                assert flags <= known, f"{page.name}: {script}: {sorted(flags - known)}"
    assert len(seen) >= 4


def test_extras_exist():
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    rows = re.findall(r"\| `([\w,-]+)` \|$", (PROJECT / "README.md").read_text(), flags=re.MULTILINE)
    assert rows
    for page in PAGES:
        named = re.findall(r'"\.\[([\w,-]+)\]"', page.read_text()) + (rows if page.name == "README.md" else [])
        assert {extra for group in named for extra in group.split(",")} <= extras, page.name


def test_every_block_is_run():
    """By a test of this file unless a table says where else; shell blocks by test_documented_commands.py."""
    of = {language: set() for language in ("python", "json", "yaml")}
    for page in PAGES:
        languages = re.findall(r"^ *```(\w+)$", page.read_text(), flags=re.MULTILINE)
        assert set(languages) <= {*of, "bash", "text"}, page.name
        for language in of.keys() & set(languages):
            of[language].add(page.relative_to(PROJECT).as_posix())
    here = Path(__file__).read_text()
    run_here = {page for page in of["python"] if f'"{page}"' in here} - PYTHON_ELSEWHERE.keys()
    assert of["python"] - run_here == PYTHON_ELSEWHERE.keys()
    assert of["json"] == {"docs/serving.md", "docs/training.md"} and of["yaml"] == {"docs/training.md"}


def test_links_lead_somewhere():
    for page in [*PAGES, PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder with what the pages speak of."""
    for checkpoint in ("path/to/checkpoint", "runs/train/best"):
        # sure of itself, so that there are people to speak of
        save_tiny_checkpoint(tmp_path / checkpoint, class_bias=4.0, longest_edge=96)
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


def test_five_lines(in_folder, capsys):
    run("README.md")
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
    assert (in_folder / "runs/train/best/handler.py").is_file()
    assert len(namespace["people"]) == 2
    # the request and the answer that the page shows
    request, answer = map(json.loads, blocks(PROJECT / "docs" / "serving.md", "json"))
    found = EndpointHandler("runs/train/best", device="cpu")({**request, "inputs": PIL.Image.open("photo.jpg")})
    assert found and found[0].keys() == answer[0].keys()
    assert found[0]["keypoints"][0].keys() == answer[0]["keypoints"][0].keys()


def test_evaluation(in_folder):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    source = write_rendered_coco(in_folder / "data", count=2)
    Path(source["images"]).rename("val")
    content = json.loads(Path(source["annotations"]).read_text())
    Path("val.json").write_text(json.dumps(content))
    results = [
        {"image_id": one["image_id"], "category_id": 1, "keypoints": one["keypoints"], "score": 0.5}
        for one in content["annotations"]
    ]
    Path("results.json").write_text(json.dumps(results))
    namespace, _ = run("docs/evaluation.md")
    assert Path("scores/report.html").is_file()
    assert namespace["figures"]["metrics"]["AP"] == pytest.approx(1)


def test_speed(in_folder):
    pose_estimator = pipeline("pose-estimation", model="path/to/checkpoint")
    namespace, _ = run("docs/speed.md", pose_estimator=pose_estimator, list_of_files=["photo.jpg"] * 3)
    assert len(namespace["people"]) == 3 and all(namespace["people"])
    assert not [layer for layer in namespace["model"].modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def test_exported_files_run(in_folder, capsys, caplog):
    """In the pipeline, and without this package. The export says what it is doing, and nothing else."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    checkpoint = "path/to/checkpoint"
    page = PROJECT / "docs" / "export.md"
    for words in commands(page):
        if "onnx" in words or "people" in words:  # the format is ONNX where the page names none
            assert main([checkpoint if word == "querypose-nano" else word for word in words]) == 0
            out, err = capsys.readouterr()
            assert out == f"Written to {Path(words[-1]) / 'model.onnx'}\n"
            assert err == "Tracing the model ...\nWriting model.onnx ...\n"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

    (alone,) = (block for block in blocks(page, "python") if "import onnxruntime" in block)
    assert "querypose" not in alone and "torch" not in alone
    namespace, _ = run("docs/export.md")
    pose_estimator = pipeline(
        "pose-estimation",
        model=QueryPoseForPoseEstimation.from_pretrained(checkpoint),
        image_processor=QueryPoseImageProcessorPil.from_pretrained(checkpoint),
    )
    expected = pose_estimator("photo.jpg")
    assert len(expected) == len(namespace["people"]) == namespace["found"].sum() > 0
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


def test_training(in_folder):
    """A step of training, and the data and descriptions that the page shows."""
    annotations = [{"image_id": 1, "annotations": SAMPLE_PEOPLE}]
    namespace, _ = run("docs/training.md", images=[PIL.Image.open(SAMPLE_IMAGE)], annotations=annotations)
    assert namespace["outputs"].loss.isfinite()
    assert namespace["config"].keypoint_flip_indices == [0, 2, 1, 3, 4]

    page = PROJECT / "docs" / "training.md"
    (content,) = blocks(page, "json")
    Path("train").mkdir()
    PIL.Image.new("RGB", (640, 480)).save("train/0001.jpg")
    Path("train.json").write_text(content)
    dataset = CocoPoseDataset("train.json", "train")
    assert dataset.keypoint_names == ("nose", "left_ear", "right_ear") and len(dataset) == 1

    description, streaming, yolo = blocks(page, "yaml")
    assert Experiment.from_mapping(yaml.safe_load(description)).training.schedule.length == 30
    streamed = Experiment.from_mapping({"model": {"variant": "r50"}, **yaml.safe_load(streaming)})
    assert streamed.data.train[0].streaming
    Path("data.yaml").write_text(yolo)
    Path("images/train").mkdir(parents=True)
    PIL.Image.open(SAMPLE_IMAGE).save("images/train/1.jpg")
    Path("labels/train").mkdir(parents=True)
    Path("labels/train/1.txt").write_text("0 .5 .5 .4 .4 .5 .4 2 .45 .35 2 0 0 0\n")
    dataset = YoloPoseDataset("data.yaml")
    assert dataset.keypoint_names == ("nose", "left_ear", "right_ear") and len(dataset.annotations(0)) == 1
