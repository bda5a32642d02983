"""The code that a checkpoint carries, run where the package is out of reach: by somebody who only loads a model."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from places import PROJECT
from tiny import tiny_config
from transformers import AutoModel, pipeline

import querypose_hf
from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor, QueryPoseImageProcessorPil
from querypose_hf.model.configuration_querypose import HUB_ENTRIES, HUB_FILES


SOURCE = Path(querypose_hf.__file__).parent / "model"
MODULES = {"huggingface-hub": "huggingface_hub", "pillow": "PIL"}  # whose names differ from their distributions'

# Run with -I, which leaves the package's source folder and the working directory out of `sys.path`.
WITHOUT_PACKAGE = """
import sys

class OutOfReach:
    # first in line, also before the finder of an editable installation
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

USE = """
import json
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPoseEstimation, pipeline

folder, picture, found, again, model_alone = sys.argv[1:]
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
image_processor = AutoImageProcessor.from_pretrained(folder, **trust)
base = AutoModel.from_pretrained(folder, dtype=torch.float64, **trust).eval()
model = AutoModelForPoseEstimation.from_pretrained(folder, dtype=torch.float64, **trust).eval()
pose_estimator = pipeline("pose-estimation", model=folder, device="cpu", dtype=torch.float64, **trust)
kinds = [config, image_processor, base, model, pose_estimator, pose_estimator.model, pose_estimator.image_processor]
assert all(type(one).__module__.startswith("transformers_modules.") for one in kinds), kinds

inputs = image_processor(picture, return_tensors="pt")
with torch.no_grad():
    last_hidden_state = base(**inputs.to(torch.float64)).last_hidden_state
    logits = model(**inputs).logits
arrays = {"pixel_values": inputs["pixel_values"], "last_hidden_state": last_hidden_state, "logits": logits}
if Path(folder, "image_processing_pil_querypose.py").exists():
    pil = AutoImageProcessor.from_pretrained(folder, backend="pil", **trust)
    assert type(pil).__name__ == "QueryPoseImageProcessorPil"
    arrays["pil_pixel_values"] = pil(picture, return_tensors="pt")["pixel_values"]
np.savez(found + ".npz", **{name: value.numpy() for name, value in arrays.items()})
people = pose_estimator([picture, PIL.Image.open(picture).rotate(90, expand=True)], batch_size=2, threshold=0.0)
report = {
    "people": people,
    "kinds": [type(one).__name__ for one in kinds],
    "keypoint_names": config.keypoint_names,
    "num_queries": config.num_queries,
}
Path(found + ".json").write_text(json.dumps(report))
pose_estimator.save_pretrained(again)
model.save_pretrained(model_alone)
"""


def run(code, *arguments, home):
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_PACKAGE + code, *map(str, arguments)],
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A checkpoint, a picture, and what this package makes of them."""
    root = tmp_path_factory.mktemp("hub_code")
    folder, picture = root / "checkpoint", root / "picture.png"
    torch.manual_seed(0)
    QueryPoseForPoseEstimation(tiny_config()).save_pretrained(folder)
    QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    y, x = np.mgrid[:90, :120]
    waves = np.stack([np.sin(x / 9 + phase) * np.cos(y / 11 - phase) for phase in range(3)], axis=-1)
    PIL.Image.fromarray(np.rint(127.5 + 127 * waves).astype(np.uint8)).save(picture)

    image_processor = QueryPoseImageProcessor.from_pretrained(folder)
    inputs = image_processor(str(picture), return_tensors="pt")
    model = QueryPoseForPoseEstimation.from_pretrained(folder, dtype=torch.float64).eval()
    base = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    pose_estimator = pipeline("pose-estimation", model=str(folder), device="cpu", dtype=torch.float64)
    with torch.no_grad():
        arrays = {
            "pixel_values": inputs["pixel_values"],
            "last_hidden_state": base(**inputs.to(torch.float64)).last_hidden_state,
            "logits": model(**inputs).logits,
        }
    pil = QueryPoseImageProcessorPil.from_pretrained(folder)
    arrays["pil_pixel_values"] = pil(str(picture), return_tensors="pt")["pixel_values"]
    images = [str(picture), PIL.Image.open(picture).rotate(90, expand=True)]
    return {
        "root": root,
        "folder": folder,
        "picture": picture,
        "arrays": {name: value.numpy() for name, value in arrays.items()},
        "people": pose_estimator(images, batch_size=2, threshold=0.0),
        "config": model.config,
    }


@pytest.fixture(scope="module")
def used(workplace):
    """The checkpoint used and saved again without the package, in a process with caches of its own."""
    home = workplace["root"] / "home"
    home.mkdir()
    done = run(
        USE,
        workplace["folder"],
        workplace["picture"],
        home / "found",
        home / "again",
        home / "model_alone",
        home=home,
    )
    assert done.returncode == 0, done.stderr
    return home


def assert_found_the_same(home, workplace, names):
    found = np.load(home / "found.npz")
    assert set(found) == set(names)
    for name in found:
        np.testing.assert_allclose(found[name], workplace["arrays"][name], rtol=0, atol=1e-6, err_msg=name)
    report = json.loads((home / "found.json").read_text())
    assert report["kinds"] == [
        "QueryPoseConfig",
        "QueryPoseImageProcessor",
        "QueryPoseModel",
        "QueryPoseForPoseEstimation",
        "PoseEstimationPipeline",
        "QueryPoseForPoseEstimation",
        "QueryPoseImageProcessor",
    ]
    assert report["keypoint_names"] == workplace["config"].keypoint_names
    assert report["num_queries"] == workplace["config"].num_queries
    for people, expected in zip(report["people"], workplace["people"], strict=True):
        assert len(people) == len(expected) > 0
        for person, expected_person in zip(people, expected, strict=True):
            assert person["label"] == expected_person["label"]
            assert person["score"] == pytest.approx(expected_person["score"], abs=1e-6)
            assert person["box"] == pytest.approx(expected_person["box"], abs=1e-6)
            for point, expected_point in zip(person["keypoints"], expected_person["keypoints"], strict=True):
                assert point.pop("name") == expected_point["name"]
                assert point == pytest.approx({k: expected_point[k] for k in ("x", "y", "score")}, abs=1e-6)


def test_same_results_without_the_package(workplace, used):
    assert_found_the_same(used, workplace, ["pixel_values", "last_hidden_state", "logits", "pil_pixel_values"])


def test_saved_again_without_the_package(workplace, used):
    """What was saved from the code of a checkpoint is a checkpoint with code, too."""
    home = workplace["root"] / "next_home"
    home.mkdir()
    done = run(
        USE, used / "again", workplace["picture"], home / "found", home / "third", home / "model_alone", home=home
    )
    assert done.returncode == 0, done.stderr
    # of the image processor's two backends the one in use is saved
    assert_found_the_same(home, workplace, ["pixel_values", "last_hidden_state", "logits"])
    # nothing is lost from one generation to the next
    assert sorted(path.name for path in (home / "third").iterdir()) == sorted(
        path.name for path in (used / "again").iterdir()
    )


def test_model_saved_again_without_the_package_is_loaded_by_it(workplace, used):
    model = QueryPoseForPoseEstimation.from_pretrained(used / "model_alone", dtype=torch.float64).eval()
    inputs = {"pixel_values": torch.from_numpy(workplace["arrays"]["pixel_values"]).double()}
    inputs["pixel_mask"] = torch.zeros(1, *inputs["pixel_values"].shape[-2:], dtype=torch.long)
    inputs["pixel_mask"][:, :64, :85] = 1
    with torch.no_grad():
        logits = model(**inputs).logits
    np.testing.assert_allclose(logits.numpy(), workplace["arrays"]["logits"], rtol=0, atol=1e-6)


REFUSED = """
from transformers import AutoConfig, AutoImageProcessor, AutoModelForPoseEstimation, pipeline

folder = sys.argv[1]
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
"""


def test_refused_without_trust(workplace):
    home = workplace["root"] / "wary_home"
    home.mkdir()
    done = run(REFUSED, workplace["folder"], home=home)
    assert done.returncode == 0, done.stderr


def test_hub_files_are_the_modules_that_are_named_so():
    assert {path.name for path in SOURCE.glob("*_querypose.py")} | {"skeletons.py"} == set(HUB_FILES)
    named = [*HUB_ENTRIES["auto_map"].values(), *(task["impl"] for task in HUB_ENTRIES["custom_pipelines"].values())]
    for reference in named:
        module, _, name = reference.partition(".")
        assert f"{module}.py" in HUB_FILES
        assert re.search(rf"^class {name}\b", (SOURCE / f"{module}.py").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", HUB_FILES)
def test_imports_of_hub_files(name):
    """Only each other, as `from .name import ...`, the standard library, and what the package depends on."""
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    distributions = {re.match(r"[\w-]+", dependency).group() for dependency in dependencies}
    allowed = {MODULES.get(name, name) for name in distributions} | set(sys.stdlib_module_names)
    siblings = {file.removesuffix(".py") for file in HUB_FILES}
    statements = list(ast.walk(ast.parse((SOURCE / name).read_text(encoding="utf-8"))))
    for statement in statements:
        if isinstance(statement, ast.ImportFrom) and statement.level:
            assert statement.level == 1 and statement.module in siblings, ast.unparse(statement)
            assert all(alias.name != "*" for alias in statement.names), ast.unparse(statement)
            # nested ones are not seen by Transformers when it gathers the files
            assert statement.col_offset == 0, ast.unparse(statement)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.module.partition(".")[0] in allowed, ast.unparse(statement)
        elif isinstance(statement, ast.Import):
            assert all(alias.name.partition(".")[0] in allowed for alias in statement.names), ast.unparse(statement)
    assert any(isinstance(statement, ast.Import | ast.ImportFrom) for statement in statements)
