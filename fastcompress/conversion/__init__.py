"""Finishing what training left in a model: fake quantization becomes int8, masks block-sparse layers or zeros."""

from .convert import ConvertConfig, convert_model
from .finish import finish_model
from .trained import convert_trained

__all__ = ["ConvertConfig", "convert_model", "convert_trained", "finish_model"]
