"""fastcompress: compress PyTorch networks and run them faster on kernels of their own."""

from fastcompress.errors import CheckpointError, PackedBlobError

__version__ = "0.1.0"

__all__ = ["CheckpointError", "PackedBlobError", "__version__"]
