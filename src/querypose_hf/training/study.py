"""A study: changes of one experiment, each trained from several seeds and scored, beside the paper's figures.

`configs/study.yaml` describes the paper's. Every run is a `querypose train` of its own and resumes as one.
"""

import dataclasses
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checks import telling
from ..files import read_text, write_text
from ..model.configuration_querypose import QueryPoseConfig
from ..settings import build, read_yaml, require, with_assignments
from .experiment import MODEL_FIELDS, Experiment
from .log import LOG_FILE
from .starting_model import read_config


@dataclass(frozen=True)
class StudyRow:
    """A row of a table.

    Args:
        table (`str`): such as `"2a"`.
        name (`str`): the system; each table has a name once.
        set (`tuple[str, ...]`): what it changes, as `--set` of `querypose train` takes it.
        paper (`float`, *optional*): the paper's AP, in %.
        seeds (`tuple[int, ...]`, *optional*): in place of the scale's.
    """

    table: str
    name: str
    set: tuple[str, ...] = ()
    paper: float | None = None
    seeds: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        return f"{self.table} {self.name}"


@dataclass(frozen=True)
class StudyScale:
    """A size at which the rows are run.

    Args:
        name (`str`): such as `"small"`.
        experiment (`dict`, *optional*): what the rows change, as in a YAML file of `querypose train`.
        config (`str`, *optional*): such a file in its place, relative to the study's.
        set (`tuple[str, ...]`): changes for all rows.
        seeds (`tuple[int, ...]`): every row is trained from each.
        tables (`tuple[str, ...]`, *optional*): those that are run; all by default.
        metric (`str`): the figure of the evaluation that tables show: not `"AP"` where it stays near 0.
    """

    name: str
    experiment: dict[str, Any] | None = None
    config: str | None = None
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    tables: tuple[str, ...] | None = None
    metric: str = "AP"

    def __post_init__(self) -> None:
        given = [name for name in ("experiment", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"`experiment` and `config`: {' and '.join(given) or 'none'} given; expected one.")


@dataclass(frozen=True)
class Run:
    """A system to train from a seed, its [`fingerprint`], and the rows that it stands for."""

    rows: tuple[StudyRow, ...]
    seed: int
    experiment: Experiment
    fingerprint: str

    @property
    def folder(self) -> str:
        """The name of its folder: another experiment has another."""
        name = re.sub(r"[^a-z0-9]+", "_", self.rows[0].label.lower()).strip("_")
        return f"{name}_{self.fingerprint}/seed_{self.seed}"


@dataclass(frozen=True)
class Study:
    """The description of a study: rows, and sizes at which they are run.

    Example:

    ```python
    >>> study = Study.from_yaml("configs/study.yaml")
    >>> len(study.runs("small", ["3"]))
    4
    ```
    """

    rows: tuple[StudyRow, ...]
    scales: tuple[StudyScale, ...]
    path: str = ""

    def __post_init__(self) -> None:
        for name, values in (
            ("rows", [row.label for row in self.rows]),
            ("scales", [one.name for one in self.scales]),
        ):
            twice = sorted({value for value in values if values.count(value) > 1})
            require(self, name, len(values) > 0, "at least one")
            if twice:
                raise ValueError(f"`{name}` has {twice} twice; expected each once.")

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Study":
        """Reads a study.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or something in it is wrong.
        """
        return dataclasses.replace(build(cls, read_yaml(path) or {}, str(path)), path=str(path))

    def scale(self, name: str) -> StudyScale:
        """The scale of that name."""
        for scale in self.scales:
            if scale.name == name:
                return scale
        raise ValueError(f"{self.path}: the scale is {name!r}; expected one of {[one.name for one in self.scales]}.")

    def rows_of(self, tables: Sequence[str] | None) -> list[StudyRow]:
        """The rows of some tables; of all for `None`."""
        known = {row.table for row in self.rows}
        if unknown := set(tables or ()) - known:
            raise ValueError(f"{self.path}: the tables are {sorted(unknown)}; expected some of {sorted(known)}.")
        return [row for row in self.rows if tables is None or row.table in tables]

    def runs(self, scale: str, tables: Sequence[str] | None = None, assignments: Iterable[str] = ()) -> list[Run]:
        """What has to be trained: every system once for each seed, the first seed of all of them first.

        Args:
            scale (`str`): the name of a scale.
            tables (`Sequence[str]`, *optional*): by default those of the scale.
            assignments (`Iterable[str]`): changes for all rows, such as where the data is.
        """
        one = self.scale(scale)
        values = one.experiment if one.config is None else read_yaml(Path(self.path).parent / one.config)
        values = with_assignments(values, [*one.set, *assignments])
        wanted, everything = self.rows_of(tables or one.tables), self.rows_of(one.tables)
        if left_out := {row.table for row in wanted if row not in everything}:
            raise ValueError(f"{self.path}: the tables are {sorted(left_out)}, which `{scale}` leaves out.")

        def experiment(row: StudyRow, seed: int = 0) -> Experiment:
            changed = with_assignments(values, [*row.set, f"training.seed={seed}"])
            return Experiment.from_mapping(changed, f"{self.path}: {row.label}")

        systems: dict[str, list[StudyRow]] = {}
        for row in everything:  # so that a run stands for the same rows whichever are wanted
            first = experiment(row)
            if first.data.validation is None:
                raise ValueError(f"{self.path}: {row.label}: `data.validation` is None; expected images to score on.")
            with telling(f"{self.path}: {row.label}: `model`"):
                systems.setdefault(fingerprint(first), []).append(row)
        runs = []
        for system, rows in systems.items():
            seeds = {seed for row in rows if row in wanted for seed in row.seeds or one.seeds}
            runs += [Run(tuple(rows), seed, experiment(rows[0], seed), system) for seed in seeds]
        return sorted(runs, key=lambda run: run.seed)


def fingerprint(experiment: Experiment) -> str:
    """Names what is trained and scored: every setting but the seed and where data is, and the weights it starts from.

    Weights in files count by their bytes, others by their names.
    """
    model, values = experiment.model, experiment.to_mapping()
    if model.variant is not None:
        config = QueryPoseConfig.from_variant(model.variant, light=model.light, **model.overrides)
    else:
        start = {} if model.start is None else read_config(model).to_dict()
        config = QueryPoseConfig.from_dict({**start, **(model.config or model.overrides)})
    fields = {name: value for name, value in config.to_dict().items() if name in MODEL_FIELDS}
    values["model"].update(config=fields, variant=None, light=False, overrides={}, checkpoint=model.start)
    for name in ("checkpoint", "backbone_weights", "heatmap_pretrained"):
        values["model"][name] = _content(values["model"][name])
    for source in (*values["data"]["train"], values["data"]["validation"] or {}):
        source.update(annotations=None, images=None)
    del values["training"]["seed"]
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _content(name: str | None) -> Any:
    """The hash of a file, or those of a checkpoint's weights and image processor; of what is neither, the name."""
    if name is None:
        return None
    patterns = ("*.safetensors", "*.bin", "preprocessor_config.json")
    files = [Path(name), *(file for pattern in patterns for file in sorted(Path(name).glob(pattern)))]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()] or name


@dataclass(frozen=True)
class Workers:
    """How runs are started.

    Args:
        parallel (`int`): how many at a time. On a machine with GPUs each has one of them.
        threads (`int`): of each on the CPU.
        launcher (`str`): what stands before `-m querypose_hf train`, such as `"accelerate launch --num_processes 8"`,
            for runs of several processes; by default Python. Runs then see all GPUs.
    """

    parallel: int = 1
    threads: int = 1
    launcher: str | None = None

    def __post_init__(self) -> None:
        for name in ("parallel", "threads"):
            require(self, name, getattr(self, name) >= 1, "at least 1")

    def start(self, folder: Path, slot: int) -> subprocess.Popen:
        """Starts or resumes the run whose description is in a folder; what it prints goes to `output.txt` there."""
        words = [sys.executable] if self.launcher is None else self.launcher.split()
        words += ["-m", "querypose_hf", "train", "--config", str(folder / "run.yaml"), "--output", str(folder)]
        gpus = torch.cuda.device_count()
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if self.launcher is None and gpus:
            names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = (names if names[0] else list(map(str, range(gpus))))[slot % gpus]
        with (folder / "output.txt").open("ab") as output:
            return subprocess.Popen([*words, "--resume"], stdout=output, stderr=subprocess.STDOUT, env=environment)


class StudyResults:
    """The results of finished runs: a file with one JSON object per line, to which several studies may add.

    Each has `scale`; the [`fingerprint`]; `rows`, `"table name"` of each; `set`, what it changed; `seed`, `steps`,
    `metrics`, the last `loss`, `images_per_second` (median) and `versions`.

    Args:
        path (`str` or `Path`): the file; need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All results, as the file has them now.

        Raises:
            ValueError: a line is not a result.
        """
        lines = []
        for number, text in enumerate(read_text(self.path).splitlines() if self.path.exists() else [], 1):
            with telling(f"{self.path}, line {number}: expected a result as a JSON object"):
                lines.append(json.loads(text))
                for name in ("scale", "fingerprint", "rows", "seed", "metrics"):
                    lines[-1][name]
        return lines

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds a result, on disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def of(self, scale: str, row: StudyRow) -> list[dict[str, Any]]:
        """The results of a row, by seed; the newest of each."""
        found = {line["seed"]: line for line in self.lines if line["scale"] == scale and row.label in line["rows"]}
        return [found[seed] for seed in sorted(found)]

    def has(self, scale: str, run: Run) -> bool:
        """Whether every row of a run has its result.

        Raises:
            ValueError: one has that of another experiment.
        """
        found = [(row, line) for row in run.rows for line in self.of(scale, row) if line["seed"] == run.seed]
        for row, line in found:
            if line["fingerprint"] != run.fingerprint:
                raise ValueError(
                    f"{self.path}: `fingerprint` of `{row.label}` with seed {run.seed} is {line['fingerprint']!r}; "
                    f"expected {run.fingerprint!r}: it was trained as another experiment. Remove the line, or choose "
                    "another file."
                )
        return len(found) == len(run.rows)


def run_study(
    study: Study, scale: str, runs: Sequence[Run], results: StudyResults, folder: Path, workers: Workers = Workers()
) -> list[Run]:
    """Trains and scores what has no result yet, and adds the results one by one.

    A run that was interrupted goes on from its newest checkpoint. One that fails does not keep others from running.

    Args:
        study ([`Study`]), scale (`str`), runs (`Sequence[Run]`): what to run, from [`Study.runs`].
        results ([`StudyResults`]): gets the results.
        folder (`Path`): gets a folder for each run.
        workers ([`Workers`]): how they are started.

    Returns:
        `list[Run]`: the runs that failed; their folders have `output.txt`.
    """
    waiting = [run for run in runs if not results.has(scale, run)]
    print(f"{study.path}, {scale}: {len(runs)} runs, {len(runs) - len(waiting)} of them done", flush=True)
    failed: list[Run] = []
    running: dict[int, tuple[Run, subprocess.Popen]] = {}
    try:
        while waiting or running:
            for slot in sorted(set(range(workers.parallel)) - running.keys())[: len(waiting)]:
                run = waiting.pop(0)
                if not results.has(scale, run):  # another study may have added it
                    write_text(run.experiment.to_yaml(), folder / run.folder / "run.yaml")
                    running[slot] = run, workers.start(folder / run.folder, slot)
            time.sleep(0.2)
            for slot, (run, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                told = "failed, see output.txt"
                if process.returncode == 0:
                    line = {"scale": scale, **_result(run, folder / run.folder)}
                    results.add(line)
                    metric = study.scale(scale).metric
                    told = f"{metric} {100 * line['metrics'][metric]:.1f}"
                else:
                    failed.append(run)
                print(f"{run.folder}: {told}; {len(waiting) + len(running)} runs left", flush=True)
    except KeyboardInterrupt:  # Ctrl-C, which reaches the runs, too
        print(f"Interrupted: {len(running)} runs write checkpoints. Ctrl-C again stops them at once.", flush=True)
        for _, process in running.values():
            process.wait()
        raise
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failed


def _result(run: Run, folder: Path) -> dict[str, Any]:
    """The result of a finished run, from its log."""
    records = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    trained = [record for record in records if "loss" in record]
    scored = [record for record in records if any(name.startswith("evaluation/") for name in record)]
    return {
        "fingerprint": run.fingerprint,
        "rows": [row.label for row in run.rows],
        "set": list(run.rows[0].set),
        "seed": run.seed,
        "steps": trained[-1]["step"],
        "metrics": {name.removeprefix("evaluation/"): value for name, value in scored[-1].items() if "/" in name},
        "loss": trained[-1]["loss"],
        "images_per_second": round(statistics.median(record["images_per_second"] for record in trained), 2),
        "versions": {"querypose_hf": __version__}
        | {name: version(name) for name in ("torch", "transformers", "timm")},
    }


def tables_page(study: Study, scale: str, results: StudyResults, text: str) -> str:
    """Text in which the tables between `<!-- study small: 2a -->` and `<!-- end of study -->` are written anew.

    Those of other scales stay.

    Raises:
        ValueError: a table that the text names is not in the study.
    """

    def filled(found: re.Match) -> str:
        return f"{found[1]}\n\n{_table(study, scale, results, found[2])}\n\n{found[3]}"

    marked = rf"(<!-- study {re.escape(scale)}: (\S+) -->).*?(<!-- end of study -->)"
    return re.sub(marked, filled, text, flags=re.DOTALL)


def report(study: Study, scale: str, results: StudyResults) -> str:
    """The tables of a scale as Markdown."""
    tables = dict.fromkeys(row.table for row in study.rows_of(study.scale(scale).tables))
    return "\n\n".join(f"## Table {table}\n\n{_table(study, scale, results, table)}" for table in tables) + "\n"


def _table(study: Study, scale: str, results: StudyResults, table: str) -> str:
    """A table with the scale's metric: mean, least and greatest over seeds, and the orderings it shows."""
    rows, one = [], study.scale(scale)
    for row in study.rows_of([table]):
        seeds = row.seeds or one.seeds  # a run that it shares may have more
        found = [line["metrics"][one.metric] for line in results.of(scale, row) if line["seed"] in seeds]
        rows.append((row, [100 * value for value in found]))
    lines = [f"| system | `--set` | paper's AP | our {one.metric} |", "|---|---|---:|---:|"]
    for row, found in rows:
        cells = [row.name, " ".join(f"`{change}`" for change in row.set)]
        cells.append("" if row.paper is None else f"{row.paper:.1f}")
        spread = f" ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else ""
        cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "")
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    if verdicts := Counter(_orderings(rows)):
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        lines += ["", f"Of {verdicts.total()} pairs: {told}."]
    return "\n".join(lines)


def _orderings(rows: Sequence[tuple[StudyRow, list[float]]]) -> Iterator[str]:
    """For each pair of rows that differ in the paper, whether all seeds of one lie above all of the other."""
    for (row, found), (other, other_found) in combinations([one for one in rows if one[1]], 2):
        if row.paper is None or other.paper is None or row.paper == other.paper:
            continue
        high, low = (found, other_found) if row.paper > other.paper else (other_found, found)
        if min(high) > max(low):
            yield "as in the paper"
        elif max(high) < min(low):
            yield "the other way round"
        else:
            yield "not told apart by these seeds"
