"""Where the time goes, and how it compares, measured side by side in one run."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .benchmark import run_benchmark
    from .report import describe_results, write_results
    from .scaling import measure_scaling
    from .settings import BenchmarkSettings
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["BenchmarkSettings", "describe_results", "measure_scaling", "run_benchmark", "write_results"]
