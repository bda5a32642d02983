"""Files of a Space that runs the demo."""

import runpy

import pytest
from tiny import save_tiny_checkpoint

from querypose_hf.cli import main
from querypose_hf.hub.space import write_space


def test_space_of_a_hub_model(tmp_path):
    yaml = pytest.importorskip("yaml")
    folder = write_space(
        tmp_path / "space", "user/name", requirement="querypose-hf[demo]==1.0", gradio_version="6.1.0"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert (folder / "requirements.txt").read_text() == "querypose-hf[demo]==1.0\n"
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio"
    assert header["sdk_version"] == "6.1.0"
    assert header["app_file"] == "app.py"
    assert header["models"] == ["user/name"]
    # limits in the Hub's documentation of Spaces
    assert len(header["short_description"]) <= 60
    assert header["colorFrom"] in {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    compile((folder / "app.py").read_text(), "app.py", "exec")
    assert list(tmp_path.iterdir()) == [folder]


def test_space_of_the_shipped_checkpoint(tmp_path):
    folder = write_space(tmp_path / "space", "querypose-nano", gradio_version="6")
    assert (folder / "model" / "model.safetensors").is_file()


def test_wrong_folders_and_models_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="full exists; expected a new or empty folder"):
        write_space(tmp_path / "full", "user/name", gradio_version="6")
    for model in ("name", str(tmp_path)):
        with pytest.raises(ValueError, match=f"`model` is '{model}'; expected a checkpoint"):
            write_space(tmp_path / "new", model, gradio_version="6")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "kept.txt"]


def test_app_of_a_space_runs(tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio", reason="Gradio is not installed")
    from querypose_hf.inference.demo import launch_options

    save_tiny_checkpoint(tmp_path / "model")
    assert main(["demo", "--model", str(tmp_path / "model"), "--space", str(tmp_path / "space")]) == 0
    launched = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda blocks, **options: launched.append((blocks, options)))
    runpy.run_path(str(tmp_path / "space" / "app.py"), run_name="__main__")
    [(blocks, options)] = launched
    assert (blocks.title, blocks.analytics_enabled) == ("QueryPose", False)
    assert options == launch_options() | {"theme": options["theme"]}
