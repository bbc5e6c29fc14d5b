"""Benchmarks of whole networks: a plain module swap against the dense network in its strongest forms."""

__all__: list[str] = []
