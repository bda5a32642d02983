"""Fine-tuning with few trained weights (LoRA), and loading with weights of few bits: what fits this model.

Both are other libraries' work, PEFT's and torchao's or bitsandbytes'; here is which layers of the model to give them.
"""

from typing import Any


# The decoders' attention, dynamic interaction and feed-forward networks; backbone and convolutions stay as they are.
_ADAPTED = (
    r"model\.decoder\.(box|keypoint)_layers\.\d+\."
    r"(self_attn\.(qkv_proj|out_proj)|interaction\.(dynamic_layer|out_layer)|(ffn|part_ffn|instance_ffn)\.fc[12])"
)
# Small layers that say what is found, the flow of the loss, and the batch norm, whose statistics training changes:
# left out of what is saved, they would be lost.
_TRAINED_WHOLE = ["class_head", "box_head", "keypoint_head", "sigma_head", "upsample_norm", "flow"]

#: Regular expressions of the layers that stay as they are when a model is quantised: the backbone, whose linear layers
#: are few or, in a Swin, carry the features that everything else is made from, the loss's flow, and the heads, which
#: are small and whose outputs are logits and coordinates.
FULL_PRECISION = [r".*backbone", r"flow", r".*\.(class_head|box_head)"]


def lora_config(rank: int = 16, alpha: float | None = None, dropout: float = 0.0, **overrides: Any) -> Any:
    """A `peft.LoraConfig` for this model, for `peft.get_peft_model(model, lora_config())`.

    Low-rank updates go to the linear layers of both decoders' attention, dynamic interaction and feed-forward
    networks; the heads, the keypoint decoder's batch norm and the flow of the loss are small and are trained whole.
    The backbone is not trained. Where it has batch norms that are not frozen, as HRNet has, keep it in evaluation mode
    in training (`model.model.backbone.eval()` after each `train()`): their statistics would change and not be saved.

    Args:
        rank (`int`, defaults to 16): of the updates.
        alpha (`float`, *optional*): their scale times the rank; twice the rank by default.
        dropout (`float`, defaults to 0.0): of their inputs.
        overrides: further arguments of `peft.LoraConfig`, or others in place of these.

    Raises:
        ImportError: PEFT is not installed.

    Example:

    ```python
    >>> from peft import get_peft_model

    >>> adapted = get_peft_model(model, lora_config(rank=8))
    >>> adapted(**batch).loss.backward()
    >>> adapted.save_pretrained("adapter")
    >>> merged = adapted.merge_and_unload()  # a model as any other
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

    The layers of [`FULL_PRECISION`] and the convolutions are left as they are.

    Args:
        activations (`bool`, defaults to `False`): quantise the layers' inputs too, as they come, and multiply
            integers.

    Raises:
        ImportError: torchao is not installed.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    kind = Int8DynamicActivationInt8WeightConfig() if activations else Int8WeightOnlyConfig()
    return TorchAoConfig(kind, modules_to_not_convert=list(FULL_PRECISION))
