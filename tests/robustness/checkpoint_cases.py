"""Checkpoints and configurations: damaged, of other models, with code; `querypose predict` and others load them."""

import json
import pickle
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_cases import require_error, require_people, same_people
from mutations import damage_bytes, damage_json, damage_text, pick
from safetensors.torch import load_file, save_file
from sandbox import Fault, command, contents, describe, reason
from tiny import save_tiny_checkpoint

from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.training.checkpoints import load_checkpoint
from querypose_hf.weights.tensor_files import read_tensors


@dataclass
class State:
    checkpoint: Path
    config: dict[str, Any]
    processor: dict[str, Any]
    weights: dict[str, torch.Tensor]
    expected: list[dict[str, Any]]
    training: bytes
    what: str = ""


#: Fields of configurations that say what pixels, scores and the decoder's numbers mean, so that others may be found.
_CHANGE_EVERYTHING = ("rescale", "image_mean", "image_std", "size", "normalize", "resize", "threshold", "eps")


class Code:
    """Runs code where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def prepare(folder: Path) -> State:
    checkpoint = folder / "checkpoint"
    save_tiny_checkpoint(checkpoint, class_bias=0.5)
    training = folder / "training.pt"
    torch.save({"format": 1, "step": 3, "model": {"weight": torch.zeros(100)}}, training)
    state = State(
        checkpoint,
        json.loads((checkpoint / "config.json").read_text()),
        json.loads((checkpoint / "preprocessor_config.json").read_text()),
        load_file(checkpoint / "model.safetensors"),
        [],
        training.read_bytes(),
    )
    (folder / "out").mkdir()
    state.expected = _predict(checkpoint, folder / "out")[0] or []
    assert state.expected
    return state


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    if rng.random() < 0.2:
        return _read_weights(rng, folder, state)
    copy = folder / "checkpoint"
    shutil.copytree(state.checkpoint, copy)
    marker = folder / "code_has_run"
    kind = pick(
        rng, (_damage_config, _damage_config, _damage_processor, _damage_weights, _other_weights, _other_files)
    )
    what, expected = kind(rng, copy, state, marker)
    state.what = what
    before = contents(copy)
    output = folder / "out"
    output.mkdir()
    people, said = _predict(copy, output, (*state.config, *state.processor))
    if marker.exists():
        raise Fault("code", "code of the checkpoint has run")
    if contents(copy) != before:
        raise Fault("outside", "the checkpoint's folder has changed")
    if people is None:
        if expected == "same":
            raise Fault("wrong", f"a good checkpoint is refused: {said}")
        return what, False, said
    if expected == "refused":
        raise Fault("wrong", "a model with weights that are missing, or no numbers, finds people")
    if expected == "some" and not people:
        raise Fault("wrong", "nobody is found, without a word")
    if expected in ("", "same") and not same_people(people, state.expected):
        raise Fault("wrong", f"{len(people)} people in place of {len(state.expected)}, or others")
    return what, True, said


def _predict(checkpoint: Path, output: Path, fields: Iterable[str] = ()) -> tuple[list[dict[str, Any]] | None, str]:
    """The people of the photograph, or None and what was said: it names the checkpoint, or one of its fields."""
    lines = output / "people.jsonl"
    arguments = ["predict", str(SAMPLE_IMAGE), "--model", str(checkpoint), "--threshold", "0.2", "--device", "cpu"]
    status, _, said = command([*arguments, "--output", str(output), "--jsonl", str(lines)])
    if status:
        if list(output.glob("*_poses.jpg")):
            raise Fault("partial", "an image is drawn, and the status is not 0")
        if not any(f"`{field}`" in reason(said) for field in fields):
            require_error(said, checkpoint)
        return None, reason(said)
    [record] = [json.loads(line) for line in lines.read_text().splitlines()]
    require_people(record["people"], 640, 360)
    return record["people"], reason(said)


def _damage_config(rng: np.random.Generator, folder: Path, state: State, marker: Path) -> tuple[str, str]:
    return _damage_file(rng, folder / "config.json", state.config)


def _damage_processor(rng: np.random.Generator, folder: Path, state: State, marker: Path) -> tuple[str, str]:
    return _damage_file(rng, folder / "preprocessor_config.json", state.processor)


def _damage_file(rng: np.random.Generator, path: Path, content: dict[str, Any]) -> tuple[str, str]:
    """What was done, and which people are right: the same, some, or any where pixels and scores change."""
    draw = rng.random()
    expected = ""
    if draw < 0.7:
        damaged, what = damage_json(content, rng)
        path.write_text(json.dumps(damaged))
        in_lists = any(done[0].isdecimal() for done in what.split("; ") if done)  # such as the mean of a channel
        expected = "others" if in_lists or any(field in what for field in _CHANGE_EVERYTHING) else "some"
    elif draw < 0.85:
        data, what = damage_text(json.dumps(content, indent=2), rng)
        path.write_bytes(data)
        expected = "some" if what == "none" else ""  # without fields all are usual
    elif draw < 0.95:
        data, what = damage_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
        expected = "others"
    else:
        other = pick(
            rng,
            (
                {"model_type": "bert", "hidden_size": 32},
                {"model_type": "detr"},
                {"model_type": "nothing"},
                {"architectures": ["QueryPoseForPoseEstimation"]},
                {"model_type": "querypose", "auto_map": {"AutoConfig": "../evil.Config"}},
                {"image_processor_type": "DetrImageProcessor"},
                {"image_processor_type": "Nothing"},
            ),
        )
        path.write_text(json.dumps(other))
        what = str(other)
        if path.name == "preprocessor_config.json":
            expected = "others"  # without fields all are usual
    return f"{path.name}: {what}", expected


def _damage_weights(rng: np.random.Generator, folder: Path, state: State, marker: Path) -> tuple[str, str]:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if rng.random() < 0.5:
        content, what = damage_bytes(content, rng)
    else:
        length = struct.unpack("<Q", content[:8])[0]
        header, body = content[8 : 8 + length], content[8 + length :]
        draw = rng.random()
        if draw < 0.3:
            wrong = int(pick(rng, (0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1)))
            content, what = struct.pack("<Q", wrong) + header + body, f"header of {wrong} bytes"
        elif draw < 0.8:
            damaged, what = damage_json(json.loads(header), rng)
            text = json.dumps(damaged).encode()
            content = struct.pack("<Q", len(text)) + text + body
        else:
            text, what = damage_bytes(header, rng)
            content = struct.pack("<Q", len(text)) + text + body
    path.write_bytes(content)
    return f"model.safetensors: {what}", "others"


def _other_weights(rng: np.random.Generator, folder: Path, state: State, marker: Path) -> tuple[str, str]:
    """Whole files of other tensors."""
    weights = dict(state.weights)
    name = pick(rng, sorted(weights))
    what = pick(
        rng, ("shape", "missing", "more", "nan", "infinity", "denormal", "huge", "float16", "integers", "names")
    )
    tensor = weights[name]
    expected = ""
    if what == "shape":
        weights[name] = torch.zeros(*tensor.shape, 2) if rng.random() < 0.5 else torch.zeros(3)
    elif what == "missing":
        for _ in range(int(rng.integers(1, 30))):
            weights.pop(pick(rng, sorted(weights)), None)
        expected = "refused"
    elif what == "more":
        weights["something.else"] = torch.zeros(3)
        expected = "same"
    elif what in ("nan", "infinity", "denormal", "huge"):
        value = {"nan": float("nan"), "infinity": float("inf"), "denormal": 1e-42, "huge": 3e38}[what]
        if tensor.is_floating_point():
            flat = tensor.clone().flatten()
            flat[: max(1, len(flat) // 3)] = value
            weights[name] = flat.view(tensor.shape)
            expected = "refused" if what in ("nan", "infinity") else "others"
    elif what == "float16":
        expected = "some"
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    elif what == "integers":
        weights[name] = tensor.to(torch.int32)
        expected = "others"
    else:
        weights = {f"other.{key}": value for key, value in weights.items()}
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return f"weights: {what} {name}", expected


def _other_files(rng: np.random.Generator, folder: Path, state: State, marker: Path) -> tuple[str, str]:
    weights = folder / "model.safetensors"
    what = pick(
        rng,
        ("pickle", "code", "no weights", "no config", "no processor", "index", "folder", "link", "remote code", "zip"),
    )
    if what in ("pickle", "code", "zip"):
        weights.unlink()
        content = Code(marker) if what == "code" else dict(state.weights)
        torch.save(content, folder / "pytorch_model.bin")
        if what == "code" and rng.random() < 0.5:
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))
        elif what == "zip":
            path = folder / "pytorch_model.bin"
            path.write_bytes(damage_bytes(path.read_bytes(), rng)[0])
    elif what == "no weights":
        weights.unlink()
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "no processor":
        (folder / "preprocessor_config.json").unlink()
    elif what == "index":
        weights.rename(folder / "part.safetensors")
        target = pick(rng, ("part.safetensors", "../part.safetensors", "/etc/passwd", "missing.safetensors", ""))
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(state.weights, target)}
        index = damage_json(index, rng)[0] if rng.random() < 0.3 else index
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        what += f" {target}"
    elif what == "folder":
        weights.unlink()
        weights.mkdir()
    elif what == "link":
        weights.unlink()
        weights.symlink_to(pick(rng, ("nowhere", "/dev/null", "config.json")))
    else:
        (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
        config = {**state.config, "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForPoseEstimation": "evil.Evil"}}
        if rng.random() < 0.5:
            config["model_type"] = "evil"
        (folder / "config.json").write_text(json.dumps(config))
    return f"files: {what}", "others" if what == "zip" else ""


def _read_weights(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    """Readers of files that are no checkpoints of Transformers: PyTorch's files, and those of a training run."""
    marker = folder / "code_has_run"
    path = folder / pick(rng, ("weights.pt", "weights.pth", "weights.safetensors", "step_3.pt"))
    what = pick(rng, ("damaged", "code", "other", "nested", "whole"))
    if what == "damaged":
        source = (
            state.training if path.suffix != ".safetensors" else (state.checkpoint / "model.safetensors").read_bytes()
        )
        data, done = damage_bytes(source, rng)
        path.write_bytes(data)
        what += f" {done}"
    elif what == "code":
        content: Any = pick(rng, (Code(marker), {"format": 1, "model": Code(marker)}, [Code(marker)]))
        if rng.random() < 0.5:
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content))
    elif what == "other":
        torch.save(pick(rng, ([], None, 3, {"format": 2}, {"state_dict": 3}, {1: torch.zeros(1)}, "text")), path)
    elif what == "nested":
        torch.save({"state_dict": {"state_dict": {"x": torch.zeros(1)}}}, path)
    else:
        torch.save({"format": 1, "step": 1}, path)
    state.what = what = f"{path.name}: {what}"
    said = []
    for reader in (read_tensors, load_checkpoint):
        try:
            reader(path)
        except (OSError, ValueError) as error:
            said.append(str(error))
            if path.name not in said[-1]:
                raise Fault("unclear", describe(error)) from error
        except Exception as error:
            raise Fault("traceback", f"{reader.__name__}: {describe(error)}") from error
    if marker.exists():
        raise Fault("code", "code of the file has run")
    return what, len(said) < 2, "; ".join(said)
