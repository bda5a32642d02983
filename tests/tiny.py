"""Small models with random weights and small batches, for tests that need no trained ones."""

import torch

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor


BACKBONES = {
    "convnext": {"model_type": "timm_backbone", "backbone": "test_convnext", "out_indices": [0, 1, 2, 3]},
    "resnet": {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [1, 2, 3, 4]},
    "hrnet": {"model_type": "timm_backbone", "backbone": "hrnet_w18_small", "out_indices": [1, 2, 3, 4]},
    "swin": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}


DECODER = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 37,
    "dynamic_dim": 8,
    "part_dim": 16,
    "num_pose_convs": 2,
    "pose_pooler_resolution": 8,
}


def tiny_config(backbone: str = "convnext", **overrides) -> QueryPoseConfig:
    """Two stages, 12 queries, width 32, less than a million parameters."""
    fields = {"backbone_config": dict(BACKBONES[backbone]), "num_queries": 12, **DECODER}
    return QueryPoseConfig(**{**fields, **overrides})


def save_tiny_checkpoint(
    folder, *, seed: int = 0, class_bias: float | None = None, longest_edge: int = 128, **options
):
    """Writes a tiny model with random weights; a high `class_bias` makes it sure of a person for every query."""
    torch.manual_seed(seed)
    model = QueryPoseForPoseEstimation(tiny_config())
    if class_bias is not None:
        with torch.no_grad():
            for layer in model.model.decoder.box_layers:
                layer.class_head.bias.fill_(class_bias)
    model.save_pretrained(folder, **options)
    size = {"shortest_edge": 64, "longest_edge": longest_edge}
    QueryPoseImageProcessor(size=size, score_threshold=0.25).save_pretrained(folder)  # not the default


def people(count: int, num_keypoints: int = 17, seed: int = 0) -> dict[str, torch.Tensor]:
    """Labels of an image with so many people, each keypoint inside its box and labelled."""
    generator = torch.Generator().manual_seed(seed)
    centre = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
    size = 0.2 + 0.2 * torch.rand(count, 2, generator=generator)
    offset = torch.rand(count, num_keypoints, 2, generator=generator) - 0.5
    position = centre[:, None] + offset * size[:, None]
    return {
        "class_labels": torch.zeros(count, dtype=torch.long),
        "boxes": torch.cat([centre, size], dim=1),
        "keypoints": torch.cat([position, torch.full((count, num_keypoints, 1), 2.0)], dim=-1),
    }


def make_model(seed: int = 0, **overrides) -> QueryPoseForPoseEstimation:
    """A tiny model in float64 whose queries have boxes of their own, as training gives them: new ones share one."""
    torch.manual_seed(seed)
    model = QueryPoseForPoseEstimation(tiny_config(**overrides)).double().eval()
    with torch.no_grad():
        boxes = model.model.decoder.initial_boxes
        generator = torch.Generator().manual_seed(1)
        centre = 0.2 + 0.6 * torch.rand(len(boxes), 2, generator=generator)
        boxes.copy_(torch.cat([centre, 0.1 + 0.5 * torch.rand(len(boxes), 2, generator=generator)], dim=1))
        for layer in model.model.decoder.box_layers:
            layer.class_head.bias.zero_()
    return model


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
