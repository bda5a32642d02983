"""What comes with the package besides code: a checkpoint, a photograph and the template of model cards."""

import os
from pathlib import Path


_ASSETS = Path(__file__).parent / "assets"

#: Folder of querypose-nano, a small model for `from_pretrained`. Its `README.md` says how well it does, and how it was
#: made.
QUERYPOSE_NANO = str(_ASSETS / "querypose-nano")
#: A photograph of five skiers, 640 x 360 pixels, to try a model on. Show it with [`SAMPLE_CREDIT`].
SAMPLE_IMAGE = _ASSETS / "sample.jpg"
#: Author, source and licence of [`SAMPLE_IMAGE`], in Markdown.
SAMPLE_CREDIT = (
    "Photo: [Jarrod Doll](https://www.flickr.com/photos/12407269@N07/3465325303), "
    "[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/)."
)
#: The Jinja template of model cards.
CARD_TEMPLATE = _ASSETS / "model_card_template.md"


def resolve_checkpoint(checkpoint: str | os.PathLike) -> str:
    """What `from_pretrained` takes for a checkpoint: the name `querypose-nano` stands for the shipped folder."""
    name = os.fspath(checkpoint)
    return QUERYPOSE_NANO if name == Path(QUERYPOSE_NANO).name else name
