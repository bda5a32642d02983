"""Memory that is freed stays with the process: a second large tensor causes no page faults."""

import os
import platform
import subprocess
import sys

import pytest


_SECOND_TENSOR = """
import resource, torch
from querypose_hf.allocator import keep_freed_memory
keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize(("settings", "is_kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_memory(settings, is_kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-c", _SECOND_TENSOR], env={**environment, **settings}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    faults = int(run.stdout)
    pages = 4 * 2**24 // os.sysconf("SC_PAGE_SIZE")
    assert (faults < pages / 100) if is_kept else (faults > pages / 1000)
