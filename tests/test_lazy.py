import importlib

import pytest

import querypose_hf


@pytest.mark.parametrize("name", ["", ".benchmark", ".data", ".evaluation", ".export"])
def test_every_name_of_a_package_can_be_had(name):
    package = importlib.import_module(f"querypose_hf{name}")
    assert set(package.__all__) <= set(dir(package))
    for member in package.__all__:
        assert getattr(package, member) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_names_are_kept_once_they_are_used():
    assert querypose_hf.QueryPoseConfig is vars(querypose_hf)["QueryPoseConfig"]
