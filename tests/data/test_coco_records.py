"""One meaning of a COCO record in training, labels, check-data and evaluation, and nobody lost without a word."""

import copy
import json
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from querypose_hf import QueryPoseImageProcessor
from querypose_hf.cli import main
from querypose_hf.data import (
    AugmentedPoseDataset,
    CocoPoseDataset,
    HubPoseDataset,
    HubPoseStream,
    PoseAugmentation,
    PoseColumns,
    ReadingOptions,
    check_data,
)
from querypose_hf.data.coco_records import CocoRecords
from querypose_hf.data.hub_rows import read_objects
from querypose_hf.evaluation import KeypointGroundTruth, ScoringOptions, evaluate_predictions
from querypose_hf.model.annotations_querypose import labels_from_annotations, usable_boxes
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.run import run_experiment
from querypose_hf.training.validation import Validation


KEYPOINTS = [12, 14, 2, 20, 20, 2, 28, 30, 1]


def person(number=1, **fields):
    record = {"id": number, "image_id": 5, "category_id": 1, "bbox": [10.0, 12.0, 20.0, 20.0], "area": 300.0}
    return {**record, "iscrowd": 0, "keypoints": KEYPOINTS, "num_keypoints": 3, **fields}


def content_of(*people):
    return {
        "images": [{"id": 5, "file_name": "5.png", "width": 64, "height": 48}],
        "annotations": list(people),
        "categories": [{"id": 1, "name": "horse", "keypoints": ["nose", "withers", "tail"]}],
    }


@pytest.fixture
def write(tmp_path):
    def write(content):
        (tmp_path / "images").mkdir(exist_ok=True)
        for image in content["images"]:
            Image.new("RGB", (64, 48)).save(tmp_path / "images" / image["file_name"])
        path = tmp_path / "people.json"
        path.write_text(json.dumps(content))
        return path, tmp_path / "images"

    return write


def in_training(content, write):
    dataset = CocoPoseDataset(*write(content))
    return sum(not entry["iscrowd"] for index in range(len(dataset)) for entry in dataset.annotations(index))


def in_labels(content, write):
    annotations = [{"image_id": content["images"][0]["id"], "annotations": content["annotations"]}]
    return len(labels_from_annotations(annotations, [(48, 64)], [(48, 64)])[0]["boxes"])


def in_check_data(content, write):
    return check_data(CocoPoseDataset(*write(content))).num_people


def in_evaluation(content, write):
    truth = KeypointGroundTruth.read(write(content)[0], area_ratio=1.0)
    return sum(not one["iscrowd"] for one in truth.annotations)


def in_hub(content, write):
    row, columns = {"objects": content["annotations"]}, PoseColumns(category="category_id")
    return int((~read_objects(row, columns, {1: "horse"}, 3, "row 0")["iscrowd"]).sum())


READERS = [in_training, in_labels, in_check_data, in_evaluation, in_hub]

#: Fields of the second of two people, and how many people there are.
RIGHT = {
    "as usual": ({}, 2),
    "a crowd": ({"iscrowd": 1}, 1),
    "true": ({"iscrowd": True}, 1),
    "1.0": ({"iscrowd": 1.0}, 1),
    "false": ({"iscrowd": False}, 2),
    "null": ({"iscrowd": None}, 2),
    "num_keypoints null": ({"num_keypoints": None}, 2),
    "num_keypoints 3.0": ({"num_keypoints": 3.0}, 2),
    "num_keypoints 0": ({"num_keypoints": 0}, 2),
    "area null": ({"area": None}, 2),
    "area 0": ({"area": 0}, 2),
    "float ids": ({"id": 2.0, "image_id": 5.0, "category_id": 1.0}, 2),
    "keypoints null": ({"keypoints": None, "num_keypoints": None}, 2),
    "no keypoints": ({"keypoints": [], "num_keypoints": 0}, 2),
    "box without area": ({"bbox": [10, 10, 0, 0]}, 2),
    "box outside": ({"bbox": [70, 10, 20, 20]}, 2),
}

#: Fields of the second of two people, and what is named.
WRONG = {
    "crowd as text": ({"iscrowd": "0"}, "`iscrowd` is '0'; expected 0 or 1"),
    "crowd of 2": ({"iscrowd": 2}, "`iscrowd` is 2; expected 0 or 1"),
    "crowd of 0.5": ({"iscrowd": 0.5}, "`iscrowd` is 0.5; expected 0 or 1"),
    "crowd as a list": ({"iscrowd": [1]}, r"`iscrowd` is \[1\]; expected 0 or 1"),
    "count as text": ({"num_keypoints": "3"}, "`num_keypoints` is '3'; expected the number of labelled"),
    "half a keypoint": ({"num_keypoints": 0.5}, "`num_keypoints` is 0.5; expected the number of labelled"),
    "less than none": ({"num_keypoints": -1}, "`num_keypoints` is -1; expected the number of labelled"),
    "count true": ({"num_keypoints": True}, "`num_keypoints` is True; expected the number of labelled"),
    "area as text": ({"area": "300"}, "`area` is '300'; expected a number"),
    "area true": ({"area": True}, "`area` is True; expected a number"),
    "area below 0": ({"area": -1.0}, r"`area` is -1\.0; expected at least 0"),
    "area []": ({"area": []}, r"`area` is \[\]; expected a number"),
    "area 1e300": ({"area": 1e300}, r"`area` is 1e\+300; expected .* at most 1e\+14"),
    "area nan": ({"area": float("nan")}, "`area` is nan; expected"),
    "box as text": ({"bbox": ["1", "2", "3", "4"]}, "`bbox`.* is .*'1'.*; expected 4 numbers"),
    "box of truths": ({"bbox": [True] * 4}, "`bbox`.* is .*True.*; expected 4 numbers"),
    "box far away": ({"bbox": [1, 1, 1e308, 1]}, r"`bbox`.* is .*1e\+308.*; expected .* at most 1e\+07"),
    "box of no float": ({"bbox": [1, 1, 10**400, 1]}, "`bbox`.* is .*1000.*; expected 4 numbers"),
    "negative box": ({"bbox": [10, 10, -3, 4]}, "`bbox` is .*-3.*; expected a width and a height of at least 0"),
    "category as text": ({"category_id": "1"}, "`category_id` is '1'; expected"),
    "category true": ({"category_id": True}, "`category_id` is True; expected"),
    "keypoints as text": ({"keypoints": [str(value) for value in KEYPOINTS]}, "`keypoints`.* is .*'12'.*; expected"),
    "keypoint far away": ({"keypoints": [1e308, *KEYPOINTS[1:]]}, r"`keypoints`.* is .*1e\+308.*; .* at most 1e\+07"),
    "visibility true": ({"keypoints": [1, 2, True] * 3}, "`keypoints`.* is .*True.*; expected"),
    "count of no int": ({"num_keypoints": 1e300}, r"`num_keypoints` is 1e\+300; expected"),
    "visibility 3": ({"keypoints": [1, 2, 3] * 3}, "`keypoints` has visibility 3 at keypoint 0; expected 0"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", RIGHT)
def test_same_meaning_everywhere(case, reader, write):
    fields, expected = RIGHT[case]
    content = content_of(person(), person(2, **fields))
    before = copy.deepcopy(content)
    assert reader(content, write) == expected
    assert content == before


READERS_OF = {case: [*READERS[:4], *([in_hub] if "num_keypoints" not in WRONG[case][0] else [])] for case in WRONG}


@pytest.mark.parametrize(("case", "reader"), [(case, reader) for case in WRONG for reader in READERS_OF[case]])
def test_same_errors_everywhere(case, reader, write):
    fields, message = WRONG[case]
    with pytest.raises(ValueError, match=f"(annotation 1|object 1): {message}"):
        reader(content_of(person(), person(2, **fields)), write)


@pytest.mark.parametrize("reader", [in_training, in_check_data, in_evaluation])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", 1, "annotation 1: `id` 1 occurs twice; expected one annotation per id"),
        ("id", 1.0, "annotation 1: `id` 1 occurs twice"),
        ("id", 1.5, r"annotation 1: `id` is 1\.5; expected a whole number"),
        ("id", "2", "annotation 1: `id` is '2'; expected a whole number"),
        ("image_id", 5.5, r"annotation 1: `image_id` is 5\.5; expected a whole number"),
        ("category_id", None, "annotation 1: `category_id` is None; expected a whole number"),
    ],
)
def test_ids(reader, field, value, message, write):
    content = content_of(person(), person(2, **{field: value}))
    with pytest.raises(ValueError, match=rf"people\.json: {message}"):
        reader(content, write)


@pytest.mark.parametrize("reader", READERS)
def test_ids_of_images_and_categories_may_be_written_as_floats(reader, write):
    content = content_of(person(), person(2))
    content["images"][0]["id"], content["categories"][0]["id"] = 5.0, 1.0
    assert reader(content, write) == 2


class TestTwoSkeletons:
    @pytest.fixture
    def content(self):
        content = content_of(person(), person(2), person(3, category_id=7, keypoints=[20, 20, 2, 25, 25, 2]))
        content["annotations"][2]["num_keypoints"] = 2
        content["categories"].append({"id": 7, "name": "cart", "keypoints": ["wheel", "shaft"]})
        return content

    @pytest.fixture
    def results(self, content):
        fields = ("image_id", "category_id", "keypoints")
        return [{**{name: one[name] for name in fields}, "score": 0.9} for one in content["annotations"]]

    def test_have_to_be_told_apart(self, content, write):
        for reader in (in_training, in_evaluation):
            with pytest.raises(ValueError, match=r"category 7 has the keypoints .*`category_ids` \(`--category`"):
                reader(content, write)

    @pytest.mark.parametrize(("category", "people", "sigmas"), [(1, 2, [0.1] * 3), (7, 1, [0.1] * 2)])
    def test_one_of_them_is_read_and_scored(self, content, write, results, category, people, sigmas, tmp_path, capsys):
        path, images = write(content)
        dataset = CocoPoseDataset(path, images, category_ids=[category])
        assert len(dataset.annotations(0)) == check_data(dataset).num_people == people
        scoring = ScoringOptions(category_ids=(category,), sigmas=tuple(sigmas))
        figures = evaluate_predictions(path, results, scoring=scoring, progress=False)
        assert figures["metrics"]["AP"] == pytest.approx(1)
        assert (figures["protocol"]["people"], figures["protocol"]["results"]) == (people, people)

        (tmp_path / "results.json").write_text(json.dumps(results))
        files = ["--annotations", str(path), "--predictions", str(tmp_path / "results.json")]
        options = ["--category", str(category), "--output", str(tmp_path / "out"), "--sigmas", *map(str, sigmas)]
        assert main(["evaluate", *files, *options]) in (None, 0)
        assert "AP         1.0000" in capsys.readouterr().out
        main(["check-data", "--annotations", str(path), "--images", str(images), "--category", str(category)])
        assert f"people{people:>35}" in capsys.readouterr().out

    def test_validation_scores_the_categories_of_the_model_or_those_chosen(self, content, write, tmp_path):
        path, images = write(content)
        source = {"format": "coco", "annotations": str(path), "images": str(images)}
        for fields, category_ids, people in (({}, [1], 2), ({"category_ids": [7]}, [1], 1)):
            values = {"train": [{"format": "generated", "length": 1, "size": [64, 48]}]}
            values["validation"] = {**source, **fields}
            settings = Experiment.from_mapping({"model": {"variant": "r50"}, "data": values}).data.validation
            processor = QueryPoseImageProcessor(category_ids=category_ids, num_keypoints=3)
            assert len(Validation(settings, processor, tmp_path).ground_truth.annotations) == people


class TestBoxesWithoutArea:
    @pytest.mark.parametrize("bbox", [[10, 10, 0, 0], [10, 10, 5, 0], [70, 10, 20, 20], [-9, -9, 5, 5]])
    def test_are_taken_from_the_keypoints(self, bbox, write):
        content = content_of(person(bbox=bbox, area=None))
        # around the pixels' centres 12.5 to 28.5 and 14.5 to 30.5; 16 pixels, so 2 more on each side
        expected = [10.5, 12.5, 20, 20]
        dataset = CocoPoseDataset(*write(content), options=ReadingOptions(only_with_people=True))
        (entry,) = dataset.annotations(0)
        assert entry["bbox"] == expected
        assert dataset.remarks["boxes_taken_from_keypoints"] == 1
        labels = [
            labels_from_annotations([{"image_id": 5, "annotations": objects}], [(48, 64)], [(48, 64)])[0]
            for objects in (content["annotations"], dataset.annotations(0))
        ]
        for name in ("boxes", "keypoints", "area"):
            np.testing.assert_array_equal(labels[0][name], labels[1][name])
        np.testing.assert_allclose(labels[0]["boxes"][0] * [64, 48, 64, 48], [20.5, 22.5, 20, 20], rtol=1e-6)
        report = check_data(dataset)
        assert "the box is taken from its keypoints" in report.boxes_without_area[0]
        assert "boxes taken from keypoints" in report.to_text()
        augmented = AugmentedPoseDataset(dataset, PoseAugmentation([]))[0]
        assert augmented["annotations"][0]["bbox"] == expected
        assert len(KeypointGroundTruth.read(content, area_ratio=1.0).annotations) == 1

    @pytest.mark.parametrize("fields", [{"keypoints": None}, {"keypoints": [70, 14, 2] * 3}])
    def test_without_keypoints_in_the_image_are_left_out_and_counted(self, fields, write, caplog):
        content = content_of(person(bbox=[70, 10, 5, 5], num_keypoints=None, **fields))
        path, images = write(content)
        dataset = CocoPoseDataset(path, images, options=ReadingOptions(only_with_people=True))
        assert len(dataset) == 0
        assert (dataset.left_out["people_without_usable_box"], dataset.left_out["images_without_people"]) == (1, 1)
        report = check_data(CocoPoseDataset(path, images))
        assert (report.num_images_with_people, report.left_out["people_without_usable_box"]) == (0, 1)
        assert "annotation 1: `bbox` is [70.0, 10.0, 5.0, 5.0]" in report.boxes_without_area[0]
        assert in_labels(content, write) == 0
        assert "annotations[0] (image_id 5): left out 1 of 1 people" in caplog.text

    def test_crowd_regions_stay_as_they_are(self, write):
        dataset = CocoPoseDataset(*write(content_of(person(), person(2, iscrowd=1, bbox=[10, 10, 0, 0]))))
        assert dataset.annotations(0)[1]["bbox"] == [10, 10, 0, 0]
        assert dataset.remarks == {} and dataset.mended_people == []

    def test_a_single_keypoint_at_the_edge(self):
        keypoints = np.array([[[0, 47, 2], [9, 9, 0]]])
        boxes, replaced, lost = usable_boxes(np.zeros((1, 4)), keypoints, np.array([64, 48]))
        assert boxes.tolist() == [[0, 45.5, 2.5, 2.5]]
        assert replaced.tolist() == [True] and lost.tolist() == [False]

    def test_in_datasets_and_streams(self):
        datasets = pytest.importorskip("datasets")
        image = Image.new("RGB", (64, 48))
        objects = [
            {"bbox": [[10, 10, 0, 0]], "keypoints": [KEYPOINTS]},
            {"bbox": [[10, 10, 0, 0]], "keypoints": [[0] * 9]},
            {"bbox": [[70, 10, 20, 20]], "keypoints": [[70, 14, 2] * 3]},  # outside the image of 64 x 48
            {"bbox": [[10, 12, 20, 20]], "keypoints": [KEYPOINTS], "area": [0]},
        ]
        objects = [{"area": [None], **one} for one in objects]
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "objects": {
                    "area": datasets.List(datasets.Value("float64")),
                    **dict.fromkeys(("bbox", "keypoints"), datasets.List(datasets.List(datasets.Value("float64")))),
                },
            }
        )
        rows = datasets.Dataset.from_dict({"image": [image] * 4, "objects": objects}, features=features)
        options = ReadingOptions(only_with_people=True)
        whole = HubPoseDataset(rows, options=options)
        stream = HubPoseStream(rows.to_iterable_dataset(), options=options)
        for samples in ([whole[0], whole[1]], list(stream)):
            boxes = [entry["bbox"] for sample in samples for entry in sample["annotations"]]
            assert boxes == [[10.5, 12.5, 20, 20], [10, 12, 20, 20]]
        for source in (whole, stream):
            assert source.remarks == {"boxes_taken_from_keypoints": 1, "people_with_area_0": 1}
            assert source.left_out["people_without_usable_box"] == source.left_out["images_without_people"] == 2
        assert check_data(whole).remarks == whole.remarks

    def test_training_says_so_before_it_starts(self, write, tmp_path, capsys):
        content = content_of(person(bbox=[10, 10, 0, 0]), person(2, bbox=[70, 0, 1, 1], keypoints=None))
        path, images = write(content)
        source = {"format": "coco", "annotations": str(path), "images": str(images), "max_images": 1}
        config = {"variant": "r50", "num_queries": 4}
        experiment = Experiment.from_mapping({"model": config, "data": {"train": [source]}})
        torch.manual_seed(0)
        run_experiment(experiment, tmp_path / "run", only_check=True)
        text = capsys.readouterr().out
        assert "source 0 leaves out: 1 people without usable box" in text
        assert "source 0 has: 1 boxes taken from keypoints" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iscrowd": ["0"]}, "`iscrowd` is '0'; expected 0 or 1"),
        ({"area": [-1.0]}, r"`area` is -1\.0; expected at least 0"),
    ],
)
def test_same_errors_in_datasets(fields, message):
    datasets = pytest.importorskip("datasets")
    objects = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "keypoints": [[float(value) for value in KEYPOINTS]], **fields}
    rows = datasets.Dataset.from_dict({"image": ["5.png"], "objects": [objects]})
    with pytest.raises(ValueError, match=f"row 0.*object 0: {message}"):
        HubPoseDataset(rows)


class TestWhatCannotBeFound:
    @pytest.mark.parametrize(
        ("fields", "remark", "kind"),
        [
            ({"area": 0}, "2 of 2 people to be found have `area` 0.*no result matches them", "people_with_area_0"),
            (
                {"num_keypoints": 0},
                "2 of 2 people .* `num_keypoints` 0.*not scored",
                "people_with_num_keypoints_0",
            ),
        ],
    )
    def test_is_said(self, fields, remark, kind, write, caplog, tmp_path):
        path, images = write(content_of(person(**fields), person(2, **fields)))
        report = check_data(CocoPoseDataset(path, images))
        assert report.remarks == {kind: 2}
        (line,) = [line for line in report.to_text().splitlines() if line.startswith(kind.replace("_", " "))]
        assert " 2 " in line and "evaluate" in line
        evaluate_predictions(path, [], scoring=ScoringOptions(sigmas=(0.1,) * 3), progress=False)
        assert any(re.search(remark, message) for message in caplog.messages)

    def test_nobody_to_find_is_said(self, write, caplog):
        path, _ = write(content_of(person(keypoints=None, num_keypoints=None)))
        evaluate_predictions(path, [], scoring=ScoringOptions(sigmas=(0.1,) * 3), progress=False)
        assert "nobody is to be found" in caplog.text

    def test_the_advice_for_a_missing_area_works(self, write):
        path, _ = write(content_of(person(area=None), person(2)))
        results = [{"image_id": 5, "category_id": 1, "keypoints": KEYPOINTS, "score": 0.9}]
        with pytest.raises(ValueError, match=r"annotation 0: `area` is missing, as in 1 of 2; .*`--area-ratio 0\.53`"):
            evaluate_predictions(path, results, scoring=ScoringOptions(sigmas=(0.1,) * 3))
        scoring = ScoringOptions(sigmas=(0.1,) * 3, area_ratio=0.53)
        figures = evaluate_predictions(path, results, scoring=scoring, progress=False)
        assert figures["protocol"]["area"] == "annotation; where missing, 0.53 * box width * box height"
        areas = [one["area"] for one in KeypointGroundTruth.read(path, area_ratio=0.53).annotations]
        assert areas == [pytest.approx(0.53 * 400), 300]
        with pytest.raises(ValueError, match="`area_ratio` is 0; expected a number above 0"):
            ScoringOptions(area_ratio=0)


def test_a_large_file_is_read_in_seconds():
    count = 56_000
    content = content_of()
    content["images"] = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(count)]
    points = [float(value) for value in KEYPOINTS]
    content["annotations"] = [person(n, image_id=n % count, keypoints=points) for n in range(3 * count)]
    start = time.perf_counter()
    records = CocoRecords.read(content)
    table = records.to_table(records.objects([1], 3), 1.0)
    assert len(table.ids) == 3 * count
    assert time.perf_counter() - start < 15
