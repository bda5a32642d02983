"""A report of a scoring run, as JSON and as one HTML file that needs no other."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..files import write_json, write_text
from ..model.skeletons import Skeleton
from .charts import bar_chart, precision_recall_chart
from .image_pairs import ImagePairs
from .options import ReportOptions
from .scoring import KeypointEvaluation, PeopleGroup


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 64px; color: #1f2933; background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 12px; }
.faint, figcaption span { color: #66727f; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(172px, 1fr)); gap: 10px; }
.figures div { border: 1px solid #d9dee4; border-radius: 8px; padding: 10px 14px; }
.figures b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.figures small { color: #66727f; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 8px 40px; }
svg { width: 100%; height: auto; display: block; }
figure { margin: 0 0 26px; } figcaption { margin-bottom: 6px; }
.pair { display: flex; flex-wrap: wrap; gap: 10px; }
.pair img { max-width: calc(50% - 5px); border-radius: 6px; display: block; }
table { border-collapse: collapse; } td { padding: 2px 18px 2px 0; vertical-align: top; }
td:last-child { overflow-wrap: anywhere; }
@media (max-width: 700px) { .charts { grid-template-columns: 1fr; } .pair img { max-width: 100%; } }
@media print { figure, .figures div { break-inside: avoid; } }
"""


def write_report(
    evaluation: KeypointEvaluation,
    output_dir: str | os.PathLike,
    options: ReportOptions = ReportOptions(),
    *,
    images_dir: str | os.PathLike | None = None,
    skeleton: Skeleton | None = None,
    box_metrics: Mapping[str, float | None] | None = None,
    details: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes `report.html` and `report.json`.

    They hold the figures, the precision-recall curves, AP by size of person or by group of images, AP by number of
    people, and the images whose people were found worst. With `images_dir` the HTML file shows those, annotated people
    on the left, on the right as many of the results with the highest scores.

    Args:
        evaluation ([`KeypointEvaluation`]): what [`score_keypoints`] returned.
        output_dir (`str` or `os.PathLike`): the folder to write to; made if it does not exist.
        options ([`ReportOptions`]): what the report shows.
        images_dir (`str` or `os.PathLike`, *optional*): the folder of the images.
        skeleton ([`Skeleton`], *optional*): the model's, with the limbs to draw.
        box_metrics (`Mapping`, *optional*): what [`score_boxes`] returned.
        details (`Mapping`, *optional*): more about the run, such as the model, by name.
        progress (`bool`): show a progress bar while images are drawn.

    Returns:
        `dict`: what `report.json` holds.

    Example:

    ```python
    >>> evaluation = score_keypoints(ground_truth, results)
    >>> write_report(evaluation, "scores", images_dir="val2017", skeleton=COCO_17)
    ```
    """
    curves = evaluation.precision_recall()
    groups = evaluation.average_precision_by_people()
    worst = evaluation.worst_images(options.worst_images)
    content: dict[str, Any] = {
        "details": dict(details or {}),
        "metrics": evaluation.metrics,
        **({} if box_metrics is None else {"box_metrics": dict(box_metrics)}),
        "protocol": evaluation.protocol,
        "precision_recall": {
            "thresholds": curves.thresholds.round(2).tolist(),
            "recall": curves.recall.round(2).tolist(),
            "precision": _without_nan(curves.precision),
        },
        "average_precision_by_people": [vars(group) for group in groups],
        "worst_images": [vars(error) for error in worst],
    }
    figures: list[str] = []
    if images_dir is not None:
        drawing = ImagePairs(evaluation, Path(images_dir), skeleton)
        figures = [
            drawing.figure(error)
            for error in tqdm(worst, desc="Drawing images", unit="image", disable=not progress or not worst)
        ]
    page = _page(evaluation, precision_recall_chart(curves), groups, content, figures)
    write_json(content, Path(output_dir) / "report.json", indent=2)
    write_text(page, Path(output_dir) / "report.html")
    return content


def _page(
    evaluation: KeypointEvaluation,
    curves: str,
    groups: Sequence[PeopleGroup],
    content: Mapping[str, Any],
    figures: Sequence[str],
) -> str:
    account = evaluation.protocol
    title = f"Pose estimation on {Path(evaluation.ground_truth.source).name}"
    by_kind, kinds = _average_precision_by_kind(evaluation)
    rows = [
        (_people(group), group.average_precision, f"{group.images:,} images, {group.people:,} people")
        for group in groups
    ]
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{account["images"]:,} images, {account["people"]:,} annotated people, '
        f"{account['results']:,} results; protocol {escape(account['metric'])}</p>",
        figure_tiles(evaluation.metrics, evaluation.ground_truth.protocol.figures),
        '<div class="charts"><section><h2>Precision and recall</h2>',
        curves,
        f"</section><section><h2>{escape(by_kind)}</h2>",
        bar_chart(kinds, by_kind),
        "<h2>AP by number of people in the image</h2>",
        bar_chart(rows, "AP by number of people in the image"),
        "</section></div>",
    ]
    if "box_metrics" in content:
        sections += ["<h2>Boxes</h2>", figure_tiles(content["box_metrics"], {})]
    if figures:
        sections += [
            "<h2>Worst images</h2>",
            '<p class="faint">On the left people as annotated; on the right as many results, those with the highest '
            "scores, with all their keypoints, as they are scored. Mean OKS is over the annotated people; one that no "
            "result matches at OKS 0.5 counts 0.</p>",
            *figures,
        ]
    sections += ["<h2>How this was measured</h2>", _table({**content["details"], **account})]
    return report_page(title, sections)


def report_page(title: str, sections: Sequence[str]) -> str:
    """A whole HTML page of sections that are HTML already; the title is text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _average_precision_by_kind(evaluation: KeypointEvaluation) -> tuple[str, list[tuple[str, float | None, str]]]:
    """Title and bars: AP by size of person, or by the protocol's groups of images."""
    metrics, truth = evaluation.metrics, evaluation.ground_truth
    if truth.protocol.size_ranges:
        names = {"all": "AP", "medium": "APM", "large": "APL"}
        return "AP by size of person", [(name, metrics[figure], "") for name, figure in names.items()]
    bars = [("all", metrics["AP"], f"{len(truth.images):,} images")]
    bars += [(name, metrics[f"AP_{name}"], f"{len(ids):,} images") for name, ids in truth.image_groups.items()]
    return f"AP by {truth.protocol.image_field}", bars


def figure_tiles(metrics: Mapping[str, float | None], names: Mapping[str, str]) -> str:
    """Figures by name as HTML; `names` says what they mean, for those that need it."""
    tiles = (
        f"<div>{escape(name)}<b>{'n/a' if value is None else format(value, '.3f')}</b>"
        f"<small>{escape(names.get(name, ''))}</small></div>"
        for name, value in metrics.items()
    )
    return f'<div class="figures">{"".join(tiles)}</div>'


def _table(entries: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return ", ".join(f"{entry:g}" for entry in value) if isinstance(value, list) else str(value)

    rows = (
        f'<tr><td class="faint">{escape(name.replace("_", " "))}</td><td>{escape(text(value))}</td></tr>'
        for name, value in entries.items()
        if value is not None
    )
    return f"<table>{''.join(rows)}</table>"


def _people(group: PeopleGroup) -> str:
    if group.last is None:
        return f"{group.first} or more"
    return str(group.first) if group.first == group.last else f"{group.first} to {group.last}"


def _without_nan(values: np.ndarray) -> list[Any]:
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()
