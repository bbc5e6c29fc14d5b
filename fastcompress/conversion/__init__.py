"""Finishing what pruning left in a model: masks become block-sparse layers, or zeros in dense ones."""

from .convert import ConvertConfig, convert_model

__all__ = ["ConvertConfig", "convert_model"]
