"""Tests of people in whole datasets, as Parquet files."""

import json
import re

import PIL.Image
import pytest
from launching import run_two_processes
from tiny import save_tiny_checkpoint
from transformers import pipeline

from querypose_hf.cli import main
from querypose_hf.data import GeneratedPeople
from querypose_hf.inference.bulk import BulkOptions, predict_to_parquet
from querypose_hf.inference.image_dataset import open_image_dataset


datasets = pytest.importorskip("datasets", reason="datasets is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_checkpoint(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    people = GeneratedPeople(7, seed=1, size=(96, 80), people=(1, 2))
    for number in range(7):
        people[number]["image"].save(folder / f"{number}.jpg")
    (folder / "3b.png").write_bytes(b"no picture")
    return folder


def read(folder):
    files = sorted(str(path) for path in folder.glob("people-*.parquet"))
    return datasets.load_dataset("parquet", data_files=files, cache_dir=str(folder / "cache"))["train"]


def test_people_of_a_folder(model, photos, tmp_path, capsys):
    arguments = ["predict", "--dataset", str(photos), "--model", model, "--device", "cpu", "--threshold", "0.01"]
    arguments += ["--output-parquet", str(tmp_path / "out"), "--rows-per-shard", "3", "--batch-size", "2"]
    assert main(arguments) == 1  # one of them is no image
    said = capsys.readouterr()
    assert "8 images in " in said.out and "1 could not be read, 0 have no people" in said.out
    assert "could not be read: " in said.err and "3b.png' cannot be decoded" in said.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"people-0000{shard}-of-00003.parquet" for shard in range(3)), "settings.json"]
    rows = read(tmp_path / "out")
    assert rows["index"] == list(range(8))
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")
    for row in rows:
        if row["path"].endswith("3b.png"):
            assert "cannot be decoded" in row["error"]
            assert row["people"] == []
            continue
        assert (row["width"], row["height"], row["error"]) == (96, 80, None)
        expected = pose_estimator(row["path"], threshold=0.01)
        assert len(row["people"]) == len(expected) > 0
        for person, other in zip(row["people"], expected, strict=True):
            assert person["score"] == pytest.approx(other["score"], abs=1e-4)
            assert person["box"] == pytest.approx(list(other["box"].values()), abs=0.05)
            points = [[point["x"], point["y"], point["score"]] for point in other["keypoints"]]
            assert person["keypoints"][16] == pytest.approx(points[16], abs=0.05)

    # nothing is done twice, what is missing is made again, and other settings are refused
    lost = tmp_path / "out" / "people-00001-of-00003.parquet"
    kept = (tmp_path / "out" / "people-00000-of-00003.parquet").stat().st_mtime_ns
    lost.unlink()
    assert main(arguments) == 1
    assert re.search("3 images in .* 5 were there already, 1 could not be read", capsys.readouterr().out)
    assert read(tmp_path / "out")["path"] == rows["path"]
    assert (tmp_path / "out" / "people-00000-of-00003.parquet").stat().st_mtime_ns == kept
    lost.unlink()
    assert main([*arguments, "--strict"]) == 2
    said = capsys.readouterr().err
    assert "3b.png' cannot be decoded" in said and "Traceback" not in said
    assert sorted(path.name for path in (tmp_path / "out").glob("people-*")) == [names[0], names[2]]
    assert main([*arguments, "--threshold", "0.5"]) == 2
    assert "holds results with threshold 0.01, and now it is 0.5" in capsys.readouterr().err


def test_an_image_that_the_model_cannot_take_costs_no_other(model, photos, tmp_path, monkeypatch):
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")
    find, small = type(pose_estimator).__call__, (96, 80)

    def with_little_memory(self, images, **options):
        if any(image.size != small for image in images):
            raise RuntimeError("out of memory")
        return find(self, images, **options)

    monkeypatch.setattr(type(pose_estimator), "__call__", with_little_memory)
    files = [str(photos / "0.jpg"), str(tmp_path / "large.png"), str(photos / "1.jpg")]
    PIL.Image.new("RGB", (200, 100)).save(files[1])
    dataset = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image(decode=False))
    report = predict_to_parquet(pose_estimator, dataset, tmp_path / "out", model_name="tiny", progress=False)
    assert (report.images, report.unreadable, report.reasons) == (
        3,
        1,
        (f"{files[1]}: its people cannot be found: out of memory",),
    )
    assert [row["error"] is None for row in read(tmp_path / "out")] == [True, False, True]


def test_a_killed_run_leaves_whole_shards_and_goes_on(model, photos, tmp_path):
    dataset = open_image_dataset(photos)
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")

    class Killed(BaseException):
        pass

    calls = []

    def dies_in_the_second_shard(images, **options):
        calls.append(len(images))
        if len(calls) == 3:
            raise Killed
        return pose_estimator(images, **options)

    dies_in_the_second_shard.model = pose_estimator.model
    options = BulkOptions(threshold=0.01, batch_size=2, rows_per_shard=4)
    with pytest.raises(Killed):
        predict_to_parquet(dies_in_the_second_shard, dataset, tmp_path, options, model_name="a", progress=False)
    assert [path.name for path in tmp_path.glob("*.parquet*")] == ["people-00000-of-00002.parquet"]
    report = predict_to_parquet(pose_estimator, dataset, tmp_path, options, model_name="a", progress=False)
    assert (report.images, report.skipped, report.unreadable) == (4, 4, 1)
    assert read(tmp_path)["index"] == list(range(8))


def test_two_processes_share_the_shards(model, photos, tmp_path):
    arguments = ["predict", "--dataset", str(photos), "--model", model, "--device", "cpu", "--threshold", "0.01"]
    arguments += ["--output-parquet", str(tmp_path / "out"), "--rows-per-shard", "2"]
    printed = run_two_processes(tmp_path / "printed", main, arguments)
    for number, text in enumerate(printed, start=1):
        assert re.search(rf"^process {number} of 2: 4 images in ", text, flags=re.MULTILINE), text
    assert read(tmp_path / "out")["index"] == list(range(8))


def test_datasets_of_other_kinds(photos, tmp_path):
    pictures = [str(photos / "0.jpg"), str(photos / "1.jpg")]
    data = datasets.Dataset.from_dict({"id": [1, 2], "photo": pictures}).cast_column("photo", datasets.Image())
    data.save_to_disk(str(tmp_path / "saved"))
    opened = open_image_dataset(tmp_path / "saved")
    assert opened.column_names == ["image"]
    assert len(opened) == 2
    with pytest.raises(ValueError, match="`image_column` is 'id'; expected one of"):
        open_image_dataset(tmp_path / "saved", image_column="id")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        open_image_dataset(tmp_path / "empty")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "photos"], "--dataset needs --output-parquet"),
        (["--output-parquet", "out"], "--output-parquet needs --dataset"),
        (["a.jpg", "--dataset", "photos", "--output-parquet", "out"], "--dataset does not go with IMAGE"),
        (
            ["--dataset", "d", "--output-parquet", "o", "--model", "m", "--rows-per-shard", "0"],
            "`rows_per_shard` is 0",
        ),
    ],
)
def test_options_are_checked(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_settings_are_readable(model, photos, tmp_path):
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")
    predict_to_parquet(pose_estimator, open_image_dataset(photos), tmp_path, model_name="a/b", progress=False)
    assert json.loads((tmp_path / "settings.json").read_text())["model"] == "a/b"
