"""Clock, memory and the machine's peak."""

import contextlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm


_STATUS = Path("/proc/self/status")
# shapes of the model: images, channels, height and width
_CONVOLUTIONS = ((1, 64, 200, 304), (1, 256, 100, 152), (8, 512, 14, 14), (32, 256, 28, 28))
_CLEAR_REFS = Path("/proc/self/clear_refs")


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def peak_memory_of(work: Callable[[], Any], device: torch.device) -> int | None:
    """Most bytes that the device's allocator, or on the CPU this whole process, held meanwhile; `None` if unknown."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    try:
        _CLEAR_REFS.write_text("5")  # Linux: the highest resident size starts anew
    except OSError:
        return None
    work()
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else None


def measure_side_by_side(
    alternatives: Mapping[str, Callable[[], Any]],
    rounds: Mapping[str, int],
    device: torch.device,
    label: str,
) -> dict[str, dict[str, Any]]:
    """Times alternatives in turn, so that a disturbance of the machine affects all of them.

    Args:
        alternatives: what is to be timed, by name. Each runs once before, untimed, for its memory.
        rounds: how often each is timed.

    Returns:
        By name `median_s`, `times_s`, `processor_s` (the median of this process's processor time, of all threads
        together) and `peak_memory_bytes`.
    """
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    processor: dict[str, list[float]] = {name: [] for name in alternatives}
    memory: dict[str, int | None] = {}
    bar = tqdm(total=sum(rounds.values()), desc=label, unit="run", leave=False)
    with bar, torch.no_grad():
        for name, work in alternatives.items():
            memory[name] = peak_memory_of(work, device)
        for turn in range(max(rounds.values())):
            for name, work in alternatives.items():
                if turn < rounds[name]:
                    start = time.process_time()
                    times[name].append(seconds_of(work, device))
                    processor[name].append(time.process_time() - start)
                    bar.update()
    return {
        name: {
            "median_s": statistics.median(values),
            "times_s": [round(value, 5) for value in values],
            "processor_s": statistics.median(processor[name]),
            "peak_memory_bytes": memory[name],
        }
        for name, values in times.items()
    }


def measure_peaks(device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Multiply-adds per second of the fastest matrix product and 3x3 convolution, over several shapes and repeats.

    The model is compared with these.
    """
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    best = {"matmul": 0.0, "convolution": 0.0}
    with torch.no_grad():
        for side in (1024, 2048):
            a, b = rand(side, side), rand(side, side)
            quickest = min(seconds_of(lambda: a @ b, device) for _ in range(repeats + 1))  # noqa: B023
            best["matmul"] = max(best["matmul"], side**3 / quickest)
        for batch, channels, height, width in _CONVOLUTIONS:
            for memory_format in (torch.contiguous_format, torch.channels_last):
                conv = nn.Conv2d(channels, channels, 3, padding=1).to(device, dtype, memory_format=memory_format)  # type: ignore[call-overload]
                x = rand(batch, channels, height, width).to(memory_format=memory_format)
                quickest = min(seconds_of(lambda: conv(x), device) for _ in range(repeats + 1))  # noqa: B023
                best["convolution"] = max(best["convolution"], batch * height * width * 9 * channels**2 / quickest)
    return best


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_device(device: torch.device) -> str:
    """The device's name, such as the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
