"""Transformers knows QueryPose as soon as `querypose_hf` is imported, in whatever order."""

import os
import subprocess
import sys
import threading

import pytest
from places import PROJECT

from querypose_hf.registration import _register_at_first_use


SCRIPT = """
import importlib, pickle, sys

# first
from transformers import AutoConfig, AutoImageProcessor, AutoModelForPoseEstimation
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY
import querypose_hf

def assert_not_imported(*names):
    assert not {f"querypose_hf.model.{name}_querypose" for name in names} & sys.modules.keys()

assert_not_imported("configuration", "modeling", "image_processing", "pipeline")
config = AutoConfig.from_pretrained(querypose_hf.QUERYPOSE_NANO)
assert type(config) is querypose_hf.QueryPoseConfig
assert_not_imported("modeling", "image_processing", "pipeline")
assert modeling_auto.MODEL_MAPPING[type(config)] is querypose_hf.QueryPoseModel
assert type(AutoModelForPoseEstimation.from_config(config)) is querypose_hf.QueryPoseForPoseEstimation
for backend, kind in (
    ("torchvision", querypose_hf.QueryPoseImageProcessor), ("pil", querypose_hf.QueryPoseImageProcessorPil)
):
    assert type(AutoImageProcessor.from_pretrained(querypose_hf.QUERYPOSE_NANO, backend=backend)) is kind
assert PIPELINE_REGISTRY.check_task("pose-estimation")[1]["impl"] is querypose_hf.PoseEstimationPipeline

# the registries are themselves again, and their module can be loaded anew
assert type(configuration_auto.CONFIG_MAPPING) is configuration_auto._LazyConfigMapping
assert "querypose" in pickle.loads(pickle.dumps(importlib.reload(configuration_auto).CONFIG_MAPPING))
"""


@pytest.mark.parametrize("first", ["import querypose_hf", "import transformers.pipelines"])
def test_import_of_the_package_registers(first):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), *sys.path])}
    command = [sys.executable, "-c", SCRIPT.replace("# first", first)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


class Registry:
    def __init__(self):
        self.entries = []

    def __contains__(self, name):
        return name in self.entries


def test_registers_at_the_first_use_of_a_registry():
    registry = Registry()
    _register_at_first_use(registry, lambda: registry.entries.append("ours"))
    assert isinstance(registry, Registry) and type(registry) is not Registry
    assert "ours" in registry and "theirs" not in registry
    assert registry.entries == ["ours"] and type(registry) is Registry


def test_a_failed_registration_is_told_and_tried_again():
    registry, failures = Registry(), [ImportError("no torchvision")]

    def register():
        if failures:
            raise failures.pop()
        registry.entries.append("ours")

    _register_at_first_use(registry, register)
    with pytest.raises(ImportError, match="no torchvision"):
        "ours" in registry  # noqa: B015
    assert "ours" in registry


def test_other_threads_wait_for_the_registration():
    registry, begun, found = Registry(), threading.Event(), []

    def register():
        other = threading.Thread(target=lambda: (begun.set(), found.append("ours" in registry)))
        other.start()
        begun.wait()
        other.join(0.05)
        assert not found
        registry.entries.append("ours")
        threads.append(other)

    threads = []
    _register_at_first_use(registry, register)
    assert "ours" in registry
    threads[0].join()
    assert found == [True] and registry.entries == ["ours"]
