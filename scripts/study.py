#!/usr/bin/env python
"""Trains the systems of the paper's tables side by side, scores them, and writes the tables of the documentation.

`run` trains what has no result yet, each system once for each seed; stop it at any time and start it again. `report`
prints the results and writes them into the tables of docs/ablations.md that are marked with the scale, the small one.

    python scripts/study.py run --parallel 2                       # the small scale, on two CPU cores
    python scripts/study.py run --scale full --launcher "accelerate launch --num_processes 8"
    python scripts/study.py report
"""

import argparse
import sys
from pathlib import Path

from querypose_hf.files import read_text, write_text
from querypose_hf.training.study import Study, StudyResults, Workers, report, run_study, tables_page


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{run,report}")
    for name, function, about in (("run", run, "train and score"), ("report", write, "write tables")):
        command = commands.add_parser(name, help=about)
        command.add_argument("--study", type=Path, default=Path("configs/study.yaml"), help="(%(default)s)")
        command.add_argument("--scale", default="small", help="a scale of the study (%(default)s)")
        command.add_argument("--results", type=Path, help="file of results (benchmarks/STUDY_SCALE.jsonl)")
        command.set_defaults(function=function)
        if name == "report":
            default = [Path("docs/ablations.md")]
            command.add_argument("--pages", type=Path, nargs="*", default=default, help="(docs/ablations.md)")
            continue
        command.add_argument("--tables", nargs="+", help="tables to run, such as 2a 2b (those of the scale)")
        command.add_argument("--output", type=Path, help="folder of the runs (runs/STUDY_SCALE)")
        command.add_argument("--parallel", type=int, default=1, help="runs at a time, one on each GPU (%(default)s)")
        command.add_argument("--threads", type=int, default=1, help="CPU threads of each (%(default)s)")
        command.add_argument("--launcher", help="what starts runs of several processes, such as accelerate launch")
        command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a change of all rows")
        command.add_argument("--list", action="store_true", help="say what there is to run, and stop")
    options = parser.parse_args(arguments)
    try:
        study = Study.from_yaml(options.study)
        name = f"{options.study.stem}_{options.scale}"
        results = StudyResults(options.results or Path("benchmarks", f"{name}.jsonl"))
        return options.function(study, results, name, options)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        return 130  # as shells have it: 128 + SIGINT


def run(study: Study, results: StudyResults, name: str, options: argparse.Namespace) -> int:
    runs = study.runs(options.scale, options.tables, options.set)
    if options.list:
        for one in runs:
            done = "done" if results.has(options.scale, one) else "to do"
            print(f"{one.folder}: {done}; {'; '.join(row.label for row in one.rows)}")
        return 0
    workers = Workers(options.parallel, options.threads, options.launcher)
    output = options.output or Path("runs", name)
    return int(bool(run_study(study, options.scale, runs, results, output, workers)))


def write(study: Study, results: StudyResults, name: str, options: argparse.Namespace) -> int:
    for page in options.pages:
        write_text(tables_page(study, options.scale, results, read_text(page)), page)
    print(report(study, options.scale, results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
