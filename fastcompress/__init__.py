"""fastcompress: compress PyTorch networks and run them faster on kernels of their own."""

from fastcompress import distillation, recipes
from fastcompress.api import convert, quantize
from fastcompress.config import QuantConfig
from fastcompress.cpu import cpu_info
from fastcompress.errors import CheckpointError, PackedBlobError, TrainingDiverged
from fastcompress.formats import load, save
from fastcompress.graph import FrozenModel, freeze
from fastcompress.integrations.pretrained import load_pretrained
from fastcompress.models.adapters import Adapted, register_adapter
from fastcompress.pruning import PruneConfig, Pruner, PrunerConfig, allocate, prune, sensitivity
from fastcompress.quantization import QATConfig, prepare
from fastcompress.recipes import compress, distill
from fastcompress.report import benchmark, explain, verify
from fastcompress.version import __version__

__all__ = [
    "Adapted",
    "CheckpointError",
    "FrozenModel",
    "PackedBlobError",
    "PruneConfig",
    "Pruner",
    "PrunerConfig",
    "QATConfig",
    "QuantConfig",
    "TrainingDiverged",
    "__version__",
    "allocate",
    "benchmark",
    "compress",
    "convert",
    "cpu_info",
    "distill",
    "distillation",
    "explain",
    "freeze",
    "load",
    "load_pretrained",
    "prepare",
    "prune",
    "quantize",
    "recipes",
    "register_adapter",
    "save",
    "sensitivity",
    "verify",
]
