"""The systems of the paper's tables, as docs/ablations.md describes them."""

import re

import pytest
import torch
import yaml
from places import PROJECT
from tiny import images, make_model, people, tiny_config

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessorPil, QueryPoseModel
from querypose_hf.export import ExportedPoseEstimator, ExportOptions, export_model
from querypose_hf.export.graphs import RAW_OUTPUTS
from querypose_hf.inference.explanation import explain_people
from querypose_hf.model.keypoint_layer_querypose import KEYPOINT_INTERACTIONS


def rows_of_the_page():
    """The fields that each row of the tables sets, and the paper's AP."""
    rows = []
    for line in (PROJECT / "docs" / "ablations.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(r"\d\d\.\d", cells[-2]):
            settings = dict(word.removeprefix("model.").split("=") for word in re.findall(r"`(\S+=\S+)`", line))
            rows.append(({name: yaml.safe_load(value) for name, value in settings.items()}, float(cells[-2])))
    return rows


ROWS = rows_of_the_page()
# several rows are the paper's final system
SYSTEMS = list({str(QueryPoseConfig(**fields).to_dict()): fields for fields, _ in ROWS}.values())
# querypose-nano's, and those of 14 keypoints
CROWDPOSE = QueryPoseConfig.skeleton_fields("crowdpose")
ALL = [
    *SYSTEMS,
    {"keypoint_coordinates": "attention", "keypoint_parts": "a"},
    *({**CROWDPOSE, "keypoint_parts": parts} for parts in "abcd"),
    *({**CROWDPOSE, "keypoint_query": query} for query in ("instance", "none")),
]


def name_of(fields):
    return "-".join(f"{name}={value}" for name, value in fields.items() if not isinstance(value, list))


def test_the_page_has_every_row():
    assert len(ROWS) == 8 + 4 + 3 + 4 + 4 + 2
    assert sorted({ap for _, ap in ROWS})[0] == 59.2 and max(ap for _, ap in ROWS) == 64.9
    finals = [QueryPoseConfig(**fields).to_dict() for fields, ap in ROWS if ap == 64.9]
    assert len(finals) == 5 and all(config == QueryPoseConfig().to_dict() for config in finals)


def small_system(seed, fields):
    """A system with 6 queries, its part queries a quarter as wide as the table says. Its boxes are on the image."""
    fields = {**fields, "part_dim": fields["part_dim"] // 4} if "part_dim" in fields else fields
    model = make_model(seed, num_queries=6, **fields).float()
    for layer in model.model.decoder.box_layers:
        torch.nn.init.zeros_(layer.box_head.weight)
    return model


def losses_of_training(model, parameters, terms):
    """The sum of some loss terms in each step of training these parameters to lower it."""
    count = model.config.num_keypoints
    pixel_values, labels = images(2, 3, 64, 64).float(), [people(2, count), people(1, count, seed=1)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for _ in range(10):
        loss_dict = model(pixel_values, labels=labels).loss_dict
        loss = sum(value for name, value in loss_dict.items() if name.startswith(terms))
        optimizer.zero_grad()
        loss.backward()
        # as DistributedDataParallel asks
        assert all(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("fields", ALL, ids=name_of)
def test_system_trains_saves_loads_and_predicts(fields, tmp_path):
    # what makes the systems differ by itself, in boxes that stay as they are; then all of another model
    for seed, trained, terms, margin, changes in (
        (0, "model.decoder.keypoint_layers", "loss_keypoint", 0.2, {"query_feedback": "never"}),
        (1, "", "loss", 3, {}),
    ):
        model = small_system(seed, {**fields, **changes}).train()
        losses = losses_of_training(model, model.get_submodule(trained).parameters(), terms)
        assert max(losses[-3:]) < losses[0] - margin, losses

    model.eval().save_pretrained(tmp_path)
    loaded = QueryPoseForPoseEstimation.from_pretrained(tmp_path).eval()
    assert all(getattr(loaded.config, name) == getattr(model.config, name) for name in fields)
    pixel_values = images(2, 3, 96, 64).float()
    with torch.no_grad():
        outputs, again = (one(pixel_values, output_attentions=True) for one in (model, loaded))
    for name in (*RAW_OUTPUTS, "keypoint_sigmas"):
        torch.testing.assert_close(again[name], outputs[name], atol=1e-4, rtol=1e-4)

    processor = QueryPoseImageProcessorPil()
    found = processor.post_process_pose_estimation(again, threshold=0.0, target_sizes=[(960, 640)] * 2)
    scores = again.logits[..., 0].sigmoid() * again.keypoint_scores.mean(dim=-1)
    for image, people_of_image in enumerate(found):
        assert people_of_image  # not all boxes need to reach into the image
        for person in people_of_image:
            query = (scores[image] - person["score"]).abs().argmin()
            expected = again.pred_keypoints[image, query] * torch.tensor([640, 960]) - 0.5
            torch.testing.assert_close(person["keypoints"], expected)

    expected = (2, 6, model.config.num_parts if model.config.keypoint_query == "part" else 0)
    assert outputs.part_queries.shape[:3] == expected
    if model.config.has_part_attention:
        assert outputs.part_attentions[-1].shape[:3] == expected
    else:
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        with pytest.raises(ValueError, match="part attention maps"):
            explain_people(model, processor, image)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "export_format"),
    [*((fields, "torch-export") for fields in ALL), *((fields, "onnx") for fields in (ALL[0], SYSTEMS[6]))],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_system_exports(fields, export_format, tmp_path):
    if export_format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = small_system(0, fields)
    export_model(model, QueryPoseImageProcessorPil(), tmp_path, ExportOptions(export_format))
    exported = ExportedPoseEstimator.from_export(tmp_path)
    for size in ((1, 3, 64, 96), (3, 3, 128, 96)):
        pixel_values = images(*size).float()
        with torch.no_grad():
            expected = model(pixel_values)
        found = exported(pixel_values)
        for name in RAW_OUTPUTS:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_parameters_at_the_papers_size():
    """Those that the paper or arithmetic gives: one global map, and the dynamic interaction of seven part queries."""
    config = QueryPoseConfig()

    def count(piece):
        return sum(parameter.numel() for parameter in piece.parameters())

    with torch.device("meta"):
        assert round(count(KEYPOINT_INTERACTIONS["spatial_attention"](config, 1, 256)) / 1e6, 2) == 1.12
        assert round(count(KEYPOINT_INTERACTIONS["dynamic_channel"](config, 7, 128)) / 1e6, 2) == 10.65
        spatial = count(KEYPOINT_INTERACTIONS["dynamic_spatial"](config, 7, 128))
    linear = 129 * 2 * 196 * 64 + (196 * 256 + 1) * 128
    assert spatial == linear + 2 * (64 + 196 + 128)


def test_dynamic_interaction_of_one_query_is_that_of_the_full_version():
    """The instance query's dynamic interaction has the state dict of the full version's, and computes the same."""
    torch.manual_seed(0)
    full = QueryPoseForPoseEstimation(tiny_config()).model.decoder.keypoint_layers[0]
    config = tiny_config(keypoint_query="instance", keypoint_interaction="dynamic_channel")
    layer = QueryPoseForPoseEstimation(config).model.decoder.keypoint_layers[0]
    names = {name for name in layer.state_dict() if "_head." not in name}
    state = {name: value for name, value in full.state_dict().items() if name in names}
    assert set(state) == names
    layer.load_state_dict({**layer.state_dict(), **state})
    inputs = (torch.randn(5, 32), torch.randn(5, 7, 16), torch.randn(5, 32, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(layer(*inputs).queries, full(*inputs).queries)


def test_dynamic_interaction_over_positions_is_the_one_over_channels_of_the_transpose():
    torch.manual_seed(0)
    config = tiny_config(d_model=64)  # as wide as there are positions
    channels = KEYPOINT_INTERACTIONS["dynamic_channel"](config, 3, 16)
    positions = KEYPOINT_INTERACTIONS["dynamic_spatial"](config, 3, 16)
    positions.load_state_dict(channels.state_dict())
    features, queries = torch.randn(2, 64, 8, 8), torch.randn(2, 3, 16)
    transposed = features.flatten(2).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(positions(features, queries)[0], channels(transposed, queries)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keypoint_query": "person"}, "keypoint_query"),
        ({"keypoint_interaction": "convolution"}, "keypoint_interaction"),
        ({"part_iteration": "product"}, "part_iteration"),
        ({"keypoint_interaction": "pooling"}, "expected 'pooling' with 'none'"),
        ({"keypoint_query": "none", "keypoint_interaction": "self_attention"}, "expected 'pooling' with 'none'"),
        ({"keypoint_parts": "e"}, "keypoint_parts"),
        ({"keypoint_parts": "b", "keypoint_names": ["a", "b"], "keypoint_sigmas": [0.1, 0.1]}, "keypoint_parts"),
        ({"keypoint_query": "instance", "keypoint_coordinates": "attention"}, "needs part attention maps"),
        ({"keypoint_interaction": "self_attention", "keypoint_coordinates": "attention"}, "needs part attention maps"),
        ({"keypoint_query": "none", "keypoint_coordinates": "attention"}, "needs part attention maps"),
        ({"keypoint_parts": "c", "keypoint_coordinates": "attention"}, "needs an attention map for each keypoint"),
    ],
)
def test_systems_that_do_not_exist(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


def test_base_model_of_a_system_without_part_queries():
    outputs = QueryPoseModel(tiny_config(keypoint_query="none")).eval()(torch.randn(1, 3, 64, 64))
    assert outputs.part_queries.shape == (1, 12, 0, 16) and outputs.intermediate_keypoints.shape == (1, 2, 12, 17, 2)
