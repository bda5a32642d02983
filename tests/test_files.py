import json

import numpy as np
import pytest

from querypose_hf.files import filling_folder, find_file, making_folder, read_json, replacing_file, write_json


def test_json_goes_around(tmp_path):
    write_json({"a": np.arange(3), "b": np.float32(0.5)}, tmp_path / "new" / "a.json", indent=2)
    assert read_json(tmp_path / "new" / "a.json") == {"a": [0, 1, 2], "b": 0.5}
    with pytest.raises(ValueError, match=r"b\.json: not a JSON file"):
        (tmp_path / "b.json").write_text("{")
        read_json(tmp_path / "b.json")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json([1], path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json([float("nan")], path)
    with pytest.raises(RuntimeError), replacing_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_filled_folder_keeps_other_files(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "config.json").write_text("old")
    with pytest.raises(RuntimeError), filling_folder(tmp_path) as temporary:
        (temporary / "config.json").write_text("new")
        raise RuntimeError
    assert (tmp_path / "config.json").read_text() == "old"
    with filling_folder(tmp_path, last="config.json", durable=True) as temporary:
        (temporary / "config.json").write_text("new")
        (temporary / "code").mkdir()
        (temporary / "code" / "a.py").write_text("")
    assert (tmp_path / "config.json").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "config.json", "code"}
    assert (tmp_path / "code" / "a.py").is_file()


def test_made_folder_appears_whole(tmp_path):
    with pytest.raises(RuntimeError), making_folder(tmp_path / "made") as temporary:
        (temporary / "a").write_text("a")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with making_folder(tmp_path / "made") as temporary:
        (temporary / "a").write_text("a")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "a").read_text() == "a"
    with pytest.raises(FileExistsError), making_folder(tmp_path / "made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_no_text(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"name": "Ä"}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"name": "Ä"}
    (tmp_path / "b.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(ValueError, match=r"b\.json: expected text in UTF-8: .*position 10"):
        read_json(tmp_path / "b.json")


def test_backslashes_in_names_of_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "1.jpg").touch()
    assert find_file(tmp_path, r"sub\1.jpg") == find_file(tmp_path, "sub/1.jpg") == tmp_path / "sub" / "1.jpg"
    assert find_file(tmp_path, r"sub\2.jpg") == tmp_path / r"sub\2.jpg"
    (tmp_path / r"sub\1.jpg").touch()
    assert find_file(tmp_path, r"sub\1.jpg") == tmp_path / r"sub\1.jpg"
