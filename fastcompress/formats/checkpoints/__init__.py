"""Checkpoints of other tools: GPTQ, AWQ, compressed-tensors and GGUF in, compressed-tensors out."""

from fastcompress.formats.checkpoints.content import Checkpoint, StoredLayer
from fastcompress.formats.checkpoints.read import read_checkpoint

__all__ = ["Checkpoint", "StoredLayer", "read_checkpoint"]
