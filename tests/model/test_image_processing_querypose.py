"""Tests of both image processors: decoding, resizing, batches, labels, people, saving and loading."""

import base64
import functools
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from places import SHARED
from transformers import AutoImageProcessor
from transformers.image_utils import SizeDict

import querypose_hf
from querypose_hf import QueryPoseImageProcessor, QueryPoseImageProcessorPil
from querypose_hf.model.annotations_querypose import labels_from_annotations
from querypose_hf.model.code_files_querypose import HUB_FILES
from querypose_hf.model.image_decoding_querypose import decode_image
from querypose_hf.model.image_processing_base_querypose import get_resized_size


BACKENDS = {"torchvision": QueryPoseImageProcessor, "pil": QueryPoseImageProcessorPil}
MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
RAW = {"do_resize": False, "do_rescale": False, "do_normalize": False, "size_divisor": 1}


@pytest.fixture(params=BACKENDS)
def processor_class(request):
    return BACKENDS[request.param]


def make_array(height, width, channels=3, seed=0):
    """A smooth picture: neighbouring pixels are alike, as in photographs."""
    phase = np.random.default_rng(seed).uniform(0, 6, (channels, 2))
    y, x = np.mgrid[:height, :width] / max(height, width) * 9
    waves = [np.sin(x + a) * np.cos(y + b) for a, b in phase]
    return np.rint(127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)


def make_image(height=90, width=120, seed=0):
    return PIL.Image.fromarray(make_array(height, width, seed=seed))


def make_person(rng, height, width, num_keypoints=17):
    """A COCO object whose box lies inside the image."""
    corners = np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * [width, height]
    visibility = rng.integers(0, 3, num_keypoints)
    visibility[0] = 2
    points = rng.uniform(-0.5, 1, (num_keypoints, 2)) * [width, height]
    keypoints = np.concatenate([points, visibility[:, None]], axis=1) * (visibility > 0)[:, None]
    return {
        "bbox": [*corners[0], *(corners[1] - corners[0])],
        "category_id": 1,
        "area": float(np.prod(corners[1] - corners[0]) / 2),
        "iscrowd": 0,
        "keypoints": keypoints.ravel().tolist(),
    }


def perfect_outputs(labels, num_queries=8):
    """What a model would put out that knows the labels: a query for each person, the rest far below any threshold."""
    num_keypoints = labels[0]["keypoints"].shape[1]
    outputs = SimpleNamespace(
        logits=torch.full((len(labels), num_queries, 1), -20.0),
        pred_boxes=torch.rand(len(labels), num_queries, 4),
        pred_keypoints=torch.rand(len(labels), num_queries, num_keypoints, 2),
        keypoint_scores=torch.ones(len(labels), num_queries, num_keypoints),
        keypoint_query_mask=None,
    )
    for image, label in enumerate(labels):
        count = len(label["boxes"])
        # falling scores keep the order
        outputs.logits[image, :count, 0] = 10 - torch.arange(count).float()
        outputs.pred_boxes[image, :count] = label["boxes"]
        outputs.pred_keypoints[image, :count] = label["keypoints"][..., :2]
    return outputs


class TestSize:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            # short side 800, long side at most 1333, rounded half up
            ((480, 640), (800, 1067)),
            ((640, 480), (1067, 800)),
            ((427, 640), (800, 1199)),
            ((640, 426), (1202, 800)),
            ((500, 500), (800, 800)),
            ((300, 900), (444, 1333)),
            ((121, 946), (170, 1333)),
            ((1, 3000), (1, 1333)),
        ],
    )
    def test_short_and_long_side(self, size, expected):
        assert get_resized_size(*size, SizeDict(shortest_edge=800, longest_edge=1333)) == expected

    def test_rule_over_many_sizes(self):
        rng = np.random.default_rng(0)
        for height, width in rng.integers(10, 3000, (2000, 2)):
            new_height, new_width = get_resized_size(
                int(height), int(width), SizeDict(shortest_edge=800, longest_edge=1333)
            )
            short, long = sorted((new_height, new_width))
            assert short == 800 or long == 1333
            assert short <= 800 and long <= 1333
            assert abs(long - short * max(height, width) / min(height, width)) <= 0.51 * (1 + long / short)
            assert (new_height <= new_width) == (height <= width)

    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ({"height": 64, "width": 96}, (64, 96)),
            ({"shortest_edge": 60}, (60, 80)),
            (60, (60, 80)),
            ({"max_height": 45, "max_width": 100}, (45, 60)),
        ],
    )
    def test_other_sizes(self, processor_class, size, expected):
        processor = processor_class(size=size, size_divisor=1)
        assert processor(make_image(), return_tensors="pt")["pixel_values"].shape[-2:] == expected

    @pytest.mark.parametrize("size", [{"longest_edge": 80}, {"shortest_edge": 0}, {"height": 3, "width": -4}])
    def test_wrong_sizes(self, processor_class, size):
        with pytest.raises(ValueError, match="`size` is"):
            processor_class(size=size)


class TestPixels:
    def test_defaults(self, processor_class):
        image = make_image(480, 640)
        batch = processor_class()(image, return_tensors="pt")
        assert set(batch) == {"pixel_values", "pixel_mask"}
        assert batch["pixel_values"].shape == (1, 3, 800, 1088)
        assert batch["pixel_values"].dtype == torch.float32
        assert batch["pixel_mask"].shape == (1, 800, 1088)
        assert batch["pixel_mask"].dtype == torch.int64

        # the original resizes uint8 with PIL, then normalises, then pads
        resized = torch.from_numpy(np.array(image.resize((1067, 800), PIL.Image.Resampling.BILINEAR)))
        expected = (resized.permute(2, 0, 1) - MEAN) / STD
        one_level = 1.01 / STD.min().item()
        torch.testing.assert_close(batch["pixel_values"][0, :, :, :1067], expected, atol=one_level, rtol=0)
        assert (batch["pixel_values"][0, :, :, :1067] - expected).abs().mean() < one_level / 20
        assert not batch["pixel_values"][0, :, :, 1067:].any()
        assert batch["pixel_mask"][0, :, :1067].all() and not batch["pixel_mask"][0, :, 1067:].any()

    def test_pil_backend_resizes_as_the_original(self):
        image = make_image(48, 64)
        batch = QueryPoseImageProcessorPil(size_divisor=1)(image, return_tensors="pt")
        resized = torch.from_numpy(np.array(image.resize((1067, 800), PIL.Image.Resampling.BILINEAR)))
        expected = (resized.permute(2, 0, 1) - MEAN) / STD
        torch.testing.assert_close(batch["pixel_values"][0], expected, atol=1e-6, rtol=1e-6)

    def test_backends_agree_over_random_sizes(self):
        rng = np.random.default_rng(1)
        for seed in range(12):
            height, width = rng.integers(3, 200, 2)
            image = make_image(height, width, seed)
            settings = {"size": {"shortest_edge": int(rng.integers(8, 120)), "longest_edge": 200}}
            one, other = (backend(**settings)(image, return_tensors="pt") for backend in BACKENDS.values())
            assert torch.equal(one["pixel_mask"], other["pixel_mask"])
            # one level of 255; white noise of rounding on average below a quarter of it
            difference = (one["pixel_values"] - other["pixel_values"]).abs()
            assert difference.max() <= 1.01 / STD.min()
            assert difference.mean() <= 0.25 / STD.min()

    def test_backends_normalise_alike(self):
        image = make_array(40, 50)
        for settings in ({}, {"do_rescale": False}, {"do_normalize": False}, {"image_mean": 0.5, "image_std": 0.25}):
            one, other = (
                backend(do_resize=False, size_divisor=1, **settings)(image, return_tensors="pt")
                for backend in BACKENDS.values()
            )
            torch.testing.assert_close(one["pixel_values"], other["pixel_values"], atol=1e-6, rtol=1e-6)

    def test_switched_off(self, processor_class):
        array = make_array(31, 45)
        batch = processor_class(**RAW)(array, return_tensors="pt")
        assert batch["pixel_values"].dtype == torch.uint8
        np.testing.assert_array_equal(batch["pixel_values"][0].permute(1, 2, 0).numpy(), array)

    def test_input_is_not_changed(self, processor_class):
        array = make_array(40, 50).astype(np.float32)
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
        processor_class(do_resize=False, size_divisor=1)([array, tensor], return_tensors="pt")
        np.testing.assert_array_equal(array, make_array(40, 50).astype(np.float32))
        assert torch.equal(tensor, torch.from_numpy(array).permute(2, 0, 1))

    def test_float_images(self, processor_class):
        array = make_array(60, 80)
        settings = {"size": {"height": 45, "width": 30}, "size_divisor": 1}
        expected = processor_class(**settings)(array, return_tensors="pt")["pixel_values"]
        in_levels = processor_class(**settings)(array.astype(np.float64), return_tensors="pt")["pixel_values"]
        # not rounded to whole levels, unlike uint8
        torch.testing.assert_close(in_levels, expected, atol=1.01 / STD.min().item(), rtol=0)
        unit = array.astype(np.float32) / 255
        tensor = torch.from_numpy(unit).permute(2, 0, 1)
        for image in (unit, unit * np.float32(1 + 1e-6), tensor, tensor.double(), unit.astype(np.float64)):
            for do_rescale in (True, False):  # both ways: what lies within 0..1 was rescaled already
                batch = processor_class(**settings, do_rescale=do_rescale)(image, return_tensors="pt")
                torch.testing.assert_close(batch["pixel_values"], in_levels, atol=1e-4, rtol=0)
        rounded = processor_class(**settings)(tensor.half(), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(rounded, in_levels, atol=0.003, rtol=0)

    def test_float_images_of_both_ranges_in_one_batch(self, processor_class):
        array = make_array(20, 30)
        images = [array, array / 255, array.astype(np.float32)]
        values = processor_class(do_resize=False)(images, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(values[1:], values[:1].expand(2, -1, -1, -1), atol=1e-5, rtol=0)

    def test_transparent_float_images_of_both_ranges(self, processor_class):
        rgba = np.random.default_rng(0).integers(0, 256, (6, 7, 4)).astype(np.float32)
        values = processor_class(**RAW)([rgba], return_tensors="np")["pixel_values"]
        unit = processor_class(**RAW)([rgba / 255], return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(unit * 255, values, atol=1e-3)

    @pytest.mark.parametrize(
        "low, high", [(-1, 1), (-2.1, 2.6), (0, 300), (-5, 255), (0, 65535), (0, 1.2), (-0.1, 1.1)]
    )
    def test_float_images_of_other_ranges(self, processor_class, low, high):
        image = np.linspace(low, high, 300, dtype=np.float32).reshape(10, 10, 3)
        message = rf"images\[1\]: .* from {low:g} to {high:g}; expected 0\.\.1 or 0\.\.255.*pipeline\.image_processor"
        for source in (image, torch.from_numpy(image)):
            with pytest.raises(ValueError, match=message):
                processor_class()([make_array(10, 10), source])
        processor_class(do_rescale=False, do_normalize=False)(image)  # the caller's own scale

    @pytest.mark.parametrize("high", [1, 255, 65535])
    def test_float_tiff_keeps_its_tones(self, processor_class, tmp_path, high):
        levels = np.arange(256, dtype=np.float32).reshape(8, 32)
        PIL.Image.fromarray(levels / np.float32(255) * np.float32(high)).save(tmp_path / "float.tiff")
        values = processor_class(**RAW)(tmp_path / "float.tiff", return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(values, np.stack([levels] * 3))

    def test_resample(self, processor_class):
        image = make_image(10, 10)
        settings = {"size": {"height": 40, "width": 40}, **{k: v for k, v in RAW.items() if k != "do_resize"}}
        expected = np.array(image.resize((40, 40), PIL.Image.Resampling.NEAREST))
        batch = processor_class(**settings, resample=PIL.Image.Resampling.NEAREST)(image, return_tensors="np")
        np.testing.assert_array_equal(batch["pixel_values"][0].transpose(1, 2, 0), expected)


class TestBatch:
    def test_padding(self, processor_class):
        arrays = [make_array(40, 70), make_array(65, 20), make_array(33, 33)]
        processor = processor_class(do_resize=False, do_rescale=False, do_normalize=False)
        batch = processor(arrays, return_tensors="pt")
        assert batch["pixel_values"].shape == (3, 3, 96, 96)
        for values, mask, array in zip(batch["pixel_values"], batch["pixel_mask"], arrays, strict=True):
            height, width = array.shape[:2]
            np.testing.assert_array_equal(values[:, :height, :width].permute(1, 2, 0).numpy(), array)
            assert mask[:height, :width].all() and mask.sum() == height * width
            assert values.sum() == array.sum()

    def test_pad_size(self, processor_class):
        processor = processor_class(do_resize=False)
        batch = processor(make_image(40, 70), pad_size={"height": 50, "width": 75}, return_tensors="pt")
        assert batch["pixel_values"].shape == (1, 3, 50, 75)
        with pytest.raises(ValueError, match=r"`pad_size` is \{'height': 39, 'width': 75\}.*at least 40 and 70"):
            processor(make_image(40, 70), pad_size={"height": 39, "width": 75})

    def test_without_padding(self, processor_class):
        processor = processor_class(do_resize=False, do_pad=False)
        alike = processor([make_image(40, 70)] * 2, return_tensors="pt")
        assert set(alike) == {"pixel_values"} and alike["pixel_values"].shape == (2, 3, 40, 70)
        different = processor([make_image(40, 70), make_image(41, 70)])
        assert [tuple(image.shape) for image in different["pixel_values"]] == [(3, 40, 70), (3, 41, 70)]
        with pytest.raises(ValueError, match=r"different sizes.*`do_pad` to True or `return_tensors` to None"):
            processor([make_image(40, 70), make_image(41, 70)], return_tensors="pt")

    @pytest.mark.parametrize(
        ("return_tensors", "types"),
        [
            ("pt", (torch.Tensor, torch.Tensor)),
            ("np", (np.ndarray, np.ndarray)),
            (None, (torch.Tensor, np.ndarray)),
        ],
    )
    def test_return_tensors(self, return_tensors, types):
        for processor_class, expected in zip(BACKENDS.values(), types, strict=True):
            batch = processor_class(do_resize=False)(
                make_image(), {"image_id": 1, "annotations": []}, return_tensors=return_tensors
            )
            assert isinstance(batch["pixel_values"], expected)
            assert isinstance(batch["pixel_mask"], expected)
            assert all(isinstance(value, expected) for value in batch["labels"][0].values())

    def test_pad_to_batch(self, processor_class):
        processor = processor_class(size_divisor=16)
        images = [torch.rand(3, 20, 30, dtype=torch.float64), torch.rand(3, 33, 10, dtype=torch.float64)]
        batch = processor.pad_to_batch(images)
        assert batch["pixel_values"].shape == (2, 3, 48, 32) and batch["pixel_values"].dtype == torch.float64
        assert torch.equal(batch["pixel_values"][1, :, :33, :10], images[1])
        assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [600, 330]
        assert processor.pad_to_batch(images, size_divisor=5)["pixel_values"].shape == (2, 3, 35, 30)
        with pytest.raises(ValueError, match="is empty"):
            processor.pad_to_batch([])
        with pytest.raises(ValueError, match=r"images\[1\] has shape \(1, 4, 4\).*3 channels"):
            processor.pad_to_batch([torch.rand(3, 4, 4), torch.rand(1, 4, 4)])

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_stays_on_the_device(self):
        arrays = [make_array(40, 70), make_array(65, 20), make_array(40, 70, seed=3)]
        people = [{"image_id": i, "annotations": [{"bbox": [1, 2, 10, 12]}]} for i in range(3)]
        settings = {"size": {"shortest_edge": 50, "longest_edge": 99}}
        expected = QueryPoseImageProcessor(**settings)(arrays, people, return_tensors="pt")
        batch = QueryPoseImageProcessor(**settings)(arrays, people, device="cuda", return_tensors="pt")
        tensors = [torch.from_numpy(array).cuda() for array in arrays]
        from_device = QueryPoseImageProcessor(**settings)(tensors, return_tensors="pt")
        assert batch["pixel_values"].is_cuda and batch["pixel_mask"].is_cuda and batch["labels"][0]["boxes"].is_cuda
        assert torch.equal(from_device["pixel_values"], batch["pixel_values"])
        assert torch.equal(batch["pixel_mask"].cpu(), expected["pixel_mask"])
        torch.testing.assert_close(
            batch["pixel_values"].cpu(), expected["pixel_values"], atol=1.01 / STD.min().item(), rtol=0
        )


class TestImages:
    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
    )
    def test_modes_of_pil(self, processor_class, mode):
        image = make_image(24, 32)
        if mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
        elif mode == "PA":
            image = image.convert("P").convert("PA")
        else:
            image = image.convert(mode)
        opaque = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
        expected = np.array(image.convert(opaque).convert("RGB"))
        batch = processor_class(**RAW)(image, return_tensors="np")
        np.testing.assert_array_equal(batch["pixel_values"][0].transpose(1, 2, 0), expected)

    @pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
    def test_transparency_is_laid_on_white(self, processor_class, mode):
        image = PIL.Image.new("RGBA", (3, 1))
        for x, alpha in enumerate((0, 255, 128)):
            image.putpixel((x, 0), (0, 0, 0, alpha))
        straight = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
        image = image.convert("P").convert("PA") if mode == "PA" else image.convert(straight).convert(mode)
        if mode == "PA":
            image.putalpha(PIL.Image.fromarray(np.array([[0, 255, 128]], dtype=np.uint8)))
        values = processor_class(**RAW)(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(values[:, 0].astype(int), [[255, 0, 127]] * 3, atol=1)

    def test_transparent_palette(self, processor_class, tmp_path):
        image = PIL.Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 200, 10, 20])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "palette.png", transparency=0)
        values = processor_class(**RAW)(tmp_path / "palette.png", return_tensors="np")["pixel_values"][0]
        assert values[:, 0].T.tolist() == [[255, 255, 255], [200, 10, 20]]

    @pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I", "F"])
    def test_16_bit_greyscale_keeps_its_tones(self, processor_class, mode):
        levels = np.arange(256, dtype=np.uint16).reshape(8, 32)
        if mode.startswith("I;16"):
            content = (levels * 257).astype(">u2" if mode == "I;16B" else "<u2").tobytes()
            image = PIL.Image.frombytes(mode, (32, 8), content)
        else:
            image = PIL.Image.fromarray((levels * 257).astype(np.int32 if mode == "I" else np.float32))
        assert image.mode == mode
        values = processor_class(**RAW)(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(values, np.stack([levels] * 3))

    def test_16_bit_png_file(self, processor_class, tmp_path):
        levels = np.arange(256, dtype=np.uint16).reshape(8, 32)
        PIL.Image.fromarray(levels * 257).save(tmp_path / "deep.png")
        values = processor_class(**RAW)(tmp_path / "deep.png", return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(values, np.stack([levels] * 3))

    @pytest.mark.parametrize("mode", ["I", "F", "I;16", "array", "tensor"])
    def test_deep_modes_with_8_bit_values(self, processor_class, mode):
        image = make_image(8, 9).convert("L")
        levels = np.array(image)
        deep = levels.astype(np.uint16)
        sources = {"array": deep, "tensor": torch.from_numpy(deep), "I;16": PIL.Image.fromarray(deep)}
        source = sources[mode] if mode in sources else image.convert(mode)
        values = processor_class(**RAW)(source, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(values, np.stack([levels] * 3))

    @pytest.mark.parametrize("low, high", [(-1, 0), (0, 1.2), (-0.1, 1.1), (0, 70000)])
    def test_32_bit_modes_with_other_values(self, processor_class, low, high):
        with pytest.raises(ValueError, match=rf"images\[0\].*from {low} to {high}; .* 0\.\.255 or 0\.\.65535"):
            processor_class()(PIL.Image.fromarray(np.array([[low, high]], dtype=np.float32)))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, processor_class, orientation, tmp_path):
        # four colours tell all eight orientations apart
        colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], dtype=np.uint8)
        stored = PIL.Image.fromarray(colours.repeat(8, axis=0).repeat(16, axis=1))
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / "turned.png", exif=exif)
        upright = {
            1: colours,
            2: colours[:, ::-1],
            3: colours[::-1, ::-1],
            4: colours[::-1],
            5: colours.transpose(1, 0, 2),
            6: colours.transpose(1, 0, 2)[:, ::-1],
            7: colours[::-1, ::-1].transpose(1, 0, 2),
            8: colours.transpose(1, 0, 2)[::-1],
        }[orientation]
        processor = processor_class(**RAW)
        with PIL.Image.open(tmp_path / "turned.png") as opened:
            for image in (opened, tmp_path / "turned.png", str(tmp_path / "turned.png")):
                values = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
                assert values.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
                step = (8, 16) if orientation < 5 else (16, 8)
                np.testing.assert_array_equal(values[:: step[0], :: step[1]], upright)

    def test_annotations_refer_to_the_upright_image(self, processor_class, tmp_path):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        make_image(20, 40).save(tmp_path / "turned.jpg", exif=exif)
        annotations = {"image_id": 1, "annotations": [{"bbox": [0, 20, 20, 20]}]}
        label = processor_class(do_resize=False)(tmp_path / "turned.jpg", annotations, return_tensors="np")["labels"][
            0
        ]
        assert label["orig_size"].tolist() == [40, 20]
        np.testing.assert_allclose(label["boxes"], [[0.5, 0.75, 1, 0.5]])

    def test_damaged_exif_is_ignored(self, processor_class):
        stream = io.BytesIO()
        make_image(8, 9).save(stream, "JPEG", exif=b"Exif\0\0no such thing")
        with PIL.Image.open(stream) as image:
            assert processor_class(**RAW)(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 9)

    def test_sources(self, processor_class, tmp_path):
        image = make_image(20, 30)
        path = tmp_path / "image.png"
        image.save(path)
        encoded = base64.b64encode(path.read_bytes()).decode()
        tensor = torch.from_numpy(np.array(image))
        array = np.array(image)
        read_only = np.array(image)
        read_only.flags.writeable = False
        sources = [
            image,
            path,
            str(path),
            encoded,
            f"data:image/png;base64,{encoded}",
            array,
            array[..., ::-1].copy()[..., ::-1],
            read_only,
            array.astype(np.int64),
            array.astype(np.uint16) * 257,
            array.transpose(2, 0, 1),
            array.astype(np.float32),
            tensor,
            tensor.permute(2, 0, 1),
        ]
        batch = processor_class(**RAW)(sources, return_tensors="np")
        for values in batch["pixel_values"]:
            np.testing.assert_array_equal(values.transpose(1, 2, 0), array)

    def test_ways_to_give_several_images(self, processor_class):
        arrays = np.stack([make_array(20, 30, seed=seed) for seed in range(3)])
        processor = processor_class(**RAW)
        for images in (arrays, torch.from_numpy(arrays), list(arrays), tuple(arrays), [list(arrays[:2]), [arrays[2]]]):
            batch = processor(images, return_tensors="np")
            np.testing.assert_array_equal(batch["pixel_values"].transpose(0, 2, 3, 1), arrays)

    def test_greyscale_and_transparent_arrays(self, processor_class):
        grey = make_array(20, 30, channels=1)
        mask = grey[..., 0] > 127
        clear = np.concatenate([make_array(20, 30), np.zeros((20, 30, 1), np.uint8)], axis=-1)
        images = [grey, grey[..., 0], torch.from_numpy(grey), mask, clear, clear / 255]
        values = processor_class(**RAW)(images, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
        for same in values[:3]:
            np.testing.assert_array_equal(same, grey.repeat(3, axis=-1))
        np.testing.assert_array_equal(values[3], 255 * mask[..., None].repeat(3, axis=-1))
        assert (values[4] == 255).all() and (values[5] == 1).all()

    def test_url(self, processor_class, tmp_path):
        make_image(20, 30).convert("RGBA").save(tmp_path / "image.png")
        handler = functools.partial(SilentHandler, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            values = processor_class(**RAW)(f"{address}/image.png", return_tensors="np")["pixel_values"][0]
            with pytest.raises(OSError, match=r"images\[1\]: .*nothing\.png' cannot be fetched: .*404"):
                processor_class()([make_image(), f"{address}/nothing.png"])
            server.shutdown()
        np.testing.assert_array_equal(values.transpose(1, 2, 0), np.array(make_image(20, 30)))

    @pytest.mark.parametrize(
        ("image", "error", "message"),
        [
            ([], ValueError, "`images` is empty"),
            (None, TypeError, r"images\[0\]: expected a PIL image.*NoneType"),
            ([make_image(), 3], TypeError, r"images\[1\]: expected a PIL image.*int"),
            ("no_such_file.jpg", FileNotFoundError, r"images\[0\]: 'no_such_file.jpg' is neither an existing file"),
            ("dogs", FileNotFoundError, r"images\[0\]: 'dogs' is neither an existing file"),
            (Path("no_such_file.jpg"), FileNotFoundError, r"images\[0\]: 'no_such_file.jpg' is neither"),
            (Path(__file__), ValueError, r"images\[0\]: .*cannot be decoded as an image"),
            (np.zeros((0, 5, 3), np.uint8), ValueError, r"images\[0\]: the image has no pixels.*\(0, 5, 3\)"),
            (PIL.Image.new("RGB", (0, 5)), ValueError, r"images\[0\]: the image has no pixels.*\(0, 5\)"),
            (np.zeros(5, np.uint8), ValueError, r"2 or 3 dimensions, got shape \(5,\)"),
            (np.zeros((5, 6, 7), np.uint8), ValueError, r"\(5, 6, 7\) looks like 1, 3 or 4 channels"),
            (np.full((4, 5, 3), np.nan), ValueError, "not finite"),
            (np.full((4, 5, 3), 256), ValueError, r"int64 has values from 256 to 256; expected 0\.\.255"),
            (np.full((4, 5, 4), 256.5), ValueError, r"from 256.5 to 256.5; expected 0\.\.1 or 0\.\.255"),
            (np.full((4, 5, 3), 1j), TypeError, "real numbers"),
            (np.full((4, 5, 3), None), TypeError, "array of numbers, got one of dtype object"),
        ],
    )
    def test_wrong_images(self, processor_class, image, error, message):
        with pytest.raises(error, match=message):
            processor_class()(image)

    def test_truncated_file(self, processor_class, tmp_path):
        make_image().save(tmp_path / "whole.jpg")
        (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
        with pytest.raises(ValueError, match=r"images\[0\]: .*half\.jpg' cannot be decoded as an image: .*truncated"):
            processor_class()(tmp_path / "half.jpg")

    def test_channels_without_a_mean(self, processor_class):
        with pytest.raises(ValueError, match=r"images\[0\]: the image has 1 channels and `image_mean` 3 values"):
            processor_class(do_convert_rgb=False)(make_image().convert("L"))
        with pytest.raises(ValueError, match=r"images\[0\]: the image has 3 channels and `image_std` 2 values"):
            processor_class(image_std=[0.5, 0.5])(make_image())

    def test_decoding_keeps_memory(self):
        array = make_array(20, 30)
        assert decode_image(array).data_ptr() == array.ctypes.data
        tensor = torch.from_numpy(array)
        assert decode_image(tensor).data_ptr() == tensor.data_ptr()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"size_divisor": 0}, "`size_divisor` is 0; expected a positive integer"),
            ({"size_divisor": 10**7}, "`size_divisor` is 10000000; expected a positive integer of at most 65536"),
            ({"pad_size": {"height": 10**6, "width": 8}}, "`pad_size` is .*1000000.*; expected .* at most 65536"),
            ({"size": {"shortest_edge": 10**9}}, "`size` is .*1000000000.*; expected .* at most 65536"),
            ({"num_keypoints": -1}, "`num_keypoints` is -1; expected a positive integer"),
            ({"category_ids": []}, r"`category_ids` is \[\]; expected a list of different integers"),
            ({"category_ids": [1, 1]}, r"`category_ids` is \[1, 1\]"),
            ({"rescale_factor": 0.0}, "`rescale_factor` is 0.0; expected a number from 1e-06 to 1000"),
            ({"rescale_factor": float("nan")}, "`rescale_factor` is nan"),
            ({"rescale_factor": 1e300}, "`rescale_factor` is 1e"),
            ({"image_std": [0.0, 0.0, 0.0]}, r"`image_std` is .0.0, 0.0, 0.0.; expected .*, or one for each channel"),
            ({"image_std": 1e-40}, "`image_std` is 1e-40"),
            ({"image_mean": [0.5, float("nan"), 0.5]}, "`image_mean` is .0.5, nan"),
            ({"image_mean": 1e308}, "`image_mean` is 1e"),
        ],
    )
    def test_wrong_settings(self, processor_class, settings, message):
        with pytest.raises(ValueError, match=message):
            processor_class(**settings)
        with pytest.raises(ValueError, match=message):
            processor_class()(make_image(), **settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"rescale_factor": "x"}, "`rescale_factor` is 'x'; expected a number"),
            ({"image_std": "1"}, "`image_std` is '1'; expected a number"),
            ({"do_resize": "no"}, "`do_resize` is 'no'; expected True or False"),
            ({"score_treshold": 0.5}, "`score_treshold` .value 0.5.: did you mean `score_threshold`"),
        ],
    )
    def test_wrong_settings_of_a_checkpoint(self, processor_class, tmp_path, settings, message):
        file = tmp_path / "preprocessor_config.json"
        processor_class().save_pretrained(tmp_path)
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        with pytest.raises(ValueError, match=message):
            processor_class.from_pretrained(tmp_path)
        file.unlink()
        processor_class().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=message):
            processor_class.from_pretrained(tmp_path, **settings)

    def test_what_is_not_supported(self, processor_class):
        with pytest.raises(ValueError, match="`do_center_crop` is True"):
            processor_class()(make_image(), do_center_crop=True, crop_size={"height": 5, "width": 5})
        with pytest.raises(ValueError, match="`data_format` is 'channels_last'"):
            processor_class()(make_image(), data_format="channels_last")


class TestLabels:
    def test_by_hand(self, processor_class):
        person = {
            "bbox": [10, 20, 40, 30],
            "area": 600,
            "category_id": 7,
            "iscrowd": 0,
            "keypoints": [0, 0, 2, 99, 49, 1, 30, 40, 0],
        }
        processor = processor_class(category_ids=[3, 7], size={"height": 100, "width": 300})
        batch = processor(make_image(50, 100), {"image_id": 42, "annotations": [person]}, return_tensors="pt")
        (label,) = batch["labels"]
        assert {name: (tuple(value.shape), value.dtype) for name, value in label.items()} == {
            "class_labels": ((1,), torch.int64),
            "boxes": ((1, 4), torch.float32),
            "keypoints": ((1, 3, 3), torch.float32),
            "area": ((1,), torch.float32),
            "size": ((2,), torch.int64),
            "orig_size": ((2,), torch.int64),
            "image_id": ((1,), torch.int64),
        }
        assert label["class_labels"].tolist() == [1]
        torch.testing.assert_close(label["boxes"], torch.tensor([[0.3, 0.7, 0.4, 0.6]]))
        expected = torch.tensor([[[0.005, 0.01, 2], [0.995, 0.99, 1], [0, 0, 0]]])
        torch.testing.assert_close(label["keypoints"], expected)
        assert label["area"].tolist() == [600 * 6]
        assert label["size"].tolist() == [100, 300]
        assert label["orig_size"].tolist() == [50, 100]
        assert label["image_id"].tolist() == [42]

    def test_defaults_of_an_object(self, processor_class):
        annotations = {"image_id": 1, "annotations": [{"bbox": [10, 20, 40, 30]}]}
        (label,) = processor_class(do_resize=False)(make_image(50, 100), annotations, return_tensors="np")["labels"]
        assert label["class_labels"].tolist() == [0]
        assert label["area"].tolist() == [1200]
        assert label["keypoints"].shape == (1, 17, 3) and not label["keypoints"].any()

    def test_what_is_left_out(self, processor_class):
        objects = [
            {"bbox": [0, 0, 5, 5], "iscrowd": 1, "category_id": 99, "keypoints": [1, 2]},
            {"bbox": [10, 10, 0, 5]},
            {"bbox": [200, 10, 10, 5]},
            {"bbox": [-10, -10, 30, 40], "keypoints": [-5, 60, 2]},
            {"bbox": [1, 1, 5, 5], "keypoints": []},
        ]
        annotations = {"image_id": 1, "annotations": objects}
        (label,) = processor_class(do_resize=False)(make_image(50, 100), annotations, return_tensors="np")["labels"]
        # boxes are clipped to the image and keypoints are not
        np.testing.assert_allclose(label["boxes"], [[0.1, 0.3, 0.2, 0.6], [0.035, 0.07, 0.05, 0.1]], rtol=1e-6)
        np.testing.assert_allclose(label["keypoints"], [[[-0.045, 1.21, 2]], [[0, 0, 0]]], rtol=1e-6)

    def test_null_is_as_good_as_left_out(self, processor_class):
        person = {"bbox": [1, 2, 3, 4], "category_id": None, "area": None, "keypoints": None, "iscrowd": None}
        (label,) = processor_class(category_ids=[7, 8])(make_image(), {"image_id": 1, "annotations": [person]})[
            "labels"
        ]
        assert label["class_labels"].tolist() == [0]

    def test_no_people(self, processor_class):
        annotations = [{"image_id": 1, "annotations": []}, {"image_id": 2, "annotations": []}]
        labels = processor_class(do_resize=False, num_keypoints=5)(
            [make_image()] * 2, annotations, return_tensors="pt"
        )["labels"]
        assert [tuple(label["keypoints"].shape) for label in labels] == [(0, 5, 3)] * 2
        assert [tuple(label["boxes"].shape) for label in labels] == [(0, 4)] * 2

    def test_number_of_keypoints_is_that_of_the_batch(self, processor_class):
        annotations = [
            {"image_id": 1, "annotations": [{"bbox": [1, 2, 3, 4]}]},
            {"image_id": 2, "annotations": [{"bbox": [1, 2, 3, 4], "keypoints": [[1, 2, 2]] * 4}]},
        ]
        labels = processor_class(do_resize=False)([make_image()] * 2, annotations)["labels"]
        assert [tuple(label["keypoints"].shape) for label in labels] == [(1, 4, 3)] * 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"bbox": None}, "`bbox` is missing"),
            ({"bbox": [1, 2, 3]}, r"`bbox` is \[1, 2, 3\]; expected 4 numbers"),
            ({"bbox": [1, 2, 3, "wide"]}, r"`bbox` is .*'wide'.*expected 4 numbers"),
            ({"bbox": [1, 2, 3, float("inf")]}, r"`bbox` is .*inf.*expected finite numbers"),
            ({"category_id": 18}, r"`category_id` is 18; expected one of \[1\].*Set `category_ids`"),
            ({"category_id": [1]}, r"`category_id` is \[1\]; expected one of"),
            ({"area": float("nan")}, "`area` is nan; expected finite numbers"),
            ({"area": -1}, r"`area` is -1\.0; expected at least 0"),
            ({"area": [2]}, r"`area` is \[2\]; expected a number of pixels"),
            (
                {"keypoints": [1, 2, 2]},
                r"`keypoints` has 1 keypoints \(3 numbers\) where annotations\[0\].* says 17.*`num_keypoints`",
            ),
            ({"keypoints": [1, 2, 2, 4]}, r"`keypoints` is \[1, 2, 2, 4\]; expected 3 numbers for each keypoint"),
            ({"keypoints": 5}, "`keypoints` is 5; expected 3 numbers for each keypoint"),
            ({"keypoints": 16 * [0, 0, 0] + [4, 5, 3]}, "`keypoints` has visibility 3 at keypoint 16; expected 0"),
            ({"keypoints": 17 * [0, float("nan"), 0]}, "`keypoints` is .*expected finite numbers"),
        ],
    )
    def test_wrong_objects(self, processor_class, change, message):
        right = {"bbox": [1, 2, 30, 40], "keypoints": 17 * [3, 4, 2]}
        annotations = [
            {"image_id": 5, "annotations": [right]},
            {"image_id": 6, "annotations": [right, {**right, **change}]},
        ]
        with pytest.raises(ValueError, match=r"annotations\[1\] \(image_id 6\), object 1: " + message):
            processor_class(do_resize=False)([make_image()] * 2, annotations)

    @pytest.mark.parametrize(
        ("annotations", "error", "message"),
        [
            ([], ValueError, "`annotations` has 0 entries for 1 images"),
            ([{}] * 2, ValueError, "`annotations` has 2 entries for 1 images"),
            ("people.json", TypeError, "`annotations` is of <class 'str'>"),
            ([[{"bbox": [1, 2, 3, 4]}]], TypeError, r"annotations\[0\] is of <class 'list'>; expected \{\"image_id\""),
            ({"annotations": []}, ValueError, r"annotations\[0\] has no `image_id` but \['annotations'\]"),
            ({"image_id": 1}, ValueError, r"annotations\[0\] has no `annotations`"),
            ({"image_id": "1", "annotations": []}, TypeError, r"annotations\[0\]: `image_id` is '1'; expected an int"),
            ({"image_id": 1, "annotations": {}}, TypeError, r"annotations\[0\] \(image_id 1\): `annotations` is of"),
            ({"image_id": 1, "annotations": [3]}, TypeError, r"object 0: expected a COCO object"),
        ],
    )
    def test_wrong_annotations(self, processor_class, annotations, error, message):
        with pytest.raises(error, match=message):
            processor_class()(make_image(), annotations)

    def test_given_number_of_keypoints_is_checked(self, processor_class):
        annotations = {"image_id": 1, "annotations": [{"bbox": [1, 2, 3, 4], "keypoints": [1, 2, 2]}]}
        with pytest.raises(ValueError, match=r"1 keypoints .* where `num_keypoints` says 14; expected 42 numbers"):
            processor_class(num_keypoints=14)(make_image(), annotations)

    def test_function_checks_lengths(self):
        with pytest.raises(ValueError, match="`annotations` has 1 entries for 2 images"):
            labels_from_annotations([{"image_id": 1, "annotations": []}], [(4, 5)] * 2, [(4, 5)] * 2)


class TestPeople:
    @pytest.mark.parametrize("seed", range(4))
    def test_annotations_survive_the_round_trip(self, processor_class, seed):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(30, 900, (3, 2)).tolist()
        people = [[make_person(rng, *size) for _ in range(rng.integers(1, 6))] for size in sizes]
        processor = processor_class(size={"shortest_edge": 40, "longest_edge": 80})
        batch = processor(
            [make_image(*size) for size in sizes],
            [{"image_id": i, "annotations": objects} for i, objects in enumerate(people)],
            return_tensors="pt",
        )
        results = processor.post_process_pose_estimation(perfect_outputs(batch["labels"]), target_sizes=sizes)
        assert [len(result) for result in results] == [len(objects) for objects in people]
        for result, objects in zip(results, people, strict=True):
            for person, annotation in zip(result, objects, strict=True):
                x, y, width, height = annotation["bbox"]
                np.testing.assert_allclose(person["bbox"], [x, y, x + width, y + height], atol=1e-3)
                keypoints = np.reshape(annotation["keypoints"], (-1, 3))
                labelled = keypoints[:, 2] > 0
                np.testing.assert_allclose(person["keypoints"][labelled], keypoints[labelled, :2], atol=1e-3)

    def test_round_trip_of_real_annotations(self, processor_class):
        folder = SHARED / "data" / "coco_ccby"
        if not folder.is_dir():
            pytest.skip("the shared COCO photographs are not here")
        dataset = json.loads((folder / "person_keypoints.json").read_text())
        crowded = {entry["image_id"] for entry in dataset["annotations"] if entry["iscrowd"]}
        chosen = sorted(dataset["images"], key=lambda entry: (entry["id"] not in crowded, entry["id"]))[:4]
        objects = [[o for o in dataset["annotations"] if o["image_id"] == entry["id"]] for entry in chosen]
        processor = processor_class(size={"shortest_edge": 80, "longest_edge": 133})
        batch = processor(
            [folder / "images" / entry["file_name"] for entry in chosen],
            [{"image_id": entry["id"], "annotations": o} for entry, o in zip(chosen, objects, strict=True)],
            return_tensors="pt",
        )
        target_sizes = [(entry["height"], entry["width"]) for entry in chosen]
        assert [tuple(label["orig_size"].tolist()) for label in batch["labels"]] == target_sizes
        outputs = perfect_outputs(batch["labels"], num_queries=30)
        results = processor.post_process_pose_estimation(outputs, threshold=1e-9, target_sizes=target_sizes, top_k=30)
        for result, annotations in zip(results, objects, strict=True):
            annotations = [annotation for annotation in annotations if not annotation["iscrowd"]]
            for person, annotation in zip(result, annotations, strict=False):
                x, y, width, height = annotation["bbox"]
                np.testing.assert_allclose(person["bbox"], [x, y, x + width, y + height], atol=1e-3)
                keypoints = np.reshape(annotation["keypoints"], (-1, 3))
                labelled = keypoints[:, 2] > 0
                np.testing.assert_allclose(person["keypoints"][labelled], keypoints[labelled, :2], atol=1e-3)
            assert len(result) >= len(annotations)

    @staticmethod
    def outputs(**changes):
        fields = {
            # best class of query 0: 1; of query 1: 0; of query 2: 1
            "logits": torch.tensor([[[-3.0, 2.0], [1.0, 0.0], [-9.0, 4.0]]]),
            "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.0, 0.5, 0.5, 2.0], [0.9, 0.9, 0.1, 0.1]]]),
            "pred_keypoints": torch.tensor(
                [[[[0.5, 0.5], [0.25, 1.5]], [[0.1, 0.2], [-0.2, 0.0]], [[1.0, 1.0], [0, 0]]]]
            ),
            "keypoint_scores": torch.tensor([[[0.5, 0.7], [1.0, 0.8], [0.9, 0.9]]]),
            "keypoint_query_mask": torch.tensor([[True, True, False]]),
        }
        return {**fields, **changes}

    def test_by_hand(self, processor_class):
        (people,) = processor_class().post_process_pose_estimation(self.outputs(), target_sizes=[(100, 200)])
        assert [person["label"].item() for person in people] == [0, 1]
        expected_scores = [0.9 * torch.tensor(1.0).sigmoid(), 0.6 * torch.tensor(2.0).sigmoid()]
        torch.testing.assert_close(torch.stack([person["score"] for person in people]), torch.stack(expected_scores))
        assert {name: tuple(value.shape) for name, value in people[0].items()} == {
            "score": (),
            "label": (),
            "bbox": (4,),
            "keypoints": (2, 2),
            "scores": (2,),
            "labels": (2,),
        }
        # clipped to the image; keypoints are pixel indices and not clipped
        torch.testing.assert_close(people[0]["bbox"], torch.tensor([0.0, 0.0, 50.0, 100.0]))
        torch.testing.assert_close(people[1]["bbox"], torch.tensor([80.0, 30.0, 120.0, 70.0]))
        torch.testing.assert_close(people[0]["keypoints"], torch.tensor([[19.5, 19.5], [-40.5, -0.5]]))
        torch.testing.assert_close(people[1]["keypoints"], torch.tensor([[99.5, 49.5], [49.5, 149.5]]))
        assert people[0]["scores"].tolist() == pytest.approx([1.0, 0.8])
        assert people[0]["labels"].tolist() == [0, 1]

    def test_relative(self, processor_class):
        (people,) = processor_class().post_process_pose_estimation(SimpleNamespace(**self.outputs()))
        torch.testing.assert_close(people[0]["bbox"], torch.tensor([0.0, 0.0, 0.25, 1.0]))
        torch.testing.assert_close(people[0]["keypoints"], torch.tensor([[0.1, 0.2], [-0.2, 0.0]]))

    def test_threshold_and_top_k(self, processor_class):
        processor = processor_class()
        best = 0.9 * torch.tensor(1.0).sigmoid().item()
        count = lambda **kwargs: len(processor.post_process_pose_estimation(self.outputs(), **kwargs)[0])  # noqa: E731
        assert count() == 2
        assert count(threshold=best - 1e-4) == 1
        assert count(threshold=best + 1e-4) == 0
        assert [count(threshold=-1, top_k=top_k) for top_k in (0, 1, 2, 9, None)] == [0, 1, 2, 2, 2]

    def test_the_score_threshold_is_the_processors_own(self, processor_class, tmp_path):
        processor_class(score_threshold=0.55).save_pretrained(tmp_path)
        processor = processor_class.from_pretrained(tmp_path)
        best = 0.9 * torch.tensor(1.0).sigmoid().item()
        assert processor_class().score_threshold == 0.3
        for threshold, count in ((0.55, 1), (best + 1e-4, 0), (0.0, 2)):
            processor.score_threshold = threshold
            assert len(processor.post_process_pose_estimation(self.outputs())[0]) == count
            assert processor.query_selection()["person_threshold"] == (threshold or None)
            assert len(processor.post_process_pose_estimation(self.outputs(), threshold=0.0)[0]) == 2
            assert processor.query_selection(0.2)["person_threshold"] == 0.2

    @pytest.mark.parametrize("value", [None, -0.5, 1.5, True, "0.7", float("nan")])
    def test_wrong_score_threshold(self, processor_class, value):
        message = f"`score_threshold` is {value!r}; expected a number from 0 to 1"
        with pytest.raises(ValueError, match=message):
            processor_class(score_threshold=value).post_process_pose_estimation(self.outputs())
        with pytest.raises(ValueError, match=message):
            processor_class(score_threshold=value)(PIL.Image.new("RGB", (64, 48)))

    def test_duplicates(self, processor_class, tmp_path):
        boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.8], [0.52, 0.5, 0.4, 0.8], [0.1, 0.5, 0.1, 0.8]]])
        logits = torch.tensor([[[1.0], [2.0], [3.0]]])
        outputs = self.outputs(pred_boxes=boxes, keypoint_query_mask=None, logits=logits)
        confidences = outputs["keypoint_scores"].mean(dim=-1)[0] * torch.tensor([1.0, 2.0, 3.0]).sigmoid()
        best, worse = confidences[:2].max().item(), confidences[:2].min().item()

        def scores(processor, **kwargs):
            (people,) = processor.post_process_pose_estimation(outputs, threshold=0.0, **kwargs)
            return sorted(person["score"].item() for person in people)

        everybody = sorted(confidences.tolist())
        one_of_two = sorted({best, confidences[2].item()})
        plain, suppressing = processor_class(), processor_class(nms_threshold=0.9)
        assert scores(plain) == scores(plain, nms_threshold=0.96) == scores(suppressing, nms_threshold=1) == everybody
        # their IoU is 0.38 / 0.42
        assert scores(plain, nms_threshold=0.9) == scores(suppressing) == pytest.approx(one_of_two)
        assert scores(suppressing, top_k=2) == pytest.approx(one_of_two), "those left out do not count"
        assert worse in everybody and worse not in one_of_two
        suppressing.save_pretrained(tmp_path)
        assert processor_class.from_pretrained(tmp_path).nms_threshold == 0.9
        # people of another class are others, and nobody is a duplicate of one who is not reported
        outputs["logits"] = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]])
        assert len(scores(suppressing)) == 3
        outputs["logits"] = logits
        outputs["keypoint_query_mask"] = torch.tensor([[True, False, True]])
        assert len(scores(suppressing)) == 2

    @pytest.mark.parametrize("value", [0, -0.5, 1.5, True, "0.7", float("nan")])
    def test_wrong_nms_threshold(self, processor_class, value):
        message = f"`nms_threshold` is {value!r}; expected None or a number above 0 and at most 1"
        with pytest.raises(ValueError, match=message):
            processor_class().post_process_pose_estimation(self.outputs(), nms_threshold=value)
        with pytest.raises(ValueError, match=message):
            processor_class(nms_threshold=value)(PIL.Image.new("RGB", (64, 48)))

    def test_query_mask_may_be_absent(self, processor_class):
        outputs = self.outputs(keypoint_query_mask=None)
        assert len(processor_class().post_process_pose_estimation(outputs)[0]) == 3
        del outputs["keypoint_query_mask"]
        assert len(processor_class().post_process_pose_estimation(outputs)[0]) == 3

    def test_people_outside_the_image_are_dropped(self, processor_class):
        boxes = torch.tensor([[[1.5, 0.5, 0.9, 0.4], [0.0, 0.5, 0.5, 2.0], [0.9, 0.9, 0.1, 0.1]]])
        outputs = self.outputs(pred_boxes=boxes)
        (people,) = processor_class().post_process_pose_estimation(outputs, target_sizes=[(100, 200)], top_k=1)
        assert [person["label"].item() for person in people] == [0]
        outputs = self.outputs(pred_boxes=torch.tensor([[[1.5, 0.5, 0.9, 0.4]] * 3]))
        assert processor_class().post_process_pose_estimation(outputs, target_sizes=torch.tensor([[100, 200]])) == [[]]

    def test_ties_keep_the_order_of_queries(self, processor_class):
        outputs = {
            "logits": torch.zeros(1, 50, 1),
            "pred_boxes": torch.full((1, 50, 4), 0.5),
            "pred_keypoints": torch.arange(50.0).reshape(1, 50, 1, 1).repeat(1, 1, 3, 2),
            "keypoint_scores": torch.ones(1, 50, 3),
        }
        (people,) = processor_class().post_process_pose_estimation(outputs)
        assert [person["keypoints"][0, 0].item() for person in people] == list(range(50))

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
    )
    def test_dtypes(self, processor_class, dtype, expected):
        outputs = {
            name: value.to(dtype).requires_grad_() if value.is_floating_point() else value
            for name, value in self.outputs().items()
        }
        (people,) = processor_class().post_process_pose_estimation(outputs, target_sizes=[(480, 640)])
        for name in ("score", "bbox", "keypoints", "scores"):
            assert people[0][name].dtype == expected and not people[0][name].requires_grad
        assert people[0]["label"].dtype == people[0]["labels"].dtype == torch.int64

    def test_not_a_number_is_nobody(self, processor_class):
        logits = torch.tensor([[[float("nan")] * 2, [1.0, 0.0], [-9.0, 4.0]]])
        (people,) = processor_class().post_process_pose_estimation(self.outputs(logits=logits))
        assert len(people) == 1

    @pytest.mark.parametrize(
        ("changes", "arguments", "message"),
        [
            ({"logits": None}, {}, "`outputs` has no `logits`"),
            ({"pred_keypoints": None}, {}, "`outputs` has no `pred_keypoints`"),
            ({"pred_boxes": torch.rand(1, 2, 4)}, {}, r"pred_boxes` has shape \(1, 2, 4\); expected \(1, 3, 4\)"),
            (
                {"pred_keypoints": torch.rand(1, 3, 2)},
                {},
                r"pred_keypoints` has shape \(1, 3, 2\); expected \(1, 3, K, 2\)",
            ),
            ({"keypoint_scores": torch.rand(1, 3, 5)}, {}, r"keypoint_scores` has shape \(1, 3, 5\)"),
            ({"keypoint_query_mask": torch.ones(3)}, {}, r"keypoint_query_mask` has shape \(3,\)"),
            ({}, {"target_sizes": [(4, 5), (4, 5)]}, "`target_sizes` has 2 entries for a batch of 1 images"),
            ({}, {"target_sizes": [(4, 0)]}, r"`target_sizes` is \[\[4\.0, 0\.0\]\]; expected a positive height"),
            ({}, {"target_sizes": [4]}, r"`target_sizes` is \[4\]; expected a height and a width"),
            ({}, {"target_sizes": torch.ones(1, 3)}, "expected a positive height and width for each image"),
            ({}, {"top_k": -1}, "`top_k` is -1; expected None or an integer of at least 0"),
            ({}, {"top_k": 1.5}, "`top_k` is 1.5"),
        ],
    )
    def test_wrong_arguments(self, processor_class, changes, arguments, message):
        with pytest.raises(ValueError, match=message):
            processor_class().post_process_pose_estimation(self.outputs(**changes), **arguments)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_outputs_on_a_device(self):
        outputs = {name: value.cuda() for name, value in self.outputs().items()}
        processor = QueryPoseImageProcessor()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            (people,) = processor.post_process_pose_estimation(outputs, target_sizes=[(100, 200)])
        copies = [event.count for event in profile.key_averages() if "Memcpy DtoH" in event.key]
        assert sum(copies) == 1
        (expected,) = processor.post_process_pose_estimation(self.outputs(), target_sizes=[(100, 200)])
        for person, same in zip(people, expected, strict=True):
            for name in person:
                torch.testing.assert_close(person[name], same[name])

    def test_supervision_takes_the_people_of_an_image(self, processor_class):
        supervision = pytest.importorskip("supervision")
        (people,) = processor_class().post_process_pose_estimation(self.outputs(), target_sizes=[(100, 200)])
        keypoints = supervision.KeyPoints.from_transformers(people)
        np.testing.assert_allclose(keypoints.xy[1], [[99.5, 49.5], [49.5, 149.5]])
        np.testing.assert_allclose(keypoints.keypoint_confidence, [[1.0, 0.8], [0.5, 0.7]], rtol=1e-6)
        assert len(supervision.KeyPoints.from_transformers([])) == 0


class TestSaving:
    def test_files(self, processor_class, tmp_path):
        files = processor_class(num_keypoints=14).save_pretrained(tmp_path)
        names = {"preprocessor_config.json", *HUB_FILES}
        assert {path.name for path in tmp_path.iterdir()} == names
        assert {Path(file).name for file in files} == names
        settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert settings["image_processor_type"] == "QueryPoseImageProcessor"
        assert settings["auto_map"] == {
            "AutoImageProcessor": {
                "torchvision": "image_processing_querypose.QueryPoseImageProcessor",
                "pil": "image_processing_pil_querypose.QueryPoseImageProcessorPil",
            }
        }

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_auto_class_with_the_package(self, processor_class, backend, tmp_path):
        settings = {"category_ids": [4, 2], "num_keypoints": 14, "size_divisor": 64, "size": {"shortest_edge": 100}}
        processor = processor_class(**settings)
        processor.save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is BACKENDS[backend]
        assert loaded.to_dict() == processor.to_dict()
        assert {name: getattr(loaded, name) for name in settings} == settings

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_auto_class_without_the_package(self, backend, tmp_path):
        image, annotations = make_image(), {"image_id": 1, "annotations": [{"bbox": [10, 20, 40, 30]}]}
        processor = BACKENDS[backend](category_ids=[1, 5], size={"shortest_edge": 40})
        processor.save_pretrained(tmp_path / "first")
        np.save(tmp_path / "image.npy", np.array(image))
        script = f"""
import sys
sys.modules["querypose_hf"] = None
import numpy as np
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained("first", backend="{backend}", trust_remote_code=True)
batch = processor(np.load("image.npy"), {annotations}, return_tensors="np")
np.savez("batch.npz", pixel_values=batch["pixel_values"], **batch["labels"][0])
processor.save_pretrained("second")
print(type(processor).__name__, processor.category_ids)
"""
        environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.split("\n")[0] == f"{BACKENDS[backend].__name__} [1, 5]"
        expected = processor(image, annotations, return_tensors="np")
        batch = np.load(tmp_path / "batch.npz")
        np.testing.assert_array_equal(batch["pixel_values"], expected["pixel_values"])
        np.testing.assert_array_equal(batch["boxes"], expected["labels"][0]["boxes"])
        # what is saved from there names only code that is there
        auto_map = json.loads((tmp_path / "second" / "preprocessor_config.json").read_text())["auto_map"]
        references = auto_map["AutoImageProcessor"]
        assert references[backend].endswith(BACKENDS[backend].__name__)
        assert all((tmp_path / "second" / f"{name.split('.')[0]}.py").is_file() for name in references.values())

    def test_a_failed_save_leaves_the_old_file(self, processor_class, tmp_path, monkeypatch):
        processor_class(num_keypoints=14).save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def fail(*args):
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            processor_class(num_keypoints=15).save_pretrained(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_push_to_hub_uploads_the_code_too(self, processor_class, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr(
            processor_class, "push_to_hub", lambda self, repo_id, **kwargs: calls.append((repo_id, kwargs))
        )
        processor_class().save_pretrained(tmp_path / "mine", push_to_hub=True, private=True)
        processor_class().save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="me/other")
        assert calls == [("mine", {"private": True}), ("me/other", {})]

    def test_names_are_public(self):
        assert querypose_hf.QueryPoseImageProcessor is QueryPoseImageProcessor
        assert querypose_hf.QueryPoseImageProcessorPil is QueryPoseImageProcessorPil
