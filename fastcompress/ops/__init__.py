"""The ``torch.ops.fastcompress`` operators: schemas, fake and reference kernels, backward, packed blobs."""

import torch

from . import autograd, chain, embedding, fake, native, packing, reference, schemas
from .arithmetic import quantize_weight
from .block_csr import BlockCSR
from .canonical import W8A8Canonical
from .canonical_sparse import SparseCanonical, SparseW8A8Canonical
from .canonical_w4 import W4Canonical
from .canonical_w8 import W8Canonical
from .constants import ACTIVATIONS, INPUT_MODES, ISA_NAMES, MAX_K
from .packing import check, info, pack, unpack

__all__ = [
    "ACTIVATIONS",
    "INPUT_MODES",
    "ISA_NAMES",
    "MAX_K",
    "BlockCSR",
    "SparseCanonical",
    "SparseW8A8Canonical",
    "W4Canonical",
    "W8A8Canonical",
    "W8Canonical",
    "check",
    "info",
    "pack",
    "quantize_weight",
    "unpack",
]


def _register() -> torch.library.Library:
    library = torch.library.Library("fastcompress", "FRAGMENT")
    schemas.define(library, native=native.available)
    # The native module's CPU kernels are more specific than this key, so they win where they exist.
    for function in (
        reference.quantize_per_tensor,
        reference.quantize_per_token,
        reference.linear_w8a8,
        reference.conv2d_w8a8,
        reference.linear_bsr,
        reference.linear_w4,
        reference.linear_w8,
        reference.conv2d_bsr,
        chain.conv2d_chain,
        embedding.embedding_packed,
    ):
        library.impl(function.__name__, function, "CompositeExplicitAutograd")
    library.impl("dequantize", packing.dequantize, "CompositeExplicitAutograd")
    for name, backward in autograd.BACKWARD.items():
        library.impl(name, backward, "CompositeExplicitAutograd")
    fake.register(library)
    autograd.register(library)
    return library


#: Registrations live as long as this object.
_LIBRARY = _register()
