"""Model cards, filled in from a template."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .configuration_querypose import QueryPoseConfig


TEMPLATE = Path(__file__).parent / "assets" / "model_card_template.md"

#: AP in % on COCO val2017 as the paper reports it (Tables 1 and 6), and of the released light checkpoints.
PUBLISHED_COCO_AP: dict[str, dict[str, float]] = {
    "r50": {"full": 68.7},
    "hrnet_w32": {"full": 72.4, "light": 69.8},
    "hrnet_w48": {"full": 73.6, "light": 71.0},
    "swin_l": {"full": 73.3},
}


def write_model_card(folder: str | Path, config: QueryPoseConfig, *, variant: str) -> Path:
    """Writes `README.md`, the model card of a converted checkpoint, into a folder.

    Figures in it are those that the authors published for the variant, marked as theirs.
    """
    version = "light" if config.pose_query_interaction == "none" else "full"
    published = PUBLISHED_COCO_AP.get(variant, {}).get(version)
    data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="keypoint-detection",
        tags=["pose-estimation", "querypose"],
        datasets=["detection-datasets/coco"] if config.num_keypoints == 17 else [],
    )
    values: dict[str, Any] = {
        "variant": variant,
        "version": version,
        "published_ap": published,
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
