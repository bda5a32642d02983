import numpy as np
import pytest
import yaml
from PIL import Image

from querypose_hf.data import ReadingOptions, UnusableImageError, YoloPoseDataset, check_data
from querypose_hf.data.yolo_pose import validation_split


SETTINGS = {
    "path": ".",
    "train": "images/train",
    "kpt_shape": [3, 3],
    "flip_idx": [0, 2, 1],
    "names": {0: "horse", 1: "rider"},
}


@pytest.fixture
def write(tmp_path):
    def write(labels, settings=None):
        """`labels` are the lines for each image, or `None` for no label file."""
        # this folder above the data must not be mistaken for that of the images
        root = tmp_path / "images" / "set"
        for kind in ("images", "labels"):
            (root / kind / "train").mkdir(parents=True, exist_ok=True)
        for i, lines in enumerate(labels):
            Image.new("RGB", (80, 40), (i, 0, 0)).save(root / "images" / "train" / f"{i}.png")
            if lines is not None:
                (root / "labels" / "train" / f"{i}.txt").write_text("\n".join(lines))
        (root / "data.yaml").write_text(yaml.safe_dump({**SETTINGS, **(settings or {})}))
        return root / "data.yaml"

    return write


LINE = "1 0.5 0.5 0.25 0.5 0.5 0.5 2 0.25 0.75 1 0 0 0"


class TestReading:
    def test_relative_coordinates_become_pixel_indices(self, write):
        dataset = YoloPoseDataset(write([[LINE, ""], [], None]))
        assert len(dataset) == 3
        assert np.array_equal(dataset.sizes, [[80, 40]] * 3)
        sample = dataset[0]
        assert sample["image"].getpixel((0, 0)) == (0, 0, 0)
        (entry,) = sample["annotations"]
        assert entry["category_id"] == 1
        assert entry["bbox"] == [30, 10, 20, 20]
        assert entry["area"] == 400
        # 0.5 of 80 pixels is the border between those of index 39 and 40
        assert entry["keypoints"] == [39.5, 19.5, 2, 19.5, 29.5, 1, 0, 0, 0]
        assert dataset[1]["annotations"] == dataset[2]["annotations"] == []
        assert dataset.remarks == {"images_without_label_file": 1}
        assert "images without label file " in check_data(dataset).to_text()
        assert dataset.category_names == {0: "horse", 1: "rider"}
        assert dataset.flip_indices == (0, 2, 1)

    def test_a_folder_in_place_of_a_label_file(self, write):
        path = write([[LINE], None])
        (path.parent / "labels" / "train" / "1.txt").mkdir()
        with pytest.raises(ValueError, match=r"1\.txt is a folder; expected a file of labels"):
            YoloPoseDataset(path)

    def test_two_numbers_per_keypoint(self, write):
        line = "0 0.5 0.5 0.25 0.5 0.5 0.5 0 0 0 0.25"
        dataset = YoloPoseDataset(write([[line]], {"kpt_shape": [3, 2]}))
        assert dataset.annotations(0)[0]["keypoints"] == [39.5, 19.5, 2, 0, 0, 0, -0.5, 9.5, 2]

    def test_only_with_people(self, write):
        path = write([[], [LINE], None, [LINE, LINE]])
        dataset = YoloPoseDataset(path, options=ReadingOptions(only_with_people=True))
        assert [dataset[i]["image"].getpixel((0, 0))[0] for i in range(len(dataset))] == [1, 3]
        assert dataset.left_out["images_without_people"] == 2

    def test_split_as_a_list_of_files(self, write):
        path = write([[LINE], [], [LINE]])
        (path.parent / "few.txt").write_text("images/train/2.png\nimages/train/0.png\n")
        data = {**SETTINGS, "train": ["few.txt"], "kpt_names": {0: ["nose", "left_ear", "right_ear"]}, "flip_idx": []}
        path.write_text(yaml.safe_dump(data))
        dataset = YoloPoseDataset(path)
        assert [dataset[i]["image"].getpixel((0, 0))[0] for i in range(2)] == [2, 0]
        assert dataset.keypoint_names == ("nose", "left_ear", "right_ear")
        assert dataset.flip_indices == (0, 2, 1)

    def test_broken_image(self, write):
        path = write([[LINE], [LINE]])
        (path.parent / "images" / "train" / "0.png").write_bytes(b"no picture")
        with pytest.raises(UnusableImageError, match=r"0\.png: the image cannot be read"):
            YoloPoseDataset(path)
        dataset = YoloPoseDataset(path, options=ReadingOptions(on_error="skip"))
        assert len(dataset) == 1 and dataset.left_out["unusable_images"] == 1
        assert dataset[0]["image"].getpixel((0, 0)) == (1, 0, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.25", r"0\.txt, line 2: 4 numbers; expected 14"),
        (LINE.replace("0.75", "x"), r"0\.txt, line 2: expected numbers"),
        (LINE.replace("0.75", "nan"), "line 2: expected finite numbers, got nan"),
        ("2" + LINE[1:], "line 2: class 2; expected a whole number from 0 to 1"),
        (LINE.replace("0.25 0.5 ", "25 50 ", 1), "line 2: box 0.5 0.5 25 50; expected numbers from 0 to 1"),
        (LINE.replace("0.75 1", "30 1"), "line 2: a keypoint lies far outside"),
        (LINE.replace("0.75 1", "0.75 4"), "line 2: visibility 4 of keypoint 1"),
    ],
)
def test_label_errors_name_file_and_line(write, line, message):
    with pytest.raises(ValueError, match=message):
        YoloPoseDataset(write([[LINE, line]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kpt_shape": [3, 4]}, r"`kpt_shape` is \[3, 4\]"),
        ({"kpt_shape": None}, "`kpt_shape` is None"),
        ({"names": {1: "horse"}}, "`names` is"),
        ({"kpt_shape": [True, 3]}, r"`kpt_shape` is \[True, 3\]"),
        ({"flip_idx": [1, 2, 0]}, r"`flip_idx`: .* is \[1, 2, 0\]; expected for each of 3 keypoints"),
        ({"flip_idx": "abc"}, "`flip_idx`: .* is 'abc'; expected for each of 3 keypoints"),
        ({"flip_idx": 3}, "`flip_idx`: .* is 3; expected for each of 3 keypoints"),
        ({"flip_idx": [0.5, 1, 2]}, r"`flip_idx`: .* is \[0\.5, 1, 2\]; expected for each of 3 keypoints"),
        ({"train": None}, r"no split `train`; expected one of \[\]"),
        ({"names": None}, "`names` is None; expected a list of names"),
        ({"nc": 3}, "`nc` is 3, but there are 2 `names`"),
        ({"nc": "two", "names": None}, "`nc` is 'two'; expected the number of classes"),
        ({"kpt_names": [1, 2, 3]}, "`kpt_names` is"),
        ({"kpt_names": ["a", "b"]}, "`kpt_names` has 2 names; expected 3"),
    ],
)
def test_settings_errors_name_the_field(write, settings, message):
    with pytest.raises(ValueError, match=message):
        YoloPoseDataset(write([[LINE]], settings))


def test_missing_files(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a file"):
        YoloPoseDataset(write([[LINE]], {"train": "elsewhere"}))
    with pytest.raises(FileNotFoundError, match="no such file"):
        YoloPoseDataset(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"no split `val`; expected one of \['train'\]"):
        YoloPoseDataset(write([[LINE]]), split="val")


class TestSplits:
    def test_labels_may_all_be_empty(self, write):
        for shape in ([3, 3], [3, 2]):
            dataset = YoloPoseDataset(write([[], None], {"kpt_shape": shape}))
            assert [dataset[i]["annotations"] for i in range(2)] == [[], []]
            assert dataset.num_keypoints == 3

    def test_splits_there_are(self, write):
        path = write([[LINE]], {"val": None, "test": ["images/train"]})
        with pytest.raises(ValueError, match=r"no split `validation` or `val`; expected one of \['train', 'test'\]"):
            YoloPoseDataset(path, ("validation", "val"))
        assert len(YoloPoseDataset(path, ("validation", "val", "test"))) == 1
        assert validation_split(path) is None
        assert validation_split(write([[LINE]], {"val": "images/train", "validation": "x"})) == "val"
        assert validation_split(write([[LINE]], {"validation": "images/train"})) == "validation"

    @pytest.mark.parametrize("place", ["../train/images", ["../train/images"], r"..\train\images", r"train\images"])
    def test_roboflow_layout(self, write, place):
        path = write([[LINE]], {"train": place, "path": None})
        (path.parent / "train").mkdir()
        for kind in ("images", "labels"):
            (path.parent / kind / "train").rename(path.parent / "train" / kind)
        dataset = YoloPoseDataset(path)
        assert len(dataset) == 1 and len(dataset.annotations(0)) == 1

    def test_folder_above_comes_first(self, write):
        path = write([[LINE]], {"path": "nested", "train": "../images/train"})
        (path.parent / "nested" / "images" / "train").mkdir(parents=True)
        assert len(YoloPoseDataset(path)) == 1

    def test_paths_from_the_working_folder(self, write, monkeypatch):
        path = write([[LINE]], {"path": "set"})
        monkeypatch.chdir(path.parent.parent)
        assert len(YoloPoseDataset(path)) == 1
        (path.parent / "few.txt").write_text("set/images/train/0.png\n")
        path.write_text(yaml.safe_dump({**SETTINGS, "train": "few.txt"}))
        assert len(YoloPoseDataset(path).annotations(0)) == 1

    def test_number_of_classes_without_names(self, write):
        dataset = YoloPoseDataset(write([[LINE]], {"names": None, "nc": 2}))
        assert dataset.category_names == {0: "class_0", 1: "class_1"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_from_windows(write, encoding):
    path = write([[LINE]])
    label_file = path.parent / "labels" / "train" / "0.txt"
    (path.parent / "few.txt").write_text("images\\train\\0.png\r\n", encoding=encoding)
    label_file.write_text(LINE + "\r\n", encoding=encoding)
    path.write_text(yaml.safe_dump({**SETTINGS, "train": "few.txt"}), encoding=encoding)
    assert len(YoloPoseDataset(path).annotations(0)) == 1
    label_file.write_bytes(b"\xff\x00\xff")
    with pytest.raises(ValueError, match=r"0\.txt: expected text in UTF-8"):
        YoloPoseDataset(path)
