"""Model cards, filled in from one template: of converted checkpoints, of own ones, and of the published variants."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..assets import CARD_TEMPLATE
from ..files import read_json
from ..model.configuration_querypose import VARIANTS, QueryPoseConfig
from ..model.skeletons import COCO_17, CROWDPOSE_14


PAPER = "https://arxiv.org/abs/2212.07855"
ORIGINAL_CODE = "https://github.com/buptxyb666/QueryPose"

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
#: Further AP of the paper in %, where it reports more than the one on COCO val2017.
FURTHER_PUBLISHED_AP: dict[tuple[str, str], dict[str, float]] = {
    ("hrnet_w48", "full"): {
        "COCO test-dev": 72.3,
        "CrowdPose test": 72.1,
        "CrowdPose test, easy": 79.8,
        "CrowdPose test, medium": 73.3,
        "CrowdPose test, hard": 63.0,
    },
    ("swin_l", "full"): {
        "COCO test-dev": 72.2,
        "CrowdPose test": 72.7,
        "CrowdPose test, easy": 79.5,
        "CrowdPose test, medium": 73.4,
        "CrowdPose test, hard": 65.4,
    },
}
#: Milliseconds a picture on an A100, as the paper reports them.
PUBLISHED_MILLISECONDS = {"r50": 70, "hrnet_w32": 100, "swin_l": 117, "hrnet_w48": 105}
#: The variants that `model_cards/` has a card of, with those whose light checkpoint the authors released.
PUBLISHED_CARDS = (
    ("r50", False),
    ("hrnet_w32", False),
    ("hrnet_w32", True),
    ("hrnet_w48", False),
    ("hrnet_w48", True),
    ("swin_l", False),
)

# Whose keypoints a model finds tells what it was scored on.
_SCORED_ON = {COCO_17.keypoint_names: "COCO val2017", CROWDPOSE_14.keypoint_names: "CrowdPose test"}
# By protocol and number of images, the sets that the figures of the field are about.
_KNOWN_SETS = {("coco", 5000): "COCO val2017", ("crowdpose", 8000): "CrowdPose test"}
_DATASET_IDS = {"COCO val2017": "detection-datasets/coco", "CrowdPose test": "crowdpose"}
_HUB_DATASETS = {"COCO val2017": ["detection-datasets/coco"]}


@dataclass(frozen=True)
class MeasuredFigures:
    """What `querypose evaluate` measured of a model.

    Attributes:
        dataset_name (`str`): the set of pictures, for readers.
        dataset_id (`str`): the same for the card's metadata: an id on the Hub where there is one.
        metrics (`dict[str, float]`): figures as fractions, by name; those that the set has nobody for are left out.
        protocol (`dict`): how they were measured, as `metrics.json` says it.
    """

    dataset_name: str
    dataset_id: str
    metrics: dict[str, float]
    protocol: dict[str, Any]

    @classmethod
    def read(
        cls, path: str | os.PathLike, dataset_name: str | None = None, dataset_id: str | None = None
    ) -> "MeasuredFigures":
        """Reads the `metrics.json` of `querypose evaluate`.

        Args:
            path (`str` or `os.PathLike`): the file.
            dataset_name (`str`, *optional*): the set of pictures. COCO val2017 and the test set of CrowdPose are known
                by their protocol and number of images; any other set must be named.
            dataset_id (`str`, *optional*): its id on the Hub; made of the name when not given.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no `metrics.json`, or the set is not known and not named.
        """
        content = read_json(path)
        metrics = content.get("metrics") if isinstance(content, Mapping) else None
        if not isinstance(metrics, Mapping) or not isinstance(metrics.get("AP"), Real):
            raise ValueError(
                f'{path}: expected what `querypose evaluate` writes, {{"metrics": {{"AP": number, ...}}, ...}}, '
                "with a number as AP."
            )
        figures: dict[str, float] = {}
        for name, value in metrics.items():
            if value is None:
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
                raise ValueError(f"{path}: `metrics` has {name} = {value!r}; expected a fraction from 0 to 1.")
            figures[str(name)] = float(value)
        protocol = dict(content.get("protocol") or {})
        if dataset_name is None:
            dataset_name = _KNOWN_SETS.get((str(protocol.get("metric")), protocol.get("images", 0)))
            if dataset_name is None:
                raise ValueError(
                    f"{path}: {protocol.get('images', 'an unknown number of')} images were scored by the protocol "
                    f"{protocol.get('metric', 'unknown')!r}, which is no set known by its size; name the set of "
                    "pictures (`dataset_name`, --dataset-name)."
                )
        if dataset_id is None:
            dataset_id = _DATASET_IDS.get(dataset_name) or re.sub(r"[^a-z0-9]+", "-", dataset_name.lower()).strip("-")
        return cls(dataset_name, dataset_id, figures, protocol)

    def as_eval_results(self) -> list[EvalResult]:
        """The figures in % as entries of a card's `model-index`."""
        return [
            _eval_result(self.dataset_id, self.dataset_name, name, 100 * value) for name, value in self.metrics.items()
        ]


def _eval_result(dataset_id: str, dataset_name: str, metric: str, percent: float, **source: str) -> EvalResult:
    return EvalResult(
        task_type="keypoint-detection",
        task_name="Multi-person pose estimation",
        dataset_type=dataset_id,
        dataset_name=dataset_name,
        metric_type=metric.lower(),
        metric_name=f"keypoint {metric}, %",
        metric_value=round(percent, 2),
        **source,  # type: ignore[arg-type]
    )


def find_variant(config: QueryPoseConfig) -> str | None:
    """Which published variant has this configuration's backbone and neck; `None` where none has."""
    backbone = config.backbone_config.to_dict()
    for name, fields in VARIANTS.items():
        published = QueryPoseConfig.from_variant(name)
        expected = published.backbone_config.to_dict()
        if config.neck_type == published.neck_type and all(
            backbone.get(field) == expected[field] for field in fields["backbone_config"]
        ):
            return name
    return None


def _backbone_name(config: QueryPoseConfig) -> str:
    return getattr(config.backbone_config, "backbone", None) or config.backbone_config.model_type


def build_model_card(
    config: QueryPoseConfig,
    *,
    origin: str,
    variant: str | None = None,
    name: str | None = None,
    figures: MeasuredFigures | None = None,
    repo_id: str | None = None,
    examples: Sequence[str] = (),
    license: str = "mit",
    datasets: Sequence[str] | None = None,
    base_model: str | None = None,
) -> ModelCard:
    """The model card of a checkpoint or of a published variant.

    Figures that the authors published are in it, marked as theirs, only where the weights are theirs.

    Args:
        config ([`QueryPoseConfig`]): the model's configuration.
        origin (`str`): `"converted"` for weights of the authors, `"own"` for others, `"published"` for the card of a
            variant without weights, which says how to come by them.
        variant (`str`, *optional*): name of the published variant; needed for all but `"own"`.
        name (`str`, *optional*): the model's name, by default made of the variant or the backbone.
        figures ([`MeasuredFigures`], *optional*): what was measured; becomes a table and the `model-index`.
        repo_id (`str`, *optional*): where the model is on the Hub, for the snippets.
        examples (`Sequence[str]`, *optional*): pictures to show, by their paths beside the card.
        license (`str`, defaults to `"mit"`): licence of the weights, an identifier of the Hub.
        datasets (`Sequence[str]`, *optional*): Hub ids of the data sets trained on; for weights of the authors COCO.
        base_model (`str`, *optional*): Hub id of the model that training started from.

    Raises:
        ValueError: `origin` is not known, or needs a `variant`.
    """
    if origin not in ("converted", "own", "published"):
        raise ValueError(f"`origin` must be 'converted', 'own' or 'published', but is {origin!r}.")
    if origin != "own" and variant not in VARIANTS:
        raise ValueError(f"`variant` must be one of {sorted(VARIANTS)} for origin {origin!r}, but is {variant!r}.")
    version = "light" if config.pose_query_interaction == "none" else "full"
    scored_on = _SCORED_ON.get(tuple(config.keypoint_names))
    published_ap = None
    if origin != "own":
        published_ap = PUBLISHED_AP.get(scored_on, {}).get(variant, {}).get(version)
        datasets = datasets or _HUB_DATASETS.get(scored_on)
    title = name or f"QueryPose {variant or _backbone_name(config)}, {version} version"
    results = None
    if figures is not None:
        results = figures.as_eval_results()
    elif published_ap is not None:
        source = {"source_name": "published by the authors; not measured with this file", "source_url": PAPER}
        if version == "light":
            source["source_url"] = ORIGINAL_CODE
        results = [_eval_result(_DATASET_IDS[scored_on], scored_on, "AP", published_ap, **source)]
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="keypoint-detection",
        tags=["pose-estimation", "querypose"],
        datasets=list(datasets) if datasets else None,
        base_model=base_model,
        model_name=title if results else None,
        eval_results=results,
    )
    further = FURTHER_PUBLISHED_AP.get((variant or "", version), {}) if origin == "published" else {}
    values: dict[str, Any] = {
        "title": title,
        "origin": origin,
        "variant": variant,
        "version": version,
        "backbone": variant or _backbone_name(config),
        "released": origin == "published" and version == "light",
        "scored_on": scored_on,
        "published_ap": published_ap,
        "further_ap": further,
        "milliseconds": PUBLISHED_MILLISECONDS.get(variant or "") if version == "full" else None,
        "query_feedback": config.query_feedback if version == "full" else None,
        "num_queries": config.num_queries,
        "decoder_layers": config.decoder_layers,
        "keypoint_names": list(config.keypoint_names),
        "figures": figures,
        "examples": list(examples),
        "place": repo_id or ("path/to/the/converted/folder" if origin == "published" else "path/to/this/folder"),
        "license": license,
        "datasets": list(datasets or []),
        "base_model": base_model,
        "paper": PAPER,
        "original_code": ORIGINAL_CODE,
    }
    card = ModelCard.from_template(data, template_path=str(CARD_TEMPLATE), **values)
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"  # of the template's parts that are left out
    return card


def save_model_card(card: ModelCard, path: str | Path) -> Path:
    """Writes a card to a file, whole or not at all."""
    path = Path(path)
    temporary = path.with_suffix(".md.tmp")
    temporary.write_text(str(card), encoding="utf-8")
    temporary.replace(path)
    return path


def write_model_card(folder: str | Path, config: QueryPoseConfig, *, variant: str) -> Path:
    """Writes `README.md`, the model card of a converted checkpoint, into a folder.

    Figures in it are those that the authors published for the variant and skeleton, marked as theirs.

    Returns:
        `Path` of the card.
    """
    card = build_model_card(config, origin="converted", variant=variant)
    return save_model_card(card, Path(folder) / "README.md")


def build_published_card(variant: str, light: bool) -> ModelCard:
    """The card of a published variant, as `model_cards/` has it: the paper's figures, and how to come by weights."""
    config = QueryPoseConfig.from_variant(variant, light=light)
    return build_model_card(config, origin="published", variant=variant)


def add_figures(card: ModelCard, figures: MeasuredFigures, name: str) -> None:
    """Puts measured figures into the metadata of a card whose text somebody wrote, in place of those it had."""
    card.data.model_name = card.data.model_name or name
    card.data.eval_results = figures.as_eval_results()


def check_model_card(card: ModelCard) -> None:
    """Checks a card's metadata, without a network, by what the Hub needs to list and to show it.

    Raises:
        ValueError: a field is missing or is not what it should be; the message names it.
    """
    data = card.data.to_dict()
    for field in ("license", "library_name", "pipeline_tag"):
        if not isinstance(data.get(field), str) or not data[field]:
            raise ValueError(f"README.md: `{field}` of the card's metadata is {data.get(field)!r}; expected a text.")
    for field in ("tags", "datasets"):
        if not isinstance(data.get(field, []), list) or not all(isinstance(one, str) for one in data.get(field, [])):
            raise ValueError(f"README.md: `{field}` of the card's metadata is {data[field]!r}; expected texts.")
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
    """Writes the cards of all published variants, as `model_cards/` holds them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        save_model_card(build_published_card(variant, light), folder / f"{variant}{'_light' if light else ''}.md")
        for variant, light in PUBLISHED_CARDS
    ]
