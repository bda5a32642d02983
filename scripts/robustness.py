#!/usr/bin/env python
"""Tries the package with damaged and hostile input, kills it and resumes it, and tells how each case ended.

Each case ends in a right answer or one clear error, within a minute or two and 4 GiB, or it is a fault: a traceback, a
hang, a crash, a wrong answer, a partial file, a file outside its folder, an open socket, code that ran.

A line of JSON per case goes to OUTPUT/results.jsonl. Ctrl-C, or a kill, stops a campaign at any moment; the same
command goes on with the cases that have no line. Case and seed determine all that is random, so that

    scripts/robustness.py --case images-123

runs that case again by itself and prints how it ends. The folder of a case at fault is kept in OUTPUT/faults.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path


TESTS = Path(__file__).resolve().parents[1] / "tests"


def main() -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    places = [str(TESTS / "robustness"), str(TESTS), str(TESTS.parent / "src")]
    sys.path[:0] = places
    # for the processes of the cases
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    from campaign import FAMILIES, USUAL, Case, all_cases, read_results, run_cases, summary, write_result

    counts = ", ".join(f"{name} {FAMILIES[name].count}" for name in USUAL)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"A whole campaign: {counts}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/robustness"), help="folder (%(default)s)")
    parser.add_argument("--families", nargs="+", choices=USUAL, default=list(USUAL), help="all by default")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="start no case after so long; by default all are run")
    length.add_argument("--count", type=int, metavar="N", help="run the next N cases, the families mixed")
    length.add_argument("--case", action="append", help="run this case again, such as images-123; may be repeated")
    length.add_argument("--summary", action="store_true", help="run nothing; print the table of what is there")
    length.add_argument(
        "--soak", type=float, metavar="MINUTES", help="mixed requests to one handler; memory is measured"
    )
    length.add_argument("--demo", type=int, metavar="N", help="N requests to the demo's API; memory is measured")
    parser.add_argument("--share", type=float, default=1, help="of the whole campaign's numbers (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes beside each other (%(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.jsonl"
    if options.soak is not None or options.demo is not None:
        import soak

        with tempfile.TemporaryDirectory() as folder:
            record = options.output / "soak.jsonl"
            if options.soak is not None:
                row, wrong = soak.soak_handler(60 * options.soak, Path(folder), record, options.seed)
            else:
                row, wrong = soak.soak_demo(options.demo, Path(folder), record)
        print(row, *wrong, sep="\n")
        return 1 if wrong else 0
    results = {result.case: result for result in read_results(path)}
    others = {result.seed for result in results.values()} - {options.seed}
    if others:
        parser.error(f"{path} has results of the seed {min(others)}; expected that seed, or another --output.")
    if options.summary:
        print(summary(results.values()))
        return 0
    if options.case is not None:
        cases = iter([Case.parse(text) for text in options.case])
    else:
        cases = all_cases(options.share, options.families, results)
        if options.count is not None:
            cases = (case for _, case in zip(range(options.count), cases, strict=False))
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    faults = 0
    try:
        for done, result in enumerate(
            run_cases(cases, options.seed, options.workers, until, options.output / "faults")
        ):
            results[result.case] = result
            write_result(result, path)
            faults += result.is_fault
            if result.is_fault or options.case is not None:
                print(f"{result.case}: {result.outcome}: {result.what}: {result.message}", flush=True)
            elif done % 100 == 99:
                print(f"{done + 1} cases, {faults} faults", flush=True)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
    print(summary(results.values()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
