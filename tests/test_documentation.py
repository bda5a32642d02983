"""README and documentation: the commands are commands, and the README's Python runs as it stands."""

import re
import shlex
from pathlib import Path

import PIL.Image
import pytest
import torch
from tiny import tiny_config

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor, backbone_weights
from querypose_hf.cli import build_parser
from querypose_hf.data.synthetic import SAMPLE_SCENE_PATH, render_sample_scene


PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
_SCRIPT = re.compile(r"^scripts/(\w+)\.py$")
#: Scripts that are no command of `querypose`, and the command whose script has another name.
_OWN_SCRIPTS = ("train_with_trainer",)
_RENAMED = {"convert_querypose_original_to_hf": "convert"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `querypose` command in a page's shell blocks, also as a script under a launcher."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\||;", line):
                words = shlex.split(command, comments=True)
                for place, word in enumerate(words):
                    script = _SCRIPT.match(word)
                    if word == "querypose":
                        found.append(words[place + 1 :])
                    elif script and script[1] not in _OWN_SCRIPTS:
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
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_python_of_the_readme(tmp_path, monkeypatch):
    checkpoint = tmp_path / "path" / "to" / "checkpoint"
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config())
    for layer in model.model.decoder.box_layers:  # sure of itself, so that there are people to speak of
        layer.class_head.bias.data.fill_(4.0)
    model.save_pretrained(checkpoint)
    QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(checkpoint)
    (tmp_path / "photo.jpg").write_bytes(SAMPLE_SCENE_PATH.read_bytes())
    monkeypatch.chdir(tmp_path)
    # the published model takes minutes for a step here, and its weights are on the Hub
    monkeypatch.setattr(QueryPoseConfig, "from_variant", lambda variant: tiny_config())
    loaded = []
    monkeypatch.setattr(backbone_weights, "load_imagenet_weights", loaded.append)
    sample = render_sample_scene()
    namespace = {
        "images": [sample["image"]],
        "annotations": [{"image_id": 0, "annotations": sample["annotations"]}],
    }
    for block in blocks(PROJECT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["people"]
    assert PIL.Image.open("photo_poses.jpg").size == sample["image"].size
    assert loaded and namespace["outputs"].loss.isfinite()
    assert namespace["config"].keypoint_flip_indices == [0, 2, 1, 3, 4]
