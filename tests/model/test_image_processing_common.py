"""transformers' own tests for image processors, run on both of ours."""

import math
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from places import SHARED
from transformers.image_utils import SizeDict
from transformers.testing_utils import slow
from transformers_tests import load_common_module

from querypose_hf import QueryPoseImageProcessor, QueryPoseImageProcessorPil
from querypose_hf.model.image_processing_base_querypose import get_resized_size


common = load_common_module("test_image_processing_common")
if not hasattr(common.ImageProcessingTester, "_get_image_processing_classes"):
    pytest.skip(
        "transformers' own tests of this version look for image processors inside transformers only",
        allow_module_level=True,
    )


def photograph() -> PIL.Image.Image:
    """A COCO photograph where the shared data is present, a smooth generated picture elsewhere."""
    for path in sorted((SHARED / "data" / "coco_ccby" / "images").glob("*.jpg")):
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    y, x = np.mgrid[:375, :500] / 60
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(x * y / 4)], axis=-1)
    return PIL.Image.fromarray(np.rint(127.5 + 120 * waves).astype(np.uint8))


class QueryPoseImageProcessingTester(common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 18, "longest_edge": 40})
        kwargs.setdefault("size_divisor", 32)
        kwargs.setdefault("category_ids", [1, 3])
        kwargs.setdefault("num_keypoints", 14)
        kwargs.setdefault("image_mean", (0.5, 0.5, 0.5))
        kwargs.setdefault("image_std", (0.5, 0.5, 0.5))
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"torchvision": QueryPoseImageProcessor, "pil": QueryPoseImageProcessorPil}

    def prepare_image_processor_dict(self):
        settings = super().prepare_image_processor_dict()
        # a JSON file knows lists only, and that is what the mixin compares it with
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    def expected_output_image_shape(self, images):
        heights, widths = [], []
        for image in images:
            if isinstance(image, PIL.Image.Image):
                width, height = image.size
            elif isinstance(image, np.ndarray):
                height, width = image.shape[:2]
            else:
                height, width = image.shape[-2:]
            height, width = get_resized_size(height, width, SizeDict(**self.size))
            heights.append(height)
            widths.append(width)
        height, width = (
            math.ceil(max(lengths) / self.size_divisor) * self.size_divisor for lengths in (heights, widths)
        )
        return self.num_channels, height, width


class QueryPoseImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = QueryPoseImageProcessingTester
    test_cast_dtype = torch.float16

    def _assert_has_attributes(self, processor, expected_attributes):
        # means and standard deviations are kept as tuples, whatever they were given as
        expected = {
            name: tuple(value) if name in ("image_mean", "image_std") else value
            for name, value in expected_attributes.items()
        }
        super()._assert_has_attributes(processor, expected)

    def test_backends_equivalence(self):
        # the mixin's picture is on the Hub
        image = photograph()
        encodings = {
            backend: processor_class(**self.image_processor_dict)(image, return_tensors="pt")
            for backend, processor_class in self.image_processing_classes.items()
        }
        self._assert_encodings_equivalence(
            encodings["torchvision"], encodings["pil"], "torchvision", "pil", atol=self.backend_equivalence_atol
        )

    @slow
    def test_pil_can_run_without_torchvision(self):
        # the mixin's script knows processors of transformers only: ours comes from the code in the saved folder
        script = (
            "import sys; sys.modules['torchvision'] = None\n"
            "import numpy as np\n"
            "from transformers import AutoImageProcessor\n"
            "processor = AutoImageProcessor.from_pretrained(sys.argv[1], backend='pil', trust_remote_code=True)\n"
            "assert type(processor).__name__ == 'QueryPoseImageProcessorPil', type(processor)\n"
            "assert 'querypose_hf' not in sys.modules\n"
            "np.save(sys.argv[3], processor(np.load(sys.argv[2]))['pixel_values'])\n"
        )
        processor = QueryPoseImageProcessorPil(**self.image_processor_dict)
        image = np.array(photograph())
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            source, target = Path(folder, "image.npy"), Path(folder, "pixel_values.npy")
            np.save(source, image)
            result = subprocess.run(
                [sys.executable, "-c", script, folder, str(source), str(target)],
                capture_output=True,
                text=True,
                env={**os.environ, "HF_MODULES_CACHE": str(Path(folder, "modules"))},
            )
            self.assertEqual(result.returncode, 0, result.stderr)
            np.testing.assert_array_equal(np.load(target), processor(image)["pixel_values"])
