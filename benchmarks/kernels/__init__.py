"""Benchmarks of single kernels and single layers."""

__all__: list[str] = []
