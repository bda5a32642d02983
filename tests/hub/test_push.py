"""Uploading to a Hub and loading from it, against a server on this machine."""

import contextlib
import io
import json
import re
import shlex
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from hub_server import TOKEN, run_hub
from huggingface_hub import HfApi, ModelCard, constants
from places import PROJECT
from test_hub_code import run
from tiny import save_tiny_checkpoint

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.cli import main
from querypose_hf.hub.options import CardFields, CommitOptions, MetricsFile
from querypose_hf.hub.push import push_checkpoint
from querypose_hf.model.code_files_querypose import HUB_FILES
from querypose_hf.training.run import upload


HUB_PAGE = PROJECT / "docs" / "hub.md"
METRICS = {
    "metrics": {"AP": 0.4321, "AP50": 0.75, "APM": None},
    "protocol": {"metric": "coco", "images": 12, "people": 30},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny_checkpoint(folder)
    (folder / "optimizer.pt").write_bytes(b"not for the Hub")
    return folder


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    save_tiny_checkpoint(folder, seed=1)
    return folder


def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks LFS
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between attempts


@pytest.fixture
def hub(monkeypatch):
    online(monkeypatch)
    with run_hub() as hub:
        yield hub


def api(hub, token=TOKEN):
    return HfApi(endpoint=hub.endpoint, token=token)


def contents(hub, repo_id="user/pose", revision="main"):
    """All files of a repository at a revision."""
    files = hub.repositories[repo_id].find(revision).files
    assert all(len(hub.objects[file.oid]) == file.size for file in files.values())
    return {path: hub.objects[file.oid] for path, file in files.items()}


def test_checkpoint_arrives_in_one_commit(hub, checkpoint, tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps(METRICS))
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    commit = push_checkpoint(
        checkpoint,
        "pose",
        metrics=MetricsFile(metrics, dataset_name="Our people"),
        card=CardFields(base_model="a/b"),
        commit=CommitOptions(private=True),
        api=api(hub),
    )
    repository = hub.repositories["user/pose"]
    assert repository.private
    assert [one.message for one in repository.history()] == ["Upload QueryPose", "initial commit"]
    assert commit.oid == repository.refs["main"]
    files = contents(hub)
    assert {*HUB_FILES, "config.json", "model.safetensors", "preprocessor_config.json", "handler.py"} <= set(files)
    assert {"README.md", "requirements.txt", "metrics.json", "examples/sample_poses.jpg"} <= set(files)
    assert "optimizer.pt" not in files
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert repository.find("main").files["model.safetensors"].is_lfs
    assert hub.count("PUT", r"^/lfs/.*/\d+$") > 1  # in parts
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before

    card = ModelCard(files["README.md"].decode())
    assert "![people found in an image](examples/sample_poses.jpg)" in card.text
    assert 'model="pose"' in card.text
    assert [(one.metric_name, one.metric_value) for one in card.data.eval_results] == [
        ("keypoint AP, %", 43.2),
        ("keypoint AP50, %", 75.0),
    ]
    info = api(hub).model_info("user/pose")
    assert (info.pipeline_tag, info.library_name) == ("keypoint-detection", "transformers")
    assert info.card_data.base_model == "a/b" and info.card_data.license == "mit"


def test_card_in_the_folder_keeps_its_text(hub, tmp_path):
    folder = tmp_path / "own"
    save_tiny_checkpoint(folder)
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: "
        "keypoint-detection\n---\n# Mine\n\nWords of my own.\n"
    )
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    metrics = MetricsFile(tmp_path / "metrics.json", dataset_name="Our people")
    push_checkpoint(folder, "user/pose", metrics=metrics, examples=(), api=api(hub))
    card = ModelCard(contents(hub)["README.md"].decode())
    assert card.text.strip() == "# Mine\n\nWords of my own."
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results[0].dataset_name == "Our people"


def test_unchanged_weights_are_not_sent_again(hub, checkpoint):
    first = push_checkpoint(checkpoint, "user/pose", examples=(), api=api(hub))
    uploads = hub.count("PUT", "^/lfs/")
    again = push_checkpoint(checkpoint, "user/pose", examples=(), api=api(hub))
    assert again.oid == first.oid
    assert hub.count("PUT", "^/lfs/") == uploads
    assert len(hub.repositories["user/pose"].commits) == 2


@pytest.mark.parametrize("failure", ["weights", "commit"])
def test_interrupted_upload_leaves_the_last_version_whole(hub, checkpoint, other_checkpoint, failure):
    push_checkpoint(checkpoint, "user/pose", examples=(), api=api(hub))
    head, before = hub.repositories["user/pose"].refs["main"], contents(hub)
    if failure == "weights":
        hub.drop_lfs_after = 300_000
    else:
        hub.drop_commit = True
    with pytest.raises(OSError, match=r"user/pose stays as it was: the upload was cut off: .+ Run it again"):
        push_checkpoint(other_checkpoint, "user/pose", examples=(), api=api(hub))
    assert hub.repositories["user/pose"].refs["main"] == head
    assert contents(hub) == before

    hub.drop_lfs_after, hub.drop_commit = None, False
    sent = hub.count("PUT", "^/lfs/")
    push_checkpoint(other_checkpoint, "user/pose", examples=(), api=api(hub))
    assert contents(hub)["model.safetensors"] == (other_checkpoint / "model.safetensors").read_bytes()
    if failure == "commit":
        assert hub.count("PUT", "^/lfs/") == sent  # nothing was sent twice


def test_shards_replace_a_single_file_and_the_other_way_round(hub, checkpoint, tmp_path):
    sharded = tmp_path / "sharded"
    save_tiny_checkpoint(sharded, seed=1, max_shard_size="1MB")
    shards = {path.name for path in sharded.glob("model-*.safetensors")}
    assert len(shards) > 1
    push_checkpoint(checkpoint, "user/pose", examples=(), api=api(hub))
    push_checkpoint(sharded, "user/pose", examples=(), api=api(hub))
    weights = {path for path in contents(hub) if "safetensors" in path}
    assert weights == {*shards, "model.safetensors.index.json"}
    push_checkpoint(checkpoint, "user/pose", examples=(), api=api(hub))
    assert {path for path in contents(hub) if "safetensors" in path} == {"model.safetensors"}
    assert len(hub.repositories["user/pose"].history()) == 4


def test_branches_and_pull_requests_leave_main_alone(hub, checkpoint, other_checkpoint):
    push_checkpoint(checkpoint, "user/pose", examples=(), api=api(hub))
    head = hub.repositories["user/pose"].refs["main"]
    push_checkpoint(other_checkpoint, "user/pose", commit=CommitOptions(revision="v2"), examples=(), api=api(hub))
    options = CommitOptions(create_pr=True)
    commit = push_checkpoint(other_checkpoint, "user/pose", commit=options, examples=(), api=api(hub))
    assert commit.pr_url == f"{hub.endpoint}/user/pose/discussions/1"
    assert set(hub.repositories["user/pose"].refs) == {"main", "v2", "refs/pr/1"}
    assert hub.repositories["user/pose"].refs["main"] == head
    for revision in ("v2", "refs/pr/1"):
        new = contents(hub, revision=revision)
        assert new["model.safetensors"] == (other_checkpoint / "model.safetensors").read_bytes()


def test_mistakes_are_found_before_anything_is_sent(hub, checkpoint, tmp_path):
    def refused(kind, message, folder=checkpoint, repo_id="user/pose", **options):
        with pytest.raises(kind, match=message):
            push_checkpoint(folder, repo_id, api=api(hub), **{"examples": (), **options})

    refused(FileNotFoundError, "which has no config.json; expected a checkpoint", folder=tmp_path / "nowhere")
    refused(ValueError, "`repo_id` is 'user/name/more'; expected", repo_id="user/name/more")
    with pytest.raises(ValueError, match="`create_pr` is True and `revision` is 'v2'; expected one of them"):
        CommitOptions(create_pr=True, revision="v2")
    refused(ValueError, r"`examples` has '.*config\.json'; expected an image", examples=[checkpoint / "config.json"])
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    refused(ValueError, "12 images .* not a known dataset", metrics=MetricsFile(tmp_path / "metrics.json"))
    (tmp_path / "keypoints.json").write_text("[]")
    refused(ValueError, "what `querypose evaluate` writes", metrics=MetricsFile(tmp_path / "keypoints.json"))

    broken = tmp_path / "broken"
    save_tiny_checkpoint(broken)
    (broken / "README.md").write_text("---\ntags: [pose]\n---\n# No licence\n")
    refused(ValueError, "`license` of the card's metadata", folder=broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(ValueError, "not a whole file of weights", folder=broken)
    weights.unlink()
    refused(FileNotFoundError, "broken has no model.safetensors", folder=broken)
    (broken / "preprocessor_config.json").unlink()
    refused(FileNotFoundError, "no image processor", folder=broken)
    (broken / "config.json").write_text('{"model_type": "detr"}')
    refused(ValueError, "`model_type` is 'detr'; expected 'querypose'", folder=broken)
    assert hub.requests == []


def test_refusal_of_the_hub_is_reported(hub, checkpoint):
    with pytest.raises(OSError, match=r"(?s)user/pose stays as it was: the Hub refused: .*Invalid username"):
        push_checkpoint(checkpoint, "user/pose", examples=(), api=api(hub, token="hf_wrong"))
    assert hub.repositories == {}


def test_checkpoint_without_code_gets_it(hub, tmp_path):
    folder = tmp_path / "bare"
    save_tiny_checkpoint(folder)
    for name in HUB_FILES:
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    for entry in ("auto_map", "custom_pipelines"):
        del config[entry]
    (folder / "config.json").write_text(json.dumps(config))
    push_checkpoint(folder, "user/pose", examples=(), api=api(hub))
    files = contents(hub)
    assert set(HUB_FILES) <= set(files)
    assert "AutoModelForPoseEstimation" in json.loads(files["config.json"])["auto_map"]
    assert sorted(path.name for path in folder.glob("*.py")) == []


def test_training_run_uploads_its_best_model_or_the_last(hub, checkpoint, other_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(checkpoint, tmp_path / "last")
    assert upload(tmp_path, "user/run", private=True).startswith(f"{hub.endpoint}/user/run/commit/")
    shutil.copytree(other_checkpoint, tmp_path / "best")
    upload(tmp_path, "user/run")
    best, last, _ = hub.repositories["user/run"].history()
    assert hub.repositories["user/run"].private
    assert (best.message, last.message) == tuple(
        f"QueryPose, the {kind} model of a training run" for kind in ("best", "last")
    )
    assert contents(hub, "user/run")["model.safetensors"] == (other_checkpoint / "model.safetensors").read_bytes()
    assert {"README.md", "handler.py"} <= set(best.files)


LOAD = """
import json
import sys
import torch
from pathlib import Path
from transformers import AutoImageProcessor, AutoModelForPoseEstimation, pipeline

image, output = sys.argv[1:]
for unsafe in (AutoModelForPoseEstimation, AutoImageProcessor):
    try:
        unsafe.from_pretrained("user/pose", trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        sys.exit("the repository's code ran without being trusted")
found = {}
trust = {"trust_remote_code": True}
for repo, revision in (("user/pose", "main"), ("user/pose", "v2"), ("user/querypose-parts", "main")):
    model = AutoModelForPoseEstimation.from_pretrained(repo, revision=revision, **trust).eval()
    image_processor = AutoImageProcessor.from_pretrained(repo, revision=revision, **trust)
    assert type(model).__module__.startswith("transformers_modules."), model
    with torch.no_grad():
        logits = model(**image_processor(image, return_tensors="pt")).logits
    found[f"{repo}@{revision}"] = logits.flatten().tolist()
found["people"] = pipeline("pose-estimation", model="user/pose", revision="v2", **trust)(image, threshold=0.0)
Path(output).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def pushed(checkpoint, other_checkpoint, tmp_path_factory):
    """A Hub to which the commands and the page about the Hub have uploaded, and what they printed."""
    home = tmp_path_factory.mktemp("home")
    for place in ("path/to/checkpoint", "runs/r50/best"):
        shutil.copytree(other_checkpoint, home / place)
    (home / "scores").mkdir()
    known = {**METRICS, "protocol": {"metric": "coco", "images": 5000}}
    (home / "scores" / "metrics.json").write_text(json.dumps(known))
    page = re.findall(r"^```(bash|python)\n(.*?)^```", HUB_PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    printed = io.StringIO()
    with run_hub() as hub, pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        online(patch)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        url = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
        patch.setattr("transformers.utils.hub._hf_api", None)  # a client that keeps its endpoint
        patch.setenv("HF_TOKEN", TOKEN)
        patch.chdir(home)
        assert main(["push", str(checkpoint), "user/pose", "--examples"]) == 0
        assert main(["push", str(other_checkpoint), "user/pose", "--examples", "--revision", "v2"]) == 0
        for language, block in page:
            if language == "python":
                exec(block, {})
            else:
                for command in block.replace("\\\n", " ").splitlines():
                    assert main(shlex.split(command)[1:]) == 0, command
        yield hub, home, printed.getvalue()


def test_command_pushes_and_prints_the_commits(pushed):
    hub, _, printed = pushed
    repository = hub.repositories["user/pose"]
    commits = [f"{hub.endpoint}/user/pose/commit/{repository.refs[name]}" for name in ("main", "v2")]
    assert printed.split()[:2] == commits


def test_page_about_the_hub_does_what_it_says(pushed):
    hub, home, _ = pushed
    files = contents(hub, "user/querypose-r50")
    assert hub.repositories["user/querypose-r50"].private and hub.repositories["user/querypose"].private
    assert {"README.md", "metrics.json", "examples/sample_poses.jpg", "handler.py"} <= set(files)
    assert ModelCard(files["README.md"].decode()).data.eval_results[0].dataset_name == "COCO val2017"
    card = ModelCard.load(home / "runs" / "r50" / "best" / "README.md")
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "user/base")
    # `push_to_hub` of transformers
    assert len(hub.repositories["user/querypose-parts"].history()) == 3
    assert {*HUB_FILES, "config.json", "model.safetensors"} <= set(contents(hub, "user/querypose-parts"))


def test_loaded_by_name_and_revision_with_and_without_the_package(pushed, checkpoint, other_checkpoint):
    hub, home, _ = pushed
    image = home / "image.png"
    y, x = np.mgrid[:90, :120]
    PIL.Image.fromarray((127 + 127 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)).convert("RGB").save(image)
    # Transformers reads HF_ENDPOINT when it is imported
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    run(LOAD, image, home / "found.json", home=home, hub={**environment, "HF_HUB_DISABLE_TELEMETRY": "1"})
    found = json.loads((home / "found.json").read_text())
    inputs = QueryPoseImageProcessor.from_pretrained("user/pose", revision="v2")(str(image), return_tensors="pt")
    for repo, revision, folder in (
        ("user/pose", "main", checkpoint),
        ("user/pose", "v2", other_checkpoint),
        ("user/querypose-parts", "main", other_checkpoint),
    ):
        for model in (
            QueryPoseForPoseEstimation.from_pretrained(folder),
            QueryPoseForPoseEstimation.from_pretrained(repo, revision=revision),
        ):
            with torch.no_grad():
                expected = model.eval()(**inputs).logits.flatten().tolist()
            assert found[f"{repo}@{revision}"] == pytest.approx(expected, abs=1e-5), (repo, revision)
    assert found["user/pose@main"] != pytest.approx(found["user/pose@v2"], abs=1e-5)
    assert len(found["people"]) > 0


def test_command_reports_mistakes(capsys, tmp_path):
    assert main(["push", str(tmp_path), "user/pose"]) == 2
    assert "which has no config.json" in capsys.readouterr().err
