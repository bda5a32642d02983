"""`report.html` of a training run: curves of loss terms and figures, and drawn validation images."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..evaluation.charts import line_chart
from ..evaluation.image_pairs import ImagePairs
from ..evaluation.report import figure_tiles, report_page
from ..files import write_text
from ..model.skeletons import Skeleton
from .log import LOG_FILE
from .validation import Validation


REPORT_FILE = "report.html"
#: How many validation images are drawn; the same ones in every report of a run.
DRAWN_IMAGES = 8
_POINTS = 300  # of a curve


class TrainingReport:
    """Writes the report of a run, from its log and the last evaluation, each time it is called.

    Args:
        folder (`Path`): the run's.
        validation ([`Validation`], *optional*): whose images are drawn, annotated people beside found ones.
        skeleton ([`Skeleton`], *optional*): the model's, with the limbs to draw.
    """

    def __init__(self, folder: Path, validation: Validation | None = None, skeleton: Skeleton | None = None):
        self.folder = folder
        self.validation = validation
        self.skeleton = skeleton

    def __call__(self) -> None:
        """Writes `report.html` anew."""
        records = [json.loads(line) for line in (self.folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
        losses = [record for record in records if "loss" in record]
        scores = [record for record in records if "loss" not in record]
        terms = [name for name in (losses[-1] if losses else {}) if name.startswith("loss")]
        step = max((record["step"] for record in records), default=0)
        title = f"Training run {self.folder.resolve().name}"
        sections = [
            f"<h1>{escape(title)}</h1>",
            f'<p class="faint">after step {step}; all figures are in {LOG_FILE}</p>',
        ]
        evaluation = None if self.validation is None else self.validation.evaluation
        if evaluation is not None:
            sections.append(figure_tiles(evaluation.metrics, evaluation.ground_truth.protocol.figures))
        sections += [
            '<div class="charts"><section><h2>Loss and its terms</h2>',
            line_chart({name: _points(losses, name) for name in terms}, "Loss and its terms by step", "step"),
            "</section>",
        ]
        if scores:
            curves = {name: _points(scores, f"evaluation/{name}") for name in ("AP", "AP50", "AR")}
            curves = {name: points for name, points in curves.items() if points}
            sections += [
                "<section><h2>Validation</h2>",
                line_chart(curves, "Figures of the validation images by step", "step", highest=1.0),
                "</section>",
            ]
        sections.append("</div>")
        if evaluation is not None:
            sections += self._drawn_images()
        write_text(report_page(title, sections), self.folder / REPORT_FILE)

    def _drawn_images(self) -> list[str]:
        assert self.validation is not None and self.validation.evaluation is not None
        evaluation = self.validation.evaluation
        by_id = {error.image_id: error for error in evaluation.worst_images(len(evaluation.ground_truth.images))}
        with_people = [by_id[image["id"]] for image in evaluation.ground_truth.images if image["id"] in by_id]
        count = min(DRAWN_IMAGES, len(with_people))
        pairs = ImagePairs(evaluation, self.validation.images, self.skeleton)
        return [
            "<h2>Validation images</h2>",
            '<p class="faint">On the left people as annotated; on the right as many results, those with the highest '
            "scores.</p>",
            *(pairs.figure(with_people[number * len(with_people) // count]) for number in range(count)),
        ]


def _points(records: Sequence[dict[str, float]], name: str) -> list[tuple[float, float]]:
    """The curve of a value by step; of many records each point is the mean of a few."""
    points = [(record["step"], record[name]) for record in records if name in record]
    each = -(-len(points) // _POINTS) or 1
    groups = [points[start : start + each] for start in range(0, len(points), each)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
