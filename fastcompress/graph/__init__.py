"""Whole-model plans: capture, fusion, and int8 tensors between layers."""

from .freeze import freeze
from .frozen import FrozenModel

__all__ = ["FrozenModel", "freeze"]
