"""Access to transformers' own common tests: `ImageProcessingTestMixin`, `ModelTesterMixin`, `ConfigTester` and others.

They are not in transformers' wheel, but its source distribution carries `tests/test_*_common.py`. It is looked for in
the folder that the environment variable `QUERYPOSE_TRANSFORMERS_TESTS` names (an unpacked source distribution), then
in the user's cache, and is downloaded to the cache otherwise. Without it the tests that need it are skipped, with the
reason.

The source distribution lacks what some of those modules import: the mixins for `generate` and for exporting models,
and a few helpers. `_ABSENT_FILES` stands in for them; the tests of these two mixins do not run.
"""

import atexit
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers


_PACKAGE = "transformers_common_tests"
_DOWNLOAD_SECONDS = 300

_ABSENT_FILES = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    # settings that every configuration has, none of them at its default
    "tests/utils/test_configuration_utils.py": """config_common_kwargs = {
    "architectures": ["SomeModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
""",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, return_url_if_not_found=True):\n    return url\n",
}


def load_common_module(name: str) -> ModuleType:
    """Imports one module of transformers' tests, of the installed version.

    Args:
        name (`str`): the module's name, such as `"test_image_processing_common"`.

    Returns:
        The module. Where it cannot be had, the test module that asks for it is skipped.
    """
    if _PACKAGE not in sys.modules:
        folder = _find_tests() / "tests"
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
        sys.modules[_PACKAGE] = package
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    except ImportError as error:
        _skip(f"{name} of transformers {transformers.__version__} cannot be imported: {error}")
        raise


def _skip(reason: str) -> None:
    pytest.skip(f"transformers' own tests: {reason}", allow_module_level=True)


def _find_tests() -> Path:
    version = transformers.__version__
    given = os.environ.get("QUERYPOSE_TRANSFORMERS_TESTS")
    if given:
        # the folder may be read-only, and is not ours to add files to
        copy = Path(tempfile.mkdtemp(prefix="transformers-tests-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        _collect(Path(given), copy)
        return copy
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "querypose_hf"
    target = cache / f"transformers-{version}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            unpacked, collected = Path(temporary, "unpacked"), Path(temporary, "collected")
            _download(version, unpacked)
            _collect(unpacked / f"transformers-{version}", collected)
            try:
                collected.rename(target)
            except OSError:
                # another test process was faster
                if not target.is_dir():
                    raise
    return target


def _download(version: str, unpacked: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(unpacked), f"transformers=={version}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS)
    except subprocess.SubprocessError as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        _skip(f"the source distribution of transformers {version} cannot be downloaded: {reason}")
    with tarfile.open(unpacked / f"transformers-{version}.tar.gz") as archive:
        members = [member for member in archive.getmembers() if member.name.split("/")[1:2] == ["tests"]]
        archive.extractall(unpacked, members=members, filter="data")


def _collect(source: Path, target: Path) -> None:
    tests = source / "tests" if (source / "tests").is_dir() else source
    if not (tests / "test_modeling_common.py").is_file():
        _skip(f"{source} holds no tests/test_modeling_common.py")
    shutil.copytree(tests, target / "tests", dirs_exist_ok=True, copy_function=shutil.copyfile)
    for name, content in _ABSENT_FILES.items():
        path = target / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
