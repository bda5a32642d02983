"""Studies: the paper's in configs/, and tiny ones that are run."""

import json
import runpy
import sys
from collections import Counter
from dataclasses import replace

import pytest
import yaml
from places import PROJECT
from small_data import small_experiment, write_rendered_coco
from small_run import read_log
from tiny import tiny_config

from querypose_hf.cli import main as querypose
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.study import (
    Study,
    StudyResults,
    StudyRow,
    StudyScale,
    fingerprint,
    report,
    tables_page,
)


CONFIG = PROJECT / "configs" / "study.yaml"
main = runpy.run_path(str(PROJECT / "scripts" / "study.py"))["main"]

#: Stands for Python: notes how it was called, and writes the log of a finished run unless `keypoint_query` is "none".
STAND_IN = """
import json, sys
from pathlib import Path
import yaml
arguments = sys.argv[1:]
config, folder = (arguments[arguments.index(flag) + 1] for flag in ("--config", "--output"))
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
values = yaml.safe_load(Path(config).read_text())
model, seed = values["model"]["config"], values["training"]["seed"]
if model.get("keypoint_query") == "none" and not Path({mended!r}).exists():
    sys.exit("no memory")
ap = {{"none": 0.1, "sum": 0.3}}.get(model.get("part_iteration"), 0.2) + seed / 100
records = [{{"step": 2, "loss": 5.0, "images_per_second": 8.0}}, {{"step": 3, "loss": 4.0, "images_per_second": 9.0}}]
records.append({{"step": 3, "evaluation/AP": ap, "evaluation/AP50": 2 * ap}})
Path(folder, "training_log.jsonl").write_text("".join(json.dumps(one) + "\\n" for one in records))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rendered_coco(tmp_path_factory.mktemp("rendered"))


@pytest.fixture
def study_file(source, tmp_path):
    rows = [
        {"table": "a", "name": "whole", "paper": 3.0},
        {"table": "a", "name": "no iteration", "paper": 1.0, "set": ["model.part_iteration=none"]},
        {"table": "a", "name": "mean", "paper": 0.5, "set": ["model.keypoint_query=none"]},
        {"table": "b", "name": "selective", "set": ["model.part_iteration=selective"]},
        {"table": "b", "name": "sum", "set": ["model.part_iteration=sum"], "paper": 1.0, "seeds": [1]},
    ]
    experiment = small_experiment(source, steps=3)
    experiment["training"].update(trackers=[], evaluate_every=None)
    path = tmp_path / "tiny.yaml"
    scales = [{"name": "small", "experiment": experiment, "seeds": [0, 1]}, {"name": "other", "config": "x.yaml"}]
    path.write_text(yaml.safe_dump({"rows": rows, "scales": scales}))
    return path


class TestThePapers:
    study = Study.from_yaml(CONFIG)

    @pytest.mark.parametrize(("scale", "systems"), [("small", 18), ("full", 16 + 3)])
    def test_every_system_is_trained_once(self, scale, systems):
        runs = self.study.runs(scale)
        assert len({run.folder for run in runs}) == len(runs)
        assert len({run.rows for run in runs}) == systems
        trained = Counter((row.label, run.seed) for run in runs for row in run.rows)
        assert set(trained.values()) == {1}
        rows = self.study.rows_of(self.study.scale(scale).tables)
        assert {label for label, _ in trained} == {row.label for row in rows}

    def test_some_tables_alone(self):
        """A run stands for the same rows whichever are wanted, so that its result is found again."""
        everything = {(run.rows, run.seed) for run in self.study.runs("small")}
        runs = self.study.runs("small", ["3"])
        assert [run.seed for run in runs] == [0, 0, 1, 1] and {(run.rows, run.seed) for run in runs} < everything
        with pytest.raises(ValueError, match=r"the tables are \['2c'\], which `small` leaves out"):
            self.study.runs("small", ["2c"])

    def test_runs_differ_in_the_model_and_the_seed_alone(self):
        runs = self.study.runs("small")
        assert {run.seed for run in runs} == {0, 1, 2} and [run.seed for run in runs] == sorted(r.seed for r in runs)
        for run in runs:
            same = replace(run.experiment.training, seed=0)
            assert replace(run.experiment, model=runs[0].experiment.model, training=same) == runs[0].experiment
            assert run.experiment.data.validation is not None

    def test_full_scale_is_the_papers_recipe(self):
        published = Experiment.from_yaml(PROJECT / "configs" / "r50_1x.yaml")
        for run in self.study.runs("full"):
            assert replace(run.experiment, model=published.model) == published
            assert run.experiment.model.overrides.get("query_feedback") == (
                "never" if "3(a)" in run.rows[0].name else "always"
            )

    def test_the_page_has_these_rows_and_results(self):
        text = (PROJECT / "docs" / "ablations.md").read_text(encoding="utf-8")
        results = StudyResults(PROJECT / "benchmarks" / "study_small.jsonl")
        assert text.count("<!-- study:") == 3
        assert tables_page(self.study, "small", results, text) == text, "run scripts/study.py report"


def test_interrupted_and_failed_runs(study_file, tmp_path, capsys):
    calls, mended = tmp_path / "calls.jsonl", tmp_path / "mended"
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN.format(calls=str(calls), mended=str(mended)))
    results, output = tmp_path / "results.jsonl", tmp_path / "runs"
    files = ["--study", str(study_file), "--results", str(results)]
    command = ["run", *files, "--output", str(output), "--parallel", "2"]
    command += ["--launcher", f"{sys.executable} {stand_in}"]

    assert main(["run", *files, "--list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("to do") == 7 and "a_whole/seed_0: to do; a whole; b selective" in listed

    assert main(command) == 1
    assert capsys.readouterr().out.count("failed, see output.txt") == 2
    assert "no memory" in (output / "a_mean" / "seed_0" / "output.txt").read_text()
    lines = StudyResults(results).lines
    assert [line["seed"] for line in lines].count(1) == 3 and len(lines) == 5
    (summed,) = (line for line in lines if line["rows"] == ["b sum"])
    assert summed["set"] == ["model.part_iteration=sum"] and summed["scale"] == "small"
    assert (summed["steps"], summed["loss"], summed["images_per_second"]) == (3, 4.0, 8.5)
    assert summed["metrics"] == {"AP": 0.31, "AP50": 0.62}

    calls.unlink()
    mended.touch()
    assert main(command) == 0
    resumed = [json.loads(line) for line in calls.read_text().splitlines()]
    assert len(resumed) == 2 and all(words[:3] == ["-m", "querypose_hf", "train"] for words in resumed)
    assert all(words[-1] == "--resume" and "a_mean" in words[words.index("--output") + 1] for words in resumed)
    assert len(StudyResults(results).lines) == 7

    # where data is may change; what is learned may not
    assert main([*command, "--set", "data.train.0.annotations=elsewhere.json"]) == 0
    with pytest.raises(SystemExit, match="`a whole` with seed 0 was trained as another experiment"):
        main([*command, "--set", "training.learning_rate=1"])

    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- study: a b -->old<!-- end of study -->\nAfter.\n")
    assert main(["report", *files, "--pages", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n") and "old" not in text
    assert "| no iteration | `model.part_iteration=none` | 1.0 | 10.5 (10.0 to 11.0) |" in text
    assert "| sum | `model.part_iteration=sum` | 1.0 | 31.0 |" in text
    written = results.with_suffix(".md").read_text()
    assert "| no iteration | 1.0 | 10.5 (10.0 to 11.0) | 21.0 (20.0 to 22.0) | 2 | 3 | 8.5 |" in written
    # whole (20, 21), no iteration (10, 11), mean (20, 21); in the paper 3, 1 and 0.5
    pairs = "1 as in the paper, 1 the other way round, 1 not told apart by these seeds"
    assert f"Of 3 pairs: {pairs}." in written


def test_trains_and_scores(study_file, tmp_path):
    """Two systems, one of which was stopped after its first step."""
    results, output = tmp_path / "results.jsonl", tmp_path / "runs"
    study = Study.from_yaml(study_file)
    (run,) = (run for run in study.runs("small", ["b"]) if run.rows[0].name == "sum")
    (output / run.folder).mkdir(parents=True)
    description = tmp_path / "stopped.yaml"
    description.write_text(run.experiment.to_yaml())
    stopped = ["--config", str(description), "--output", str(output / run.folder), "--stop-after", "1"]
    assert querypose(["train", *stopped]) == 0

    command = ["run", "--study", str(study_file), "--results", str(results), "--output", str(output)]
    assert main([*command, "--tables", "b", "--parallel", "2", "--set", "training.save_every=9"]) == 0
    lines = StudyResults(results).lines
    assert sorted((line["rows"][-1], line["seed"]) for line in lines) == [
        ("b selective", 0),
        ("b selective", 1),
        ("b sum", 1),
    ]
    for line in lines:
        assert line["steps"] == 3 and {"AP", "AP50", "AR"} <= line["metrics"].keys()
        assert line["base"] == fingerprint(study.base("small"))
    log = read_log(output / run.folder)
    assert [record["step"] for record in log if "loss" in record] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "`rows` is .*; expected at least one"),
        ({"rows": [{"table": "1", "name": "x"}] * 2}, r"`rows` has \['1 x'\] twice"),
        ({"rows": [{"table": "1", "name": "x", "sets": []}]}, r"unknown field `rows\[0\].sets`"),
        ({"scales": [{"name": "small"}]}, "`experiment` and `config`: none given; expected one"),
    ],
)
def test_descriptions_that_are_wrong(study_file, change, message):
    values = yaml.safe_load(study_file.read_text())
    study_file.write_text(yaml.safe_dump({**values, **change}))
    with pytest.raises(ValueError, match=message):
        Study.from_yaml(study_file)


def test_what_a_study_does_not_have(study_file, tmp_path):
    study = Study.from_yaml(study_file)
    with pytest.raises(ValueError, match=r"the scale is 'large'; expected one of \['small', 'other'\]"):
        study.runs("large")
    with pytest.raises(ValueError, match=r"the tables are \['c'\]; expected some of \['a', 'b'\]"):
        study.runs("small", ["c"])
    with pytest.raises(ValueError, match="a mean: in `model`: unknown field `keypoint_queries`"):
        rows = (StudyRow("a", "mean", ("model.config.keypoint_queries=none",)),)
        Study(rows, study.scales, "tiny.yaml").runs("small")
    with pytest.raises(FileNotFoundError, match=r"x\.yaml"):
        study.runs("other")
    (tmp_path / "results.jsonl").write_text("{}\n{")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2: not a JSON object"):
        StudyResults(tmp_path / "results.jsonl")


def test_checkpoints_can_be_studied(source, tmp_path):
    """Rows are compared with the checkpoint's configuration."""
    tiny_config().save_pretrained(tmp_path / "start")
    experiment = small_experiment(source, checkpoint=str(tmp_path / "start"))
    rows = (
        StudyRow("a", "as it is"),
        StudyRow("a", "dropout", ("model.dropout=0.1",)),
        StudyRow("b", "written out", ("model.part_iteration=selective",)),
    )
    study = Study(rows, (StudyScale("small", experiment),), "tiny.yaml")
    assert [len(run.rows) for run in study.runs("small")] == [2, 1]
    with pytest.raises(ValueError, match=r"`model\.checkpoint` is '.*nowhere'; expected a folder or Hub id"):
        study.runs("small", assignments=[f"model.checkpoint={tmp_path / 'nowhere'}"])
    assert report(study, "small", StudyResults(tmp_path / "none.jsonl")).startswith("Scale `small`")
