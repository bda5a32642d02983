"""The systems of the paper's tables, as docs/ablations.md describes them."""

import re

import pytest
import torch
import yaml
from places import PROJECT
from tiny import people, tiny_config

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessorPil, QueryPoseModel
from querypose_hf.inference.explanation import explain_people
from querypose_hf.model.keypoint_layer_querypose import (
    QueryPoseDynamicEmbedding,
    QueryPoseSpatialAttention,
    QueryPoseSpatialDynamicEmbedding,
)


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
# querypose-nano's
ATTENTION = {"keypoint_coordinates": "attention", "keypoint_parts": "a"}


def test_the_page_has_every_row():
    assert len(ROWS) == 8 + 4 + 3 + 4 + 4 + 2
    assert sorted({ap for _, ap in ROWS})[0] == 59.2 and max(ap for _, ap in ROWS) == 64.9
    finals = [QueryPoseConfig(**fields).to_dict() for fields, ap in ROWS if ap == 64.9]
    assert len(finals) == 5 and all(config == QueryPoseConfig().to_dict() for config in finals)


@pytest.mark.parametrize(
    "fields", [*SYSTEMS, ATTENTION], ids=lambda fields: "-".join(map(str, fields.values())) or "-"
)
def test_system_trains_saves_loads_predicts_and_exports(fields, tmp_path):
    fields = {**fields, "part_dim": fields["part_dim"] // 4} if "part_dim" in fields else fields
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(num_queries=6, **fields)).double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    pixel_values, labels = torch.randn(2, 3, 64, 64).double(), [people(2), people(1, seed=1)]
    losses = []
    for _ in range(4):
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())  # as DistributedDataParallel asks
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]

    model.eval().save_pretrained(tmp_path)
    loaded = QueryPoseForPoseEstimation.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert all(getattr(loaded.config, name) == getattr(model.config, name) for name in fields)
    with torch.no_grad():
        outputs, again = model(pixel_values, output_attentions=True), loaded(pixel_values)
    torch.testing.assert_close(again.pred_keypoints, outputs.pred_keypoints)
    (found, _) = QueryPoseImageProcessorPil().post_process_pose_estimation(again, threshold=0.0)
    assert found and found[0]["keypoints"].shape == (17, 2)
    expected = (2, 6, model.config.num_parts if model.config.keypoint_query == "part" else 0)
    assert outputs.part_queries.shape[:3] == expected
    if model.config.has_part_attention:
        assert outputs.part_attentions[-1].shape[:3] == expected
    else:
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        with pytest.raises(ValueError, match="part attention maps"):
            explain_people(model, QueryPoseImageProcessorPil(), image)

    class Graph(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = loaded

        def forward(self, pixel_values):
            return self.model(pixel_values).pred_keypoints

    exported = torch.export.export(Graph(), (pixel_values,), strict=False).module()
    torch.testing.assert_close(exported(pixel_values), again.pred_keypoints)


def test_parameters_at_the_papers_size():
    """Those that the paper or arithmetic gives: one global map, and the dynamic interaction of seven part queries."""
    config = QueryPoseConfig()

    def count(piece):
        return sum(parameter.numel() for parameter in piece.parameters())

    with torch.device("meta"):
        assert round(count(QueryPoseSpatialAttention(config, 1, 256)) / 1e6, 2) == 1.12
        assert round(count(QueryPoseDynamicEmbedding(config, 7, 128)) / 1e6, 2) == 10.65
        spatial = count(QueryPoseSpatialDynamicEmbedding(config, 7, 128))
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
    channels, positions = QueryPoseDynamicEmbedding(config, 3, 16), QueryPoseSpatialDynamicEmbedding(config, 3, 16)
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
