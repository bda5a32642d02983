"""Matching and loss terms: against other implementations, by hand, and where training goes wrong."""

import itertools
import math
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest
import torch
import torchvision
from tiny import people, tiny_config
from transformers.image_transforms import center_to_corners_format

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.model.attention_maps_querypose import part_attention_loss
from querypose_hf.model.boxes_querypose import generalized_box_iou
from querypose_hf.model.heatmaps_querypose import heatmap_focal_loss, keypoint_heatmaps
from querypose_hf.model.loss_querypose import (
    QueryPoseFlow,
    keypoints_in_boxes,
    object_keypoint_similarity,
    residual_log_likelihood_loss,
    varifocal_loss,
)
from querypose_hf.model.matching_querypose import Matches, QueryPoseHungarianMatcher
from querypose_hf.model.targets_querypose import QueryPoseTargets


def make_targets(labels, num_labels=1, num_keypoints=17, batch_size=None):
    fields = {"keypoint_names": [f"point_{k}" for k in range(num_keypoints)]} if num_keypoints != 17 else {}
    config = tiny_config(num_labels=num_labels, **fields)
    pixel_values = torch.zeros(batch_size or len(labels), 3, 1, 1, dtype=torch.float64)
    return QueryPoseTargets.from_labels(labels, pixel_values, config)


def random_boxes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, 2, generator=generator, dtype=torch.float64).sort(dim=-2).values
    return corners.flatten(-2)


def test_varifocal_loss_by_its_paper():
    """-q (q log p + (1 - q) log(1 - p)) where q > 0, else -alpha p^gamma log(1 - p), with alpha for what is nobody."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(6, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    quality = torch.rand(6, 7, generator=generator, dtype=torch.float64)
    quality = torch.where(quality < 0.5, 0, quality)
    loss = varifocal_loss(logits, quality, 0.25, 2.0)
    for p, q, found in zip(
        logits.sigmoid().flatten().tolist(), quality.flatten().tolist(), loss.flatten().tolist(), strict=True
    ):
        if q > 0:
            expected = -q * (q * math.log(p) + (1 - q) * math.log(1 - p))
        else:
            expected = -0.75 * p**2 * math.log(1 - p)
        assert found == pytest.approx(expected)
    # what is somebody learns to score as high as it is good
    at_rest = torch.tensor([0.3, 0.8], dtype=torch.float64).logit().requires_grad_()
    varifocal_loss(at_rest, torch.tensor([0.3, 0.8], dtype=torch.float64), 0.25, 2.0).sum().backward()
    torch.testing.assert_close(at_rest.grad, torch.zeros(2, dtype=torch.float64))


def test_oks_is_pycocotools():
    """But for the area, of which COCO has the outline's."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(6, seed=4) * torch.tensor([300.0, 200.0, 300.0, 200.0])
    keypoints = torch.rand(6, 17, 3, generator=generator, dtype=torch.float64) * torch.tensor([300.0, 200.0, 3.0])
    keypoints[..., 2] = keypoints[..., 2].floor()
    keypoints[5, :, 2] = 0
    prediction = keypoints[..., :2] + 5 * torch.randn(6, 17, 2, generator=generator, dtype=torch.float64)
    predicted_boxes = boxes + 10 * torch.rand(6, 4, generator=generator, dtype=torch.float64)
    found = object_keypoint_similarity(prediction, keypoints, boxes, predicted_boxes, tiny_config().keypoint_sigmas)

    truth, results = COCO(), COCO()
    sizes = boxes[:, 2:] - boxes[:, :2]
    for person in range(6):
        record = {"image_id": person, "category_id": 1, "id": person + 1, "iscrowd": 0, "score": 1.0}
        record["bbox"] = [*boxes[person, :2].tolist(), *sizes[person].tolist()]
        record["area"] = 0.53 * float(sizes[person].prod())
        points = torch.cat([prediction[person], torch.ones(17, 1)], dim=1).flatten().tolist()
        truth.anns[person + 1] = {
            **record,
            "keypoints": keypoints[person].flatten().tolist(),
            "num_keypoints": int((keypoints[person, :, 2] > 0).sum()),
        }
        results.anns[person + 1] = {**record, "keypoints": points}
    for coco in (truth, results):
        coco.dataset = {
            "images": [{"id": person} for person in range(6)],
            "annotations": list(coco.anns.values()),
            "categories": [{"id": 1}],
        }
        coco.createIndex()
    evaluation = COCOeval(truth, results, "keypoints")
    evaluation._prepare()
    expected = [float(evaluation.computeOks(person, 1).item()) for person in range(5)]
    assert found[:5].tolist() == pytest.approx(expected, abs=1e-6)
    assert 0.05 < min(expected) and max(expected) < 0.98
    # of whom no keypoint is labelled, the box tells
    iou = torchvision.ops.box_iou(boxes[5:], predicted_boxes[5:])
    assert float(found[5]) == pytest.approx(float(iou))


def matching_cost(config, logits, boxes, target_boxes, class_labels):
    probability = logits.sigmoid()
    positive = -0.25 * (1 - probability) ** 2 * (probability + 1e-8).log()
    negative = -0.75 * probability**2 * (1 - probability + 1e-8).log()
    cost = config.class_cost * (positive - negative)[:, class_labels]
    cost = cost + config.bbox_cost * torch.cdist(boxes, target_boxes, p=1)
    return cost - config.giou_cost * torchvision.ops.generalized_box_iou(boxes, target_boxes)


def test_matches_cost_least_of_all():
    """By trying every assignment, with two classes, several stages and images of different numbers of people."""
    config = tiny_config(num_labels=2)
    labels = [people(3, seed=1), people(0), people(2, seed=2)]
    labels[0]["class_labels"] = torch.tensor([0, 1, 1])
    targets = make_targets(labels, num_labels=2)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 2, generator=generator, dtype=torch.float64)
    boxes = random_boxes(2, 3, 5, seed=3)
    found = QueryPoseHungarianMatcher(config)(logits, boxes, targets)
    assert len(found) == 2
    for stage, matches in enumerate(found):
        assert matches.query_rows.tolist() == sorted(matches.query_rows.tolist())
        for image, rows in ((0, range(0, 3)), (2, range(3, 5))):
            cost = matching_cost(
                config, logits[stage, image], boxes[stage, image], targets.boxes[rows], targets.class_labels[rows]
            )
            ours = [(q % 5, t) for q, t in zip(*(x.tolist() for x in matches), strict=True) if q // 5 == image]
            assert sorted(t for _, t in ours) == list(rows)
            total = sum(cost[q, t - rows[0]] for q, t in ours)
            tried = itertools.permutations(range(5), len(rows))
            best = min(sum(cost[q, t] for t, q in enumerate(assignment)) for assignment in tried)
            assert total == pytest.approx(float(best))
        assert not any(5 <= row < 10 for row in matches.query_rows.tolist())


def test_more_people_than_queries():
    targets = make_targets([people(7)])
    matches = QueryPoseHungarianMatcher(tiny_config())(
        torch.zeros(1, 1, 4, 1, dtype=torch.float64), random_boxes(1, 1, 4), targets
    )[0]
    assert matches.query_rows.tolist() == [0, 1, 2, 3]
    assert len(set(matches.target_rows.tolist())) == 4


def test_matching_survives_a_diverged_model():
    logits = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0]).view(1, 1, 4, 1)
    boxes = torch.tensor([[0.0, 0, 1, 1], [float("nan")] * 4, [-1e30, -1e30, 1e30, 1e30], [float("inf")] * 4])
    matches = QueryPoseHungarianMatcher(tiny_config())(logits, boxes.view(1, 1, 4, 4), make_targets([people(3)]))[0]
    assert len(matches.query_rows) == 3


def test_flow_is_a_density():
    """It integrates to one, and its log determinant is that of the Jacobian which autograd gives."""
    torch.manual_seed(0)
    flow = QueryPoseFlow().double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.5)
    axis = torch.linspace(-25, 25, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=2e-3)

    def to_latent(point):
        latent = point
        for layer in reversed(range(6)):
            mask = flow.mask[layer].double()
            scale = flow.scale[layer](mask * latent) * (1 - mask)
            shift = flow.shift[layer](mask * latent) * (1 - mask)
            latent = mask * latent + (1 - mask) * (latent - shift) * torch.exp(-scale)
        return latent

    point = torch.tensor([0.3, -1.2], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(to_latent, point)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    expected = prior.log_prob(to_latent(point)) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow.log_prob(point), expected)


def rle_by_the_formula(prediction, sigma, box, keypoint, flow):
    """One coordinate pair of one keypoint, written as SPEC's formula is."""
    size = box[2:] - box[:2]
    target = (keypoint - box[:2]) / size - 0.5
    log_phi = flow.log_prob((prediction - target) / sigma)
    laplace = (sigma * math.sqrt(2 * math.pi)).log() + (target - prediction).abs() / (math.sqrt(2) * sigma + 1e-9)
    return (sigma.log() - log_phi + laplace).sum()


def test_residual_log_likelihood_and_what_it_leaves_out():
    torch.manual_seed(0)
    flow = QueryPoseFlow().double()
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.75]], dtype=torch.float64)
    # inside, on the left edge, on a corner, just outside, unlabelled inside
    positions = [[0.3, 0.4, 2], [0.25, 0.5, 1], [0.5, 0.75, 2], [0.5 + 1e-9, 0.5, 2], [0.3, 0.4, 0]]
    keypoints = torch.tensor([positions], dtype=torch.float64)
    prediction = torch.rand(1, 5, 2, dtype=torch.float64) - 0.5
    sigma = 0.1 + torch.rand(1, 5, 2, dtype=torch.float64)
    total = residual_log_likelihood_loss(prediction, sigma, *keypoints_in_boxes(keypoints, boxes), flow)
    expected = sum(
        rle_by_the_formula(prediction[0, k], sigma[0, k], boxes[0], keypoints[0, k, :2], flow) for k in (0, 1, 2)
    )
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(
    "box", [[0.5, 0.5, 0.5, 0.5], [0.5, 0.2, 0.5, 0.8], [0.8, 0.8, 0.2, 0.2], [-1e25, -1e25, 1e25, 1e25]]
)
def test_degenerate_boxes_leave_losses_and_gradients_finite(box):
    flow = QueryPoseFlow()
    boxes = torch.tensor([box], requires_grad=True)
    keypoints = torch.tensor([[[0.5, 0.5, 2.0], [0.3, 0.3, 2.0]]])
    prediction = torch.zeros(1, 2, 2, requires_grad=True)
    sigma = torch.full((1, 2, 2), 0.5, requires_grad=True)
    loss = residual_log_likelihood_loss(prediction, sigma, *keypoints_in_boxes(keypoints, boxes), flow)
    loss = loss + (1 - generalized_box_iou(boxes, torch.tensor([[0.2, 0.2, 0.7, 0.7]]))).sum()
    loss.backward()
    assert loss.isfinite()
    for tensor in (boxes, prediction, sigma, *flow.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


def test_tiny_deviations_leave_loss_and_gradients_finite():
    flow = QueryPoseFlow()
    sigma = torch.zeros(1, 1, 2, requires_grad=True)
    prediction = torch.full((1, 1, 2), 0.4, requires_grad=True)
    loss = residual_log_likelihood_loss(prediction, sigma, torch.zeros(1, 1, 2), torch.ones(1, 1).bool(), flow)
    loss.backward()
    assert loss.isfinite() and prediction.grad.isfinite().all() and sigma.grad.isfinite().all()


def test_heatmaps_are_centernets():
    """Against CenterNet's way, one keypoint after the other, drawn with numpy."""
    height, width, stride = 40, 60, 4
    sizes = torch.tensor([[160, 240], [150, 230]])
    labels = [people(3, num_keypoints=2, seed=3), people(2, num_keypoints=2, seed=4)]
    labels[0]["keypoints"][0, 0] = torch.tensor([0.0, 0.0, 1.0])
    labels[0]["keypoints"][1, 0, 2] = 0
    labels[1]["keypoints"][0, 1] = torch.tensor([1.7, 0.5, 2.0])  # off the picture
    targets = make_targets(labels, num_keypoints=2)
    expected = np.zeros((2, 2, height, width))
    for image, label in enumerate(labels):
        image_height, image_width = sizes[image].tolist()
        for box, points in zip(label["boxes"].double().numpy(), label["keypoints"].double().numpy(), strict=True):
            w, h = box[2] * image_width / stride, box[3] * image_height / stride
            roots = []
            for a, b, c in (
                (1, h + w, w * h * 0.3 / 1.7),
                (4, 2 * (h + w), 0.3 * w * h),
                (2.8, -1.4 * (h + w), -0.3 * w * h),
            ):
                roots.append((b + math.sqrt(b * b - 4 * a * c)) / 2)
            radius = max(0, int(min(roots)))
            for channel, (x, y, visibility) in enumerate(points):
                column, row = math.floor(x * image_width / stride), math.floor(y * image_height / stride)
                if visibility == 0 or not (0 <= column < width and 0 <= row < height):
                    continue
                for dy, dx in itertools.product(range(-radius, radius + 1), repeat=2):
                    if 0 <= row + dy < height and 0 <= column + dx < width:
                        sigma = (2 * radius + 1) / 6
                        value = math.exp(-(dx * dx + dy * dy) / (2 * sigma**2))
                        place = (image, channel, row + dy, column + dx)
                        expected[place] = max(expected[place], value)
    found = keypoint_heatmaps(targets, sizes, height, width, stride)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert (found == 1).sum() == 3 * 2 + 2 * 2 - 2

    logits = torch.randn(2, 2, height, width, dtype=torch.float64)
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4).numpy()
    by_hand = 0.0
    for value, target in zip(p.flatten(), expected.flatten(), strict=True):
        by_hand -= math.log(value) * (1 - value) ** 2 if target == 1 else 0
        by_hand -= math.log(1 - value) * value**2 * (1 - target) ** 4 if target < 1 else 0
    assert float(heatmap_focal_loss(logits, found)) == pytest.approx(by_hand / 8)


def test_part_attention_loss_by_hand():
    """One cell after the other; the loss is least, and is the target's entropy, where the maps are the target."""
    torch.manual_seed(0)
    height, width, parts = 6, 8, [[0, 1], [2]]
    boxes = torch.tensor([[10.0, 20.0, 50.0, 80.0], [0.0, 0.0, 8.0, 6.0]], dtype=torch.float64)
    keypoints = torch.tensor(
        [
            [[15.0, 30.0, 2.0], [40.0, 70.0, 1.0], [5.0, 30.0, 2.0]],  # the last one is outside
            [[4.0, 3.0, 2.0], [1.0, 1.0, 0.0], [8.0, 6.0, 2.0]],  # one is not labelled, one on the edge
        ],
        dtype=torch.float64,
    )
    logits = torch.randn(2, 2, height, width, dtype=torch.float64, requires_grad=True)
    maps = logits.flatten(2).softmax(-1).view_as(logits)
    targets = np.zeros((2, 2, height, width))
    for person, part in itertools.product(range(2), range(2)):
        left, top, right, bottom = boxes[person].tolist()
        inside = [
            keypoint
            for keypoint in parts[part]
            if not (keypoints[person, keypoint, 2] == 0 or (person == 0 and keypoint == 2))
        ]
        for keypoint in inside:
            x = (float(keypoints[person, keypoint, 0]) - left) / (right - left) * width
            y = (float(keypoints[person, keypoint, 1]) - top) / (bottom - top) * height
            hill = np.zeros((height, width))
            for row, column in itertools.product(range(height), range(width)):
                hill[row, column] = math.exp(-((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2) / 2)
            targets[person, part] += hill / hill.sum() / len(inside)
    expected = -(targets * maps.detach().log().numpy()).sum()
    loss = part_attention_loss(maps, *keypoints_in_boxes(keypoints, boxes.requires_grad_()), parts)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert boxes.grad is None and not logits.grad[0, 1].any() and logits.grad[1].any()
    best = part_attention_loss(torch.from_numpy(targets), *keypoints_in_boxes(keypoints, boxes), parts)
    entropy = -sum(value * math.log(value) for value in targets.flatten() if value > 0)
    assert float(best) == pytest.approx(entropy, rel=1e-6) and best < loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 3)}, r"labels\[0\]\['boxes'\].*\(2, 4\)"),
        ({"keypoints": torch.zeros(2, 14, 3)}, r"labels\[0\]\['keypoints'\].*\(2, 17, 3\)"),
        ({"class_labels": torch.tensor([0, 1])}, "class labels from 0 to 1.*`num_labels` is 1"),
        ({"boxes": torch.full((2, 4), float("nan"))}, "not finite"),
    ],
)
def test_labels_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        make_targets([{**people(2), **change}])


def test_labels_that_are_not_there():
    label = people(1)
    del label["keypoints"]
    with pytest.raises(ValueError, match=r"labels\[0\].*keypoints"):
        make_targets([label])
    with pytest.raises(ValueError, match="one dict per image"):
        make_targets([people(1)], batch_size=2)


@pytest.mark.parametrize("query_feedback", ["always", "selected", "training", "never"])
@pytest.mark.parametrize(
    "case", ["nobody", "nobody in one image", "no visible keypoints", "more people than queries", "whole-image boxes"]
)
def test_unusual_batches_train(case, query_feedback):
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(query_feedback=query_feedback, num_queries=6)).train()
    labels = {
        "nobody": [people(0), people(0)],
        "nobody in one image": [people(2), people(0)],
        "no visible keypoints": [people(2), people(1)],
        "more people than queries": [people(9), people(1)],
        "whole-image boxes": [people(2), people(2)],
    }[case]
    if case == "no visible keypoints":
        for label in labels:
            label["keypoints"].zero_()
    if case == "whole-image boxes":
        labels[0]["boxes"][:] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    outputs = model(torch.randn(2, 3, 64, 96), labels=labels)
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # what DistributedDataParallel asks for
        assert parameter.grad.isfinite().all(), name
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name
    matched = [6 if query_feedback == "always" else min(len(label["boxes"]), 6) for label in labels]
    assert outputs.keypoint_query_mask.sum(dim=1).tolist() == matched


def test_degenerate_predictions_train():
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config()).train()
    with torch.no_grad():
        for layer, value in zip(model.model.decoder.box_layers, (1e4, -1e4), strict=True):
            layer.box_head.bias.fill_(value)  # boxes as large, then as small as they can get
    outputs = model(torch.randn(1, 3, 64, 64), labels=[people(3)])
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_loss_terms_are_named_by_stage_and_add_up():
    torch.manual_seed(0)
    config = tiny_config(decoder_layers=3, heatmap_loss_coefficient=0.5)
    model = QueryPoseForPoseEstimation(config).train()
    outputs = model(torch.randn(2, 3, 64, 64), labels=[people(2), people(1)])
    terms = [f"loss_{term}{stage}" for stage in ("_0", "_1", "") for term in ("class", "bbox", "giou", "keypoint")]
    assert list(outputs.loss_dict) == [*terms, "loss_heatmap"]
    torch.testing.assert_close(outputs.loss, torch.stack(list(outputs.loss_dict.values())).sum())

    model.config.auxiliary_loss = False
    outputs = model(torch.randn(2, 3, 64, 64), labels=[people(2), people(1)])
    assert list(outputs.loss_dict) == ["loss_class", "loss_bbox", "loss_giou", "loss_keypoint", "loss_heatmap"]
    assert outputs.auxiliary_outputs is None

    model = QueryPoseForPoseEstimation(tiny_config(keypoint_coordinates="attention", keypoint_parts="a")).train()
    loss_dict = model(torch.randn(2, 3, 64, 64), labels=[people(2), people(1)]).loss_dict
    assert list(loss_dict)[-1] == "loss_part_attention"


def test_class_scores_learn_how_good_poses_are():
    """The class term with the target "oks", from what the model gives, in an image that is padded and not square."""
    torch.manual_seed(0)
    config = tiny_config(class_target="oks", auxiliary_loss=False, query_feedback="never")
    model = QueryPoseForPoseEstimation(config).double().eval()
    pixel_values = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    pixel_mask = torch.ones(2, 64, 96, dtype=torch.long)
    pixel_mask[1, 40:] = pixel_mask[1, :, 80:] = 0
    labels = [{k: v.double() if v.is_floating_point() else v for k, v in people(n, seed=n).items()} for n in (3, 2)]
    outputs = model(pixel_values, pixel_mask=pixel_mask, labels=labels)
    targets = make_targets(labels)
    corners = center_to_corners_format(outputs.pred_boxes)
    matches = QueryPoseHungarianMatcher(config)(outputs.logits[None], corners[None], targets)[0]
    quality = torch.zeros(2 * config.num_queries, 1, dtype=torch.float64)
    for row, person in zip(*(rows.tolist() for rows in matches), strict=True):
        image, query = divmod(row, config.num_queries)
        size = torch.tensor([[96.0, 64.0], [80.0, 40.0]][image])
        truth = targets.keypoints[person] * torch.cat([size, torch.ones(1)])
        box, found = targets.boxes[person] * size.repeat(2), corners[image, query] * size.repeat(2)
        quality[row] = object_keypoint_similarity(
            outputs.pred_keypoints[image, query][None] * size,
            truth[None],
            box[None],
            found[None],
            config.keypoint_sigmas,
        )
    assert (quality > 0).sum() == 5 and quality.max() < 1
    expected = 2 * varifocal_loss(outputs.logits.flatten(0, 1), quality, 0.25, 2.0).sum() / 5
    torch.testing.assert_close(outputs.loss_dict["loss_class"], expected)
    # poses and boxes do not become better by being scored
    model.zero_grad()
    outputs.loss_dict["loss_class"].backward()
    for layer in model.model.decoder.keypoint_layers:
        assert all(parameter.grad is None for parameter in layer.parameters())


def test_unmatched_queries_say_nothing_where_not_everybody_is_annotated():
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(decoder_layers=1, query_feedback="never")).train()
    pixel_values, labels = torch.randn(2, 3, 64, 64), [people(2), people(1)]
    everybody = model(pixel_values, labels=[{**label, "exhaustive": torch.tensor(True)} for label in labels])
    torch.testing.assert_close(everybody.loss_dict, model(pixel_values, labels=labels).loss_dict)

    labels = [labels[0], {**labels[1], "exhaustive": torch.tensor(False)}]
    outputs = model(pixel_values, labels=labels)
    matched = outputs.keypoint_query_mask  # in training only these are decoded
    focal = torchvision.ops.sigmoid_focal_loss(outputs.logits.squeeze(-1), matched.float(), alpha=0.25, gamma=2.0)
    expected = 2 * (focal[0].sum() + focal[1][matched[1]].sum()) / 3
    torch.testing.assert_close(outputs.loss_dict["loss_class"], expected)
    for name in ("loss_bbox", "loss_giou", "loss_keypoint"):
        torch.testing.assert_close(outputs.loss_dict[name], everybody.loss_dict[name])


@pytest.mark.parametrize("coordinates", ["regression", "attention"])
def test_validation_loss_has_all_poses(coordinates):
    torch.manual_seed(0)
    config = tiny_config(keypoint_top_k=2, decoder_layers=1, keypoint_coordinates=coordinates, keypoint_parts="a")
    model = QueryPoseForPoseEstimation(config).eval()
    pixel_values, labels = torch.randn(2, 3, 64, 64), [people(2), people(1)]
    with torch.no_grad():
        outputs = model(pixel_values, labels=labels)
    assert outputs.loss.isfinite() and outputs.keypoint_query_mask.all()
    assert outputs.part_attentions is None  # nobody asked for them
    assert ("loss_part_attention" in outputs.loss_dict) == (coordinates == "attention")
    # of the first stage's matched queries, training computes the same where batch norms stand still
    with torch.no_grad():
        validation = model(pixel_values, labels=labels).loss
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        training = model(pixel_values, labels=labels).loss
    torch.testing.assert_close(validation, training)


def test_part_queries_follow_their_query_when_the_matching_changes():
    """Matched in stages 0 and 2 but not in 1, a query goes on from its own part queries, not from a neighbour's."""
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(decoder_layers=3, query_feedback="never")).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    decoder = model.model.decoder
    rows = [[3, 5], [4, 5], [3, 4]]
    decoder.matcher = lambda logits, boxes, targets: [
        Matches(torch.tensor(stage), torch.tensor([0, 1])) for stage in rows
    ]
    seen = []
    for layer in decoder.keypoint_layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[1], output[1])))
    model(torch.randn(1, 3, 64, 64, dtype=torch.float64), labels=[people(2)])
    (first_in, first_out), (second_in, second_out), (third_in, _) = seen
    table = decoder.part_queries
    torch.testing.assert_close(first_in, torch.stack([table, table]))
    torch.testing.assert_close(second_in, torch.stack([table, first_out[1]]))
    torch.testing.assert_close(third_in, torch.stack([first_out[0], second_out[0]]))


def test_people_are_counted_over_processes():
    """Two processes with 3 and 1 people divide by 2 each: their averaged gradients are those of one batch of 4."""
    script = textwrap.dedent(
        """
        import os, sys, torch
        import torch.distributed as dist
        from querypose_hf.model.targets_querypose import QueryPoseTargets
        rank, store = int(sys.argv[1]), sys.argv[2]
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        targets = QueryPoseTargets(None, torch.zeros(0, 4), None, [3, 0] if rank == 0 else [1], None)
        print(float(targets.number_of_people()))
        dist.destroy_process_group()
        """
    )
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(rank), f"{folder}/store"], stdout=subprocess.PIPE, text=True
            )
            for rank in range(2)
        ]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [float(output.split()[-1]) for output in outputs] == [2.0, 2.0]


def test_losses_are_float32_under_autocast():
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config()).train()
    pixel_values, labels = torch.randn(2, 3, 64, 64), [people(2), people(1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(pixel_values, labels=labels)
    outputs.loss.backward()
    assert outputs.pred_boxes.dtype == outputs.pred_keypoints.dtype == outputs.keypoint_sigmas.dtype == torch.float32
    assert all(term.dtype == torch.float32 and term.isfinite() for term in outputs.loss_dict.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
