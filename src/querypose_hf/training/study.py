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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..checks import telling
from ..files import read_text, write_text
from ..model.configuration_querypose import QueryPoseConfig
from ..settings import build, read_yaml, require, with_assignments
from .experiment import Experiment
from .log import LOG_FILE


#: Fields that do not change what is learned: where files are, and how a run is watched and kept.
_FREE_FIELDS = frozenset(
    {"annotations", "images", "backbone_weights", "heatmap_pretrained", "num_workers"}
    | {"log_every", "save_every", "keep_checkpoints", "trackers"}
)


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
    """

    name: str
    experiment: dict[str, Any] | None = None
    config: str | None = None
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    tables: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("experiment", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"`experiment` and `config`: {' and '.join(given) or 'none'} given; expected one.")


@dataclass(frozen=True)
class Run:
    """A system to train from a seed, and the rows that it stands for."""

    rows: tuple[StudyRow, ...]
    seed: int
    experiment: Experiment

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{re.sub(r'[^a-z0-9]+', '_', self.rows[0].label.lower()).strip('_')}/seed_{self.seed}"


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

    def base(self, scale: str, assignments: Iterable[str] = ()) -> dict[str, Any]:
        """The experiment that rows change, as plain values."""
        one = self.scale(scale)
        values = one.experiment if one.config is None else read_yaml(Path(self.path).parent / one.config)
        changed: dict[str, Any] = with_assignments(values, [*one.set, *assignments])
        return changed

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
        base, one = self.base(scale, assignments), self.scale(scale)
        wanted, everything = self.rows_of(tables or one.tables), self.rows_of(one.tables)
        if left_out := {row.table for row in wanted if row not in everything}:
            raise ValueError(f"{self.path}: the tables are {sorted(left_out)}, which `{scale}` leaves out.")
        systems: dict[str, list[StudyRow]] = {}
        for row in everything:  # so that a run stands for the same rows whichever are wanted
            system = _as_trained(self._experiment(base, row, 0), f"{self.path}: {row.label}")
            systems.setdefault(system, []).append(row)
        runs = []
        for rows in systems.values():
            seeds = {seed for row in rows if row in wanted for seed in row.seeds or one.seeds}
            runs += [Run(tuple(rows), seed, self._experiment(base, rows[0], seed)) for seed in sorted(seeds)]
        return sorted(runs, key=lambda run: run.seed)

    def _experiment(self, base: dict[str, Any], row: StudyRow, seed: int) -> Experiment:
        values = with_assignments(base, [*row.set, f"training.seed={seed}"])
        return Experiment.from_mapping(values, f"{self.path}: {row.label}")


def _as_trained(experiment: Experiment, source: str) -> str:
    """An experiment as text in which its model's configuration is complete: the same for equal systems."""
    values, model = experiment.to_mapping(), experiment.model
    try:
        if model.variant is not None:
            config = QueryPoseConfig.from_variant(model.variant, light=model.light, **model.overrides)
        elif model.config is not None:
            config = QueryPoseConfig(**model.config)
        else:
            assert model.start is not None
            with telling(f"{source}: `model.checkpoint` is {model.checkpoint!r}; expected a folder or Hub id"):
                fields, _ = QueryPoseConfig.get_config_dict(model.start)
            config = QueryPoseConfig.from_dict({**fields, **model.overrides})
    except StrictDataclassError as error:
        raise ValueError(f"{source}: `model`: {' '.join(str(error).split())}") from error
    values["model"].update(config=config.to_dict(), variant=None, light=False, overrides={})
    return json.dumps(values, sort_keys=True, default=str)


def fingerprint(base: Any) -> str:
    """Names what the rows of a scale have in common, without what may differ between machines."""

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: kept(item) for name, item in value.items() if name not in _FREE_FIELDS}
        return [kept(item) for item in value] if isinstance(value, list) else value

    return hashlib.sha256(json.dumps(kept(base), sort_keys=True).encode()).hexdigest()[:12]


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
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        gpus = torch.cuda.device_count()
        if self.launcher is None and gpus:
            names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = (names if names[0] else list(map(str, range(gpus))))[slot % gpus]
        with (folder / "output.txt").open("ab") as output:
            return subprocess.Popen([*words, "--resume"], stdout=output, stderr=subprocess.STDOUT, env=environment)


class StudyResults:
    """The results of finished runs: a file with one JSON object per line.

    Each has `scale`; `base`, the [`fingerprint`] of what its rows have in common; `rows`, `"table name"` of each;
    `set`, what it changed; `seed`, `steps`, `metrics`, the last `loss`, `images_per_second` (median) and `versions`.

    Args:
        path (`str` or `Path`): the file; need not exist.

    Raises:
        ValueError: a line is not a result.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lines: list[dict[str, Any]] = []
        if not self.path.exists():
            return
        text = read_text(self.path)
        for number, line in enumerate(text.splitlines(), 1):
            try:
                self.lines.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: not a JSON object: {error}") from None

    def add(self, line: dict[str, Any]) -> None:
        """Adds a result; the file is replaced whole."""
        self.lines.append(line)
        write_text("".join(f"{json.dumps(one)}\n" for one in self.lines), self.path)

    def of(self, scale: str, row: StudyRow) -> list[dict[str, Any]]:
        """The results of a row, by seed."""
        found = [line for line in self.lines if line["scale"] == scale and row.label in line["rows"]]
        return sorted(found, key=lambda line: line["seed"])

    def has(self, scale: str, run: Run, base: str) -> bool:
        """Whether a run has its result.

        Raises:
            ValueError: it has one of another experiment.
        """
        for line in self.of(scale, run.rows[0]):
            if line["seed"] == run.seed:
                if line["base"] != base:
                    raise ValueError(
                        f"{self.path}: `{run.rows[0].label}` with seed {run.seed} was trained as another experiment "
                        f"({line['base']}, and now it is {base}); expected the same, or another file."
                    )
                return True
        return False


def run_study(
    study: Study,
    scale: str,
    runs: Sequence[Run],
    results: StudyResults,
    folder: Path,
    workers: Workers = Workers(),
    *,
    base: str,
) -> list[Run]:
    """Trains and scores what has no result yet, and adds the results one by one.

    A run that was interrupted goes on from its newest checkpoint. One that fails does not keep others from running.

    Args:
        study ([`Study`]), scale (`str`), runs (`Sequence[Run]`): what to run, from [`Study.runs`].
        results ([`StudyResults`]): gets the results.
        folder (`Path`): gets a folder for each run.
        workers ([`Workers`]): how they are started.
        base (`str`): the [`fingerprint`] of the experiment that rows change.

    Returns:
        `list[Run]`: the runs that failed; their folders have `output.txt`.
    """
    waiting = [run for run in runs if not results.has(scale, run, base)]
    print(f"{study.path}, {scale}: {len(runs)} runs, {len(runs) - len(waiting)} of them done", flush=True)
    failed: list[Run] = []
    running: dict[int, tuple[Run, subprocess.Popen]] = {}
    try:
        while waiting or running:
            for slot in sorted(set(range(workers.parallel)) - running.keys())[: len(waiting)]:
                run = waiting.pop(0)
                write_text(run.experiment.to_yaml(), folder / run.folder / "run.yaml")
                running[slot] = run, workers.start(folder / run.folder, slot)
            time.sleep(0.2)
            for slot, (run, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                metrics: dict[str, float] = {}
                if process.returncode == 0:
                    line = {"scale": scale, "base": base, **_result(run, folder / run.folder)}
                    results.add(line)
                    metrics = line["metrics"]
                else:
                    failed.append(run)
                told = f"AP {100 * metrics['AP']:.1f}" if "AP" in metrics else "failed, see output.txt"
                left = len(waiting) + len(running)
                print(f"{run.folder}: {told}; {left} runs left", flush=True)
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
        "rows": [row.label for row in run.rows],
        "set": list(run.rows[0].set),
        "seed": run.seed,
        "steps": trained[-1]["step"],
        "metrics": {name.removeprefix("evaluation/"): value for name, value in scored[-1].items() if "/" in name},
        "loss": trained[-1]["loss"],
        "images_per_second": round(statistics.median(record["images_per_second"] for record in trained), 2),
        "versions": {name: version(name) for name in ("torch", "transformers", "timm")},
    }


def _figures(lines: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The mean over seeds in %, and in brackets the least and the greatest."""
    values = [100 * line["metrics"][metric] for line in lines if metric in line["metrics"]]
    if not values:
        return ""
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def tables_page(study: Study, scale: str, results: StudyResults, text: str) -> str:
    """Text in which the tables between `<!-- study: 2a 2b -->` and `<!-- end of study -->` are written anew.

    Raises:
        ValueError: a table that the text names is not in the study.
    """

    def filled(found: re.Match) -> str:
        lines = [["system", "`--set`", "paper's AP", "ours"]]
        for row in study.rows_of(found[1].split()):
            changes = " ".join(f"`{change}`" for change in row.set)
            paper = "" if row.paper is None else f"{row.paper:.1f}"
            lines.append([row.name, changes, paper, _figures(results.of(scale, row), "AP")])
        head, *body = ["|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines]
        table = "\n".join([head, "|---|---|---:|---:|", *body])
        return f"<!-- study: {found[1]} -->\n\n{table}\n\n<!-- end of study -->"

    return re.sub(r"<!-- study: ([^>]*?) -->.*?<!-- end of study -->", filled, text, flags=re.DOTALL)


def report(study: Study, scale: str, results: StudyResults) -> str:
    """All results of a scale as Markdown, and how many of the paper's orderings they show."""
    parts = [f"Scale `{scale}` of {Path(study.path).name}. AP and AP50 in %: mean over seeds, least and greatest."]
    tables = list(dict.fromkeys(row.table for row in study.rows))
    for table in tables:
        rows = [(row, results.of(scale, row)) for row in study.rows if row.table == table]
        rows = [(row, lines) for row, lines in rows if lines]
        if not rows:
            continue
        parts.append(f"\n## Table {table}\n\n| system | paper's AP | AP | AP50 | seeds | steps | images/s |")
        parts[-1] += "\n|---|---:|---:|---:|---:|---:|---:|"
        for row, lines in rows:
            paper = "" if row.paper is None else f"{row.paper:.1f}"
            figures = f"{_figures(lines, 'AP')} | {_figures(lines, 'AP50')}"
            speed = statistics.median(line["images_per_second"] for line in lines)
            parts.append(f"| {row.name} | {paper} | {figures} | {len(lines)} | {lines[0]['steps']} | {speed:.1f} |")
        counts = {"as in the paper": 0, "the other way round": 0, "not told apart by these seeds": 0}
        for verdict in _orderings(rows):
            counts[verdict] += 1
        if any(counts.values()):
            told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
            parts.append(f"\nOf {sum(counts.values())} pairs: {told}.")
    return "\n".join(parts) + "\n"


def _orderings(rows: Sequence[tuple[StudyRow, list[dict[str, Any]]]]) -> Iterator[str]:
    """For each pair of rows that differ in the paper, whether all seeds of one lie above all of the other."""
    for (row, lines), (other, other_lines) in combinations(rows, 2):
        if row.paper is None or other.paper is None or row.paper == other.paper:
            continue
        better, worse = (lines, other_lines) if row.paper > other.paper else (other_lines, lines)
        high, low = ([line["metrics"].get("AP", 0.0) for line in side] for side in (better, worse))
        if min(high) > max(low):
            yield "as in the paper"
        elif max(high) < min(low):
            yield "the other way round"
        else:
            yield "not told apart by these seeds"
