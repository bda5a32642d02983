import pytest
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps one state for the whole process, and refuses another precision in it."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
