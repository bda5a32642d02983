"""Tests of sources: which of them are videos, and what folders and patterns stand for."""

import PIL.Image
import pytest

from querypose_hf.commands.tally import InputTally
from querypose_hf.inference.sources import check_image, expand_sources, is_video


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("clip.MP4", True),
        ("photo.jpg", False),
        ("https://example.org/clip.webm?size=4", True),
        ("https://example.org/photo.jpg", False),
        ("rtsp://camera/1", True),
        ("0", True),
        ("folder/0", False),
    ],
)
def test_videos_are_told_by_their_name(source, expected):
    assert is_video(source) == expected


def test_a_file_named_by_a_number_is_no_webcam(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").touch()
    assert not is_video("7")


def test_folders_and_patterns_are_expanded(tmp_path):
    for name in ("b.mp4", "a.png", "notes.txt", "paper.pdf"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "[1].jpg").touch()
    folder = str(tmp_path)
    assert expand_sources([folder]) == [f"{folder}/[1].jpg", f"{folder}/a.png", f"{folder}/b.mp4"]
    assert expand_sources([f"{folder}/*.p*"]) == [f"{folder}/a.png", f"{folder}/paper.pdf"]
    as_they_are = [f"{folder}/[1].jpg", "https://example.org/*.jpg", f"{folder}/missing.jpg"]
    assert expand_sources(as_they_are) == as_they_are
    with pytest.raises(FileNotFoundError, match=r"nothing matches .*\*\.webm"):
        expand_sources([f"{folder}/*.webm"])
    with pytest.raises(ValueError, match=r"the folder .*empty holds neither"):
        expand_sources([f"{folder}/empty"])


def test_what_a_folder_holds_and_cannot_be_read_is_told(tmp_path):
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "phone.HEIC").write_bytes(bytes(12) + b"ftypheic")
    (tmp_path / "folder.jpg").mkdir()
    lost, phone = expand_sources([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"lost\.jpg: no such file"):
        check_image(lost)
    with pytest.raises(ValueError, match=r"phone\.HEIC cannot be read"):
        check_image(phone)


def test_images_are_checked(tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no image")
    check_image(str(tmp_path / "image.png"))
    check_image("https://example.org/missing.jpg")
    with pytest.raises(FileNotFoundError, match=r"missing\.png: no such file"):
        check_image(str(tmp_path / "missing.png"))
    with pytest.raises(ValueError, match=r"text\.png cannot be read"):
        check_image(str(tmp_path / "text.png"))


class OwnError(Exception):
    pass


def test_any_error_of_one_source_is_counted(capsys):
    def fail(error):
        raise error

    tally = InputTally(strict=False)
    assert tally.attempt("a.mov", fail, AttributeError("no width")) is None
    assert list(tally.items("b.mov", map(fail, [OwnError()]))) == []
    tally.add(has_people=True)
    assert tally.finish() == 1
    assert tally.skipped == ["a.mov: no width", "b.mov: OwnError"]
    assert "1 sources read, 0 of them empty; 2 skipped (a.mov: no width; b.mov: OwnError)" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"a\.mov: no width"):
        InputTally(strict=True).attempt("a.mov", fail, AttributeError("no width"))
