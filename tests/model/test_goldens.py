"""The model against reference outputs of the original implementation, in float64."""

import hashlib

import goldens
import numpy as np
import pytest
import torch

from querypose_hf.model.image_processing_querypose import QueryPoseImageProcessor


TOLERANCE = 1e-8
VARIANTS = {
    "r50_light": "r50",
    "r50_full": "r50",
    "hrnet_w32_light": "hrnet_w32",
    "hrnet_w48_full": "hrnet_w48",
    "swin_t_full": "swin_t",
}
TRAINED = ("r50_light", "r50_full", "hrnet_w32_light")


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def model(variant):
    return goldens.convert(variant, VARIANTS[variant])


@pytest.fixture(scope="module")
def pyramid(model, variant):
    pixel_values, _ = goldens.batch(variant)
    with torch.no_grad():
        return model.model.extract_pyramid(pixel_values)


def test_weights_are_the_references(variant):
    description = goldens.manifest(variant)
    if "weights_sha256" not in description:
        pytest.skip("the references give no hash for this variant")
    state = goldens.original_state(variant)
    digest = hashlib.sha256()
    for name, _, _, keep in description["state_dict"]:
        if not keep:
            digest.update(name.encode())
            digest.update(state[name].numpy().tobytes())
    assert digest.hexdigest() == description["weights_sha256"]


def test_pyramid(pyramid, variant):
    expected = np.load(goldens.GOLDENS / variant / "eval.npz")
    assert goldens.relative_error(pyramid[3], expected["f64_p5"]) < TOLERANCE
    for index, level in enumerate(pyramid[:3]):
        name = f"f64_p{index + 2}"
        height, width = level.shape[-2:]
        assert list(level.shape) == expected[f"{name}_shape"].tolist()
        sample = level[:, ::8, :: max(1, height // 8), :: max(1, width // 8)]
        assert goldens.relative_error(sample, expected[f"{name}_sample"]) < TOLERANCE
        mean_std = torch.stack([level.mean(), level.std()])
        assert goldens.relative_error(mean_std, expected[f"{name}_mean_std"]) < TOLERANCE


@pytest.mark.parametrize(("query_feedback", "file"), [("training", "eval"), ("always", "eval_carry")])
def test_inference(model, pyramid, variant, query_feedback, file):
    path = goldens.GOLDENS / variant / f"{file}.npz"
    if not path.exists():
        pytest.skip("light models feed nothing back")
    expected = np.load(path)
    pixel_values, pixel_mask = goldens.batch(variant)
    sizes = goldens.image_sizes(variant)
    model.config.query_feedback = query_feedback
    model.model.extract_pyramid = lambda *_, **__: pyramid
    try:
        with torch.no_grad():
            outputs = model(pixel_values, pixel_mask=pixel_mask)
    finally:
        del model.model.extract_pyramid

    stages = [*outputs.auxiliary_outputs, outputs]
    scale = sizes[:, [1, 0]].double()
    for stage, found in enumerate(stages):
        centre, size = found["pred_boxes"].split(2, dim=-1)
        low = (centre - size / 2) * scale[:, None]
        high = (centre + size / 2) * scale[:, None]
        keypoints = (found["pred_keypoints"] * scale[:, None, None] - low[:, :, None]) / (high - low)[:, :, None] - 0.5
        poses = torch.cat([keypoints, found["keypoint_scores"][..., None]], dim=-1)
        assert goldens.relative_error(found["logits"], expected["f64_logits"][stage]) < TOLERANCE
        assert goldens.relative_error(torch.cat([low, high], dim=-1), expected["f64_boxes"][stage]) < TOLERANCE
        assert goldens.relative_error(poses, expected["f64_poses"][stage]) < TOLERANCE
        assert goldens.relative_error(found["keypoint_sigmas"], expected["f64_sigmas"][stage]) < TOLERANCE
    assert outputs.keypoint_query_mask.all()

    people = QueryPoseImageProcessor().post_process_pose_estimation(
        outputs, threshold=0.0, target_sizes=expected["output_sizes"].tolist()
    )
    for image, found in enumerate(people):
        order = np.argsort(-expected[f"f64_final{image}_scores"], kind="stable")
        assert len(found) == len(order)
        keypoints = expected[f"f64_final{image}_keypoints"][order]
        # the references are in continuous coordinates, results are pixel indices
        expected_people = {
            "score": expected[f"f64_final{image}_scores"][order],
            "bbox": expected[f"f64_final{image}_boxes"][order],
            "keypoints": keypoints[..., :2] - 0.5,
            "scores": keypoints[..., 2],
        }
        for name, values in expected_people.items():
            assert goldens.relative_error(torch.stack([person[name] for person in found]), values) < TOLERANCE


@pytest.mark.parametrize(
    ("variant", "file"),
    [*((variant, "train") for variant in TRAINED), ("r50_full", "train_frozenbn"), ("r50_full", "train_always")],
    scope="function",
)
def test_training(variant, file):
    path = goldens.GOLDENS / variant / f"{file}.npz"
    expected = np.load(path)
    model = goldens.convert(variant, VARIANTS[variant])
    if file == "train_always":
        model.config.query_feedback = "always"
    sizes = goldens.image_sizes(variant)
    pixel_values, pixel_mask = goldens.batch(variant)
    model.train()
    if file == "train_frozenbn":
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    captured = {}
    compute_loss = model.compute_loss
    model.compute_loss = lambda found, *rest: captured.update(found=found) or compute_loss(found, *rest)
    outputs = model(pixel_values, pixel_mask=pixel_mask, labels=goldens.labels(expected, sizes))
    outputs.loss.backward()
    # what captures refers to the model, whose gigabytes would stay until the garbage collector comes by
    del model.compute_loss

    terms = {"loss_ce": "loss_class", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou", "loss_kps": "loss_keypoint"}
    names = [name.removeprefix("L/") for name in expected.files if name.startswith("L/")]
    assert len(names) == len(outputs.loss_dict) == 24
    for name in names:
        term, _, stage = name.rpartition("_")
        ours = f"{terms[term]}_{stage}" if stage.isdigit() else terms[name]
        assert goldens.relative_error(outputs.loss_dict[ours].detach(), expected[f"L/{name}"]) < TOLERANCE, name
    assert goldens.relative_error(outputs.loss.detach(), expected["loss_total"]) < TOLERANCE

    decoded = captured["found"]
    matches = decoded.matches
    num_queries = model.config.num_queries
    offsets = np.cumsum([0] + [len(expected[f"target/boxes{image}"]) for image in range(2)])
    for stage, found in enumerate(matches):
        pairs = [expected[f"match/stage{stage}/image{image}"] for image in range(2)]
        rows = np.concatenate([pairs[image][0] + image * num_queries for image in range(2)])
        targets = np.concatenate([pairs[image][1] + offsets[image] for image in range(2)])
        assert found.query_rows.tolist() == rows.tolist()
        assert found.target_rows.tolist() == targets.tolist()
    logits = torch.stack([stage.logits for stage in decoded.box_stages]).detach()
    assert goldens.relative_error(logits, expected["logits"]) < TOLERANCE
    for stage, found in enumerate(matches):
        keypoints = decoded.by_query(stage, "keypoints").flatten(0, 1)[found.query_rows].detach()
        sigmas = decoded.by_query(stage, "sigmas").flatten(0, 1)[found.query_rows].detach()
        poses = torch.cat([keypoints, 1 - sigmas.mean(-1, keepdim=True)], dim=-1)
        if file == "train_always":  # has the poses of all queries
            assert decoded.keypoint_stages[stage].rows is None
            keypoints, sigmas = (decoded.by_query(stage, name).detach() for name in ("keypoints", "sigmas"))
            poses = torch.cat([keypoints, 1 - sigmas.mean(-1, keepdim=True)], dim=-1)
        names = ("poses", "sigmas") if file == "train_always" else ("matched_poses", "matched_sigmas")
        assert goldens.relative_error(poses, expected[names[0]][stage]) < TOLERANCE
        assert goldens.relative_error(sigmas, expected[names[1]][stage]) < TOLERANCE

    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, norm, product in zip(
        expected["grad_names"], expected["grad_norms"], expected["grad_dot_param"], strict=True
    ):
        gradient = goldens.read_back(str(name), gradients, model.config)
        assert gradient is not None, name
        if "LSA_conv.bias" in name:  # softmax does not see it: zero but for rounding
            assert gradient.abs().max() < 1e-10
            continue
        parameter = goldens.read_back(str(name), parameters, model.config)
        assert abs(gradient.norm() - norm) < TOLERANCE * norm, name
        # the product may cancel, so that it is held to the size of what it sums
        size = gradient.norm() * parameter.norm()
        assert abs(gradient @ parameter - product) < TOLERANCE * size, name
    for name in expected["grad_none"]:
        placements = goldens.place(str(name), model.config)
        assert placements is None or all(placement.name not in gradients for placement in placements), name

    if "running_names" in expected:
        buffers = dict(model.named_buffers())
        for name, norm in zip(expected["running_names"], expected["running_norms_after_forward"], strict=True):
            found = goldens.read_back(str(name), buffers, model.config).double().norm()
            assert abs(found - norm) < TOLERANCE * max(norm, 1), name
        for name in (name for name in expected.files if name.startswith("running/")):
            found = goldens.read_back(name.removeprefix("running/"), buffers, model.config)
            assert goldens.relative_error(found, expected[name]) < TOLERANCE, name
