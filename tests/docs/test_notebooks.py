"""The notebooks run from top to bottom, with tiny numbers."""

import os

import pytest
from places import PROJECT


NOTEBOOKS = PROJECT / "notebooks"
TINY = {
    "visualise": "model = None\nimage = None",
    "fine_tune": "steps = 3\nnum_images = 2\nheight, width = 64, 64",
}


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_notebook(name, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    paths = [str(NOTEBOOKS.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without results
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    given = {line.split(" =")[0] for line in parameters.source.splitlines()[1:]}
    assert given == {line.split(" =")[0] for line in TINY[name].splitlines()}
    parameters.source = TINY[name]
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
