"""LoRA through PEFT, and quantised loading through torchao and bitsandbytes, on small models."""

import copy

import pytest
import torch
from tiny import people, tiny_config

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation
from querypose_hf.weights.adapters import FULL_PRECISION, int8_config, lora_config


RESULTS = ("logits", "pred_boxes", "pred_keypoints", "keypoint_sigmas")


def make_model(**options):
    torch.manual_seed(0)
    return QueryPoseForPoseEstimation(tiny_config(**options)).eval()


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def results(model, pixel_values):
    with torch.no_grad():
        outputs = model(pixel_values=pixel_values)
    return {name: outputs[name] for name in RESULTS}


def assert_same(found, expected, **tolerance):
    for name in RESULTS:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, n=name: f"{n}: {text}", **tolerance)


def assert_differs(found, expected):
    assert (found["logits"] - expected["logits"]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="PEFT is not installed")


@pytest.mark.parametrize("fields", [{}, {"keypoint_coordinates": "attention", "keypoint_parts": "a"}], ids=str)
def test_lora_is_trained_saved_loaded_and_merged(peft, pixel_values, tmp_path, fields):
    base = make_model(**fields)
    before = copy.deepcopy(base.state_dict())
    untouched = results(base, pixel_values)
    adapted = peft.get_peft_model(base, lora_config(rank=4))
    assert_same(results(adapted.eval(), pixel_values), untouched)  # updates start from zero
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("box_layers.0.interaction.dynamic_layer.lora_A" in name for name in trained)
    assert any("keypoint_layers.1.part_ffn.fc2.lora_B" in name for name in trained)
    assert not any("backbone" in name or "conv_stack" in name for name in trained)

    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(8):
        loss = adapted(pixel_values=pixel_values, labels=[people(2), people(1, seed=1)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.requires_grad or parameter.grad is None for parameter in adapted.parameters())
    expected = results(adapted.eval(), pixel_values)
    assert_differs(expected, untouched)

    adapted.save_pretrained(tmp_path / "adapter")
    fresh = make_model(**fields)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert_same(results(loaded, pixel_values), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is QueryPoseForPoseEstimation
    merged.save_pretrained(tmp_path / "merged")
    alone = QueryPoseForPoseEstimation.from_pretrained(tmp_path / "merged").eval()
    assert_same(results(alone, pixel_values), expected, rtol=1e-3, atol=1e-3)
    assert_same(results(alone, pixel_values), results(merged, pixel_values))


def test_lora_with_gradient_checkpointing_has_the_same_gradients(peft, pixel_values):
    def gradients(checkpointed):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(make_model(), lora_config(rank=4, init_lora_weights=False)).train()
        if checkpointed:
            adapted.base_model.model.gradient_checkpointing_enable()
        adapted(pixel_values=pixel_values, labels=[people(2), people(1, seed=1)]).loss.backward()
        return {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}

    expected, found = gradients(False), gradients(True)
    assert expected.keys() == found.keys() and any("lora_A" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("variant", ["r50", "hrnet_w32", "swin_t"])
def test_lora_reaches_every_stage_of_the_published_models(peft, variant):
    with torch.device("meta"):
        model = QueryPoseForPoseEstimation(QueryPoseConfig.from_variant(variant))
        adapted = peft.get_peft_model(model, lora_config(rank=8))
    trained, total = adapted.get_nb_trainable_parameters()
    assert trained < 0.12 * total
    for stage in range(6):
        for layers in ("box_layers", "keypoint_layers"):
            names = {n for n, m in adapted.named_modules() if f"{layers}.{stage}." in n and hasattr(m, "lora_A")}
            # attention's and the interaction's two each, and those of one or two feed-forward networks
            assert len(names) == (6 if layers == "box_layers" else 8), (variant, layers, stage)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model(backbone="swin").save_pretrained(folder)
    return folder


def quantised_layers(model, kind):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("activations", [False, True], ids=["weights", "weights and activations"])
def test_torchao(checkpoint, pixel_values, tmp_path, activations):
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8Tensor

    reference = make_model(backbone="swin")
    original = results(reference, pixel_values)
    model = QueryPoseForPoseEstimation.from_pretrained(checkpoint, quantization_config=int8_config(activations))
    linear = quantised_layers(model.eval(), torch.nn.Linear)
    eight_bits = {name: module for name, module in linear.items() if isinstance(module.weight, Int8Tensor)}
    assert any("dynamic_layer" in name for name in eight_bits)
    kept = set(linear) - set(eight_bits)
    assert {name.rpartition(".")[2] for name in kept if "backbone" not in name and "flow" not in name} == {
        "class_head",
        "box_head",
    }
    assert any("backbone" in name for name in kept)

    # each weight is the nearest of 255 steps, so that the model computes what one with rounded weights does
    for name, module in eight_bits.items():
        weight = reference.get_submodule(name).weight
        rounded = module.weight.dequantize()
        step = weight.detach().abs().amax(dim=1, keepdim=True) / 127
        assert ((rounded - weight).abs() <= 0.51 * step + 1e-7).all(), name
        weight.data.copy_(rounded)
    found = results(model, pixel_values)
    if not activations:
        assert_same(found, results(reference, pixel_values), rtol=1e-3, atol=1e-3)
    assert_differs(found, original)
    assert all(value.isfinite().all() for value in found.values())

    model.save_pretrained(tmp_path / "int8")
    size = (tmp_path / "int8" / "model.safetensors").stat().st_size
    assert size < 0.75 * (checkpoint / "model.safetensors").stat().st_size
    again = QueryPoseForPoseEstimation.from_pretrained(tmp_path / "int8").eval()
    assert_same(results(again, pixel_values), found)


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(checkpoint, pixel_values, bits):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=list(FULL_PRECISION),
    )
    model = QueryPoseForPoseEstimation.from_pretrained(checkpoint, quantization_config=config, device_map="cpu").eval()
    kind = bitsandbytes.nn.Linear8bitLt if bits == 8 else bitsandbytes.nn.Linear4bit
    names = quantised_layers(model, kind)
    assert any("dynamic_layer" in name for name in names)
    assert not any("head" in name or "backbone" in name or "flow" in name for name in names)
    found = results(model, pixel_values)
    original = results(make_model(backbone="swin"), pixel_values)
    assert_differs(found, original)
    # rounded, not other, weights: of queries at random some jump, most stay near
    assert (found["logits"] - original["logits"]).abs().median() < 0.5
