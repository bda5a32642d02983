"""Figures that `querypose evaluate` measured, read from its file."""

import json

import pytest

from querypose_hf.hub.figures import MeasuredFigures
from querypose_hf.hub.options import MetricsFile


def write_metrics(path, metrics=None, **protocol):
    metrics = {"AP": 0.5125, "AP50": 0.8, "APM": None} if metrics is None else metrics
    path.write_text(json.dumps({"metrics": metrics, "protocol": {"metric": "coco", "images": 5000, **protocol}}))
    return str(path)


@pytest.mark.parametrize(
    ("protocol", "name", "dataset_id"),
    [
        ({}, "COCO val2017", "detection-datasets/coco"),
        ({"metric": "crowdpose", "images": 8000}, "CrowdPose test", "crowdpose"),
    ],
)
def test_known_datasets(tmp_path, protocol, name, dataset_id):
    figures = MeasuredFigures.read(MetricsFile(write_metrics(tmp_path / "metrics.json", **protocol)))
    assert (figures.dataset_name, figures.dataset_id) == (name, dataset_id)
    assert figures.metrics == {"AP": 0.5125, "AP50": 0.8}
    assert [(one.metric_type, one.metric_value) for one in figures.as_eval_results()] == [
        ("ap", 51.2),
        ("ap50", 80.0),
    ]


def test_other_datasets_must_be_named(tmp_path):
    path = write_metrics(tmp_path / "metrics.json", images=70)
    with pytest.raises(ValueError, match=r"70 images .* not a known dataset. Name it"):
        MeasuredFigures.read(MetricsFile(path))
    assert MeasuredFigures.read(MetricsFile(path, "My people, 2024")).dataset_id == "my-people-2024"
    assert MeasuredFigures.read(MetricsFile(path, "My people", "me/people")).dataset_id == "me/people"


@pytest.mark.parametrize("metrics", [{}, {"AP": None}, {"AP": "high"}, {"AP": 0.5, "AR": 51.2}, []])
def test_other_files_are_refused(tmp_path, metrics):
    with pytest.raises(ValueError, match=r"metrics\.json: .*expected"):
        MeasuredFigures.read(MetricsFile(write_metrics(tmp_path / "metrics.json", metrics)))


def test_no_file():
    assert MeasuredFigures.read(MetricsFile()) is None
