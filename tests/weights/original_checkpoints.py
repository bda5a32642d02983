"""Small checkpoints with the names and shapes of the authors', made from rules.

`test_original_names.py` holds the rules against the names of the original.
"""

import warnings

import timm
import torch

from querypose_hf import QueryPoseConfig


# fields that conversion reads from the tensors
TOLD = {"num_queries": 5, "decoder_layers": 2, "part_dim": 16, "num_pose_convs": 2}
# fields that published checkpoints share and conversion takes as given
SMALLER = {
    "d_model": 32,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 37,
    "dynamic_dim": 8,
    "pose_pooler_resolution": 8,
}
SMALL_RESNET = {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 8]}
SMALL_HRNET = {"model_type": "timm_backbone", "backbone": "hrnet_w18_small", "out_indices": [1, 2, 3, 4]}
SMALL_SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
KINDS = {
    "r50": {**SMALLER, "backbone_kwargs": SMALL_RESNET},
    "hrnet_w32": {**SMALLER, "backbone_config": SMALL_HRNET},
    "hrnet_w48": {**SMALLER, "backbone_config": SMALL_HRNET},
    "swin_t": {**SMALLER, "backbone_config": SMALL_SWIN},
}


def affine(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def conv(name: str, inputs: int, outputs: int, size: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    weight = {f"{name}.weight": (outputs, inputs, size, size)}
    return {**weight, f"{name}.bias": (outputs,)} if bias else weight


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {**affine(name, width), f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def attention(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.in_proj_weight": (3 * width, width),
        f"{name}.in_proj_bias": (3 * width,),
        **linear(f"{name}.out_proj", width, width),
    }


def interaction(name: str, config: QueryPoseConfig, resolution: int) -> dict[str, tuple[int, ...]]:
    d = config.d_model
    return {
        **linear(f"{name}.dynamic_layer", d, 2 * d * config.dynamic_dim),
        **affine(f"{name}.norm1", config.dynamic_dim),
        **affine(f"{name}.norm2", d),
        **linear(f"{name}.out_layer", resolution**2 * d, d),
        **affine(f"{name}.norm3", d),
    }


def resnet(config: QueryPoseConfig) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    depths = config.backbone_kwargs.get("layers", [3, 4, 6, 3])
    widths = config.backbone_kwargs.get("channels", [64, 128, 256, 512])
    shapes = {**conv("stem.conv1", 3, 64, 7, bias=False), **batch_norm("stem.conv1.norm", 64)}
    inputs = 64
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=2):
        for block in range(depth):
            layers = [("conv1", inputs, width, 1), ("conv2", width, width, 3), ("conv3", width, 4 * width, 1)]
            if block == 0:
                layers.append(("shortcut", inputs, 4 * width, 1))
            for layer, ins, outs, size in layers:
                name = f"res{stage}.{block}.{layer}"
                shapes |= {**conv(name, ins, outs, size, bias=False), **batch_norm(f"{name}.norm", outs)}
            inputs = 4 * width
    return shapes, [4 * width for width in widths]


def swin(config: QueryPoseConfig) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    backbone = config.backbone_config
    window = backbone.window_size
    shapes = {
        **conv("patch_embed.proj", 3, backbone.embed_dim, 4),
        **affine("patch_embed.norm", backbone.embed_dim),
    }
    widths = [backbone.embed_dim * 2**layer for layer in range(len(backbone.depths))]
    for layer, width in enumerate(widths):
        for block in range(backbone.depths[layer]):
            name = f"layers.{layer}.blocks.{block}"
            shapes |= {
                **affine(f"{name}.norm1", width),
                f"{name}.attn.relative_position_bias_table": ((2 * window - 1) ** 2, backbone.num_heads[layer]),
                f"{name}.attn.relative_position_index": (window**2, window**2),
                **linear(f"{name}.attn.qkv", width, 3 * width),
                **linear(f"{name}.attn.proj", width, width),
                **affine(f"{name}.norm2", width),
                **linear(f"{name}.mlp.fc1", width, 4 * width),
                **linear(f"{name}.mlp.fc2", 4 * width, width),
            }
        if layer < len(widths) - 1:
            shapes[f"layers.{layer}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= affine(f"layers.{layer}.downsample.norm", 4 * width)
        shapes |= affine(f"norm{layer}", width)
    return shapes, widths


def hrnet(config: QueryPoseConfig) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    with torch.device("meta"):
        network = timm.create_model(
            config.backbone_config.backbone, features_only=True, feature_location="", out_indices=[1, 2, 3, 4]
        )
    return {
        name: tuple(tensor.shape) for name, tensor in network.state_dict().items()
    }, network.feature_info.channels()


def neck(config: QueryPoseConfig, channels: list[int]) -> dict[str, tuple[int, ...]]:
    d = config.d_model
    if config.neck_type == "fpn":
        shapes = {}
        for level, inputs in enumerate(channels, start=2):
            shapes |= {**conv(f"fpn_lateral{level}", inputs, d, 1), **conv(f"fpn_output{level}", d, d, 3)}
        return shapes
    with_laterals = config.neck_type == "hrfpn_lateral"
    shapes = conv("reduction_conv.0", sum(channels), d, 1)
    for level in range(5):
        shapes |= conv(f"fpn_conv.{level}", d, d, 3, bias=not with_laterals)
    if with_laterals:
        for level, inputs in enumerate(channels):
            shapes |= conv(f"lateral_conv.{level}", inputs, d, 1, bias=False)
    return shapes


def box_stage(config: QueryPoseConfig) -> dict[str, tuple[int, ...]]:
    d = config.d_model
    shapes = {
        **attention("self_attn", d),
        **interaction("inst_interact", config, config.box_pooler_resolution),
        **linear("linear1", d, config.decoder_ffn_dim),
        **linear("linear2", config.decoder_ffn_dim, d),
        **affine("norm1", d),
        **affine("norm2", d),
        **affine("norm3", d),
        **linear("class_logits", d, config.num_labels),
        **linear("bboxes_delta", d, 4),
    }
    for branch, layers in (("cls_module", config.num_cls_layers), ("reg_module", config.num_reg_layers)):
        for layer in range(layers):
            shapes |= {f"{branch}.{3 * layer}.weight": (d, d), **affine(f"{branch}.{3 * layer + 1}", d)}
    return shapes


def keypoint_stage(config: QueryPoseConfig) -> dict[str, tuple[int, ...]]:
    d, d_p = config.d_model, config.part_dim
    widths = [d] + [2 * d] * (config.num_pose_convs - 1) + [d]
    shapes = {
        "part_embed_generator.upsample.0.weight": (d, d, 4, 4),
        **batch_norm("part_embed_generator.upsample.1", d),
        "part_embed_generator.upsample.1.num_batches_tracked": (),
        **conv("part_embed_generator.LSA_conv", d, config.num_parts, 3),
        **linear("part_embed_generator.fc", d, d_p),
        "updater.fc1.weight": (d_p // 4, d_p),
        **affine("updater.norm_fc1", d_p // 4),
        **linear("updater.fc2", d_p // 4, 2 * d_p),
        "updater.fc3.weight": (d_p, d_p),
        **affine("updater.norm_fc3", d_p),
        **attention("kps_self_attn", d_p),
        **affine("self_attn_norm", d_p),
        **linear("linear1_l", d_p, config.decoder_ffn_dim),
        **linear("linear2_l", config.decoder_ffn_dim, d_p),
        **affine("norm2_l", d_p),
    }
    for index in range(config.num_pose_convs):
        shapes |= conv(f"inst_convs.{2 * index}", widths[index], widths[index + 1], 3)
    for part, keypoints in enumerate(config.keypoint_parts):
        shapes |= {
            **linear(f"residual_filter.{part}", d, d_p),
            **linear(f"fc_coord.{part}.linear", d_p, 2 * len(keypoints)),
            **linear(f"fc_sigma.{part}.linear", d_p, 2 * len(keypoints)),
        }
    if config.pose_query_interaction == "dynamic":
        shapes |= {
            **interaction("pose_decoder_inst_interact", config, config.pose_pooler_resolution),
            **affine("inst_norm", d),
            **linear("linear1", d, config.decoder_ffn_dim),
            **linear("linear2", config.decoder_ffn_dim, d),
            **affine("norm2", d),
        }
    return shapes


def original_shapes(config: QueryPoseConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' checkpoint of a model of this configuration."""
    if config.backbone_config.model_type == "swin":
        backbone, channels = swin(config)
    else:
        backbone, channels = (resnet if config.neck_type == "fpn" else hrnet)(config)
    shapes = {f"backbone.bottom_up.{name}": shape for name, shape in backbone.items()}
    shapes |= {f"backbone.{name}": shape for name, shape in neck(config, channels).items()}
    shapes["init_proposal_features.weight"] = (config.num_queries, config.d_model)
    shapes["init_proposal_boxes.weight"] = (config.num_queries, 4)
    shapes["part_query.weight"] = (config.num_parts, config.part_dim)
    shapes["criterion.flow.flow.mask"] = (6, 2)
    for layer in range(6):
        for net in "st":
            for index, (inputs, outputs) in zip((0, 2, 4), ((2, 64), (64, 64), (64, 2)), strict=True):
                shapes |= linear(f"criterion.flow.flow.{net}.{layer}.{index}", inputs, outputs)
    for stage in range(config.decoder_layers):
        shapes |= {f"head.head_series.{stage}.{name}": shape for name, shape in box_stage(config).items()}
        shapes |= {f"head.pose_head_series.{stage}.{name}": shape for name, shape in keypoint_stage(config).items()}
    return shapes


def original_state(config: QueryPoseConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint of the authors with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in original_shapes(config).items():
        if name.endswith(("num_batches_tracked", "relative_position_index")):
            state[name] = torch.randint(100, shape, generator=generator)
        else:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
            if name.endswith("running_var"):
                state[name] = state[name].abs() + 0.5
    return state


def small_config(variant: str, **overrides) -> QueryPoseConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # made-up skeletons have no OKS constants
        return QueryPoseConfig.from_variant(variant, **{**TOLD, **KINDS[variant], **overrides})


def small_state(variant: str, **overrides) -> dict[str, torch.Tensor]:
    return original_state(small_config(variant, **overrides))
