"""Uploading a checkpoint to the Hub: all of it, checked first, in one commit."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

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

from ..assets import SAMPLE_CREDIT, SAMPLE_IMAGE
from ..checks import telling
from ..files import write_image, write_text
from .checkpoint_files import collect_checkpoint
from .figures import MeasuredFigures
from .model_card import check_model_card, has_card_of_training, own_card
from .options import CardFields, CommitOptions, MetricsFile


def push_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    metrics: MetricsFile | None = None,
    examples: Sequence[str | os.PathLike] = (SAMPLE_IMAGE,),
    card: CardFields | None = None,
    commit: CommitOptions | None = None,
    api: HfApi | None = None,
) -> CommitInfo:
    """Uploads a checkpoint to a model repository in one commit; makes the repository if it does not exist.

    The commit holds configuration, weights, image processor, the code that runs them without this package,
    `requirements.txt` and `handler.py` for Inference Endpoints, the model card, `metrics.json`, and example images in
    which the model has found people. Other files of the folder, such as optimizer states, are not sent. The same
    commit deletes weights of the repository that the new ones replace. Until all of it has arrived the repository
    stays as it was; an upload that was cut off continues with the files that had not arrived.

    A `README.md` in the folder is used as the card. Its text stays; `metrics` replaces the results in its metadata.
    Without one, or with the one that training wrote, a card is written as `querypose card` writes it.

    Args:
        folder (`str` or `os.PathLike`): what `save_pretrained` of model and image processor wrote; it stays unchanged.
        repo_id (`str`): `"user/name"`, or `"name"` in one's own account.
        metrics ([`MetricsFile`], *optional*): what `querypose evaluate` measured, for the card; it is uploaded too.
        examples (`Sequence`): images to show people in; by default the photograph that comes with the package.
        card ([`CardFields`], *optional*): fields of a new card.
        commit ([`CommitOptions`], *optional*): branch, pull request, message and the like.
        api (`HfApi`, *optional*): a client of the Hub with settings of its own.

    Returns:
        `CommitInfo` with the addresses of the commit and the pull request.

    Raises:
        FileNotFoundError, ValueError: the folder or an argument is not as expected; nothing has been sent.
        OSError: the Hub refused, or the upload was cut off.

    Example:

    ```python
    >>> commit = push_checkpoint(
    ...     "runs/r50/best",
    ...     "user/querypose-r50",
    ...     metrics=MetricsFile("scores/metrics.json"),
    ...     commit=CommitOptions(private=True),
    ... )
    >>> commit.commit_url
    ```
    """
    metrics, commit = metrics or MetricsFile(), commit or CommitOptions()
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id` is {repo_id!r}; expected 'user/name' or 'name': {error}") from error
    figures = MeasuredFigures.read(metrics)
    api = api or HfApi(token=commit.token, library_name="querypose-hf")
    with tempfile.TemporaryDirectory(prefix="querypose_push_") as name:
        staging = Path(name)
        files = collect_checkpoint(folder, staging)
        drawn = draw_examples(folder, examples, staging)
        files |= {f"examples/{path.name}": path for path in drawn}
        if metrics.path is not None:
            files["metrics.json"] = Path(metrics.path)
        shown = [_as_markdown(source, path) for source, path in zip(examples, drawn, strict=True)]
        readme = _card(Path(folder), repo_id, figures, shown, card)
        check_model_card(readme)
        files["README.md"] = staging / "README.md"
        write_text(str(readme), files["README.md"])
        try:
            return _commit(api, repo_id, files, commit)
        except HfHubHTTPError as error:
            raise OSError(f"{repo_id} stays as it was: the Hub refused: {error}") from error
        except (HTTPError, RuntimeError) as error:  # huggingface_hub wraps what happens to a large file
            raise OSError(
                f"{repo_id} stays as it was: the upload was cut off: {error.__cause__ or error}. Run it again to "
                "continue with what had not arrived."
            ) from error


def draw_examples(
    folder: str | os.PathLike, images: Sequence[str | os.PathLike], output: Path, threshold: float | None = None
) -> list[Path]:
    """Finds people in images with a checkpoint, and draws them into copies of at most 1024 pixels a side.

    This also shows that the checkpoint loads and runs.

    Returns:
        `list[Path]`: the drawn copies, `NAME_poses.jpg` in `output`.

    Raises:
        ValueError: an image or the checkpoint cannot be read.
    """
    if not images:
        return []
    from transformers import pipeline

    from ..inference.visualization import draw_poses, keypoint_threshold_for
    from ..model.image_decoding_querypose import decode_pil_image

    decoded = []
    for source in images:
        try:
            decoded.append(decode_pil_image(os.fspath(source)))
        except (OSError, ValueError) as error:
            raise ValueError(f"`examples` has {os.fspath(source)!r}; expected an image: {error}") from error
    with telling(f"`folder` is {str(folder)!r}; expected a QueryPose checkpoint"):
        # transformers' annotations know its own tasks alone
        pose_estimator = pipeline("pose-estimation", model=os.fspath(folder))  # type: ignore[call-overload]
    drawn: list[Path] = []
    for source, image in zip(images, decoded, strict=True):
        people = pose_estimator(image, threshold=threshold)
        least = keypoint_threshold_for(pose_estimator.score_threshold if threshold is None else threshold)
        edges = pose_estimator.model.config.keypoint_edges
        poses = draw_poses(image, people, edges=edges, keypoint_threshold=least)
        poses.thumbnail((1024, 1024))
        path = output / f"{Path(source).stem}_poses.jpg"
        while path in drawn:
            path = path.with_stem(f"{path.stem}_")
        write_image(poses, path, quality=90)
        drawn.append(path)
    return drawn


def _as_markdown(source: str | os.PathLike, drawn: Path) -> str:
    image = f"![people found in an image](examples/{drawn.name})"
    return f"{image}\n\n{SAMPLE_CREDIT}" if Path(source) == SAMPLE_IMAGE else image


def _card(
    folder: Path, repo_id: str, figures: MeasuredFigures | None, examples: Sequence[str], fields: CardFields | None
) -> ModelCard:
    """The card in the folder with new results and examples, or a new card."""
    written = folder / "README.md"
    if not written.is_file() or has_card_of_training(folder):
        return own_card(folder, fields, figures=figures, repo_id=repo_id, examples=examples)
    card = ModelCard(written.read_text(encoding="utf-8"))
    if figures is not None:
        card.data.model_name = card.data.model_name or repo_id.rpartition("/")[2]
        card.data.eval_results = figures.as_eval_results()
    if examples and "](examples/" not in card.text:
        card.text = "\n\n".join([card.text.rstrip(), "## Examples", *examples]) + "\n"
    return card


def _commit(api: HfApi, repo_id: str, files: Mapping[str, Path], options: CommitOptions) -> CommitInfo:
    repo_id = api.create_repo(repo_id, private=options.private, exist_ok=True).repo_id
    revision = options.revision
    if revision is not None and revision != "main" and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    # weights left beside the new ones would be loaded in their place, or downloaded with them
    outdated = [
        entry.path
        for entry in api.list_repo_tree(repo_id, revision=revision)
        if isinstance(entry, RepoFile) and entry.path not in files and _is_weights(entry.path)
    ]
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationDelete(path, is_folder=False) for path in outdated),
        *(CommitOperationAdd(path, source) for path, source in files.items()),
    ]
    # `upload_folder` may split an upload into several commits; this is always one
    return api.create_commit(
        repo_id, operations, commit_message=options.message, revision=revision, create_pr=options.create_pr
    )


def _is_weights(path: str) -> bool:
    name = PurePosixPath(path).name
    return (name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))) or (
        name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json"))
    )


__all__ = ["draw_examples", "push_checkpoint"]
