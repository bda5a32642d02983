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
from querypose_hf.inference import bulk
from querypose_hf.inference.bulk import BulkOptions, predict_to_parquet
from querypose_hf.inference.image_dataset import open_image_dataset
from querypose_hf.inference.records import count_people, image_record, record_schema


datasets = pytest.importorskip("datasets", reason="datasets is not installed")
import pyarrow  # noqa: E402
from pyarrow.parquet import ParquetDataset, ParquetFile  # noqa: E402


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
    assert re.search(r"^8 images, [\d.]+ per second; of [\d.]+ s \d+ % \w+, ", said.out, re.MULTILINE)
    assert all(part in said.out for part in ("% loading", "% reading", "% model", "% writing"))
    assert "1 could not be read, 0 are empty" in said.out
    assert "could not be read: " in said.err and "3b.png' cannot be decoded" in said.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"people-0000{shard}-of-00003.parquet" for shard in range(3)]
    rows = read(tmp_path / "out")
    assert rows["index"] == list(range(8))
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")
    for row in rows:
        if row["source"].endswith("3b.png"):
            assert "cannot be decoded" in row["error"]
            assert row["people"] == []
            continue
        assert (row["width"], row["height"], row["error"]) == (96, 80, None)
        expected = pose_estimator(row["source"], threshold=0.01)
        assert len(row["people"]) == len(expected) > 0
        for person, other in zip(row["people"], expected, strict=True):
            assert person["score"] == pytest.approx(other["score"], abs=1e-4)
            assert person["box"] == pytest.approx(other["box"], abs=0.05)
            last, expected_last = person["keypoints"][16], other["keypoints"][16]
            assert last.pop("name") == expected_last.pop("name") == "right_ankle"
            assert last == pytest.approx(expected_last, abs=0.05)

    # nothing is done twice, what is missing is made again, and other settings are refused
    lost = tmp_path / "out" / "people-00001-of-00003.parquet"
    kept = (tmp_path / "out" / "people-00000-of-00003.parquet").stat().st_mtime_ns
    lost.unlink()
    assert main(arguments) == 1
    assert re.search("3 images, .* 5 were there already, 1 could not be read", capsys.readouterr().out)
    assert read(tmp_path / "out")["source"] == rows["source"]
    assert (tmp_path / "out" / "people-00000-of-00003.parquet").stat().st_mtime_ns == kept
    lost.unlink()
    assert main([*arguments, "--strict"]) == 2
    said = capsys.readouterr().err
    assert "3b.png' cannot be decoded" in said and "Traceback" not in said
    assert sorted(path.name for path in (tmp_path / "out").glob("people-*")) == [names[0], names[2]]
    assert main([*arguments, "--threshold", "0.5"]) == 2
    assert "holds results with threshold 0.01, and now it is 0.5" in capsys.readouterr().err


def test_batches_share_a_row_group(model, photos, tmp_path, monkeypatch):
    """On a CPU a batch is one image; a row group for each makes files slow to read."""
    monkeypatch.setattr(bulk, "_ROWS_PER_GROUP", 3)
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")
    options = BulkOptions(threshold=0.01, batch_size=1)
    predict_to_parquet(
        pose_estimator, open_image_dataset(photos), tmp_path, options, model_name="tiny", progress=False
    )
    [path] = tmp_path.glob("*.parquet")
    with ParquetFile(path) as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        assert groups == [3, 3, 2]
        assert file.read()["index"].to_pylist() == list(range(8))


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
        assert re.search(rf"^process {number} of 2: 4 images, ", text, flags=re.MULTILINE), text
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


def test_the_folder_holds_one_table(model, photos, tmp_path):
    """Other libraries read it as it is; its settings are in the files' metadata."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pose_estimator = pipeline("pose-estimation", model=model, device="cpu")
    options = BulkOptions(rows_per_shard=5, top_k=1)
    dataset = open_image_dataset(photos)
    predict_to_parquet(pose_estimator, dataset, tmp_path / "people", options, model_name="a/b", progress=False)
    table = pandas.read_parquet(tmp_path / "people")
    assert table["index"].tolist() == list(range(8))
    lines = [image_record("a.jpg", 0, (4, 3), []), image_record("clip.mp4", 7, (4, 3), [], time=0.5)]
    assert list(table.columns) == list(lines[0]) == list(lines[1])
    assert all(len(people) <= 1 for people in table["people"])
    settings = json.loads(ParquetDataset(tmp_path / "people").schema.metadata[b"querypose"])
    assert (settings["model"], settings["threshold"], settings["top_k"]) == ("a/b", 0.25, 1)


def test_records_of_images_and_videos_fit_one_table():
    """JSON lines of `predict` and rows of `predict --dataset` have the same fields."""
    point = {"name": "nose", "x": 1.0, "y": 2.0, "score": 0.5}
    box = {"xmin": 0.0, "ymin": 0.0, "xmax": 4.0, "ymax": 3.0}
    person = {"score": 0.5, "label": "horse", "box": box, "keypoints": [point]}
    rows = [
        image_record("a.jpg", 0, (4, 3), [person], drawn="a_poses.jpg"),
        image_record("clip.mp4", 7, (4, 3), [{**person, "track_id": 3}], time=0.5),
        image_record(None, 1, None, [], error="no image"),
    ]
    assert pyarrow.Table.from_pylist(rows, schema=record_schema()).to_pylist() == rows
    assert rows[0]["people"][0] == {**person, "track_id": None}


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        (["horse"], ["horse"], "1 horse"),
        ([], ["horse"], "0 horses"),
        (["person", "person"], ["person"], "2 people"),
        (["fox", "dog", "fox"], ["dog", "cat", "fox"], "1 dog and 2 foxes"),
        ([], ["dog", "cat"], "nothing"),
    ],
)
def test_counts_in_words(labels, classes, words):
    assert count_people(labels, classes) == words
