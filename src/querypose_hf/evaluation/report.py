"""A report of a scoring run, as one HTML file that needs nothing else and as JSON."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..data.sample import read_image
from ..files import write_json
from ..inference.visualization import draw_poses
from .charts import bar_chart, precision_recall_chart
from .ground_truth import KeypointGroundTruth
from .scoring import ImageError, KeypointEvaluation, PeopleGroup


_PICTURE_WIDTH, _PICTURE_HEIGHT = 560, 420  # pixels; two beside each other fit on a page

_FIGURE_NAMES = {
    "AP": "mean over OKS 0.50 to 0.95",
    "AP50": "at OKS 0.50",
    "AP75": "at OKS 0.75",
    "APM": "medium people, 32² to 96² pixels",
    "APL": "large people, above 96² pixels",
    "AR": "recall, mean over OKS 0.50 to 0.95",
    "AR50": "recall at OKS 0.50",
    "AR75": "recall at OKS 0.75",
    "ARM": "recall, medium people",
    "ARL": "recall, large people",
    "AP_easy": "images with crowdIndex below 0.2",
    "AP_medium": "images with crowdIndex from 0.2 to 0.8",
    "AP_hard": "images with crowdIndex from 0.8",
}

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
    ground_truth: KeypointGroundTruth,
    results: Sequence[Mapping[str, Any]],
    output_dir: str | os.PathLike,
    *,
    box_metrics: Mapping[str, float | None] | None = None,
    details: Mapping[str, Any] | None = None,
    images_dir: str | os.PathLike | None = None,
    edges: Sequence[Sequence[int]] = (),
    keypoint_names: Sequence[str] | None = None,
    worst_images: int = 12,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes `report.html` and `report.json`.

    They hold the figures, the precision-recall curves, AP by size (CrowdPose: by crowding) and by number of people,
    and the images whose people were found worst. With `images_dir` the HTML file shows those, annotated people on the
    left, on the right as many of the best-scored results as there are annotated people.

    Args:
        evaluation ([`KeypointEvaluation`]): what [`score_keypoints`] returned.
        ground_truth ([`KeypointGroundTruth`]): the annotations scored against.
        results (`Sequence[Mapping]`): the COCO results scored.
        output_dir (`str` or `os.PathLike`): the folder; made if it does not exist.
        box_metrics (`Mapping`, *optional*): what [`score_boxes`] returned.
        details (`Mapping`, *optional*): what else is to be said about the run, such as the model, by name.
        images_dir (`str` or `os.PathLike`, *optional*): the folder of the images. They are resized to the sizes that
            the annotations say.
        edges (`Sequence[Sequence[int]]`, *optional*): limbs to draw, as pairs of keypoint indices.
        keypoint_names (`Sequence[str]`, *optional*): K names, which tell left from right for the colours.
        worst_images (`int`, *optional*, defaults to 12): how many images to name and show.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar while they are drawn.

    Returns:
        `dict`: what `report.json` holds.

    Raises:
        ValueError: `worst_images` is negative, or an image cannot be read.

    Example:

    ```python
    >>> evaluation = score_keypoints(ground_truth, results)
    >>> write_report(evaluation, ground_truth, results, "scores", images_dir="val2017", edges=COCO_17.edges)
    ```
    """
    check_worst_images(worst_images)
    curves = evaluation.precision_recall()
    groups = evaluation.average_precision_by_people()
    worst = evaluation.worst_images(worst_images)
    content: dict[str, Any] = {
        "details": dict(details or {}),
        "metrics": evaluation.metrics,
        **({} if box_metrics is None else {"box_metrics": dict(box_metrics)}),
        "protocol": evaluation.protocol,
        "precision_recall": {
            "thresholds": curves.thresholds.round(2).tolist(),
            "recall": curves.recall.round(2).tolist(),
            "precision": _without_nan(curves.precision),
            "highest_recall": _without_nan(curves.highest_recall),
        },
        "average_precision_by_people": [vars(group) for group in groups],
        "worst_images": [vars(error) for error in worst],
    }
    figures: list[str] = []
    if images_dir is not None:
        pictures = _WorstPictures(ground_truth, results, Path(images_dir), edges, keypoint_names)
        figures = [
            pictures.figure(error)
            for error in tqdm(worst, desc="Drawing images", unit="image", disable=not progress or not worst)
        ]
    folder = Path(output_dir)
    write_json(content, folder / "report.json", indent=2)
    _write_text(_page(content, ground_truth, evaluation, groups, figures), folder / "report.html")
    return content


def check_worst_images(worst_images: int) -> None:
    """Raises `ValueError` if this argument of [`write_report`] is no number of images."""
    if not isinstance(worst_images, int) or isinstance(worst_images, bool) or worst_images < 0:
        raise ValueError(f"`worst_images` is {worst_images!r}; expected a whole number of at least 0.")


class _WorstPictures:
    """Draws annotated and found people of an image."""

    def __init__(
        self,
        ground_truth: KeypointGroundTruth,
        results: Sequence[Mapping[str, Any]],
        folder: Path,
        edges: Sequence[Sequence[int]],
        keypoint_names: Sequence[str] | None,
    ):
        self.folder = folder
        self.edges = edges
        self.keypoint_names = keypoint_names
        self.images = {image["id"]: image for image in ground_truth.images}
        self.annotated: dict[int, list[Mapping[str, Any]]] = {}
        for record in ground_truth.annotations:
            if record["num_keypoints"] > 0 and not record["iscrowd"]:
                self.annotated.setdefault(record["image_id"], []).append(record)
        self.found: dict[int, list[Mapping[str, Any]]] = {}
        for result in results:
            self.found.setdefault(result["image_id"], []).append(result)

    def figure(self, error: ImageError) -> str:
        record = self.images[error.image_id]
        file = self.folder / record["file_name"]
        picture = read_image(file, str(file))
        size = (int(record.get("width", picture.width)), int(record.get("height", picture.height)))
        if picture.size != size:
            picture = picture.resize(size, PIL.Image.Resampling.BILINEAR)
        # drawn on the picture as it will be seen, so that lines keep their width
        factor = min(_PICTURE_WIDTH / size[0], _PICTURE_HEIGHT / size[1])
        shown_size = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
        picture = picture.resize(shown_size, PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)
        people = self.annotated.get(error.image_id, [])
        best = sorted(self.found.get(error.image_id, []), key=lambda result: -result["score"])[: len(people)]
        annotated = self._draw(picture, [_annotated_person(person, factor) for person in people], scores=False)
        found = self._draw(picture, [_found_person(result, factor) for result in best], scores=True)
        return (
            f"<figure><figcaption><b>{escape(str(record['file_name']))}</b> <span>image {error.image_id}: "
            f"{error.people} {'person' if error.people == 1 else 'people'}, {error.missed} missed, mean OKS "
            f'{error.mean_oks:.2f}</span></figcaption><div class="pair">{annotated}{found}</div></figure>'
        )

    def _draw(self, picture: PIL.Image.Image, people: Sequence[Mapping[str, Any]], scores: bool) -> str:
        drawn = draw_poses(
            picture,
            people,
            edges=self.edges,
            keypoint_names=self.keypoint_names,
            keypoint_threshold=0.0,
            draw_scores=scores,
        )
        buffer = io.BytesIO()
        drawn.save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return f'<img alt="{"found" if scores else "annotated"}" src="data:image/jpeg;base64,{data}" loading="lazy">'


def _annotated_person(record: Mapping[str, Any], factor: float) -> dict[str, Any]:
    points = np.asarray(record["keypoints"], dtype=np.float64).reshape(-1, 3)
    x, y, width, height = record["bbox"]
    return {
        "score": 1.0,
        "bbox": np.array([x, y, x + width, y + height]) * factor,
        "keypoints": (points[:, :2] + 0.5) * factor - 0.5,
        # what is not labelled is not drawn: its score is below every threshold
        "scores": np.where(points[:, 2] > 0, 1.0, -1.0),
    }


def _found_person(result: Mapping[str, Any], factor: float) -> dict[str, Any]:
    points = np.asarray(result["keypoints"], dtype=np.float64).reshape(-1, 3)
    if "bbox" in result:
        x, y, width, height = result["bbox"]
        box = np.array([x, y, x + width, y + height])
    else:
        box = np.concatenate([points[:, :2].min(axis=0), points[:, :2].max(axis=0)])
    return {
        "score": result["score"],
        "bbox": box * factor,
        "keypoints": (points[:, :2] + 0.5) * factor - 0.5,
        "scores": np.ones(len(points)),  # COCO's protocol scores all keypoints, however sure the model is of them
    }


def _page(
    content: Mapping[str, Any],
    ground_truth: KeypointGroundTruth,
    evaluation: KeypointEvaluation,
    groups: Sequence[PeopleGroup],
    figures: Sequence[str],
) -> str:
    metrics, protocol = evaluation.metrics, evaluation.protocol
    title = f"Pose estimation on {Path(ground_truth.source).name}"
    if ground_truth.metric == "coco":
        kinds = [("all", metrics["AP"], ""), ("medium", metrics["APM"], ""), ("large", metrics["APL"], "")]
        by_kind = "AP by size of person"
    else:
        kinds = [("all", metrics["AP"], f"{protocol['images']:,} images")]
        kinds += [
            (name, metrics[f"AP_{name}"], f"{len(ids):,} images") for name, ids in ground_truth.crowd_groups.items()
        ]
        by_kind = "AP by crowding"
    rows = [
        (_people(group), group.average_precision, f"{group.images:,} images, {group.people:,} people")
        for group in groups
    ]
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{protocol["images"]:,} images, {protocol["people"]:,} annotated people, '
        f"{protocol['results']:,} results; protocol {escape(protocol['metric'])}</p>",
        _tiles(metrics, _FIGURE_NAMES),
        '<div class="charts"><section><h2>Precision and recall</h2>',
        precision_recall_chart(evaluation.precision_recall()),
        f"</section><section><h2>{by_kind}</h2>",
        bar_chart(kinds, by_kind),
        "<h2>AP by number of people in the image</h2>",
        bar_chart(rows, "AP by number of people in the image"),
        "</section></div>",
    ]
    if "box_metrics" in content:
        sections += ["<h2>Boxes</h2>", _tiles(content["box_metrics"], {})]
    if figures:
        sections += [
            "<h2>Worst images</h2>",
            '<p class="faint">Left as annotated, right the results with the highest scores, as many as people are '
            "annotated, with all their keypoints, which is how they are scored. Mean OKS is over the annotated "
            "people, where one that no result matches at OKS 0.5 counts 0.</p>",
            *figures,
        ]
    sections += ["<h2>How this was measured</h2>", _table({**content["details"], **protocol})]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _tiles(metrics: Mapping[str, float | None], names: Mapping[str, str]) -> str:
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


def _write_text(text: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
