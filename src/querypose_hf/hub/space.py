"""Files of a Hugging Face Space that runs the demo."""

import os
import shutil
import tempfile
from pathlib import Path


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
short_description: Finds every person in a picture, with keypoints
{models}tags:
- keypoint-detection
- pose-estimation
---

# QueryPose

Finds every person in a picture, before the webcam or in a video, with a box and keypoints, and shows where it looked.
"""


def write_space(
    folder: str | os.PathLike, model: str, *, requirement: str = "querypose-hf[demo]", gradio_version: str
) -> Path:
    """Writes `app.py`, `requirements.txt` and `README.md` of a Space.

    Args:
        folder (`str` or `os.PathLike`): a new or empty folder, which appears once all files are written.
        model (`str`): a Hub id, or a checkpoint's folder, which is copied into the Space.
        requirement (`str`, *optional*): what pip installs the package from.
        gradio_version (`str`): of Gradio, which the Space pins.

    Raises:
        ValueError: the folder holds something, or the model is neither a checkpoint's folder nor a Hub id.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--space must be a new or empty folder, but {folder} holds something.")
    is_local = Path(model).is_dir()
    if is_local and not Path(model, "config.json").is_file():
        raise ValueError(f"--model must be a checkpoint, but {model} has no config.json.")
    if not is_local and model.count("/") != 1:
        raise ValueError(f"--model must be a checkpoint's folder or a Hub id such as user/name, but is {model!r}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary, "space")
        made.mkdir()
        place = 'Path(__file__).with_name("model")' if is_local else f'"{model}"'
        app = _APP.format(model=place)
        if is_local:
            shutil.copytree(model, made / "model")
        else:
            app = app.replace("from pathlib import Path\n\n", "")
        (made / "app.py").write_text(app, encoding="utf-8")
        (made / "requirements.txt").write_text(f"{requirement}\n", encoding="utf-8")
        models = "" if is_local else f"models:\n- {model}\n"
        (made / "README.md").write_text(_README.format(gradio=gradio_version, models=models), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return folder
