"""Files of benchmarks, and of one's own, as items."""

from .benchmark import Benchmark, open_benchmark
from .kinds import KINDS

__all__ = ["KINDS", "Benchmark", "open_benchmark"]
