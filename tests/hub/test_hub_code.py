"""The code that a checkpoint carries gives the same results where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import save_tiny_checkpoint
from transformers import AutoModel, pipeline

import querypose_hf
from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor, QueryPoseImageProcessorPil


# Run with -I, which leaves the package's source folder and the working directory out of `sys.path`.
WITHOUT_PACKAGE = """
import sys

class OutOfReach:
    # first, even before the finder of an editable installation
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "querypose_hf":
            raise ModuleNotFoundError(f"{name} is out of reach")

sys.meta_path.insert(0, OutOfReach())
try:
    import querypose_hf
except ModuleNotFoundError:
    pass
else:
    sys.exit("the package is within reach")
"""

# Refused without trust; then used and saved, and what was saved used and saved again.
USE = """
import json
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPoseEstimation, pipeline

folder, image, home = sys.argv[1:]
for load in (
    AutoConfig.from_pretrained,
    AutoImageProcessor.from_pretrained,
    AutoModelForPoseEstimation.from_pretrained,
    lambda name, **trust: pipeline("pose-estimation", model=name, **trust),
):
    for trust in ({}, {"trust_remote_code": False}):
        try:
            load(folder, **trust)
        except ValueError as error:
            assert "trust_remote_code" in str(error) or "custom code" in str(error), error
        else:
            sys.exit(f"{load} ran the code without being told to trust it: {trust}")
assert not [name for name in sys.modules if name.startswith("transformers_modules.")]


def use(folder, found, again):
    trust = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trust)
    image_processor = AutoImageProcessor.from_pretrained(folder, **trust)
    base = AutoModel.from_pretrained(folder, dtype=torch.float64, **trust).eval()
    model = AutoModelForPoseEstimation.from_pretrained(folder, dtype=torch.float64, **trust).eval()
    pose_estimator = pipeline(
        "pose-estimation", model=folder, device="cpu", dtype=torch.float64, optimize=True, **trust
    )
    classes = [config, image_processor, base, model, pose_estimator, pose_estimator.model]
    classes = [type(one) for one in [*classes, pose_estimator.image_processor]]
    origin = ["transformers_modules", Path(folder).name]
    assert all(one.__module__.split(".")[:2] == origin for one in classes), classes

    inputs = image_processor(image, return_tensors="pt")
    with torch.no_grad():
        last_hidden_state = base(**inputs.to(torch.float64)).last_hidden_state
        logits = model(**inputs).logits
    arrays = {"pixel_values": inputs["pixel_values"], "last_hidden_state": last_hidden_state, "logits": logits}
    if Path(folder, "image_processing_pil_querypose.py").exists():
        pil = AutoImageProcessor.from_pretrained(folder, backend="pil", **trust)
        assert type(pil).__name__ == "QueryPoseImageProcessorPil"
        arrays["pil_pixel_values"] = pil(image, return_tensors="pt")["pixel_values"]
    np.savez(found + ".npz", **{name: value.numpy() for name, value in arrays.items()})
    people = pose_estimator([image, PIL.Image.open(image).rotate(90, expand=True)], batch_size=2, threshold=0.0)
    report = {
        "people": people,
        "classes": [one.__name__ for one in classes],
        "keypoint_names": config.keypoint_names,
        "num_queries": config.num_queries,
    }
    Path(found + ".json").write_text(json.dumps(report))
    pose_estimator.save_pretrained(again)
    model.save_pretrained(again + "_model")


use(folder, home + "/first", home + "/second_generation")
use(home + "/second_generation", home + "/second", home + "/third_generation")
"""


def run(code, *arguments, home, hub=None, package=False):
    """Runs code in a process with caches of its own: offline, or with a `hub`, and without the package or with it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if hub is None else hub
    environment["PYTHONPATH"] = str(Path(querypose_hf.__file__).parents[1])
    command = [sys.executable, "-c", code] if package else [sys.executable, "-I", "-c", WITHOUT_PACKAGE + code]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub_code") / "checkpoint"
    save_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def image(checkpoint):
    y, x = np.mgrid[:90, :120]
    waves = np.stack([np.sin(x / 9 + phase) * np.cos(y / 11 - phase) for phase in range(3)], axis=-1)
    path = checkpoint.parent / "image.png"
    PIL.Image.fromarray(np.rint(127.5 + 127 * waves).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(checkpoint, image):
    """What the package makes of the image."""
    inputs = QueryPoseImageProcessor.from_pretrained(checkpoint)(str(image), return_tensors="pt")
    pil = QueryPoseImageProcessorPil.from_pretrained(checkpoint)(str(image), return_tensors="pt")
    model = QueryPoseForPoseEstimation.from_pretrained(checkpoint, dtype=torch.float64).eval()
    base = AutoModel.from_pretrained(checkpoint, dtype=torch.float64).eval()
    pose_estimator = pipeline("pose-estimation", model=str(checkpoint), device="cpu", dtype=torch.float64)
    with torch.no_grad():
        arrays = {
            "pixel_values": inputs["pixel_values"],
            "last_hidden_state": base(**inputs.to(torch.float64)).last_hidden_state,
            "logits": model(**inputs).logits,
            "pil_pixel_values": pil["pixel_values"],
        }
    images = [str(image), PIL.Image.open(image).rotate(90, expand=True)]
    return {
        "arrays": {name: value.numpy() for name, value in arrays.items()},
        "people": pose_estimator(images, batch_size=2, threshold=0.0),
        "config": model.config,
        "inputs": inputs,
    }


@pytest.fixture(scope="module")
def home(checkpoint, image):
    """Where a process without the package left its results."""
    home = checkpoint.parent / "home"
    home.mkdir()
    run(USE, checkpoint, image, home, home=home)
    return home


# of the image processor's two backends the one in use is saved
@pytest.mark.parametrize(("generation", "missing"), [("first", set()), ("second", {"pil_pixel_values"})])
def test_same_results_without_the_package(home, expected, generation, missing):
    found = np.load(home / f"{generation}.npz")
    assert set(found) == set(expected["arrays"]) - missing
    for name in found:
        np.testing.assert_allclose(found[name], expected["arrays"][name], rtol=0, atol=1e-6, err_msg=name)
    report = json.loads((home / f"{generation}.json").read_text())
    assert report["classes"] == [
        "QueryPoseConfig",
        "QueryPoseImageProcessor",
        "QueryPoseModel",
        "QueryPoseForPoseEstimation",
        "PoseEstimationPipeline",
        "QueryPoseForPoseEstimation",
        "QueryPoseImageProcessor",
    ]
    assert report["keypoint_names"] == expected["config"].keypoint_names
    assert report["num_queries"] == expected["config"].num_queries
    for people, expected_people in zip(report["people"], expected["people"], strict=True):
        assert len(people) == len(expected_people) > 0
        for person, expected_person in zip(people, expected_people, strict=True):
            assert person["label"] == expected_person["label"]
            assert person["score"] == pytest.approx(expected_person["score"], abs=1e-6)
            assert person["box"] == pytest.approx(expected_person["box"], abs=1e-6)
            for point, expected_point in zip(person["keypoints"], expected_person["keypoints"], strict=True):
                assert point.pop("name") == expected_point["name"]
                assert point == pytest.approx({k: expected_point[k] for k in ("x", "y", "score")}, abs=1e-6)


def test_nothing_is_lost_from_one_generation_to_the_next(home):
    second, third = ({path.name for path in (home / f"{name}_generation").iterdir()} for name in ("second", "third"))
    assert second == third


def test_model_saved_without_the_package_is_loaded_by_it(home, expected):
    model = QueryPoseForPoseEstimation.from_pretrained(home / "second_generation_model", dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(**expected["inputs"].to(torch.float64)).logits
    np.testing.assert_allclose(logits.numpy(), expected["arrays"]["logits"], rtol=0, atol=1e-6)
