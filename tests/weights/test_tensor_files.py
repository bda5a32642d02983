"""Files of weights are read whole, and no code in them is run."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from querypose_hf.weights.tensor_files import WeightsReport, read_tensors


STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def assert_state(found):
    assert found.keys() == STATE.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in STATE.items()
    )


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors")
    assert_state(read_tensors(str(tmp_path / "weights.safetensors")))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pytorch_files(tmp_path, zipped, key, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    content = state if key is None else {key: state, "optimizer": {"state": {}}, "iteration": 269999}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert_state(read_tensors(tmp_path / "weights.pth"))


def test_no_file(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"`checkpoint_path` is '.*{path.name}'; there is no such file"):
            read_tensors(path, "checkpoint_path")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], {"model": {"a": 1.0}}, {"model": "r50"}, {"state_dict": {"epoch": 3}}, {1: torch.zeros(1)}],
)
def test_other_content(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"`file` is '.*other\.pth'; expected a dict of tensors"):
        read_tensors(tmp_path / "other.pth")


def test_a_damaged_record(tmp_path):
    torch.save(torch.randn(10), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    assert b"little" in content
    (tmp_path / "damaged.pth").write_bytes(content.replace(b"little", b"\0" * 6))
    with pytest.raises(ValueError, match=r"`file` is '.*damaged\.pth'; expected a whole file"):
        read_tensors(tmp_path / "damaged.pth")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.pth", b""),
        ("text.pth", b"version https://git-lfs"),
        ("cut.pth", None),
        ("empty.safetensors", b""),
        ("text.safetensors", b"a" * 99),
    ],
)
def test_files_that_are_cut_off(tmp_path, name, data):
    if data is None:
        torch.save(torch.randn(1000), tmp_path / "whole.pth")
        data = (tmp_path / "whole.pth").read_bytes()[:2000]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"(?s)`file` is '.*{name}'; expected"):
        read_tensors(tmp_path / name)


class WritesAFile:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "the payload ran")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    marker = tmp_path / "marker"
    content = {"model": STATE, "extra": WritesAFile(marker)}
    torch.save(content, tmp_path / "code.pth", _use_new_zipfile_serialization=zipped)
    pickle.loads(pickle.dumps(WritesAFile(marker)))
    assert marker.exists()  # plain unpickling does run it
    marker.unlink()
    with pytest.raises(ValueError, match=r"(?s)code\.pth'; expected tensors alone.*could run code"):
        read_tensors(tmp_path / "code.pth")
    assert not marker.exists()


def test_report_lists_what_was_not_used():
    report = WeightsReport(used=["a", "b"], unused=["fc.weight"], missing=["head.bias"])
    assert str(report).splitlines() == [
        "2 tensors used, 1 unused, 1 missing",
        "  unused: fc.weight",
        "  missing: head.bias",
    ]
