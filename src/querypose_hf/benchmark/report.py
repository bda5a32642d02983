"""Results as a table and as JSON."""

import re
from pathlib import Path
from typing import Any

from ..files import write_json


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.1f}"


def _memory(found: dict[str, Any]) -> str:
    value = found.get("peak_memory_bytes")
    return "" if value is None else f"{value / 2**20:.0f}"


def describe_results(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    base, peaks = results["base"], results["peaks_multiply_adds_per_s"]
    height, width = base["image_size"]
    where = "process" if results["settings"]["device"] == "cpu" else "device"
    lines = [
        f"{results['device']}, {results['dtype']}, "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "",
        f"{base['queries']} queries, {height}x{width}, batch {base['batch_size']}, {base['people']} people: the "
        f"keypoints of exactly {base['people']} queries are decoded. Medians of one run.",
        "",
        f"Measured peaks in G multiply-adds/s: matrix product {peaks['matmul'] / 1e9:.0f}, "
        f"convolution {peaks['convolution'] / 1e9:.0f}.",
        "",
        "| step | ms | G multiply-adds | share of convolution peak |",
        "|---|---:|---:|---:|",
    ]
    path, steps = results["image_path"], results["steps"]
    for name in ("decode", "preprocess"):
        lines.append(f"| {name} | {_milliseconds(path[name]['median_s'])} | | |")
    for name, found in steps.items():
        lines.append(
            f"| {name} | {_milliseconds(found['median_s'])} | {found['multiply_adds'] / 1e9:.1f} | "
            f"{100 * found['share_of_convolution_peak']:.0f} % |"
        )
    lines.append(f"| post-process | {_milliseconds(path['post-process']['median_s'])} | | |")
    of_all = steps["keypoints"]["multiply_adds_of_all_queries"] / 1e9
    lines += [
        "",
        f"The keypoints of all {base['queries']} queries would take {of_all:.1f} G multiply-adds.",
        "",
        f"| side by side | ms | times selective | peak MiB of the {where} |",
        "|---|---:|---:|---:|",
    ]
    for name, found in results["comparison"].items():
        lines.append(
            f"| {name} | {_milliseconds(found['median_s'])} | {found['times_of_selective']:.2f} | {_memory(found)} |"
        )
    if "training" in results:
        lines += [
            "",
            f"Training, {base['people']} people in each image, forward, loss and backward:",
            "",
            f"| side by side | ms | images/s | peak MiB of the {where} |",
            "|---|---:|---:|---:|",
        ]
        for name, found in results["training"].items():
            rate = f"{found['images_per_second']:.3g}"
            lines.append(f"| {name} | {_milliseconds(found['median_s'])} | {rate} | {_memory(found)} |")
    if results["variations"]:
        lines += ["", "| people | queries | image | batch | ms | peak MiB |", "|---:|---:|---|---:|---:|---:|"]
        for found in results["variations"]:
            height, width = found["image_size"]
            lines.append(
                f"| {found['people']} | {found['queries']} | {height}x{width} | {found['batch_size']} | "
                f"{_milliseconds(found['median_s'])} | {_memory(found)} |"
            )
    return "\n".join(lines) + "\n"


def write_results(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes JSON and table into a folder, named after device and precision; returns the files."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{results['device']} {results['dtype']}".lower()).strip("-")
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    write_json(results, paths[0], indent=1)
    temporary = paths[1].with_name(f".{paths[1].name}.part")
    temporary.write_text(describe_results(results), encoding="utf-8")
    temporary.replace(paths[1])
    return paths
