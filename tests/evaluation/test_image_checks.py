import numpy as np
import PIL.Image
import pytest

from querypose_hf.evaluation.image_checks import check_images
from querypose_hf.evaluation.image_list import read_image_list


SIZES = [(60, 40), (40, 60), (64, 48), (48, 64), (50, 50)]


@pytest.fixture
def records(tmp_path):
    for index, size in enumerate(SIZES):
        PIL.Image.new("RGB", size).save(tmp_path / f"{index}.png")
    return [
        {"id": index, "file_name": f"{index}.png", "width": width, "height": height}
        for index, (width, height) in enumerate(SIZES)
    ]


def check(records, folder):
    return check_images(read_image_list({"images": records}), folder, progress=False)


def test_files_and_sizes(records, tmp_path):
    files, sizes = check(records, tmp_path)
    assert files == [str(tmp_path / f"{index}.png") for index in range(5)]
    np.testing.assert_array_equal(sizes, SIZES)


def test_a_folder_that_does_not_exist(records, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`images_dir` is .*none'; there is no such folder"):
        check(records, tmp_path / "none")


def test_missing_images_are_counted_and_the_first_named(records, tmp_path):
    for index in range(4):
        (tmp_path / f"{index}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"4 of 5 images \(0.png; 1.png; 2.png; and 1 more\) are not in"):
        check(records, tmp_path)


def test_images_that_cannot_be_read(records, tmp_path):
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 5 images \(.*2.png: the image cannot be read.*cannot be used"):
        check(records, tmp_path)


def test_images_of_another_size_than_recorded(records, tmp_path):
    records[3]["width"] = 49
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"2 of 5 images .*60 x 40 pixels; expected 64 x 48.*; .*3.png"):
        check(records, tmp_path)


def test_sizes_of_images_before_they_are_turned_upright(records, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", SIZES[2]).save(tmp_path / "2.png", exif=exif)
    with pytest.raises(ValueError, match=r"48 x 64 pixels; expected 64 x 48.*before its EXIF orientation"):
        check(records, tmp_path)


def test_names_of_files_from_windows(records, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "2.png").rename(tmp_path / "sub" / "2.png")
    records[2]["file_name"] = r"sub\2.png"
    assert check(records, tmp_path)[0][2] == str(tmp_path / "sub" / "2.png")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("file_name", None, "annotations: image 1: `file_name` is None; expected the name of a file"),
        ("width", "60", "annotations: image 1: `width` is '60'; expected a whole number of pixels"),
        ("height", 0, "annotations: image 1: `height` is 0; expected a whole number of pixels, at least 1"),
    ],
)
def test_wrong_records_are_named(records, tmp_path, field, value, message):
    records[1][field] = value
    with pytest.raises(ValueError, match=message):
        check(records, tmp_path)
