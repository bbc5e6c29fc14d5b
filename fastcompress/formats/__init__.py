"""Saving and loading compressed models: safetensors for the tensors, JSON for everything else, never pickle."""

from fastcompress.formats.load import load
from fastcompress.formats.save import save
from fastcompress.formats.summary import checkpoint_info

__all__ = ["checkpoint_info", "load", "save"]
