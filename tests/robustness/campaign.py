"""Runs cases in processes of their own, watched from outside: a case that hangs or crashes is a result like any other.

A case is a family and a number; with the seed of the campaign they determine all that is random in it.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sandbox import SECONDS, Fault, describe, install, require_no_partial_files, use_cache, watched


class Family(NamedTuple):
    """A kind of cases.

    `module` has `prepare(folder) -> state`, called once in each process, and `run(rng, folder, state) -> (what, right,
    message)`: what was done, whether the answer was right (else it was one clear error), and what was said; runs that
    are killed also tell how often. It raises [`Fault`], and any other error is a fault, too.
    """

    module: str
    count: int  # of a whole campaign
    what: str
    seconds: int = SECONDS
    addresses: bool = False
    programs: bool = False  # whether its cases start processes, which are watched by what they leave
    prepare_seconds: int = 120


FAMILIES = {
    "images": Family("image_cases", 10_000, "mutated images: predict"),
    "annotations": Family("annotation_cases", 5_000, "mutated annotations: check-data, evaluate, training's reader"),
    "checkpoints": Family("checkpoint_cases", 2_000, "mutated checkpoints and configurations"),
    "requests": Family("request_cases", 2_000, "requests to the handler", addresses=True),
    "videos": Family("video_cases", 500, "mutated videos: predict --save-video", seconds=240),
    "kill-training": Family("kill_training", 20, "training killed and resumed", 400, programs=True),
    "kill-evaluation": Family("kill_evaluation", 20, "evaluate killed and resumed", 400, programs=True),
    "kill-bulk": Family("kill_bulk", 20, "bulk prediction killed and resumed", 400, programs=True),
    "kill-push": Family("kill_push", 20, "push to a loopback Hub, killed and repeated", 400, programs=True),
    "kill-export": Family("kill_export", 20, "export killed and repeated", 400, programs=True),
    "disk": Family("disk_cases", 100, "a full disk: predict, bulk prediction, export", 400, programs=True),
    # no part of a campaign: cases that do what none may do
    "judges": Family("judge_cases", 0, "the judges", 10, prepare_seconds=20),
}


class Case(NamedTuple):
    family: str
    number: int

    def __str__(self) -> str:
        return f"{self.family}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        family, _, number = text.rpartition("-")
        if family not in FAMILIES or not number.isdecimal():
            raise ValueError(f"case {text!r}; expected a family of {list(FAMILIES)} and a number, such as images-12.")
        return cls(family, int(number))


@dataclass(frozen=True)
class Result:
    """How a case ended: `outcome` is `right`, `error`, or the kind of fault."""

    case: str
    family: str
    seed: int
    outcome: str
    what: str
    message: str
    seconds: float
    peak_mib: int
    kills: int = 0

    @property
    def is_fault(self) -> bool:
        return self.outcome not in ("right", "error")


def run_case(case: Case, seed: int, state: Any, folder: Path) -> Result:
    """Runs a case in this process."""
    family = FAMILIES[case.family]
    rng = np.random.default_rng([seed, zlib.crc32(case.family.encode()), case.number])
    module = importlib.import_module(family.module)
    what = outcome = message = ""
    kills: list[int] = []
    measured: dict[str, Any] = {"peak": 0}
    start = time.perf_counter()
    try:
        with watched(folder, family.addresses, family.programs) as measured:
            what, right, message, *kills = module.run(rng, folder, state)
        require_no_partial_files(folder)
        outcome = "right" if right else "error"
    except Fault as fault:
        outcome, message = fault.kind, str(fault)
    except Exception as error:
        outcome, message = "traceback", describe(error)
    what = what or getattr(state, "what", "")
    seconds = time.perf_counter() - start
    peak = measured["peak"] >> 20
    said = (what[:200], message[:500], round(seconds, 2), peak)
    return Result(str(case), case.family, seed, outcome, *said, kills=sum(kills))


# The limit of memory is for one case: what thousands leave behind, as in libraries' caches, is not to fill it.
_CASES_OF_A_PROCESS = 1000


def run_cases(
    cases: Iterable[Case], seed: int, workers: int = 2, until: float | None = None, keep: Path | None = None
) -> Iterator[Result]:
    """Runs cases, each result as it comes.

    Args:
        cases: the cases, taken one by one.
        seed (`int`): of the campaign.
        workers (`int`): processes.
        until (`float`, *optional*): the time (`time.monotonic`) after which no case is started.
        keep (`Path`, *optional*): where the folder of a case at fault is kept.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers", "querypose_hf.training.run"])
    root = Path(tempfile.mkdtemp(prefix="querypose_campaign_"))
    left = iter(cases)
    running: dict[Any, _Worker] = {}
    try:
        for number in range(workers):
            worker = _Worker(context, root / str(number), seed)
            if not worker.start_next(left, until):
                worker.stop()
                break
            running[worker.connection] = worker
        while running:
            ready = set(wait(list(running), timeout=1))
            for connection, worker in list(running.items()):
                result = worker.result(connection in ready)
                if result is None:
                    continue
                if result.is_fault and keep is not None and worker.folder.exists():
                    shutil.copytree(worker.folder, keep / result.case, dirs_exist_ok=True, symlinks=True)
                shutil.rmtree(worker.folder, ignore_errors=True)
                yield result
                del running[connection]
                if worker.start_next(left, until):
                    running[worker.connection] = worker
                else:
                    worker.stop()
    finally:
        for worker in running.values():
            worker.stop()
        shutil.rmtree(root, ignore_errors=True)


class _Worker:
    """A process that runs one case after another; a new one follows where it was lost."""

    def __init__(self, context: Any, root: Path, seed: int):
        self.context, self.root, self.seed = context, root, seed
        self.process: Any = None
        self.count = 0

    def _start(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        self.connection, other = self.context.Pipe()
        self.process = self.context.Process(target=_work, args=(other, str(self.root), self.seed))
        self.process.start()
        other.close()
        self.prepared: set[str] = set()

    def start_next(self, cases: Iterator[Case], until: float | None) -> bool:
        if until is not None and time.monotonic() > until:
            return False
        case = next(cases, None)
        if case is None:
            return False
        if self.count % _CASES_OF_A_PROCESS == 0:
            self.stop()
        self.count += 1
        if self.process is None:
            self._start()
        self.case = case
        self.folder = self.root / str(case)
        self.folder.mkdir(parents=True, exist_ok=True)
        # the first case of a family also waits for its models
        extra = 0 if case.family in self.prepared else FAMILIES[case.family].prepare_seconds
        self.prepared.add(case.family)
        self.started = time.monotonic()
        self.deadline = self.started + FAMILIES[case.family].seconds + extra
        self.connection.send(case)
        return True

    def result(self, ready: bool) -> Result | None:
        if ready:
            try:
                return Result(**self.connection.recv())
            except (EOFError, OSError):
                self.process.join()
                path = self.root / "printed"
                printed = path.read_text(errors="replace")[-300:] if path.exists() else ""
                return self._lost("crash", f"the process ended with {self.process.exitcode}: {printed}")
        if time.monotonic() > self.deadline:
            return self._lost("hang", f"no end after {time.monotonic() - self.started:.0f} seconds")
        return None

    def _lost(self, outcome: str, message: str) -> Result:
        self.stop()
        seconds = round(time.monotonic() - self.started, 2)
        return Result(str(self.case), self.case.family, self.seed, outcome, "", message, seconds, 0)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _work(connection: Any, root: str, seed: int) -> None:
    import torch

    torch.set_num_threads(1)
    sink = os.open(os.path.join(root, "printed"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    cache = Path(root, "cache")
    cache.mkdir(exist_ok=True)
    use_cache(cache)
    states: dict[str, Any] = {}
    installed = False
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        if case.family not in states:
            folder = cache / case.family
            folder.mkdir(exist_ok=True)
            states[case.family] = importlib.import_module(FAMILIES[case.family].module).prepare(folder)
        if not installed:  # after the first models are loaded, whose memory is not the cases'
            install(cache)
            installed = True
        connection.send(asdict(run_case(case, seed, states[case.family], Path(root, str(case)))))


#: The families of a whole campaign.
USUAL = tuple(name for name, family in FAMILIES.items() if family.count)


def all_cases(share: float = 1.0, families: Iterable[str] = USUAL, done: Iterable[str] = ()) -> Iterator[Case]:
    """The cases of a campaign that are not done yet, the families mixed, so that any part of it has some of each."""
    done = set(done)
    counts = {name: max(1, round(FAMILIES[name].count * share)) for name in families}
    places = [((number + 0.5) / count, name, number) for name, count in counts.items() for number in range(count)]
    for _, name, number in sorted(places):
        if str(Case(name, number)) not in done:
            yield Case(name, number)


def read_results(path: Path) -> list[Result]:
    """The results of a file, the last of each case; a line that was cut off is left out."""
    found: dict[str, Result] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if "case" in fields:
            found[fields["case"]] = Result(**fields)
    return list(found.values())


def write_result(result: Result, path: Path) -> None:
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def summary(results: Iterable[Result], faults_shown: int = 10) -> str:
    """The table of a campaign, and its faults, in Markdown."""
    by_family: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_family[result.family].append(result)
    rows = [
        "| what | cases | right | one clear error | faults | kills | slowest (s) | most memory (MiB) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    faults: list[Result] = []
    for name, family in FAMILIES.items():
        found = by_family.get(name)
        if not found:
            continue
        counts = Counter("fault" if result.is_fault else result.outcome for result in found)
        faults += [result for result in found if result.is_fault]
        slowest, most = max(result.seconds for result in found), max(result.peak_mib for result in found)
        rows.append(
            f"| {family.what} | {len(found)} | {counts['right']} | {counts['error']} | {counts['fault']} | "
            f"{sum(result.kills for result in found)} | {slowest:.1f} | {most} |"
        )
    lines = [f"- `{fault.case}`: {fault.outcome}: {fault.what}: {fault.message[:200]}" for fault in faults]
    more = [f"- and {len(lines) - faults_shown} more"] if len(lines) > faults_shown else []
    return "\n".join([*rows, *([""] if lines else []), *lines[:faults_shown], *more])
