"""Memory that is freed stays with the process: after a few images, further ones cause hardly any page faults."""

import os
import platform
import subprocess
import sys

import pytest


_PAGE_FAULTS = """
import resource, torch
from querypose_hf.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
torch.manual_seed(0)
network = torch.nn.Sequential(*[torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)])
image = torch.rand(1, 16, 256, 256)
with torch.no_grad():
    for number in range(20):
        if number == 10:
            before = faults()
        network(image)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_kept():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def count(settings):
        command = [sys.executable, "-c", _PAGE_FAULTS]
        run = subprocess.run(command, env={**environment, **settings}, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return int(run.stdout)

    # settings of the environment are left alone, and these give large tensors back at once
    given_back = count({"MALLOC_MMAP_THRESHOLD_": "131072"})
    assert count({}) < given_back / 10
