"""Model cards, filled in from a template."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .configuration_querypose import QueryPoseConfig
from .skeletons import COCO_17, CROWDPOSE_14


TEMPLATE = Path(__file__).parent / "assets" / "model_card_template.md"

#: AP in % as the paper reports it, and of the released light checkpoints, by what was scored.
PUBLISHED_AP: dict[str, dict[str, dict[str, float]]] = {
    "COCO val2017": {
        "r50": {"full": 68.7},
        "hrnet_w32": {"full": 72.4, "light": 69.8},
        "hrnet_w48": {"full": 73.6, "light": 71.0},
        "swin_l": {"full": 73.3},
    },
    "CrowdPose test": {"hrnet_w48": {"full": 72.1}, "swin_l": {"full": 72.7}},
}
# Whose keypoints a model finds tells what it was scored on.
_SCORED_ON = {COCO_17.keypoint_names: "COCO val2017", CROWDPOSE_14.keypoint_names: "CrowdPose test"}


def write_model_card(folder: str | Path, config: QueryPoseConfig, *, variant: str) -> Path:
    """Writes `README.md`, the model card of a converted checkpoint, into a folder.

    Figures in it are those that the authors published for the variant and skeleton, marked as theirs.

    Returns:
        `Path` of the card.
    """
    version = "light" if config.pose_query_interaction == "none" else "full"
    scored_on = _SCORED_ON.get(tuple(config.keypoint_names))
    data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="keypoint-detection",
        tags=["pose-estimation", "querypose"],
        datasets=["detection-datasets/coco"] if scored_on == "COCO val2017" else None,
    )
    values: dict[str, Any] = {
        "variant": variant,
        "version": version,
        "scored_on": scored_on,
        "published_ap": PUBLISHED_AP.get(scored_on, {}).get(variant, {}).get(version),
        "num_queries": config.num_queries,
        "decoder_layers": config.decoder_layers,
        "keypoint_names": list(config.keypoint_names),
    }
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **values)
    path = Path(folder) / "README.md"
    temporary = path.with_suffix(".md.tmp")
    temporary.write_text(str(card), encoding="utf-8")
    temporary.replace(path)
    return path
