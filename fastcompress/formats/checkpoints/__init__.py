"""Checkpoints of other tools: GPTQ, AWQ, compressed-tensors and GGUF in, compressed-tensors out."""

from fastcompress.formats.checkpoints.content import Checkpoint, StoredLayer
from fastcompress.formats.checkpoints.read import read_checkpoint
from fastcompress.formats.checkpoints.requantize import ExportLoss
from fastcompress.formats.checkpoints.write import ExportReport, export_compressed_tensors

__all__ = ["Checkpoint", "ExportLoss", "ExportReport", "StoredLayer", "export_compressed_tensors", "read_checkpoint"]
