from functools import partial

import numpy as np
import pytest
from hub_rows import make_rows

from querypose_hf.data import (
    AspectRatioBatchSampler,
    HubPoseDataset,
    HubPoseStream,
    PoseColumns,
    ReadingOptions,
    UnusableImageError,
    check_data,
)
from querypose_hf.data.hub_rows import rows_of
from querypose_hf.inference.image_dataset import open_image_dataset


datasets = pytest.importorskip("datasets")


class TestReading:
    @pytest.mark.parametrize("as_dicts", [False, True])
    def test_rows_become_samples(self, as_dicts):
        dataset = HubPoseDataset(make_rows(as_dicts=as_dicts), keypoint_names=["left_ear", "right_ear"])
        assert len(dataset) == 4
        assert dataset.category_names == {0: "0", 1: "1"}
        assert dataset.flip_indices == (1, 0)
        for i in range(4):
            sample = dataset[i]
            assert sample["image_id"] == 50 + i
            assert sample["image"].getpixel((0, 0)) == (10 * i, 0, 0)
            assert len(sample["annotations"]) == i
        assert sample["annotations"][1] == {
            "id": 4,
            "image_id": 53,
            "category_id": 1,
            "bbox": [1, 2, 10, 12],
            "area": 120,
            "keypoints": [4, 4, 2, 0, 0, 0],
            "iscrowd": 0,
        }

    def test_sizes_from_headers_serve_the_batch_sampler(self):
        dataset = HubPoseDataset(make_rows())
        assert np.array_equal(dataset.sizes, [[30, 24], [20, 24], [30, 24], [20, 24]])
        assert sorted(map(sorted, AspectRatioBatchSampler(dataset, 2))) == [[0, 2], [1, 3]]

    def test_sizes_from_columns_are_checked(self):
        data = make_rows().add_column("width", [30, 20, 30, 21]).add_column("height", [24] * 4)
        dataset = HubPoseDataset(data)
        assert dataset.sizes[3].tolist() == [21, 24]
        assert dataset[0]["image"].size == (30, 24)
        with pytest.raises(UnusableImageError, match=r"row 3 \(image_id 53\): .* expected 21 x 24"):
            dataset[3]

    @pytest.mark.parametrize("value", [None, 20.5])
    def test_sizes_from_columns_are_whole_numbers(self, value):
        data = make_rows().add_column("width", [30, 20, value, 20]).add_column("height", [24] * 4)
        with pytest.raises(ValueError, match=f"dataset: row 2: `width` is {value}; expected a whole number of pixels"):
            HubPoseDataset(data)

    def test_sizes_from_columns_are_compared_with_headers(self):
        data = make_rows().add_column("width", [30, 20, 30, 24]).add_column("height", [24, 24, 24, 20])
        with pytest.raises(UnusableImageError, match=r"1 of 4 images .*row 3 .*upright image has 20 x 24 .*EXIF"):
            HubPoseDataset(data).check_sizes()
        HubPoseDataset(data).check_sizes(1)

    def test_classes_from_features_names_and_values(self):
        label = datasets.ClassLabel(names=["person", "horse"])
        assert HubPoseDataset(make_rows(label=label)).category_names == {0: "person", 1: "horse"}
        named = make_rows(category=lambda i: [["horse", "ape"][j % 2] for j in range(i)])
        dataset = HubPoseDataset(named)
        assert dataset.category_names == {0: "ape", 1: "horse"}
        assert [entry["category_id"] for entry in dataset.annotations(2)] == [1, 0]
        dataset = HubPoseDataset(named, category_names=["horse", "ape"])
        assert [entry["category_id"] for entry in dataset.annotations(2)] == [0, 1]
        assert HubPoseDataset(make_rows(category=lambda i: None)).category_names == {0: "person"}

    @pytest.mark.parametrize(
        "keypoints", [[[3.0, 4.0, 2.0], [0.0, 0.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]], [3.0, 4.0, 2.0, 0.0, 0.0, 0.0]]
    )
    def test_forms_of_keypoints(self, keypoints):
        dataset = HubPoseDataset(make_rows(keypoints=lambda i: [keypoints] * i))
        assert dataset.annotations(1)[0]["keypoints"] == [3, 4, 2, 0, 0, 0]

    def test_other_names_and_corners(self):
        data = make_rows(bbox=lambda i: None, box=lambda i: [[1.0, 2.0, 11.0, 14.0]] * i)
        data = data.rename_column("objects", "people")
        columns = PoseColumns(objects="people", bbox="box", bbox_format="xyxy", image_id="none")
        dataset = HubPoseDataset(data, columns=columns)
        assert dataset.annotations(1)[0]["bbox"] == [1, 2, 10, 12]
        assert dataset[1]["image_id"] == 1

    def test_only_with_people_leaves_out_rows_of_crowds(self):
        data = make_rows(iscrowd=lambda i: [int(i == 2)] * i)
        dataset = HubPoseDataset(data, options=ReadingOptions(only_with_people=True))
        assert [dataset[i]["image_id"] for i in range(len(dataset))] == [51, 53]
        assert dataset.left_out["images_without_people"] == 2

    def test_saved_to_disk(self, tmp_path):
        datasets.DatasetDict({"train": make_rows()}).save_to_disk(tmp_path / "saved")
        dataset = HubPoseDataset(str(tmp_path / "saved"), split="train")
        assert dataset[2]["image"].getpixel((0, 0)) == (20, 0, 0)

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("dataset_dict.json", "{}"),
            ("dataset_dict.json", '{"spl'),
            ("train/state.json", "{}"),
            ("train/state.json", "null"),
            ("train/dataset_info.json", '{"features": {"image": 3}}'),
            ("train/data-00000-of-00001.arrow", "abc"),
            ("train-0.parquet", "PAR1 and no more"),
        ],
    )
    def test_damaged(self, file, content, tmp_path):
        if file.endswith("parquet"):
            make_rows().to_parquet(tmp_path / file)
        else:
            datasets.DatasetDict({"train": make_rows()}).save_to_disk(tmp_path)
        (tmp_path / file).write_text(content)
        for open_it in (HubPoseDataset, HubPoseStream, open_image_dataset):
            with pytest.raises(ValueError, match=f"^{tmp_path}.* cannot be (read|opened)"):
                open_it(str(tmp_path), "train")

    def test_rows_that_break_off(self):
        def rows():
            yield from ({"image": "5.png", "objects": None} for _ in range(2))
            raise KeyError("page")

        with pytest.raises(ValueError, match="data, row 2 cannot be read: 'page'"):
            list(rows_of(rows(), "data"))

    @pytest.mark.parametrize("saved", [True, False])
    def test_splits_there_are(self, tmp_path, saved):
        for split in ("train", "test"):
            (tmp_path / "data").mkdir(exist_ok=True)
            make_rows().to_parquet(tmp_path / "data" / f"{split}-0.parquet")
        if saved:
            datasets.DatasetDict({"train": make_rows(), "test": make_rows()}).save_to_disk(tmp_path)
        source = str(tmp_path)
        for kind in (HubPoseDataset, partial(HubPoseStream, category_names=["a", "b"])):
            kind(source, ("validation", "val", "test"))
            with pytest.raises(ValueError, match=r"no split `validation` or `val`; .* \['train', 'test'\]"):
                kind(source, ("validation", "val"))
            with pytest.raises(ValueError, match=r"(?s)val.*train.*test"):
                kind(source, "val")

    def test_broken_image(self):
        data = make_rows(broken=[1])
        with pytest.raises(UnusableImageError, match=r"row 1 \(image_id 51\): the image cannot be read"):
            HubPoseDataset(data)
        dataset = HubPoseDataset(data, options=ReadingOptions(on_error="skip"))
        assert dataset[1]["image_id"] == 52
        assert dataset.unusable_images == ["dataset, row 1 (image_id 51)"]
        assert dataset.sizes.tolist()[2] == [30, 24]
        assert len(check_data(dataset).unusable_images) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": lambda i: [[1.0, 2.0]] * i}, "row 1: object 0: `bbox` has 2 values; expected 4 numbers"),
        (
            {"keypoints": lambda i: [[1.0, 2.0]] * i},
            r"row 1: object 0: `keypoints` is \[1.0, 2.0\]; expected 3 numbers",
        ),
        ({"keypoints": lambda i: [[[]]] * i}, r"row 1: object 0: `keypoints` is \[\[\]\]; expected 3 numbers"),
        (
            {"keypoints": lambda i: [[1.0] * 3 * (j + 1) for j in range(i)]},
            "row 2: object 1: `keypoints` has 6 values; expected 3 numbers",
        ),
        ({"keypoints": lambda i: None}, "no row has an object with `keypoints`"),
        ({"category": lambda i: [0] * (i + 1)}, "row 0: `category` has 1 entries and `bbox` 0"),
        (
            {"category": lambda i: [[1]] * i},
            r"row 1: object 0: `category` is \[1\]; expected a whole number or a name",
        ),
        (
            {"category": lambda i: [{"a": 1}] * i},
            "row 1: object 0: `category` is .*; expected a whole number or a name",
        ),
        ({"category": lambda i: [0.5] * i}, "row 1: object 0: `category` is 0.5; expected a whole number or a name"),
    ],
)
def test_errors_name_row_object_and_field(changes, message):
    with pytest.raises(ValueError, match=message):
        HubPoseDataset(make_rows(**changes))


def test_other_errors():
    with pytest.raises(ValueError, match=r"no column `picture` but .* `PoseColumns\(image=...\)`"):
        HubPoseDataset(make_rows(), columns=PoseColumns(image="picture"))
    with pytest.raises(ValueError, match="`bbox_format` is 'cxcywh'"):
        PoseColumns(bbox_format="cxcywh")
    with pytest.raises(ValueError, match="`category` is 1; expected one of"):
        HubPoseDataset(make_rows(), category_names=["one"])
    with pytest.raises(ValueError, match="`split` is needed"):
        HubPoseDataset("someone/horses")
