"""Saving and loading compressed models: safetensors for the tensors, JSON for everything else, never pickle."""

from fastcompress.formats.load import load
from fastcompress.formats.save import save

__all__ = ["load", "save"]
