"""Scaling on tiny models: which points are measured, that a stopped run goes on, and the picture."""

import dataclasses
import gc
import json
from concurrent.futures.process import BrokenProcessPool
from xml.etree import ElementTree

import PIL.Image
import pytest
from tiny import BACKBONES, DECODER

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.benchmark import BenchmarkSettings, measure_scaling, scaling
from querypose_hf.cli import main
from querypose_hf.inference.bulk import BulkReport
from querypose_hf.model.pipeline_querypose import PoseEstimationPipeline


pytest.importorskip("datasets")


def tiny_settings(**changes) -> BenchmarkSettings:
    fields = {
        "people": (2, 1),
        "queries": (6, 4),
        "image_sizes": ((64, 96),),
        "batch_sizes": (1, 2),
        "processes": (1, 2),
        "rounds": 1,
        "num_threads": (1,),
        "overrides": {"backbone_config": BACKBONES["resnet"], **DECODER},
    }
    return BenchmarkSettings(**{**fields, **changes})


class InThisProcess:
    """In place of a pool of processes, which take seconds to start; `stop` is asked before each piece of work."""

    def __init__(self, stop):
        self.stop = stop

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, settings, point, *rest):
        stopped = self.stop(point)
        if stopped is None and point.processes == 2:  # each waits for the other
            return Finished({"seconds": 2.0, "peak_memory_bytes": 2**20})
        return Finished(stopped or function(settings, point, *rest))


class Finished:
    def __init__(self, value):
        self.value = value

    def result(self):
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


@pytest.fixture
def stop_at(monkeypatch):
    """Has points be measured in this process, but for those that the function gives an error for."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")

    def stop_at(stop):
        monkeypatch.setattr(scaling, "_pool", lambda count: InThisProcess(stop))

    return stop_at


def measure(settings, folder):
    measure_scaling(settings, folder / "scaling.jsonl", folder / "scaling.svg")


def records_in(folder):
    return [json.loads(line) for line in (folder / "scaling.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on(stop_at, tmp_path):
    settings = tiny_settings()
    asked = []

    def stop(point):
        asked.append(point)
        return KeyboardInterrupt() if len(asked) == 4 else None

    stop_at(stop)
    with pytest.raises(KeyboardInterrupt):
        measure(settings, tmp_path)
    assert len(records_in(tmp_path)) == 3 and not (tmp_path / "scaling.svg").exists()
    measure(settings, tmp_path)
    # the first point is of three axes; two processes ask twice
    points = [each["point"] for each in records_in(tmp_path)]
    assert [(p["people"], p["queries"], p["batch_sizes"], p["processes"]) for p in points] == [
        (1, 6, 1, None),
        (2, 6, 1, None),
        (2, 4, 1, None),
        (2, 6, 2, None),
        (2, 6, 1, 1),
        (2, 6, 1, 2),
    ]
    assert len(asked) == 3 + 1 + 3 + 1
    assert records_in(tmp_path)[-1]["images_per_second"] == 2 * 2 / 2.0
    assert records_in(tmp_path)[-1]["peak_memory_bytes"] == 2 * 2**20
    for each in records_in(tmp_path):
        figure = "median_s" if each["point"]["processes"] is None else "images_per_second"
        assert each[figure] > 0 and each["run"]["model"] == "r50 light"

    picture = ElementTree.parse(tmp_path / "scaling.svg").getroot()
    texts = ["".join(element.itertext()) for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    for axis in ("people in the image", "queries", "images per forward pass"):
        assert f"seconds by {axis}" in texts and f"GiB by {axis}" in texts
    assert "images/s by processes that share a dataset" in texts
    assert not any("long side" in text for text in texts)  # one size makes no curve
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}polyline"))) == 8

    del asked[:]
    measure(settings, tmp_path)
    assert not asked
    measure(tiny_settings(rounds=2, queries=(6,), batch_sizes=(1,), processes=(1,)), tmp_path)
    assert len(records_in(tmp_path)) == 6 + 3  # other settings make other points, and the old ones stay


def test_one_model_and_a_first_look_that_does_not_count(monkeypatch, tmp_path):
    """A second model would count as memory of the first; the first images of a process take longer than others."""
    settings = tiny_settings()
    [point] = {point for point in scaling.points_of(settings, "processes") if point.processes == 1}
    models, looks = [], []

    def note(*_):
        gc.collect()
        models.append(sum(type(each) is QueryPoseForPoseEstimation for each in gc.get_objects()))
        return {"": {}}

    gc.collect()
    note()
    monkeypatch.setattr(scaling, "measure_side_by_side", note)
    scaling._measure(settings, dataclasses.replace(point, processes=None), None)

    def predict(pose_estimator, *_, **__):
        looks.append(len(list(tmp_path.glob("*.ready"))))
        note()
        return BulkReport(1, 0, 0, 0, (), 1.0)

    class Looking(PoseEstimationPipeline):
        def __call__(self, images, **options):
            looks.append((len(images), len(list(tmp_path.glob("*.ready")))))
            return super().__call__(images, **options)

    PIL.Image.new("RGB", (96, 64)).save(tmp_path / "0.jpg")
    PIL.Image.new("RGB", (96, 64)).save(tmp_path / "1.jpg")
    monkeypatch.setattr(scaling, "predict_to_parquet", predict)
    monkeypatch.setattr(scaling, "PoseEstimationPipeline", Looking)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    scaling._find_people(settings, point, None, tmp_path, 0)
    assert [count - models[0] for count in models[1:]] == [1, 1]
    assert looks == [(1, 0), 1]


def test_a_point_without_enough_memory(stop_at, tmp_path):
    """The others go on; the next run tries it again."""
    settings = tiny_settings(queries=(6,), batch_sizes=(1,), processes=(1,))
    stop_at(lambda point: BrokenProcessPool() if point.people == 2 else None)
    measure(settings, tmp_path)
    assert ["error" in each for each in records_in(tmp_path)] == [False, True, True]
    stop_at(lambda point: None)
    measure(settings, tmp_path)
    assert ["error" in each for each in records_in(tmp_path)] == [False, True, True, False, False]


def test_command(tmp_path, capsys):
    """In processes of their own, with a checkpoint: its queries are not varied, nor are there more people."""
    from tiny import save_tiny_checkpoint

    save_tiny_checkpoint(tmp_path / "model")
    arguments = ["benchmark", "--scaling", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    small = ["--people", "2", "13", "--sizes", "64x64", "--batch-sizes", "1", "--processes", "2", "--rounds", "1"]
    assert main([*arguments, *small, "--picture", str(tmp_path / "curves.svg")]) == 0
    assert "curves.svg" in capsys.readouterr().out
    assert not ElementTree.parse(tmp_path / "curves.svg").getroot().findall(".//{*}polyline")  # no list has two values
    forward, dataset = records_in(tmp_path / "out")
    assert dataset["point"]["processes"] == 2
    assert forward["point"]["queries"] == 12 and forward["run"]["model"] == "model"
    assert forward["median_s"] > 0 and dataset["images_per_second"] > 0
