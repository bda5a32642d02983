"""The code that a saved model, configuration or image processor carries, so that it runs without this package."""

import os
import shutil
from pathlib import Path
from typing import Any


_FOLDER = Path(__file__).parent

#: Every module of this folder. In a folder that came from the Hub these are the files that were asked for.
HUB_FILES = tuple(sorted(file.name for file in _FOLDER.glob("*.py") if file.name != "__init__.py"))
#: Entries of `config.json` by which Transformers finds the classes in those files.
HUB_ENTRIES: dict[str, Any] = {
    "auto_map": {
        "AutoConfig": "configuration_querypose.QueryPoseConfig",
        "AutoModel": "modeling_querypose.QueryPoseModel",
        "AutoModelForPoseEstimation": "modeling_querypose.QueryPoseForPoseEstimation",
    },
    "custom_pipelines": {
        "pose-estimation": {
            "impl": "pipeline_querypose.PoseEstimationPipeline",
            "pt": ["AutoModelForPoseEstimation"],
            "type": "image",
        }
    },
}


def copy_code(folder: str | os.PathLike) -> list[Path]:
    """Copies the files into a folder that exists, each replaced whole; returns where they are now."""
    copies = []
    for name in HUB_FILES:
        target = Path(folder, name)
        temporary = target.with_name(f".{os.getpid()}.{name}")
        try:
            shutil.copyfile(_FOLDER / name, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        copies.append(target)
    return copies
