"""Which layers to adapt with LoRA, and which to quantise: settings for PEFT, torchao and bitsandbytes."""

from typing import Any


# the decoder's attention, dynamic interaction and feed-forward networks
_ADAPTED = (
    r"model\.decoder\.(box|keypoint)_layers\.\d+\."
    r"(self_attn\.(qkv_proj|out_proj)|interaction\.(dynamic_layer|out_layer)|(ffn|part_ffn|instance_ffn)\.fc[12])"
)
# Small layers: the heads, the attention maps, the flow of the loss, and the batch norm, whose statistics training
# changes. Without this list an adapter would not save them. PEFT passes over the ones that a model does not have.
_TRAINED_WHOLE = ["class_head", "box_head", "keypoint_head", "sigma_head", "attention_conv", "upsample_norm", "flow"]

#: Regular expressions of the layers that are not quantised: the backbone, which has few linear layers or, as a Swin,
#: makes the features for everything else; the loss's flow; and the heads, which are small and give logits and boxes.
FULL_PRECISION = [r".*backbone", r"flow", r".*\.(class_head|box_head)"]


def lora_config(rank: int = 16, alpha: float | None = None, dropout: float = 0.0, **overrides: Any) -> Any:
    """A `peft.LoraConfig` for this model, for `peft.get_peft_model(model, lora_config())`.

    The linear layers of attention, dynamic interaction and feed-forward networks in box and keypoint stages get
    low-rank updates. The heads, the attention maps, the keypoint stages' batch norms and the flow of the loss are
    small and are trained whole. The backbone is not trained. If its batch norms are not frozen, as in HRNet, call
    `model.model.backbone.eval()` after each `train()`: their statistics would change and not be saved.

    Args:
        rank (`int`, defaults to 16): rank of the updates.
        alpha (`float`, *optional*): scale of the updates times the rank; twice the rank by default.
        dropout (`float`, defaults to 0.0): dropout of the inputs of the updates.
        overrides: further arguments of `peft.LoraConfig`, or values in place of these.

    Raises:
        ImportError: PEFT is not installed.

    Example:

    ```python
    >>> from peft import get_peft_model

    >>> adapted = get_peft_model(model, lora_config(rank=8))
    >>> adapted(**batch).loss.backward()
    >>> adapted.save_pretrained("adapter")
    >>> merged = adapted.merge_and_unload()  # a model like any other
    ```
    """
    import peft

    fields = {
        "r": rank,
        "lora_alpha": 2 * rank if alpha is None else alpha,
        "lora_dropout": dropout,
        "target_modules": _ADAPTED,
        "modules_to_save": list(_TRAINED_WHOLE),
    }
    return peft.LoraConfig(**{**fields, **overrides})


def int8_config(activations: bool = False) -> Any:
    """A `transformers.TorchAoConfig` of 8-bit weights for `from_pretrained(..., quantization_config=int8_config())`.

    The layers of [`FULL_PRECISION`] and the convolutions are not quantised.

    Args:
        activations (`bool`, defaults to `False`): also quantise the inputs of layers as they come, and multiply
            integers.

    Raises:
        ImportError: torchao is not installed.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    kind = Int8DynamicActivationInt8WeightConfig() if activations else Int8WeightOnlyConfig()
    return TorchAoConfig(kind, modules_to_not_convert=list(FULL_PRECISION))
