"""The documentation's site builds without a warning, and its API page shows no raw markup."""

import os
import re
import subprocess
import sys

import pytest
from places import PROJECT


def test_site(tmp_path):
    pytest.importorskip("mkdocstrings_handlers.python", reason="the docs extra is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "api" / "index.html").read_text()
    text = re.sub(r"<[^>]+>", "", re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL))
    assert "QueryPoseForPoseEstimation" in text
    assert not re.findall(r".*(?:\[`|``|\*optional).*", text)
    assert not re.findall(r".*\[<code>.*", page)
