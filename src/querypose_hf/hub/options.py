"""What `querypose card` and `querypose push` ask, as dataclasses that the command line and Python share.

Imports nothing heavy: the command line reads this file to answer `--help`.
"""

from dataclasses import dataclass

from ..settings import option


@dataclass(frozen=True)
class CardFields:
    """What a model card says that cannot be read off the checkpoint.

    A new field needs a line here and its place in the template (`fields.NAME` there).

    Args:
        name (`str`, *optional*): the model's name; made of the variant or the backbone by default.
        license (`str`, *optional*): licence of the weights, an identifier of the Hub; `"mit"` by default.
        base_model (`str`, *optional*): the model that training started from: a Hub id, or `querypose-nano`.
        datasets (`tuple[str, ...]`): Hub ids of the datasets trained on; COCO for converted weights by default.
        measured (`str`, *optional*): figures of training's evaluation and what they were measured on, in words.
    """

    name: str | None = option(None, "the model's name")
    license: str | None = option(None, "licence of the weights; by default that of the card that is there, else mit")
    base_model: str | None = option(
        None, "the model that training started from, a Hub id or querypose-nano; by default as the card there says"
    )
    datasets: tuple[str, ...] | None = option(None, "Hub ids of the datasets trained on")
    measured: str | None = None


@dataclass(frozen=True)
class MetricsFile:
    """A `metrics.json` of `querypose evaluate`, and the dataset that it is about.

    Args:
        path (`str`, *optional*): the file.
        dataset_name (`str`, *optional*): the dataset, for readers. COCO val2017 and CrowdPose test are known by
            protocol and number of images; any other must be named.
        dataset_id (`str`, *optional*): its id on the Hub; made from the name by default.
    """

    path: str | None = option(
        None, "metrics.json of querypose evaluate, for the card's results", flag="--metrics", metavar="FILE"
    )
    dataset_name: str | None = option(None, "the dataset scored, unless it is COCO val2017 or CrowdPose test")
    dataset_id: str | None = option(None, "its id on the Hub")


@dataclass(frozen=True)
class CommitOptions:
    """How a commit to the Hub is made.

    Args:
        private (`bool`, *optional*): whether a new repository is private; the account's default without it.
        revision (`str`, *optional*): the branch; made from the main branch if it does not exist.
        create_pr (`bool`): open a pull request to the main branch with the commit.
        message (`str`): the commit message.
        token (`str`, *optional*): the one of `hf auth login` by default.

    Raises:
        ValueError: `create_pr` and a branch are both given.
    """

    private: bool | None = option(None, "make a new repository private")
    revision: str | None = option(None, "branch to commit to; made if it does not exist")
    create_pr: bool = option(False, "open a pull request with the commit")
    message: str = option("Upload QueryPose", "commit message")
    token: str | None = None

    def __post_init__(self) -> None:
        if self.create_pr and self.revision not in (None, "main"):
            raise ValueError(
                f"`create_pr` is True and `revision` is {self.revision!r}; expected one of them, because a pull "
                "request goes to the main branch."
            )


__all__ = ["CardFields", "CommitOptions", "MetricsFile"]
