"""The files that a checkpoint's repository gets beside those of its folder."""

import ast
import re
import sys
import tomllib

import pytest
from places import PROJECT
from tiny import save_tiny_checkpoint

from querypose_hf.hub.checkpoint_files import REQUIREMENTS, copy_handler
from querypose_hf.model.code_files_querypose import HUB_FILES


def test_handler_is_copied_with_its_requirements(tmp_path):
    folder = tmp_path / "served"
    save_tiny_checkpoint(folder)
    assert copy_handler(folder) == folder / "handler.py"
    assert "class EndpointHandler" in (folder / "handler.py").read_text()
    assert (folder / "requirements.txt").read_text().splitlines() == list(REQUIREMENTS)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        copy_handler(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(ValueError, match="`model_type` is 'detr'; expected 'querypose'"):
        copy_handler(tmp_path)


def test_requirements_are_what_the_carried_code_imports():
    source = PROJECT / "src" / "querypose_hf"
    files = [*(source / "model" / name for name in HUB_FILES), source / "hub" / "endpoint_handler.py"]
    imported = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module.partition(".")[0])
    required = {re.match(r"[\w-]+", requirement)[0]: requirement for requirement in REQUIREMENTS}
    # transformers brings the Hub's client
    modules = {"huggingface_hub", *({"pillow": "PIL"}.get(name, name) for name in required)}
    assert imported - set(sys.stdlib_module_names) <= modules
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    for name, requirement in required.items():
        [of_package] = [other for other in project["dependencies"] if re.match(r"[\w-]+", other)[0] == name]
        assert requirement in (name, of_package)
