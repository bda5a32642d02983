"""Where the time goes, and how it compares, measured side by side in one run."""

from .benchmark import BenchmarkSettings, run_benchmark
from .report import describe_results, write_results


__all__ = ["BenchmarkSettings", "describe_results", "run_benchmark", "write_results"]
