import base64
import html.parser
import io
import json
import xml.etree.ElementTree

import numpy as np
import PIL.Image
import pytest

from querypose_hf import CROWDPOSE_14, Skeleton
from querypose_hf.evaluation.charts import line_chart
from querypose_hf.evaluation.ground_truth import KeypointGroundTruth
from querypose_hf.evaluation.options import ReportOptions
from querypose_hf.evaluation.report import write_report
from querypose_hf.evaluation.scoring import score_boxes, score_keypoints


pytest.importorskip("pycocotools")


class Page(html.parser.HTMLParser):
    """The parts of the page that tests look at; fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.headings, self.text, self.links = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if data.strip():
            self.text.append(data.strip())


def decoded(image):
    kind, data = image["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))


def score(dataset, results, metric="coco", sigmas=None):
    return score_keypoints(KeypointGroundTruth.read(dataset, metric), results, sigmas, progress=False)


def read(folder):
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "report.json"]
    text = (folder / "report.html").read_text(encoding="utf-8")
    charts = ["<svg" + part.split("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    return json.loads((folder / "report.json").read_text()), Page(text), charts


def test_line_chart():
    lines = {"falls <": [(10, 5.5), (20, -0.3)], "one point": [(15, 2.0)], "none": []}
    chart = line_chart(lines, "Loss & terms", "step")
    root = xml.etree.ElementTree.fromstring(chart)
    texts = [element.text for element in root.iter("text")]
    assert {"falls < -0.3", "one point 2", "none n/a", "step"} <= set(texts)
    points = [line.get("points").split() for line in root.iter("polyline")]
    assert [len(line) for line in points] == [2, 2, 0]
    left, right = (tuple(map(float, point.split(","))) for point in points[0])
    assert left[0] < right[0] and left[1] < right[1]  # y counts down from the top
    _, _, width, height = map(float, root.get("viewBox").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in (left, right))


def test_figures_and_curves(coco_case, tmp_path):
    evaluation = score(*coco_case)
    box_metrics = score_boxes(evaluation.ground_truth, evaluation.results, progress=False)
    content = write_report(evaluation, tmp_path, box_metrics=box_metrics, details={"model": "a <model>"})
    stored, page, charts = read(tmp_path)
    assert stored == content
    assert stored["metrics"] == evaluation.metrics
    assert stored["box_metrics"] == box_metrics
    assert stored["details"] == {"model": "a <model>"}
    curves = stored["precision_recall"]
    assert np.shape(curves["precision"]) == (10, 101)
    assert np.mean(curves["precision"]) == pytest.approx(evaluation.metrics["AP"])
    assert sum(group["people"] for group in stored["average_precision_by_people"]) == stored["protocol"]["people"]
    assert [error["mean_oks"] for error in stored["worst_images"]] == sorted(
        error["mean_oks"] for error in stored["worst_images"]
    )
    assert len(stored["worst_images"]) == 12

    for figure, value in {**evaluation.metrics, **box_metrics}.items():
        assert figure in page.text
        assert f"{value:.3f}" in page.text
    assert "a <model>" in page.text
    assert "AP by size of person" in page.headings
    assert page.images == []
    curve, sizes, people = (xml.etree.ElementTree.fromstring(chart) for chart in charts)
    assert len(curve.findall("polyline")) == sum(max(row) > 0 for row in curves["precision"])
    labels = [text.text for text in curve.findall("text")]
    assert f"{np.mean(curves['precision'][0]):.3f}" in labels
    bars = [float(bar.get("width")) for bar in sizes.findall("rect")[1::2]]
    assert bars == pytest.approx([250 * evaluation.metrics[name] for name in ("AP", "APM", "APL")], abs=0.05)
    assert len(people.findall("rect")) == 2 * len(stored["average_precision_by_people"])


def test_crowdpose_by_groups_of_images(crowdpose_case, tmp_path):
    evaluation = score(*crowdpose_case, metric="crowdpose")
    write_report(evaluation, tmp_path)
    _, page, charts = read(tmp_path)
    assert "AP by crowdIndex" in page.headings
    labels = [text.text for text in xml.etree.ElementTree.fromstring(charts[1]).findall("text")]
    assert labels[::3] == ["all", "easy", "medium", "hard"]
    assert labels[4] == f"{evaluation.metrics['AP_easy']:.3f}"


def test_nobody_to_find(one_person, tmp_path):
    one_person["annotations"][0] |= {"keypoints": [0] * 9, "num_keypoints": 0}
    write_report(score(one_person, [], sigmas=[0.1] * 3), tmp_path)
    content, page, _ = read(tmp_path)
    assert content["metrics"]["AP"] is None
    assert content["precision_recall"]["precision"][0][0] is None
    assert content["worst_images"] == []
    assert "n/a" in page.text


@pytest.mark.parametrize("stored_size", [(640, 480), (160, 240)])  # the second squeezed to another shape
def test_the_worst_images_are_shown(one_person, tmp_path, stored_size):
    images = tmp_path / "images"
    images.mkdir()
    grey = 128
    PIL.Image.new("RGB", stored_size, (grey,) * 3).save(images / "five.jpg")
    result = {
        "image_id": 5,
        "category_id": 1,
        "keypoints": [410, 310, 0.1, 450, 350, 0.9, 490, 390, 0.9],
        "score": 0.7,
        "bbox": [400.0, 300.0, 100.0, 100.0],
    }
    unused = {**result, "score": 0.3, "bbox": [10.0, 10.0, 50.0, 50.0], "keypoints": [20, 20, 1] * 3}
    scored = score(one_person, [unused, result], sigmas=[0.1] * 3)
    horse = Skeleton.from_names(["nose", "withers", "tail"], edges=[(0, 1), (1, 2)], sigmas=[0.1] * 3)
    content = write_report(scored, tmp_path / "report", images_dir=images, skeleton=horse, progress=False)
    assert content["worst_images"] == [
        {"image_id": 5, "file_name": "five.jpg", "people": 1, "missed": 1, "mean_oks": 0.0}
    ]
    _, page, _ = read(tmp_path / "report")
    assert "Worst images" in page.headings
    assert "image 5: 1 person, 1 missed, mean OKS 0.00" in page.text
    annotated, found = map(decoded, page.images)
    assert annotated.shape == found.shape == (420, 560, 3)

    def drawn_at(image, x, y):
        """Whether something is drawn at a place given in pixels of the annotations."""
        column, row = int((x + 0.5) * 560 / 640), int((y + 0.5) * 420 / 480)
        return bool((np.abs(image[row - 1 : row + 2, column - 1 : column + 2].astype(int) - grey) > 60).any())

    for x, y in ((110, 110), (150, 150), (190, 190), (130, 130), (100, 150)):  # keypoints, limb, edge of the box
        assert drawn_at(annotated, x, y)
        assert not drawn_at(found, x, y)
    for x, y in ((410, 310), (450, 350), (490, 390), (430, 330), (400, 350)):  # also those the model is unsure of
        assert drawn_at(found, x, y)
        assert not drawn_at(annotated, x, y)
    assert not drawn_at(found, 20, 20), "one person is annotated, so one is drawn"
    assert all(link.startswith("data:") for link in page.links), "the page must need no other file"


def test_names_are_escaped(one_person, tmp_path):
    name = "a&b<c>.png"
    PIL.Image.new("RGB", (640, 480)).save(tmp_path / name)
    one_person["images"][0]["file_name"] = name
    write_report(score(one_person, [], sigmas=[0.1] * 3), tmp_path / "report", images_dir=tmp_path, progress=False)
    assert name in read(tmp_path / "report")[1].text


def test_results_without_boxes_and_few_images(crowdpose_case, tmp_path):
    dataset, results = crowdpose_case
    for image in dataset["images"]:
        image["file_name"] = f"{image['id']}.png"
        PIL.Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    scored = score(dataset, results, metric="crowdpose")
    write_report(
        scored,
        tmp_path / "report",
        ReportOptions(worst_images=2),
        images_dir=tmp_path,
        skeleton=CROWDPOSE_14,
        progress=False,
    )
    content, page, _ = read(tmp_path / "report")
    assert len(content["worst_images"]) == 2
    assert len(page.images) == 4


def test_an_image_that_cannot_be_read(coco_case, tmp_path):
    for image in coco_case[0]["images"]:
        image["file_name"] = "none.png"
    write_report(score(*coco_case), tmp_path / "report", images_dir=tmp_path, progress=False)
    assert "none.png: the image cannot be read" in (tmp_path / "report" / "report.html").read_text()
