"""Results as a table and as JSON."""

import re
from pathlib import Path
from typing import Any

from ..files import write_json, write_text


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.1f}"


def _memory(found: dict[str, Any]) -> str:
    value = found.get("peak_memory_bytes")
    return "" if value is None else f"{value / 2**20:.0f}"


def describe_results(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    where = "process" if results["settings"]["device"] == "cpu" else "device"
    lines = [*_setting(results), "", *_steps(results), "", *_comparison(results, where)]
    if "engines" in results:
        lines += ["", *_engines(results["engines"])]
    if "training" in results:
        people = results["base"]["people"]
        lines += ["", f"A training step of one batch, {people} people in each image:", ""]
        lines += [*_training(results["training"], where), "", *_fine_tuning(results["fine_tuning"])]
    return "\n".join(lines) + "\n"


def _setting(results: dict[str, Any]) -> list[str]:
    base, peaks = results["base"], results["peaks_multiply_adds_per_s"]
    height, width = base["image_size"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return [
        f"{results['device']}, {results['dtype']}, {versions}",
        "",
        f"{results['model']}, {base['queries']} queries, {height}x{width}, batch {base['batch_size']}, "
        f"{base['people']} people: the keypoints of exactly {base['people']} queries are decoded. Medians of one run.",
        "",
        f"Measured peaks in G multiply-adds/s: matrix product {peaks['matmul'] / 1e9:.0f}, "
        f"convolution {peaks['convolution'] / 1e9:.0f}.",
    ]


def _steps(results: dict[str, Any]) -> list[str]:
    path, steps = results["image_path"], results["steps"]
    lines = ["| step | ms | G multiply-adds | share of convolution peak |", "|---|---:|---:|---:|"]
    for name in ("decode", "preprocess"):
        lines.append(f"| {name} | {_milliseconds(path[name]['median_s'])} | | |")
    for name, found in steps.items():
        lines.append(
            f"| {name} | {_milliseconds(found['median_s'])} | {found['multiply_adds'] / 1e9:.1f} | "
            f"{100 * found['share_of_convolution_peak']:.0f} % |"
        )
    lines.append(f"| post-process | {_milliseconds(path['post-process']['median_s'])} | | |")
    of_all = steps["keypoints"]["multiply_adds_of_all_queries"] / 1e9
    queries = results["base"]["queries"]
    return [*lines, "", f"The keypoints of all {queries} queries would take {of_all:.1f} G multiply-adds."]


def _comparison(results: dict[str, Any], where: str) -> list[str]:
    lines = [
        f"| side by side | ms | processor ms | times selective | peak MiB of the {where} |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in results["comparison"].items():
        times = f"{found['times_of_selective']:.2f}"
        lines.append(
            f"| {name} | {_milliseconds(found['median_s'])} | {_milliseconds(found['processor_s'])} | {times} | "
            f"{_memory(found)} |"
        )
    selective, ideal = results["comparison"]["selective"]["median_s"], results["arithmetic_at_peak_s"]
    lines.append(f"| arithmetic at the measured peak | {_milliseconds(ideal)} | | {ideal / selective:.2f} | |")
    return [*lines, "", f"Selective takes {selective / ideal:.2f} times the arithmetic at the measured peak."]


def _engines(engines: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| engine | threads | ms | processor ms | times torch | seconds to prepare |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for found in engines:
        lines.append(
            f"| {found['engine']} | {found['threads']} | {_milliseconds(found['median_s'])} | "
            f"{_milliseconds(found['processor_s'])} | {found['times_of_torch']:.2f} | {found['prepare_s']:.1f} |"
        )
    return lines


def _training(training: dict[str, Any], where: str) -> list[str]:
    lines = [f"| side by side | ms | images/s | peak MiB of the {where} |", "|---|---:|---:|---:|"]
    for name, found in training.items():
        rate = f"{found['images_per_second']:.3g}"
        lines.append(f"| {name} | {_milliseconds(found['median_s'])} | {rate} | {_memory(found)} |")
    return lines


def _fine_tuning(found: dict[str, Any]) -> list[str]:
    total = sum(found["parts"].values())
    lines = [
        f"Fine-tuning on a photograph, {found['workers']} processes that prepare data: "
        f"{found['images_per_second']:.3g} images/s, {100 * found['data_wait']:.1f} % of the time waiting for data.",
        "",
        "| part of a step | ms | share |",
        "|---|---:|---:|",
    ]
    for name, seconds in found["parts"].items():
        lines.append(f"| {name} | {_milliseconds(seconds)} | {100 * seconds / total:.0f} % |")
    return lines


def write_results(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes JSON and table into a folder, named after device, precision, model and image size; returns the files."""
    height, width = results["base"]["image_size"]
    name = f"{results['device']} {results['dtype']} {results['model']} {height}x{width}"
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    write_json(results, paths[0], indent=1)
    write_text(describe_results(results), paths[1])
    return paths
