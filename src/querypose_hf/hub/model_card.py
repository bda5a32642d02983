"""Model cards, filled in from one template: of converted checkpoints, of one's own, and of the published variants."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData

from ..assets import CARD_TEMPLATE, QUERYPOSE_NANO, resolve_checkpoint
from ..files import write_text
from ..inference.records import plural
from ..model.configuration_querypose import VARIANTS, QueryPoseConfig
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.skeletons import COCO_17, CROWDPOSE_14
from .figures import (
    COCO,
    CROWDPOSE,
    DATASET_IDS,
    ORIGINAL_CODE,
    PAPER,
    PUBLISHED_AP,
    PUBLISHED_MILLISECONDS,
    MeasuredFigures,
    eval_result,
)
from .options import CardFields


# the dataset that the authors scored a model on, by its keypoints
_SCORED_ON = {COCO_17.keypoint_names: COCO, CROWDPOSE_14.keypoint_names: CROWDPOSE}
# the paper's training data, if the Hub has it
_TRAINED_ON = {COCO: ("detection-datasets/coco",)}


def find_variant(config: QueryPoseConfig) -> str | None:
    """The published variant that has this configuration's backbone and neck; `None` if none has."""
    backbone = config.backbone_config.to_dict()
    for name, fields in VARIANTS.items():
        published = QueryPoseConfig.from_variant(name)
        expected = published.backbone_config.to_dict()
        if config.neck_type == published.neck_type and all(
            backbone.get(field) == expected[field] for field in fields["backbone_config"]
        ):
            return name
    return None


def find_version(config: QueryPoseConfig) -> Literal["full", "light"] | None:
    """The version of the paper's final system that this is; `None` for its other systems."""
    final = ("part", "spatial_attention", "selective")
    if (config.keypoint_query, config.keypoint_interaction, config.part_iteration) != final:
        return None
    return "full" if config.updates_queries else "light"


def build_model_card(
    config: QueryPoseConfig,
    origin: Literal["converted", "own", "published"],
    fields: CardFields | None = None,
    *,
    variant: str | None = None,
    figures: MeasuredFigures | None = None,
    repo_id: str | None = None,
    examples: Sequence[str] = (),
    image_processor: Any = None,
) -> ModelCard:
    """The model card of a checkpoint or of a published variant.

    The authors' figures are on it, marked as theirs, only if the weights are theirs.

    Args:
        config ([`QueryPoseConfig`]): the model's configuration.
        origin (`str`): `"converted"` for weights of the authors, `"own"` for others, `"published"` for the card of a
            variant without weights, which says how to get them.
        fields ([`CardFields`], *optional*): what the configuration does not say.
        variant (`str`, *optional*): the published variant; needed for all but `"own"`.
        figures ([`MeasuredFigures`], *optional*): what was measured; becomes a table and the `model-index`.
        repo_id (`str`, *optional*): the model's id on the Hub, for the snippets.
        examples (`Sequence[str]`): Markdown of the images to show.
        image_processor (*optional*): the model's; the card says whether it uses NMS, and its score threshold.

    Raises:
        ValueError: `origin` is unknown, or needs a `variant`.
    """
    if origin not in ("converted", "own", "published"):
        raise ValueError(f"`origin` is {origin!r}; expected 'converted', 'own' or 'published'.")
    if origin != "own" and variant not in VARIANTS:
        raise ValueError(f"`variant` is {variant!r}; expected one of {sorted(VARIANTS)} for origin {origin!r}.")
    fields = fields or CardFields()
    license_name = fields.license or "mit"
    version = find_version(config)
    backbone = variant or getattr(config.backbone_config, "backbone", None) or config.backbone_config.model_type
    title = fields.name or f"QueryPose {backbone}" + (f", {version} version" if version else "")
    scored_on = _SCORED_ON.get(tuple(config.keypoint_names))
    published = {} if origin == "own" else dict(PUBLISHED_AP.get((variant, version), {}))
    published_ap = published.pop(scored_on, None)
    datasets = fields.datasets or (() if origin == "own" else _TRAINED_ON.get(scored_on, ()))
    results = None
    if figures is not None:
        results = figures.as_eval_results()
    elif published_ap is not None:
        source = {
            "source_name": "published by the authors; not measured with this file",
            "source_url": PAPER if version == "full" else ORIGINAL_CODE,
        }
        results = [eval_result(DATASET_IDS[scored_on], scored_on, "AP", published_ap, **source)]
    data = ModelCardData(
        license=license_name,
        library_name="transformers",
        pipeline_tag="keypoint-detection",
        tags=["pose-estimation", "querypose"],
        datasets=list(datasets) or None,
        # the metadata links to the Hub
        base_model=fields.base_model if "/" in (fields.base_model or "") else None,
        model_name=title if results else None,
        eval_results=results,
    )
    classes = [str(name) for name in config.id2label.values()]
    several = [plural(name) for name in classes]
    values: dict[str, Any] = {
        "config": config,
        "origin": origin,
        "fields": fields,
        "license_name": license_name,
        "classes": classes,
        "found": " and ".join(filter(None, [", ".join(several[:-1]), several[-1]])),
        "nms_threshold": getattr(image_processor, "nms_threshold", None),
        "variant": variant,
        "figures": figures,
        "examples": examples,
        "score_threshold": getattr(image_processor, "score_threshold", None),
        "title": title,
        "version": version,
        "backbone": backbone,
        "scored_on": scored_on,
        "published_ap": published_ap,
        "further_ap": published if origin == "published" else {},
        "milliseconds": PUBLISHED_MILLISECONDS.get(variant) if version == "full" else None,
        "place": repo_id or ("path/to/the/converted/folder" if origin == "published" else "path/to/this/folder"),
        "datasets": datasets,
        "paper": PAPER,
        "original_code": ORIGINAL_CODE,
    }
    card = ModelCard.from_template(data, template_path=str(CARD_TEMPLATE), **values)
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"  # gaps of the template's parts that are left out
    return card


def fields_of_start(checkpoint: str) -> CardFields:
    """What the card of a model says about the checkpoint that its training started from: licence and base model.

    Args:
        checkpoint (`str`): folder, Hub id or `querypose-nano`. The base model of a folder is the one on its card. The
            licence of a model on the Hub is `"unknown"` where its card cannot be read.
    """
    place = resolve_checkpoint(checkpoint)
    if os.path.isdir(place):
        there = _fields_of_card(Path(place) / "README.md")
        if place == QUERYPOSE_NANO:
            there = replace(there, base_model=Path(QUERYPOSE_NANO).name)
        return replace(there, measured=None)
    try:
        license_name = ModelCard.load(checkpoint).data.license
    except (OSError, ValueError):  # what the Hub's client raises is an OSError or ValueError, too
        license_name = None
    return CardFields(license=license_name or "unknown", base_model=checkpoint)


def _fields_of_card(file: Path) -> CardFields:
    """Licence, base model and what training measured, of a card; empty fields without one."""
    if not file.is_file():
        return CardFields()
    card = ModelCard(file.read_text(encoding="utf-8"))
    base = card.data.base_model
    if base is None:  # the metadata names models of the Hub only
        found = re.search(r"Trained with querypose-hf, starting from ([\w.-]+)\.$", card.text, re.MULTILINE)
        base = found and found[1]
    measured = re.search(r"^Training scored this model: (.+)\.$", card.text, re.MULTILINE)
    return CardFields(
        license=card.data.license,
        base_model=base[0] if isinstance(base, list) else base,
        measured=measured and measured[1],
    )


def own_card(checkpoint: str | os.PathLike, fields: CardFields | None = None, **more: Any) -> ModelCard:
    """The card of a checkpoint of one's own, see [`build_model_card`] for what `more` takes.

    Args:
        checkpoint (`str` or `os.PathLike`): folder or Hub id.
        fields ([`CardFields`], *optional*): licence, base model and what training measured are by default those of
            the card in the folder.
    """
    fields, there = fields or CardFields(), _fields_of_card(Path(checkpoint) / "README.md")
    kept = {name: getattr(fields, name) or getattr(there, name) for name in ("license", "base_model", "measured")}
    fields = replace(fields, **kept)
    config = QueryPoseConfig.from_pretrained(checkpoint)
    try:
        more["image_processor"] = QueryPoseImageProcessor.from_pretrained(checkpoint)
    except OSError:  # there is none
        pass
    return build_model_card(config, "own", fields, variant=find_variant(config), **more)


def has_card_of_training(folder: str | os.PathLike) -> bool:
    """Whether the folder's card is as training wrote it, so that a new one loses nothing."""
    file = Path(folder) / "README.md"
    return file.is_file() and file.read_text(encoding="utf-8") == str(own_card(folder))


def check_model_card(card: ModelCard) -> None:
    """Checks offline that a card's metadata has what the Hub needs to list and to show it.

    Raises:
        ValueError: a field is missing or wrong; the message names it.
    """
    data = card.data.to_dict()
    for field in ("license", "library_name", "pipeline_tag"):
        if not isinstance(data.get(field), str) or not data[field]:
            raise ValueError(f"README.md: `{field}` of the card's metadata is {data.get(field)!r}; expected a text.")
    for field in ("tags", "datasets"):
        texts = data.get(field, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"README.md: `{field}` of the card's metadata is {texts!r}; expected a list of texts.")
    for entry in data.get("model-index") or []:
        if not entry.get("name") or not entry.get("results"):
            raise ValueError("README.md: every entry of the card's `model-index` needs `name` and `results`.")
        for result in entry["results"]:
            for field, parts in (("task", ("type",)), ("dataset", ("type", "name"))):
                if any(not result.get(field, {}).get(part) for part in parts):
                    raise ValueError(f"README.md: `{field}` of a result in `model-index` needs {' and '.join(parts)}.")
            for metric in result.get("metrics") or [{}]:
                if not metric.get("type") or metric.get("value") is None:
                    raise ValueError("README.md: every metric in `model-index` needs `type` and `value`.")


def write_published_cards(folder: str | os.PathLike) -> list[Path]:
    """Writes the cards of all published variants, as `model_cards/` holds them.

    Returns:
        `list[Path]`: the cards.
    """
    paths = []
    for variant, version in PUBLISHED_AP:
        config = QueryPoseConfig.from_variant(variant, light=version == "light")
        path = Path(folder) / f"{variant}{'_light' if version == 'light' else ''}.md"
        write_text(str(build_model_card(config, "published", variant=variant)), path)
        paths.append(path)
    return paths


__all__ = [
    "build_model_card",
    "check_model_card",
    "fields_of_start",
    "find_variant",
    "has_card_of_training",
    "own_card",
    "write_published_cards",
]
