"""Runnable examples: ``python -m examples.demo``."""

__all__: list[str] = []
