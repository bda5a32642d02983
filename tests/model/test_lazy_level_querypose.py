"""P2 that is convolved only where RoIs look gives what the whole one gives, and is made in inference alone."""

import copy

import pytest
import torch
from tiny import images, make_model, people
from torch import nn

from querypose_hf.model.fusion_querypose import fuse_for_inference
from querypose_hf.model.lazy_level_querypose import QueryPoseLazyLevel, convolve_lazily
from querypose_hf.model.rois_querypose import align_rois


RESULTS = ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores", "keypoint_sigmas")
EVERYTHING = (0.0, 0.0, 128.0, 96.0)
#: Image and corners in pixels: inside, at each corner and edge, outside, a point, beyond all edges.
BOXES = [
    (0, 40.3, 30.1, 52.2, 47.9),
    (1, 0.0, 0.0, 9.0, 11.0),
    (0, 119.0, 0.0, 128.0, 5.0),
    (1, -8.0, 80.0, 6.0, 99.0),
    (0, 120.0, 90.0, 140.0, 96.0),
    (0, 60.0, 93.0, 70.0, 96.0),
    (1, 500.0, 500.0, 600.0, 600.0),
    (1, 64.0, 32.0, 64.0, 32.0),
    (1, -1e6, 20.0, 1e6, 22.0),
]


def lazy_level(**options) -> tuple[nn.Conv2d, torch.Tensor, QueryPoseLazyLevel]:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, 3, padding=1, **options).double().requires_grad_(False)
    features = images(2, 5, 24, 32)
    level = convolve_lazily(conv, features)
    assert isinstance(level, QueryPoseLazyLevel)
    return conv, features, level


@pytest.mark.parametrize("options", [{}, {"bias": False}])
def test_rois_read_what_the_convolution_gives(options):
    """One after the other and all at once: tiles that are there stay."""
    conv, features, level = lazy_level(**options)
    rois = torch.tensor(BOXES, dtype=torch.float64)
    for some in (*rois.split(1), rois[:0], rois):
        torch.testing.assert_close(align_rois(level, some, 7, 4, 2), align_rois(conv(features), some, 7, 4, 2))


def test_each_tile_is_convolved_once(monkeypatch):
    _, _, level = lazy_level()
    convolved = []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(
        nn.functional, "conv2d", lambda taken, *args: convolved.append(len(taken)) or convolve(taken, *args)
    )
    for roi in ((0, 4, 4, 12, 12), (0, 8, 8, 16, 16), (0, 20, 8, 50, 16), (1, 4, 4, 12, 12)):
        align_rois(level, torch.tensor([roi], dtype=torch.float64), 7, 4, 2)
    assert convolved == [1, 1, 1]  # the second lies in the first's tile


def test_everything_is_convolved_at_once(monkeypatch):
    conv, features, level = lazy_level()
    rois = torch.tensor([(image, *EVERYTHING) for image in (0, 1)], dtype=torch.float64)
    expected = align_rois(conv(features), rois, 14, 4, 2)
    monkeypatch.setattr(level, "_convolve", lambda *_: pytest.fail("convolved tile by tile"))
    torch.testing.assert_close(align_rois(level, rois, 14, 4, 2), expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("selection", [{}, {"keypoint_top_k": 2}])
def test_model_gives_the_same(monkeypatch, fused, selection):
    """Two images of which one is padded, small boxes that move from stage to stage, three stages."""
    model = make_model(decoder_layers=3, pose_query_interaction="none")
    model.model.decoder.initial_boxes.data[:, 2:] *= 0.3
    model = fuse_for_inference(model) if fused else model
    pixel_values, pixel_mask = images(2, 3, 96, 160), torch.ones(2, 96, 160, dtype=torch.long)
    pixel_mask[1, 70:], pixel_mask[1, :, 100:] = 0, 0
    extract, kinds = model.model.extract_pyramid, []

    def extract_whole(pixel_values, lazily=False):
        kinds.append(type(extract(pixel_values, lazily)[0]))
        return extract(pixel_values)

    with torch.no_grad():
        found = model(pixel_values, pixel_mask=pixel_mask, **selection)
        base = model.model(pixel_values, pixel_mask=pixel_mask, **selection)
        monkeypatch.setattr(model.model, "extract_pyramid", extract_whole)
        expected = model(pixel_values, pixel_mask=pixel_mask, **selection)
        base_expected = model.model(pixel_values, pixel_mask=pixel_mask, **selection)
    assert kinds == [QueryPoseLazyLevel, QueryPoseLazyLevel]
    for name in RESULTS:
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(base.intermediate_keypoints, base_expected.intermediate_keypoints)


@pytest.mark.parametrize("overrides", [{"heatmap_loss_coefficient": 1.0}, {}])
def test_whoever_else_reads_p2_gets_a_tensor(monkeypatch, overrides):
    """Training, losses, gradients, graphs, hooks, and everyone who asks for the pyramid."""
    model = make_model(**overrides)
    pixel_values, labels = images(1, 3, 64, 96), [people(2)]
    kinds = []
    decode = model.model.decoder.forward
    monkeypatch.setattr(
        model.model.decoder,
        "forward",
        lambda pyramid, *args, **options: kinds.append(type(pyramid[0])) or decode(pyramid, *args, **options),
    )
    with torch.no_grad():
        assert isinstance(model.model.extract_pyramid(pixel_values)[0], torch.Tensor)
        model(pixel_values)
        assert kinds.pop() is QueryPoseLazyLevel
        model(pixel_values, labels=labels)
        hook = model.model.neck.register_forward_hook(lambda *_: None)
        model(pixel_values)
        hook.remove()
        hook = model.model.neck.output_convs[0].register_forward_hook(lambda *_: None)
        model(pixel_values)
        hook.remove()
        for graph in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
            with monkeypatch.context() as patch:
                patch.setattr(*graph, lambda: True)
                model(pixel_values)
    model(pixel_values)  # with gradients
    model.train()(pixel_values, labels=labels)
    with torch.no_grad():
        model(pixel_values, labels=labels)
    assert kinds == [torch.Tensor] * 8


def test_decoder_compiled_alone(monkeypatch):
    """It gets a lazy level from outside of its graph, and reads the whole of it."""
    model = make_model()
    pixel_values, sizes = images(1, 3, 64, 96), torch.tensor([[64, 96]])
    with torch.no_grad():
        lazy, whole = (model.model.extract_pyramid(pixel_values, lazily) for lazily in (True, False))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        found, expected = model.model.decoder(lazy, sizes), model.model.decoder(copy.copy(whole), sizes)
    torch.testing.assert_close(found.queries, expected.queries)
