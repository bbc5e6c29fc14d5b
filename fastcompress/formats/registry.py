"""The allow-list: a class that is not here is never created from a file.

Everything else in a model comes from the constructor that the user passes to `load`.
"""

from __future__ import annotations

from torch import nn

from fastcompress.formats.codec import LayerCodec
from fastcompress.formats.fields import Fields
from fastcompress.formats.grouped import GroupQuantLinearCodec, QuantEmbeddingCodec
from fastcompress.formats.manifest import ModuleEntry
from fastcompress.formats.plain import Conv2dCodec, IdentityCodec, LinearCodec
from fastcompress.formats.quantized import QuantConv2dCodec, QuantLinearCodec
from fastcompress.formats.sparse import (
    SparseConv2dCodec,
    SparseLinearCodec,
    SparseQuantConv2dCodec,
    SparseQuantLinearCodec,
)

__all__ = ["CODECS", "codec_of", "describe", "owns_tensors", "parse"]

CODECS: dict[str, type[LayerCodec]] = {
    codec.module_class.__name__: codec
    for codec in (
        IdentityCodec,
        LinearCodec,
        Conv2dCodec,
        QuantLinearCodec,
        QuantConv2dCodec,
        SparseQuantLinearCodec,
        SparseQuantConv2dCodec,
        SparseLinearCodec,
        SparseConv2dCodec,
        GroupQuantLinearCodec,
        QuantEmbeddingCodec,
    )
}


def codec_of(module: nn.Module) -> type[LayerCodec] | None:
    """The codec for ``module``'s exact type (a subclass is another class), or None."""
    codec = CODECS.get(type(module).__name__)
    return codec if codec is not None and type(module) is codec.module_class else None


def owns_tensors(module: nn.Module) -> bool:
    """Whether ``module`` is rebuilt from its tensors as a whole (a packed layer)."""
    codec = codec_of(module)
    return codec is not None and codec.owns_tensors


def describe(module: nn.Module) -> ModuleEntry | None:
    """The manifest entry of ``module``, or None when the user's constructor makes it."""
    codec = codec_of(module)
    return None if codec is None else ModuleEntry(codec.module_class.__name__, codec.describe(module))


def parse(name: str, entry: ModuleEntry) -> LayerCodec:
    """Check one manifest entry.

    Raises:
        ValueError: the class is not allowed, or its configuration is wrong.
    """
    where = f"module {name!r}"
    codec = CODECS.get(entry.class_name)
    if codec is None:
        raise ValueError(f"{where}: class {entry.class_name!r:.80} is not one of {', '.join(sorted(CODECS))}")
    fields = Fields(entry.config, where)
    parsed = codec.parse(fields)
    fields.finish()
    return parsed
