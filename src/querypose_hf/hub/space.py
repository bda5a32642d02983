"""Files of a Hugging Face Space that runs the demo."""

import os
import shutil
from pathlib import Path

from ..assets import resolve_checkpoint
from ..files import making_folder


_APP = '''"""QueryPose, sparse end-to-end multi-person pose estimation."""

from pathlib import Path

from querypose_hf.inference.demo import build_demo, launch_options


MODEL = {model}

if __name__ == "__main__":
    build_demo(MODEL).launch(**launch_options())
'''
_README = """---
title: QueryPose
emoji: 🤸
colorFrom: blue
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: apache-2.0
short_description: Finds every person in an image, with keypoints
{models}tags:
- keypoint-detection
- pose-estimation
---

# QueryPose

Finds every person in an image, a webcam frame or a video, with a box and keypoints, and shows where it looked.
"""


def write_space(
    folder: str | os.PathLike, model: str, *, requirement: str = "querypose-hf[demo]", gradio_version: str
) -> Path:
    """Writes `app.py`, `requirements.txt` and `README.md` of a Space.

    Args:
        folder (`str` or `os.PathLike`): a new or empty folder; it appears once all files are written.
        model (`str`): a Hub id, or a checkpoint's folder or `querypose-nano`, which is copied into the Space.
        requirement (`str`, *optional*): what pip installs the package from.
        gradio_version (`str`): the version of Gradio that the Space pins.

    Raises:
        FileExistsError: `folder` is not empty.
        ValueError: `model` is neither a checkpoint's folder nor a Hub id.
    """
    model = resolve_checkpoint(model)
    is_local = Path(model).is_dir()
    if (is_local and not Path(model, "config.json").is_file()) or (not is_local and model.count("/") != 1):
        raise ValueError(f"`model` is {model!r}; expected a checkpoint's folder or a Hub id such as 'user/name'.")
    folder = Path(folder)
    with making_folder(folder) as made:
        app = _APP.format(model='Path(__file__).with_name("model")' if is_local else f'"{model}"')
        if is_local:
            shutil.copytree(model, made / "model")
        else:
            app = app.replace("from pathlib import Path\n\n", "")
        models = "" if is_local else f"models:\n- {model}\n"
        (made / "app.py").write_text(app, encoding="utf-8")
        (made / "requirements.txt").write_text(f"{requirement}\n", encoding="utf-8")
        (made / "README.md").write_text(_README.format(gradio=gradio_version, models=models), encoding="utf-8")
    return folder


__all__ = ["write_space"]
