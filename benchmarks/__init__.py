"""Benchmarks: ``python -m benchmarks.run`` measures the rows of ``benchmarks/targets.py`` into a results file."""

__all__: list[str] = []
