"""Many requests to one process, and its memory meanwhile."""

import gc
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import image_cases
import numpy as np
import request_cases
from sandbox import Fault, _memory, install, use_cache, watched


#: By how much memory may grow from the first quarter after the warm-up, a tenth, to the last quarter.
GROWTH, GROWTH_BYTES = 1.1, 64 * 2**20


def soak_handler(
    seconds: float, folder: Path, record: Path, seed: int = 0, every: float = 30.0
) -> tuple[str, list[str]]:
    """Mixed requests to one handler for so long; memory goes to `record`, a line of JSON at a time.

    Returns:
        `tuple`: a row of Markdown (requests, answers, errors, faults, and resident memory after a tenth of the time,
        at the end, and at most), and what was wrong.
    """
    use_cache(folder)
    state = request_cases.prepare(folder)
    install(folder)
    rng = np.random.default_rng([seed, 1])
    cases = folder / "case"
    cases.mkdir()
    start = written = time.monotonic()
    counts = {"right": 0, "error": 0, "fault": 0}
    memory: list[tuple[float, int]] = []
    while (now := time.monotonic()) - start < seconds:
        request, what = request_cases.make(rng, state)
        try:
            with watched(cases, addresses=True):
                right, _ = request_cases.answer(request, state)
            counts["right" if right else "error"] += 1
        except Fault as fault:
            counts["fault"] += 1
            _write(record, {"soak": "handler", "fault": fault.kind, "what": what, "message": str(fault)[:300]})
        del request
        if not memory or now - written > min(every, seconds / 20):
            gc.collect()
            written = now
            memory.append((now - start, _memory("VmRSS")))
            _write(
                record, {"soak": "handler", "seconds": round(now - start), **counts, "rss_mib": memory[-1][1] >> 20}
            )
    return told("mixed requests to one handler", seconds, counts, [size for _, size in memory])


def soak_demo(count: int, folder: Path, record: Path) -> tuple[str, list[str]]:
    """So many requests to the demo's API, each with an image of its own; the demo runs in this process."""
    from gradio_client import Client, handle_file
    from tiny import save_tiny_checkpoint

    from querypose_hf.assets import SAMPLE_IMAGE
    from querypose_hf.inference.demo import build_demo, launch_options
    from querypose_hf.inference.loading import load_pipeline

    use_cache(folder)
    tempfile.tempdir = str(folder)
    save_tiny_checkpoint(folder / "checkpoint", class_bias=0.5)
    demo = build_demo(load_pipeline(folder / "checkpoint", device="cpu"))
    demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    counts, memory = {"right": 0, "error": 0, "fault": 0}, []
    rng = np.random.default_rng(0)
    start = time.monotonic()
    try:
        client = Client(demo.local_url, verbose=False, download_files=str(folder / "downloads"))
        state: Any = type("State", (), {"scene": image_cases.PIL.Image.open(SAMPLE_IMAGE).resize((128, 72))})
        for number in range(count):
            path = folder / f"{number}.png"
            buffer = io.BytesIO()
            image_cases.picture(rng, state.scene).convert("RGB").save(buffer, "PNG")
            path.write_bytes(buffer.getvalue())
            try:
                client.predict(handle_file(str(path)), api_name="/look_at")
                counts["right"] += 1
            except Exception as error:
                counts["fault"] += 1
                _write(record, {"soak": "demo", "number": number, "message": f"{type(error).__name__}: {error}"[:300]})
            path.unlink()
            if number % max(1, count // 20) == 0:
                gc.collect()
                memory.append(_memory("VmRSS"))
                _write(record, {"soak": "demo", "number": number, **counts, "rss_mib": memory[-1] >> 20})
    finally:
        demo.close()
    return told("requests to the demo's API", time.monotonic() - start, counts, memory)


def told(what: str, seconds: float, counts: dict[str, int], memory: list[int]) -> tuple[str, list[str]]:
    """A row of Markdown, and what was wrong: faults, or memory that grew."""
    wrong = [f"{counts['fault']} faults"] if counts["fault"] else []
    warm = memory[len(memory) // 10 :]
    early, late = (sum(part) / len(part) for part in (warm[: len(warm) // 4 + 1], warm[-(len(warm) // 4 + 1) :]))
    if late > GROWTH * early + GROWTH_BYTES:
        wrong.append(f"memory grew from {early / 2**20:.0f} to {late / 2**20:.0f} MiB")
    return (
        f"| {what}, {seconds / 60:.0f} minutes | {sum(counts.values())} | {counts['right']} | {counts['error']} | "
        f"{counts['fault']} | {warm[0] >> 20} | {memory[-1] >> 20} | {max(memory) >> 20} |"
    ), wrong


def _write(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
