"""Tests of the `querypose` command and of the scripts that share its flags."""

import enum
import json
import logging
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from places import OWN_SCRIPTS, PROJECT
from small_data import SAMPLE_PEOPLE, sample_coco
from tiny import save_tiny_checkpoint
from transformers import pipeline

import querypose_hf
from querypose_hf import COCO_17, QUERYPOSE_NANO, PoseEstimationPipeline
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.cli import build_parser, main
from querypose_hf.commands.options import VARIANTS
from querypose_hf.model import configuration_querypose


SCRIPTS = [path for path in sorted((PROJECT / "scripts").glob("*.py")) if path.stem not in OWN_SCRIPTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_checkpoint(folder)
    return str(folder)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def make_image(path, height=120, width=160, seed=0):
    y, x = np.mgrid[:height, :width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = np.stack([np.sin(x / 14 + a) * np.cos(y / 17 - a) for a in phase], axis=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.rint(127.5 + 100 * waves).astype(np.uint8)).save(path)
    return path


def fails(capsys, *arguments):
    """Runs a command that must fail and gives what it says."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        status = error.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def test_predict_prints_and_draws(model, in_folder, capsys):
    image = make_image(in_folder / "street.png")
    arguments = ["predict", str(image), "--model", model, "--device", "cpu", "--output", "drawn"]
    assert main([*arguments, "--threshold", "0.01", "--verbose"]) == 0
    printed = capsys.readouterr().out
    people = pipeline("pose-estimation", model=model, device="cpu")(str(image), threshold=0.01)
    assert len(people) > 1
    lines = printed.splitlines()
    assert lines[0] == f"{image}: {len(people)} people, drawn to {Path('drawn/street_poses.jpg')}"
    for person, line in zip(people, lines[1:], strict=True):
        box = [round(side) for side in person["box"].values()]
        assert line == f"  person {person['score']:.2f}, box ({', '.join(map(str, box))})"

    assert [path.name for path in Path("drawn").iterdir()] == ["street_poses.jpg"]
    with PIL.Image.open("drawn/street_poses.jpg") as drawn, PIL.Image.open(image) as original:
        assert drawn.size == original.size
        with_people = np.asarray(drawn).astype(int)
        pixels = np.asarray(original).astype(int)
    assert main([*arguments, "--threshold", "1"]) == 0
    assert capsys.readouterr().out == f"{image}: 0 people, drawn to {Path('drawn/street_poses.jpg')}\n"
    with PIL.Image.open("drawn/street_poses.jpg") as drawn:
        without_people = np.asarray(drawn).astype(int)
    # nothing but JPEG's losses without people, and far more with them
    assert np.abs(without_people - pixels).max() < 40
    assert (np.abs(with_people - pixels).max(axis=2) > 80).sum() > 100


def test_predict_json(model, in_folder, capsys):
    images = [make_image(in_folder / name, seed=seed) for seed, name in enumerate(["one.png", "two.jpg"])]
    arguments = ["predict", *map(str, images), "--model", model, "--device", "cpu", "--threshold", "0.01", "--json"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu", optimize=True)
    assert len(results) == 2
    for image, result in zip(images, results, strict=True):
        assert list(result) == RECORD_FIELDS
        assert (result["source"], result["index"]) == (str(image), images.index(image))
        assert (result["time"], result["error"], result["width"], result["height"]) == (None, None, 160, 120)
        assert result["drawn"] == str(Path("outputs", f"{image.stem}_poses.jpg"))
        assert Path(result["drawn"]).is_file()
        assert result["people"] == records_of(pose_estimator(str(image), threshold=0.01))


RECORD_FIELDS = ["source", "index", "time", "width", "height", "people", "error", "drawn"]


def records_of(people):
    """The pipeline's people as records have them."""
    assert people
    return [{**person, "track_id": None} for person in people]


def horses(folder, score_threshold):
    """A checkpoint of one class, sure of horses, with a score threshold of its own."""
    save_tiny_checkpoint(folder, class_bias=4.0, longest_edge=96)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "horse"}}))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["score_threshold"] = score_threshold
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_predict_takes_the_score_threshold_of_the_checkpoint(in_folder, capsys):
    image = make_image(in_folder / "a.png")
    folder = horses(in_folder / "model", 0.0)
    arguments = ["predict", str(image), "--model", str(folder), "--device", "cpu", "--no-draw"]
    everybody = pipeline("pose-estimation", model=str(folder), device="cpu")(str(image), threshold=0.0)
    scores = sorted(person["score"] for person in everybody)
    horses(in_folder / "model", (scores[-1] + scores[-2]) / 2)
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{image}: 1 horse\n"
    assert main([*arguments, "--threshold", "0"]) == 0
    assert capsys.readouterr().out == f"{image}: {len(scores)} horses\n"
    assert main([*arguments, "--threshold", "0", "--top-k", "2", "--json"]) == 0
    [record] = json.loads(capsys.readouterr().out)
    assert [person["score"] for person in record["people"]] == pytest.approx(scores[:-3:-1])
    assert record["drawn"] is None
    assert not Path("outputs").exists()


def test_predict_in_batches(model, in_folder, capsys, monkeypatch):
    """Images share forward passes; one that the model cannot take does not cost the others."""
    images = [make_image(in_folder / "photos" / f"{n}.png", seed=n) for n in range(5)]
    make_image(in_folder / "photos" / "3.png", height=40, seed=3)
    find, sizes = PoseEstimationPipeline.__call__, []

    def with_little_memory(self, batch, **options):
        sizes.append(len(batch))
        if any(image.height == 40 for image in batch):
            raise RuntimeError("out of memory")
        return find(self, batch, **options)

    arguments = ["predict", "photos", "--model", model, "--device", "cpu", "--threshold", "0.01"]
    assert main([*arguments, "--jsonl", "alone.jsonl", "--no-draw"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"Finding people: 100%.* 5/5 ", said) and "Loading weights" not in said
    monkeypatch.setattr(PoseEstimationPipeline, "__call__", with_little_memory)
    assert main([*arguments, "--jsonl", "people.jsonl", "--no-draw", "--batch-size", "2", "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"skipped: \S+3.png: out of memory\n4 sources read, 0 of them empty; 1 skipped .*\n", said.err)
    assert sizes == [2, 2, 1, 1, 1]
    alone, found = (
        [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("alone.jsonl", "people.jsonl")
    )
    assert [record["source"] for record in alone] == [str(Path("photos", image.name)) for image in images]
    assert [record["index"] for record in found] == [0, 1, 2, 4]
    for record in found:
        expected = alone[record["index"]]
        assert record["source"] == expected["source"] and len(record["people"]) == len(expected["people"])


def test_predict_draws_keypoints_above_their_threshold(in_folder, capsys):
    image = make_image(in_folder / "a.png")
    folder = horses(in_folder / "model", 0.1)
    arguments = ["predict", str(image), "--model", str(folder), "--device", "cpu", "--quiet"]
    capsys.readouterr()
    assert main([*arguments, "--output", "some"]) == main([*arguments, "--keypoint-threshold", "1"]) == 0
    assert capsys.readouterr() == ("", "")
    drawn, without = (PIL.Image.open(Path(name, "a_poses.jpg")).convert("RGB") for name in ("some", "outputs"))
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(without)).max() > 80


def test_predict_images_of_one_name(model, in_folder, capsys):
    sources = [in_folder / "monday" / "a.png", in_folder / "tuesday" / "a.png", in_folder / "a_2.png"]
    for seed, source in enumerate(sources):
        make_image(source, height=60 + 20 * seed, width=160, seed=seed)
    assert main(["predict", *map(str, sources), "--model", model, "--json", "--device", "cpu"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len({result["drawn"] for result in results}) == 3
    assert len(list(Path("outputs").iterdir())) == 3
    for source, result in zip(sources, results, strict=True):
        with PIL.Image.open(source) as original, PIL.Image.open(result["drawn"]) as drawn:
            assert original.size == drawn.size


def test_predict_never_replaces_an_image_it_reads(model, in_folder, capsys):
    first, second = make_image(in_folder / "a.jpg"), make_image(in_folder / "a_poses.jpg", seed=1)
    content = second.read_bytes()
    assert main(["predict", "a.jpg", "a_poses.jpg", "--model", model, "--output", ".", "--device", "cpu"]) == 0
    assert second.read_bytes() == content
    assert sorted(path.name for path in in_folder.iterdir()) == sorted(
        [first.name, second.name, "a_2_poses.jpg", "a_poses_poses.jpg"]
    )


def test_predict_transparent_and_turned_images(model, in_folder, capsys):
    """The people that are printed fit the image that is drawn."""
    rgba = PIL.Image.open(make_image(in_folder / "a.png")).convert("RGBA")
    rgba.putalpha(0)
    rgba.save(in_folder / "clear.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.open(in_folder / "a.png").save(in_folder / "turned.jpg", exif=exif)
    assert main(["predict", "clear.png", "turned.jpg", "--model", model, "--device", "cpu", "--threshold", "1"]) == 0
    with PIL.Image.open("outputs/clear_poses.jpg") as drawn:
        assert np.asarray(drawn).min() > 250  # nothing to see on white
    with PIL.Image.open("outputs/turned_poses.jpg") as drawn:
        assert drawn.size == (120, 160)


def test_predict_refuses_before_it_writes(model, in_folder, capsys):
    image = make_image(in_folder / "a.png")
    (in_folder / "text.jpg").write_text("no image")
    before = sorted(in_folder.rglob("*"))
    cases = [
        (["missing.jpg", "--model", model], r"missing\.jpg: no such file; expected an image"),
        ([image, "text.jpg", "--model", model, "--strict"], r"text\.jpg cannot be read; expected an image"),
        (
            ["text.jpg", "no.jpg", "--model", model],
            r"none of the sources can be used: text\.jpg cannot .*; no\.jpg: ",
        ),
        ([image, "--model", model, "--threshold", "1.5"], "--threshold: expected a number from 0 to 1, got '1.5'"),
        ([image, "--model", model, "--threshold", "nan"], "--threshold: expected a number from 0 to 1, got 'nan'"),
        ([image, "--model", model, "--threshold", "high"], "--threshold: expected a number .* got 'high'"),
        ([image, "--model", "missing_folder"], "--model: .*'missing_folder'; expected a QueryPose checkpoint"),
        ([image, "--model", in_folder], "--model: .* expected a QueryPose checkpoint's folder or Hub id"),
        ([image, "--model", "someone/nothing"], "--model: .*'someone/nothing'; expected .* Hub id"),
        ([image, "--model", model, "--device", "abacus"], "--device: .*'abacus'; expected one that torch can use"),
        ([image, "--model", model, "--output", image], "--output must be a folder, but .*a.png is a file"),
    ]
    for arguments, message in cases:
        assert re.search(message, fails(capsys, "predict", *arguments)), arguments
    assert sorted(in_folder.rglob("*")) == before


def damaged_images(folder):
    """Two good images, and what folders have besides; the URL cannot be fetched."""
    good = [make_image(folder / "a.png"), make_image(folder / "z.jpg", seed=1)]
    (folder / "._z.jpg").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    content = good[0].read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[60:90] = bytes(30)
    (folder / "flipped.png").write_bytes(flipped)
    return good, ["._z.jpg", "cut.png", "empty.png", "flipped.png", "text.jpg"]


def test_predict_skips_what_it_cannot_read(model, in_folder, capsys):
    good, bad = damaged_images(in_folder / "photos")
    arguments = ["--model", model, "--device", "cpu", "--threshold", "0.01"]
    sources = ["photos", "missing.png", "nothing*.jpg", "http://127.0.0.1:9/a.jpg"]
    assert main(["predict", *sources, *arguments, "--jsonl", "people.jsonl"]) == 1
    said = capsys.readouterr().err
    skipped = [line for line in said.splitlines() if line.startswith("skipped: ")]
    for name in [*bad, "missing.png", "nothing*.jpg", "http://127.0.0.1:9/a.jpg"]:
        assert sum(name in line for line in skipped) == 1, name
    assert len(skipped) == len(bad) + 3
    assert re.search(r"2 sources read, 0 of them empty; 8 skipped \(.*; .*; .*; and 5 more\)", said)
    lines = [json.loads(line) for line in Path("people.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == [str(Path("photos", path.name)) for path in good]
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["a_poses.jpg", "z_poses.jpg"]
    assert main(["predict", *sources, *arguments, "--json"]) == 1
    assert [entry["people"] for entry in json.loads(capsys.readouterr().out)] == [line["people"] for line in lines]

    # with --strict what was found before the first bad image is kept
    shown = ["photos/a.png", "photos/cut.png", "photos/z.jpg", *arguments, "--strict"]
    assert main(["predict", *shown, "--jsonl", "people.jsonl"]) == 2
    assert "photos/cut.png' cannot be decoded" in capsys.readouterr().err
    assert [json.loads(line) for line in Path("people.jsonl").read_text().splitlines()] == [
        {**lines[0], "source": "photos/a.png"}
    ]
    assert main(["predict", *shown, "--json"]) == 2
    assert [entry["source"] for entry in json.loads(capsys.readouterr().out)] == ["photos/a.png"]


def test_predict_of_an_image_too_wide_to_draw(model, in_folder, capsys):
    PIL.Image.new("L", (66000, 20), 90).save("wide.png")
    arguments = [str(make_image(in_folder / f"{200 * 'n'}.png")), "wide.png", "--model", model, "--device", "cpu"]
    assert main(["predict", *arguments, "--jsonl", "people.jsonl"]) == 1
    assert "read in part: wide.png: its people cannot be drawn" in capsys.readouterr().err
    assert len(Path("people.jsonl").read_text().splitlines()) == 2


def test_explain_skips_what_it_cannot_read(model, in_folder, capsys):
    _, bad = damaged_images(in_folder / "photos")
    sources = [str(Path("photos", name)) for name in ["a.png", *bad, "z.jpg"]]
    arguments = ["explain", *sources, "--model", model, "--device", "cpu", "--top-k", "1", "--stages", "last"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "2 images read" in said.err and "5 skipped" in said.err
    assert len(said.out.splitlines()) == 2
    assert main([*arguments, "--strict"]) == 2


def test_predict_url_that_cannot_be_had(model, in_folder, capsys):
    # port 9 discards what it gets, where anything listens at all
    said = fails(capsys, "predict", "http://127.0.0.1:9/a.jpg", "--model", model, "--device", "cpu")
    assert "http://127.0.0.1:9/a.jpg' cannot be fetched" in said
    assert not list(in_folder.iterdir())


def test_predict_broken_weights(model, in_folder, capsys):
    broken = in_folder / "broken"
    broken.mkdir()
    for path in Path(model).iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(content[:1000] if path.name == "model.safetensors" else content)
    said = fails(capsys, "predict", make_image(in_folder / "a.png"), "--model", broken, "--device", "cpu")
    assert "--model: " in said and "expected a QueryPose checkpoint" in said
    assert not Path("outputs").exists()


def overlap(box, other):
    """Intersection over union of two xyxy boxes."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared)


def object_keypoint_similarity(points, annotation):
    truth = np.reshape(annotation["keypoints"], (-1, 3))
    labelled = truth[:, 2] > 0
    spread = 2 * annotation["area"] * (2 * np.array(COCO_17.sigmas)) ** 2
    similarity = np.exp(-((points - truth[:, :2]) ** 2).sum(axis=1) / spread)
    return similarity[labelled].mean()


def test_predict_without_arguments(in_folder, capsys):
    """The model that comes with the package finds the people whom the photograph shows best."""
    assert main(["predict", "--json", "--device", "cpu"]) == 0
    [result] = json.loads(capsys.readouterr().out)
    assert result["source"] == str(SAMPLE_IMAGE)
    with PIL.Image.open(result["drawn"]) as drawn:
        assert drawn.size == (640, 360)
    people = result["people"]
    settings = json.loads(Path(QUERYPOSE_NANO, "preprocessor_config.json").read_text())
    assert all(person["score"] > settings["score_threshold"] for person in people)
    found = [np.array(list(person["box"].values())) for person in people]
    matched = set()
    for annotation in SAMPLE_PEOPLE:
        x, y, width, height = annotation["bbox"]
        overlaps = [overlap(box, np.array([x, y, x + width, y + height])) for box in found]
        best = int(np.argmax(overlaps))
        points = np.array([[point["x"], point["y"]] for point in people[best]["keypoints"]])
        if overlaps[best] > 0.5 and object_keypoint_similarity(points, annotation) > 0.2:
            matched.add(best)
    assert len(matched) == len(SAMPLE_PEOPLE), found


@pytest.fixture
def scored_files(in_folder):
    """Annotations of the sample photograph, and results that repeat them."""
    results = [
        {
            "image_id": 1,
            "category_id": 1,
            "keypoints": np.column_stack([np.reshape(annotation["keypoints"], (-1, 3))[:, :2], np.ones(17)])
            .ravel()
            .tolist(),
            "score": 0.9,
        }
        for annotation in SAMPLE_PEOPLE
    ]
    (in_folder / "annotations.json").write_text(json.dumps(sample_coco()))
    (in_folder / "results.json").write_text(json.dumps(results))
    return ["evaluate", "--annotations", "annotations.json", "--predictions", "results.json", "--output", "scores"]


def test_evaluate(scored_files, capsys):
    pytest.importorskip("pycocotools")
    assert main(scored_files) == 0
    said = capsys.readouterr()
    assert said.err.endswith(f"Written to {Path('scores/metrics.json')}\n")
    *lines, last = said.out.splitlines()
    printed = dict(line.split() for line in lines)
    figures = json.loads(Path("scores/metrics.json").read_text())
    metrics = figures["metrics"]
    assert figures["score_threshold"] == {"value": 0.45, "f1": 1, "precision": 1, "recall": 1}
    assert last.startswith("best F1 at OKS 0.5: 1.0000, with the score threshold 0.4500 ")
    assert list(printed) == list(metrics)
    assert set(metrics) == {"AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"}
    assert float(printed["AP"]) == metrics["AP"] == pytest.approx(1)
    assert len(json.loads(Path("scores/keypoints.json").read_text())) == len(SAMPLE_PEOPLE)

    # one of the two people is far off
    results = json.loads(Path("results.json").read_text())
    results[1]["keypoints"] = [value + 300 for value in results[1]["keypoints"]]
    Path("results.json").write_text(json.dumps(results))
    assert main(scored_files) == 0
    metrics = json.loads(Path("scores/metrics.json").read_text())["metrics"]
    assert metrics["AR"] == pytest.approx(0.5) and metrics["AP"] < 0.6


def test_evaluate_refuses_before_it_writes(scored_files, in_folder, capsys):
    def changed(flag, value):
        arguments = list(scored_files)
        arguments[arguments.index(flag) + 1] = value
        return arguments

    assert "missing.json" in fails(capsys, *changed("--annotations", "missing.json"))
    assert "missing.json" in fails(capsys, *changed("--predictions", "missing.json"))
    assert "argument --metric: invalid choice: 'map'" in fails(capsys, *scored_files, "--metric", "map")
    assert "--output" in fails(capsys, *scored_files[:-2])
    results = json.loads(Path("results.json").read_text())
    results[1]["keypoints"] = [1, 2, 3]
    Path("results.json").write_text(json.dumps(results))
    assert re.search(r"results\.json: result 1: `keypoints`", fails(capsys, *scored_files))
    assert not Path("scores").exists()


def test_evaluate_without_scoring_package(scored_files, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "querypose_hf.evaluation.pycocotools_scorer", raising=False)
    for module in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "pycocotools" in fails(capsys, *scored_files)


def test_convert_refuses_before_it_writes(in_folder, capsys):
    arguments = ["convert", "--checkpoint_path", "missing.pth", "--variant", "r50", "--output_dir", "converted"]
    assert "missing.pth" in fails(capsys, *arguments)
    assert "argument --variant: invalid choice: 'r18'" in fails(capsys, *arguments, "--variant", "r18")
    for flag in ("--keypoint-names", "--keypoint-parts"):
        for text in ("nose", "{}"):
            said = fails(capsys, *arguments, flag, text)
            assert f"argument {flag}: expected a JSON list, got '{text}'" in said
    assert not list(in_folder.iterdir())


def test_help_without_a_command(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == build_parser().format_help()


def test_warnings_are_one_line(monkeypatch):
    told, before = [], warnings.formatwarning
    monkeypatch.setattr(
        "querypose_hf.commands.predict._predict",
        lambda options: told.append(warnings.formatwarning(UserWarning("mind this"), UserWarning, "module.py", 3)),
    )
    assert main(["predict", "photo.jpg"]) == 0
    assert told == ["warning: mind this\n"] and warnings.formatwarning is before


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"querypose {querypose_hf.__version__}\n"


def test_start_up_without_what_torch_says_about_torchao(in_folder, capsys, caplog, monkeypatch):
    """torchao registers two enumerations as constants when Transformers imports it; this test registers others."""
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)  # torch keeps its records to itself
    logger = logging.getLogger("torch.utils._pytree")
    monkeypatch.setattr(logger, "filters", [])
    torch.utils._pytree.register_constant(enum.StrEnum("Before", "A"))
    if not caplog.records:
        pytest.skip("this torch says nothing about enumerations")
    caplog.clear()
    main(["predict", "missing.jpg"])
    torch.utils._pytree.register_constant(enum.StrEnum("After", "A"))
    logger.warning("something else")
    assert {record.getMessage() for record in caplog.records} == {"something else"}


def test_usage_errors_show_the_usage_of_the_command(in_folder, capsys):
    Path("file").touch()
    for arguments in (["--nothing"], ["--threshold", "2"], ["--output", "file"], ["--batch-size", "0"]):
        said = fails(capsys, "predict", *arguments)
        assert said.startswith("usage: querypose predict ")
        assert "querypose predict: error: " in said
    assert "invalid choice: 'predicts'" in fails(capsys, "predicts")


COMMANDS = next(action for action in build_parser()._actions if action.dest == "command").choices


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: querypose {command} ")
    flags = [flag for action in COMMANDS[command]._actions for flag in action.option_strings]
    assert not [flag for flag in flags if "_" in flag]


@pytest.mark.parametrize("flag", ["--model", "--device", "--threshold"])
def test_shared_flags_are_the_same_in_every_command(flag):
    found = {
        name: (action.default, action.help)
        for name, command in COMMANDS.items()
        for action in command._actions
        if flag in action.option_strings
    }
    found.pop("train", None)  # starts from a checkpoint, a variant, or what its file says
    assert len(found) >= 3 and len(set(found.values())) == 1, found


def test_flags_may_have_underscores():
    options = build_parser().parse_args("convert --checkpoint_path=a_b.pth --variant r50 --output_dir c_d".split())
    assert (str(options.checkpoint_path), str(options.output_dir)) == ("a_b.pth", "c_d")
    assert build_parser().parse_args(["check-data", "--data", "data.yaml", "--max_images", "3"]).max_images == 3


def test_variants_are_the_published_ones():
    assert list(VARIANTS) == sorted(configuration_querypose.VARIANTS)


START_UP = """
import contextlib, io, runpy, sys
for arguments in (["--help"], ["--version"], ["predicts"], *([command, flag] for command in sys.argv[1:]
                                                           for flag in ("--help", "--nothing"))):
    sys.argv = ["querypose", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            runpy.run_module("querypose_hf", run_name="__main__")
        except SystemExit as exit:
            assert exit.code == (0 if arguments[-1] in ("--help", "--version") else 2), arguments
    assert not {"torch", "transformers"} & sys.modules.keys(), arguments
"""


def test_help_and_usage_errors_come_without_torch(tmp_path):
    """Both in `python -m querypose_hf`, with every command."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), *sys.path])}
    command = [sys.executable, "-c", START_UP, *COMMANDS]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_scripts_are_the_commands(in_folder, capsys, monkeypatch):
    seen = set()
    for script in SCRIPTS:
        monkeypatch.setattr(sys, "argv", [str(script), "--help"])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(script), run_name="__main__")
        seen.add(re.match("usage: querypose ([a-z-]+) ", capsys.readouterr().out)[1])
    assert seen == COMMANDS.keys()
    monkeypatch.setattr(sys, "argv", ["scripts/predict.py", "missing.jpg"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(PROJECT / "scripts" / "predict.py"), run_name="__main__")


def test_script_of_published_cards(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["write_published_cards.py", str(tmp_path)])
    runpy.run_path(str(PROJECT / "scripts" / "write_published_cards.py"), run_name="__main__")
    written = sorted(tmp_path.iterdir())
    assert sorted(capsys.readouterr().out.split()) == [str(path) for path in written]
    assert [path.name for path in written] == sorted(path.name for path in (PROJECT / "model_cards").glob("*.md"))


def test_check_data(capsys, tmp_path):
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (64, 48), "gray").save(tmp_path / "images" / "one.png")
    (tmp_path / "annotations.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "one.png", "width": 64, "height": 48}],
                "annotations": [
                    {
                        "id": 1,
                        "image_id": 1,
                        "category_id": 1,
                        "bbox": [10, 10, 30, 30],
                        "area": 500,
                        "iscrowd": 0,
                        "keypoints": [20, 20, 2] + 16 * [0, 0, 0],
                    }
                ],
                "categories": [{"id": 1, "name": "person", "keypoints": list(COCO_17.keypoint_names)}],
            }
        )
    )
    arguments = ["check-data", "--annotations", str(tmp_path / "annotations.json")]
    assert "`images` is None; expected a value" in fails(capsys, *arguments)
    assert main([*arguments, "--images", str(tmp_path / "images"), "--output", str(tmp_path / "report")]) == 0
    assert "nose" in capsys.readouterr().out
    assert json.loads((tmp_path / "report" / "report.json").read_text())["num_images"] == 1
    assert PIL.Image.open(tmp_path / "report" / "samples.png").size[0] > 0


def test_check_data_skips_images_that_are_missing_or_broken(capsys, tmp_path):
    (tmp_path / "images").mkdir()
    names = ["good.png", "missing.png", "text.png", "cut.png", "other_size.png"]
    make_image(tmp_path / "images" / "good.png", 48, 64)
    (tmp_path / "images" / "text.png").write_text("no image")
    (tmp_path / "images" / "cut.png").write_bytes((tmp_path / "images" / "good.png").read_bytes()[:500])
    make_image(tmp_path / "images" / "other_size.png", 40, 64)
    images = [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
    box = {"category_id": 1, "bbox": [10, 10, 30, 30], "area": 500, "iscrowd": 0, "keypoints": [20, 20, 2] + 48 * [0]}
    people = [{"id": i + 1, "image_id": i, **box} for i in range(len(names))]
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_17.keypoint_names)}]
    content = {"images": images, "annotations": people, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    arguments = ["check-data", "--annotations", str(tmp_path / "annotations.json")]
    arguments += ["--images", str(tmp_path / "images")]
    assert main([*arguments, "--output", str(tmp_path / "report")]) == 1
    said = capsys.readouterr()
    assert "nose" in said.out
    assert re.search("1 images read, 0 of them empty; 4 skipped .*text.png.*; and 1 more", said.err)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["left_out"]["missing_images"] == 1 and len(report["unusable_images"]) == 3
    assert "1 of 5 images are not in" in fails(capsys, *arguments, "--strict")
    (tmp_path / "images" / "missing.png").write_bytes((tmp_path / "images" / "good.png").read_bytes())
    assert "text.png: the image cannot be read" in fails(capsys, *arguments, "--strict")
    (tmp_path / "images" / "good.png").unlink()
    (tmp_path / "images" / "missing.png").unlink()
    assert main(arguments) == 2
    assert "none of the images can be used: " in capsys.readouterr().err


def test_evaluate_a_model(capsys, model, tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps(sample_coco()))
    arguments = ["evaluate", "--annotations", str(tmp_path / "annotations.json"), "--images", str(SAMPLE_IMAGE.parent)]
    arguments += ["--workers", "0", "--device", "cpu"]
    # without --model it is the one that comes with the package
    assert main([*arguments, "--output", str(tmp_path / "default"), "--boxes"]) == 0
    assert json.loads((tmp_path / "default" / "metrics.json").read_text())["box_metrics"]["AP50"] > 0.1
    capsys.readouterr()
    assert main([*arguments, "--output", str(tmp_path / "scores"), "--model", str(model)]) == 0
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"]
    said = capsys.readouterr()
    assert f"AP         {metrics['AP']:.4f}" in said.out
    assert f"Written to {tmp_path / 'scores' / 'report.html'}\n" in said.err
    assert re.search(r"^1 images, [\d.]+ per second; of [\d.]+ s \d+ % \w+, ", said.err, re.MULTILINE)
    assert {entry["image_id"] for entry in json.loads((tmp_path / "scores" / "keypoints.json").read_text())} == {1}
    assert "<svg" in (tmp_path / "scores" / "report.html").read_text()


def test_evaluate_skips_images_that_cannot_be_read(capsys, model, tmp_path):
    content = sample_coco()
    record = content["images"][0]
    content["images"].append({**record, "id": 2, "file_name": "missing.jpg"})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    arguments = ["evaluate", "--annotations", str(tmp_path / "annotations.json"), "--images", str(SAMPLE_IMAGE.parent)]
    arguments += ["--workers", "0", "--device", "cpu", "--model", model, "--output", str(tmp_path / "scores")]
    assert "1 of 2 images (missing.jpg) are not in" in fails(capsys, *arguments, "--strict")
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out.startswith("AP ") and "1 images skipped, their people count as missed (" in said.err
    figures = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert "missing.jpg" in figures["prediction"]["skipped_images"]["2"]
    assert not list((tmp_path / "scores").glob("*.jsonl"))
