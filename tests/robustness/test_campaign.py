"""A part of the campaign of `scripts/robustness.py`, and whether its judges notice faults."""

import subprocess
import sys
from types import SimpleNamespace

import killing
import numpy as np
import pytest
import soak
from campaign import FAMILIES, USUAL, Case, Result, all_cases, read_results, run_cases, summary, write_result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge_cases import KINDS
from mutations import damage_bytes
from places import PROJECT
from sandbox import Fault

from querypose_hf.data.coco_records import CocoRecords
from querypose_hf.evaluation import KeypointGroundTruth


MUTATED = tuple(name for name in USUAL if not FAMILIES[name].programs)
STARTED = tuple(name for name in USUAL if FAMILIES[name].programs)


def faults(results) -> list[str]:
    return [f"{each.case}: {each.outcome}: {each.what}: {each.message}" for each in results if each.is_fault]


def test_some_of_each_family():
    cases = list(all_cases(0.004, MUTATED))
    assert {case.family for case in cases} == set(MUTATED)
    results = list(run_cases(cases, seed=17))
    assert not faults(results)
    assert sorted(result.case for result in results) == sorted(map(str, cases))
    assert {result.outcome for result in results} == {"right", "error"}


@pytest.mark.slow
def test_more_of_each_family():
    assert not faults(run_cases(all_cases(0.03, MUTATED), seed=18))


@pytest.mark.slow
@pytest.mark.parametrize("family", STARTED)
def test_killed_and_resumed(family):
    results = list(run_cases([Case(family, number) for number in range(2)], seed=19))
    assert len(results) == 2 and not faults(results)
    assert all(result.kills or family == "disk" for result in results)


def test_judges_notice_faults():
    results = list(run_cases([Case("judges", number) for number in range(len(KINDS))], seed=0, workers=1))
    assert [result.outcome for result in results] == list(KINDS)


def test_a_run_that_is_never_killed_is_a_fault(tmp_path, monkeypatch):
    ended = SimpleNamespace(join=lambda timeout=None: None, kill=lambda: None, exitcode=0)
    monkeypatch.setattr(killing, "start_process", lambda *arguments: ended)
    (tmp_path / "run").mkdir()
    with pytest.raises(Fault, match="10 runs ended before they were killed"):
        killing.kill_and_resume(np.random.default_rng(0), 0.1, tmp_path / "run", print, remove=lambda path: None)


def test_an_empty_file_can_be_damaged():
    assert {damage_bytes(b"", np.random.default_rng(seed)) for seed in range(20)} == {(b"", "empty")}


@pytest.mark.parametrize(
    ("memory", "fault", "wrong"),
    [
        ([300, 900, *[1000] * 18], 0, []),  # the start is no growth
        ([1000 + 30 * number for number in range(20)], 0, ["memory grew from 1120 to 1510 MiB"]),
        ([1000] * 20, 2, ["2 faults"]),
    ],
)
def test_a_soak_tells_what_is_wrong(memory, fault, wrong):
    counts = {"right": 5, "error": 1, "fault": fault}
    row, told = soak.told("requests", 60, counts, [size << 20 for size in memory])
    assert told == wrong and row.startswith(f"| requests, 1 minutes | {6 + fault} | 5 | 1 | {fault} |")


def test_results_are_resumed_and_summed_up(tmp_path):
    path = tmp_path / "results.jsonl"
    found = [
        Result("images-0", "images", 5, "right", "PNG", "", 1.0, 10),
        Result("images-1", "images", 5, "error", "text", "no image", 2.0, 30),
        Result("videos-0", "videos", 5, "hang", "mp4", "no end", 9.0, 0),
        Result("kill-push-0", "kill-push", 5, "right", "killed after 1.0 of 2.0 s", "", 9.0, 0, kills=2),
    ]
    for result in found:
        write_result(result, path)
    with path.open("a") as file:
        file.write('{"case": "images-2", "fam')  # cut off by a kill
    results = read_results(path)
    assert results == found
    left = [str(case) for case in all_cases(0.0004, ("images", "videos"), [result.case for result in results])]
    assert left == ["images-2", "images-3"]
    text = summary(results)
    assert "| mutated images: predict | 2 | 1 | 1 | 0 | 0 | 2.0 | 30 |" in text
    assert "| push to a loopback Hub, killed and repeated | 1 | 1 | 0 | 0 | 2 | 9.0 | 0 |" in text
    assert "- `videos-0`: hang: mp4: no end" in text


def test_help_of_the_script():
    script = PROJECT / "scripts" / "robustness.py"
    printed = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "images 10000" in printed and "--case images-123" in printed


_NUMBERS = st.one_of(st.integers(-3, 70), st.floats(), st.booleans(), st.none(), st.sampled_from(["0", "", 2**63]))
_RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "id": _NUMBERS,
        "image_id": st.one_of(st.just(5), _NUMBERS),
        "category_id": st.one_of(st.just(1), _NUMBERS),
        "iscrowd": st.one_of(st.just(0), _NUMBERS),
        "area": _NUMBERS,
        "num_keypoints": _NUMBERS,
        "bbox": st.one_of(st.lists(_NUMBERS, min_size=4, max_size=4), _NUMBERS),
        "keypoints": st.one_of(st.lists(_NUMBERS, min_size=9, max_size=9), st.lists(_NUMBERS, max_size=4), _NUMBERS),
        "segmentation": st.one_of(_NUMBERS, st.lists(st.lists(_NUMBERS))),
    },
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_RECORDS, max_size=3))
def test_any_coco_record_is_read_or_refused(records):
    content = {
        "images": [{"id": 5, "file_name": "5.jpg", "width": 64, "height": 48}],
        "annotations": records,
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]}],
    }
    for reader in (CocoRecords, KeypointGroundTruth):
        try:
            reader.read(content)
        except ValueError as error:
            assert str(error).strip()
