"""Uploading a checkpoint to the Hub: the whole of it, checked beforehand, in one commit."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import PIL.Image
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..assets import SAMPLE_CREDIT, SAMPLE_IMAGE
from ..files import read_json, write_json
from ..model.configuration_querypose import HUB_ENTRIES, HUB_FILES, QueryPoseConfig
from .model_card import MeasuredFigures, add_figures, build_model_card, check_model_card, find_variant, save_model_card


HANDLER = Path(__file__).parent / "endpoint_handler.py"
#: What the code that a checkpoint carries imports, for services that install a repository's requirements.
REQUIREMENTS = (
    "torch",
    "torchvision",
    "transformers>=5.17",
    "timm>=1.0.20",
    "safetensors",
    "scipy",
    "numpy",
    "pillow",
)

_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_SETTINGS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Upload:
    """A file that goes to the Hub.

    Attributes:
        path_in_repo (`str`): where it goes.
        source (`Path`): where it is.
    """

    path_in_repo: str
    source: Path


def push_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    metrics: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    dataset_id: str | None = None,
    examples: Sequence[str | os.PathLike] = (SAMPLE_IMAGE,),
    license: str = "mit",
    base_model: str | None = None,
    datasets: Sequence[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    api: HfApi | None = None,
) -> CommitInfo:
    """Uploads a checkpoint folder to a model repository, which is made if there is none, in one commit.

    What goes there: configuration, weights, image processor, the code that runs them where this package is not
    installed, `requirements.txt` and `handler.py` for Inference Endpoints, the model card, `metrics.json` and example
    pictures in which the model has found people. Nothing else that may lie in the folder, such as optimizer states,
    does. Weights of the repository that the new ones replace are deleted in the same commit. Until it has arrived as a
    whole the repository stays as it was, and an upload that was cut off goes on with the files that had not arrived.

    A `README.md` in the folder is the card, and its text is left alone; `metrics` replaces the results in its
    metadata. Without one a card is written as `querypose card` writes it.

    Args:
        folder (`str` or `os.PathLike`): what `save_pretrained` of model and image processor wrote. Nothing in it is
            changed.
        repo_id (`str`): `"user/name"`, or `"name"` for one's own.
        metrics (`str` or `os.PathLike`, *optional*): `metrics.json` of `querypose evaluate`.
        dataset_name, dataset_id (`str`, *optional*): what was scored, see [`MeasuredFigures.read`].
        examples (`Sequence`, *optional*): pictures to show people in; by default the photograph that comes
            with the package.
        license, base_model, datasets: for a new card, see [`build_model_card`].
        private (`bool`, *optional*): whether a new repository is private.
        revision (`str`, *optional*): the branch; made from the main one if there is none.
        create_pr (`bool`, defaults to `False`): whether to open a pull request with the commit.
        commit_message (`str`, *optional*): defaults to `"Upload QueryPose"`.
        token (`str`, *optional*): defaults to the one of `hf auth login`.
        api (`HfApi`, *optional*): a client of the Hub with settings of its own.

    Returns:
        `CommitInfo`: of the commit, with its URL and that of the pull request.

    Raises:
        FileNotFoundError, ValueError: the folder, or something else that was given, is not as it should be; raised
            before anything is sent.
        OSError: the Hub refused, or the upload was cut off.

    Example:

    ```python
    >>> commit = push_checkpoint("runs/r50/best", "user/querypose-r50", metrics="scores/metrics.json", private=True)
    >>> commit.commit_url
    ```
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id` must be 'user/name' or 'name', but is {repo_id!r}: {error}") from error
    if create_pr and revision not in (None, "main"):
        raise ValueError(
            f"`create_pr` opens a pull request to the main branch, but `revision` is {revision!r}; give one of them."
        )
    figures = None if metrics is None else MeasuredFigures.read(metrics, dataset_name, dataset_id)
    api = api or HfApi(token=token, library_name="querypose-hf")
    with tempfile.TemporaryDirectory(prefix="querypose_push_") as name:
        staging = Path(name)
        uploads = collect_checkpoint(folder, staging)
        shown = draw_examples(folder, examples, staging) if examples else []
        uploads += [Upload(f"examples/{path.name}", path) for path in shown]
        if metrics is not None:
            uploads.append(Upload("metrics.json", Path(metrics)))
        card_options = {"license": license, "base_model": base_model, "datasets": datasets}
        card = _card(Path(folder), repo_id, figures, [f"examples/{path.name}" for path in shown], card_options)
        for source, path in zip(examples, shown, strict=True):
            if source == SAMPLE_IMAGE:
                card.text = card.text.replace(f"(examples/{path.name})", f"(examples/{path.name})\n\n{SAMPLE_CREDIT}")
        check_model_card(card)
        uploads.append(Upload("README.md", save_model_card(card, staging / "README.md")))
        try:
            return _commit(api, repo_id, uploads, private, revision, create_pr, commit_message or "Upload QueryPose")
        except HfHubHTTPError as error:
            raise OSError(f"{repo_id} stays as it was, because the Hub refused: {error}") from error
        except (HTTPError, RuntimeError) as error:  # huggingface_hub wraps what happens to a large file
            raise OSError(
                f"{repo_id} stays as it was, because the upload was cut off: {error.__cause__ or error}. Started "
                "again, it goes on with what had not arrived."
            ) from error


def collect_checkpoint(folder: str | os.PathLike, staging: Path) -> list[Upload]:
    """Finds the files of a checkpoint that are to be uploaded, and makes in `staging` those that are missing.

    Raises:
        FileNotFoundError: the folder, or a file that every checkpoint has, does not exist.
        ValueError: the folder holds another kind of model, or its weights cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` must be a checkpoint's folder, but there is none at {folder}.")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint: it has no config.json.")
    config = read_json(config_file)
    if not isinstance(config, dict) or config.get("model_type") != "querypose":
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise ValueError(f"{config_file}: `model_type` is {kind!r}; expected 'querypose'.")
    settings = [name for name in _SETTINGS if (folder / name).is_file()]
    if not settings:
        raise FileNotFoundError(
            f"{folder} has no image processor ({' or '.join(_SETTINGS)}); save one into it with "
            "`image_processor.save_pretrained`."
        )
    uploads = [Upload(name, folder / name) for name in [*settings, *_weights(folder)]]
    if all(config.get(entry) == value for entry, value in HUB_ENTRIES.items()):
        uploads.append(Upload("config.json", config_file))
    else:
        write_json({**config, **HUB_ENTRIES}, staging / "config.json", indent=2)
        uploads.append(Upload("config.json", staging / "config.json"))
    for name in HUB_FILES:
        source = folder / name
        uploads.append(Upload(name, source if source.is_file() else Path(__file__).parents[1] / "model" / name))
    (staging / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    uploads.append(Upload("requirements.txt", staging / "requirements.txt"))
    uploads.append(Upload("handler.py", HANDLER))
    return uploads


def copy_handler(folder: str | os.PathLike) -> Path:
    """Puts `handler.py` for Inference Endpoints and its `requirements.txt` into a checkpoint's folder.

    Returns:
        `Path` of `handler.py`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"`folder` must be a checkpoint's folder, but {folder} has no config.json.")
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    return Path(shutil.copyfile(HANDLER, folder / "handler.py"))


def draw_examples(
    folder: str | os.PathLike, pictures: Sequence[str | os.PathLike], output: Path, threshold: float = 0.3
) -> list[Path]:
    """Finds people in pictures with a checkpoint and draws them into smaller copies, which shows that it works.

    Returns:
        `list[Path]`: the pictures drawn, `NAME_poses.jpg`, of at most 1024 pixels a side.

    Raises:
        ValueError: a picture or the checkpoint cannot be read.
    """
    from transformers import pipeline

    from ..inference.visualization import draw_poses
    from ..model.image_decoding_querypose import decode_image

    sources = [os.fspath(picture) for picture in pictures]
    decoded = []
    for source in sources:
        try:
            decoded.append(PIL.Image.fromarray(decode_image(source).permute(1, 2, 0).numpy()))
        except (OSError, ValueError) as error:
            raise ValueError(f"`examples` must be pictures, but {source} cannot be read: {error}") from error
    try:
        # Transformers' annotations know its own tasks alone
        pose_estimator = pipeline("pose-estimation", model=os.fspath(folder))  # type: ignore[call-overload]
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"`folder` must be a QueryPose checkpoint, but {folder} cannot be loaded: {error}") from error
    drawn: list[Path] = []
    for source, picture in zip(sources, decoded, strict=True):
        people = pose_estimator(picture, threshold=threshold)
        shown = draw_poses(picture, people, edges=pose_estimator.model.config.keypoint_edges)
        shown.thumbnail((1024, 1024))
        path = _new_path(output / f"{PurePosixPath(source).stem}_poses.jpg", drawn)
        shown.save(path, quality=90)
        drawn.append(path)
    return drawn


def _new_path(path: Path, taken: Sequence[Path]) -> Path:
    number, stem = 1, path.stem
    while path in taken:
        number += 1
        path = path.with_stem(f"{stem}_{number}")
    return path


def _weights(folder: Path) -> list[str]:
    index = folder / _WEIGHTS_INDEX
    if index.is_file() and not (folder / _WEIGHTS).is_file():  # from_pretrained, too, prefers the single file
        content = read_json(index)
        try:
            files = sorted(set(content["weight_map"].values()))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{index}: expected a `weight_map` from tensors to files.") from error
        names = [_WEIGHTS_INDEX]
    else:
        files, names = [_WEIGHTS], []
    for name in files:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no whole checkpoint: it has no {name}.")
        try:
            with safe_open(folder / name, framework="pt") as tensors:  # reads the header, and checks the file's length
                tensors.keys()
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name} is no whole file of weights: {error}") from error
    return names + files


def _card(
    folder: Path, repo_id: str, figures: MeasuredFigures | None, examples: list[str], options: dict[str, Any]
) -> ModelCard:
    written = folder / "README.md"
    if not written.is_file():
        config = QueryPoseConfig.from_pretrained(folder)
        return build_model_card(
            config,
            origin="own",
            variant=find_variant(config),
            figures=figures,
            repo_id=repo_id,
            examples=examples,
            **options,
        )
    card = ModelCard(written.read_text(encoding="utf-8"))
    if figures is not None:
        add_figures(card, figures, name=repo_id.rpartition("/")[2])
    if examples and "](examples/" not in card.text:
        shown = "\n".join(f"![people found in a picture]({picture})" for picture in examples)
        card.text = f"{card.text.rstrip()}\n\n## Examples\n\n{shown}\n"
    return card


def _commit(
    api: HfApi,
    repo_id: str,
    uploads: Sequence[Upload],
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and revision != "main" and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    new = {upload.path_in_repo for upload in uploads}
    # Weights that stayed beside the new ones would be loaded in their place, or downloaded with them.
    outdated = [
        entry.path
        for entry in api.list_repo_tree(repo_id, revision=revision)
        if isinstance(entry, RepoFile) and entry.path not in new and _is_weights(entry.path)
    ]
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationDelete(path, is_folder=False) for path in outdated),
        *(CommitOperationAdd(upload.path_in_repo, upload.source) for upload in uploads),
    ]
    # `upload_folder` may split what it uploads into several commits; this is one, whatever the transfer.
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr)


def _is_weights(path: str) -> bool:
    name = PurePosixPath(path).name
    return (name.startswith("model") and name.endswith((".safetensors", _WEIGHTS_INDEX))) or (
        name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json"))
    )


def read_model_card_config(folder: str | os.PathLike) -> QueryPoseConfig:
    """The configuration of a checkpoint's folder, with an error that says what is wrong with the folder."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint: it has no config.json.")
    try:
        return QueryPoseConfig.from_pretrained(folder)
    except (ValueError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no QueryPose checkpoint: {error}") from error
