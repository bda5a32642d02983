"""Studies: the paper's in configs/, and tiny ones that are run."""

import contextlib
import functools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from places import PROJECT
from safetensors import safe_open
from small_data import small_experiment, write_rendered_coco
from small_run import read_log
from tiny import tiny_config

from querypose_hf import QUERYPOSE_NANO, __version__
from querypose_hf.cli import main as querypose
from querypose_hf.settings import with_assignments
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
SCRIPT = PROJECT / "scripts" / "study.py"
PAGE = (PROJECT / "docs" / "ablations.md").read_text(encoding="utf-8")
main = runpy.run_path(str(SCRIPT))["main"]

#: Stands for Python: notes how it was called, and writes the log of a finished run unless `keypoint_query` is "none".
STAND_IN = """
import json, os, sys
from pathlib import Path
import yaml
arguments = sys.argv[1:]
config, folder = (arguments[arguments.index(flag) + 1] for flag in ("--config", "--output"))
with open({calls!r}, "a") as calls:
    calls.write(json.dumps([arguments, os.environ["OMP_NUM_THREADS"]]) + "\\n")
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

    def test_tables_have_the_papers_rows(self):
        rows = {"1": 8, "2a": 4, "2b": 3, "2c": 4, "2d": 4, "3": 2, "feedback": 4}
        assert Counter(row.table for row in self.study.rows) == rows
        assert all("iteration" in row.name for row in self.study.rows_of(["2a"]))
        assert [table for table in rows if f"<!-- study small: {table} -->" in PAGE] == list(rows)

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

    def test_what_the_small_scale_learns_anew(self):
        """All that belongs to keypoints; how people are found is the shipped model's."""
        experiment = self.study.runs("small", ["3"])[0].experiment
        with safe_open(Path(QUERYPOSE_NANO, "model.safetensors"), "pt") as weights:
            kept = {name for name in weights.keys() if not re.search(experiment.model.fresh, name)}
        model = ("model.backbone.", "model.neck.", "model.decoder.box_layers.")
        queries = {"model.decoder.instance_queries", "model.decoder.initial_boxes"}
        assert queries == {name for name in kept if not name.startswith(model)}
        assert "nms_threshold" not in experiment.image_processor

    @pytest.mark.parametrize("scale", ["small", "full"])
    def test_where_data_is_can_be_set(self, scale):
        """By words that the page names; they change the place in every run, and nothing else."""
        fields = ("train.0.annotations", "train.0.images", "validation.annotations", "validation.images")
        assert all(f"--set data.{field}=data/" in PAGE for field in fields)
        moved = self.study.runs(scale, assignments=[f"data.{field}=/moved/{field}" for field in fields])
        assert [run.folder for run in moved] == [run.folder for run in self.study.runs(scale)]
        for run in moved:
            sources = (*run.experiment.data.train, run.experiment.data.validation)
            places = [place for source in sources for place in (source.annotations, source.images)]
            assert places == [f"/moved/{field}" for field in fields]

    def test_the_page_has_the_results(self):
        """Each cell is what the file gives, and a table without gaps has every seed of every row."""
        results = StudyResults(PROJECT / "benchmarks" / "study_small.jsonl")
        assert tables_page(self.study, "small", results, PAGE) == PAGE, "run scripts/study.py report"
        complete = all(results.has("small", run) for run in self.study.runs("small"))
        assert ("The study has begun; empty cells have not been run." in PAGE) == (not complete)
        check_complete(self.study, results, PAGE)

    def test_a_page_that_is_complete_needs_every_run(self, tmp_path):
        results = StudyResults(tmp_path / "results.jsonl")
        runs = self.study.runs("small", ["2b"])
        lines = [
            {"scale": "small", "fingerprint": run.fingerprint, "rows": [row.label for row in run.rows]}
            | {"seed": run.seed, "metrics": {"AP50": 0.3}}
            for run in runs
        ]
        for line in lines[:-1]:
            results.add(line)
        with pytest.raises(AssertionError, match="2b"):
            check_complete(self.study, results, tables_page(self.study, "small", results, PAGE))
        results.add(lines[-1])
        check_complete(self.study, results, tables_page(self.study, "small", results, PAGE))


def check_complete(study, results, page):
    for table in sorted({row.table for row in study.rows}):
        text = page.split(f"<!-- study small: {table} -->")[1].split("<!-- end of study -->")[0]
        if any(line.endswith("| |") for line in text.splitlines()):
            continue
        for row in study.rows_of([table]):
            seeds = {line["seed"] for line in results.of("small", row)}
            assert seeds >= set(row.seeds or study.scale("small").seeds), row.label


def test_interrupted_and_failed_runs(study_file, tmp_path, capsys):
    calls, mended = tmp_path / "calls.jsonl", tmp_path / "mended"
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN.format(calls=str(calls), mended=str(mended)))
    results, output = tmp_path / "results.jsonl", tmp_path / "runs"
    files = ["--study", str(study_file), "--results", str(results)]
    command = ["run", *files, "--output", str(output), "--parallel", "2"]
    command += ["--threads", "3", "--launcher", f"{sys.executable} {stand_in}"]

    assert main(["run", *files, "--list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("to do") == 7 and "/seed_0: to do; a whole; b selective\n" in listed

    assert main(command) == 1
    assert capsys.readouterr().out.count("failed, see output.txt") == 2
    [failed] = output.glob("a_mean_*")
    assert "no memory" in (failed / "seed_0" / "output.txt").read_text()
    lines = StudyResults(results).lines
    assert [line["seed"] for line in lines].count(1) == 3 and len(lines) == 5
    (summed,) = (line for line in lines if line["rows"] == ["b sum"])
    assert summed["set"] == ["model.part_iteration=sum"] and summed["scale"] == "small"
    assert (summed["steps"], summed["loss"], summed["images_per_second"]) == (3, 4.0, 8.5)
    assert summed["metrics"] == {"AP": 0.31, "AP50": 0.62}
    assert summed["versions"]["querypose_hf"] == __version__

    calls.unlink()
    mended.touch()
    assert main(command) == 0
    resumed, threads = zip(*map(json.loads, calls.read_text().splitlines()), strict=True)
    assert len(resumed) == 2 and all(words[:3] == ["-m", "querypose_hf", "train"] for words in resumed)
    assert all(words[-1] == "--resume" and "a_mean" in words[words.index("--output") + 1] for words in resumed)
    assert len(StudyResults(results).lines) == 7
    assert set(threads) == {"3"}

    # where data is may change; what is learned may not
    assert main([*command, "--set", "data.train.0.annotations=elsewhere.json"]) == 0
    with pytest.raises(SystemExit, match="`fingerprint` of `a whole` with seed 0 is "):
        main([*command, "--set", "training.learning_rate=1"])
    row_changed = study_file.with_name("changed.yaml")
    row_changed.write_text(
        study_file.read_text().replace("model.part_iteration=sum", "model.part_iteration=concatenation")
    )
    with pytest.raises(SystemExit, match="`fingerprint` of `b sum` with seed 1 is "):
        main([*command, "--study", str(row_changed)])

    page = tmp_path / "page.md"
    page.write_text(
        "Before.\n<!-- study small: a -->before<!-- end of study -->\n"
        "<!-- study small: b -->before<!-- end of study -->\n"
        "After.\n<!-- study other: a -->kept<!-- end of study -->\n"
    )
    assert main(["report", *files, "--scale", "other", "--results", str(results), "--pages"]) == 0
    capsys.readouterr()
    assert main(["report", *files, "--pages", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("Before.\n") and "before" not in text
    assert text.endswith("\nAfter.\n<!-- study other: a -->kept<!-- end of study -->\n")
    assert "| no iteration | `model.part_iteration=none` | 1.0 | 10.5 (10.0 to 11.0) |" in text
    assert "| sum | `model.part_iteration=sum` | 1.0 | 31.0 |" in text
    # whole (20, 21), no iteration (10, 11), mean (20, 21); in the paper 3, 1 and 0.5
    pairs = "Of 3 pairs: 1 as in the paper, 1 not told apart by these seeds, 1 the other way round."
    assert text.count(pairs) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("## Table a\n") and pairs in printed and "## Table b\n" in printed


def test_several_studies_add_to_one_file(tmp_path):
    """What another wrote since is not lost, and the newest of two lines counts."""
    row = StudyRow("a", "whole")
    line = {"scale": "small", "fingerprint": "x", "rows": [row.label], "metrics": {"AP": 0.1}}
    first, second = (StudyResults(tmp_path / "new" / "results.jsonl") for _ in range(2))
    assert first.lines == second.lines == []
    first.add({**line, "seed": 1})
    second.add({**line, "seed": 0})
    first.add({**line, "seed": 1, "fingerprint": "y"})
    assert [(one["seed"], one["fingerprint"]) for one in second.of("small", row)] == [(0, "x"), (1, "y")]


def test_what_a_fingerprint_sees(source, tmp_path):
    shutil.copytree(QUERYPOSE_NANO, tmp_path / "start")
    values = small_experiment(source, checkpoint=str(tmp_path / "start"))

    def named(**changes):
        return fingerprint(Experiment.from_mapping(with_assignments(values, [f"{n}={v}" for n, v in changes.items()])))

    before = named()
    same = {"training.seed": 3, "data.train.0.images": "moved", "model.part_iteration": "selective"}
    assert named(**same) == before
    other = {
        "training.schedule.length": 9,
        "training.log_every": 7,
        "model.part_iteration": "sum",
        "model.fresh": "flow",
    }
    assert len({before, *(named(**{name: value}) for name, value in other.items())}) == 1 + len(other)
    shutil.copytree(tmp_path / "start", tmp_path / "copy")
    assert named(**{"model.checkpoint": tmp_path / "copy"}) == before
    for name in ("model.safetensors", "preprocessor_config.json"):
        content = (tmp_path / "start" / name).read_bytes()
        (tmp_path / "start" / name).write_bytes(content + b" ")
        assert named() != before
        (tmp_path / "start" / name).write_bytes(content)


def test_interrupted_by_the_keyboard(study_file, tmp_path):
    """The signal reaches the runs, too, and the study waits for their checkpoints."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "folder = Path(sys.argv[sys.argv.index('--output') + 1])\n"
        "try:\n    (folder / 'started').touch()\n    time.sleep(300)\n"
        "except KeyboardInterrupt:\n    time.sleep(1)\n    (folder / 'checkpoint').touch()\n"
    )
    command = [sys.executable, str(SCRIPT), "run", "--study", str(study_file), "--output", str(tmp_path / "runs")]
    command += ["--results", str(tmp_path / "results.jsonl"), "--parallel", "2"]
    command += ["--launcher", f"{sys.executable} {stand_in}"]
    # tests that run in the background of a shell pass on that they ignore it
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    study = subprocess.Popen(command, start_new_session=True, preexec_fn=heeds)
    try:
        while len(list(tmp_path.glob("runs/*/*/started"))) < 2:
            assert study.poll() is None
            time.sleep(0.1)
        os.killpg(study.pid, signal.SIGINT)
        assert study.wait(60) == 130
        assert len(list(tmp_path.glob("runs/*/*/checkpoint"))) == 2
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(study.pid, signal.SIGKILL)


def test_trains_and_scores(study_file, tmp_path):
    """Two systems, one of which was stopped after its first step."""
    results, output = tmp_path / "results.jsonl", tmp_path / "runs"
    study, seldom = Study.from_yaml(study_file), "training.save_every=9"
    (run,) = (run for run in study.runs("small", ["b"], [seldom]) if run.rows[0].name == "sum")
    (output / run.folder).mkdir(parents=True)
    description = tmp_path / "stopped.yaml"
    description.write_text(run.experiment.to_yaml())
    stopped = ["--config", str(description), "--output", str(output / run.folder), "--stop-after", "1"]
    assert querypose(["train", *stopped]) == 0

    command = ["run", "--study", str(study_file), "--results", str(results), "--output", str(output)]
    assert main([*command, "--tables", "b", "--parallel", "2", "--set", seldom]) == 0
    lines = StudyResults(results).lines
    assert sorted((line["rows"][-1], line["seed"]) for line in lines) == [
        ("b selective", 0),
        ("b selective", 1),
        ("b sum", 1),
    ]
    for line in lines:
        assert line["steps"] == 3 and {"AP", "AP50", "AR"} <= line["metrics"].keys()
        assert any(line["fingerprint"] in folder.name for folder in output.iterdir())
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
    with pytest.raises(ValueError, match=r"a whole: `data\.validation` is None; expected images to score on"):
        study.runs("small", assignments=["data.validation=null"])
    for text, message in (("{", "line 1: expected a result"), ('{"scale": "small"}', "'fingerprint' is missing")):
        (tmp_path / "results.jsonl").write_text(text)
        with pytest.raises(ValueError, match=rf"results\.jsonl.*{message}"):
            StudyResults(tmp_path / "results.jsonl").lines  # noqa: B018


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
    assert report(study, "small", StudyResults(tmp_path / "none.jsonl")).startswith("## Table a")
