"""The recipe for Ray Data in docs/bulk.md, run on a local Ray."""

import json
import os
import re
from pathlib import Path

import pytest
from places import PROJECT
from tiny import save_tiny_checkpoint

from querypose_hf.data import GeneratedPeople


REPOSITORY = PROJECT


def test_recipe(tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    save_tiny_checkpoint(tmp_path / "model", class_bias=5.0)
    (tmp_path / "photos").mkdir()
    people = GeneratedPeople(3, seed=1, size=(96, 80))
    for number in range(3):
        people[number]["image"].save(tmp_path / "photos" / f"{number}.jpg")

    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "bulk.md").read_text(), flags=re.DOTALL)
    [recipe] = [block for block in blocks if "import ray" in block]
    recipe = recipe.replace("(QUERYPOSE_NANO,)", f'("{tmp_path / "model"}",)')
    for name, place in (("photos", "photos"), ("people", "out")):
        recipe = re.sub(rf'(?<=[( ])"{name}"(?=[,)])', f'"{tmp_path / place}"', recipe)
    paths = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}},
    )
    try:
        exec(compile(recipe, "docs/bulk.md", "exec"), {"__name__": "recipe"})
    finally:
        ray.shutdown()
    rows = parquet.read_table(tmp_path / "out").to_pylist()
    assert sorted(Path(row["path"]).name for row in rows) == ["0.jpg", "1.jpg", "2.jpg"]
    assert all(json.loads(row["people"])[0]["label"] == "person" for row in rows)
