"""Stand-ins for the layers of `build`, for machines whose native module has no kernels for some of them yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.formats.checkpoints import StoredLayer, build
from fastcompress.ops.canonical_w4 import W4Canonical, pack_nibbles
from fastcompress.ops.canonical_w8 import W8Canonical

__all__ = ["DequantizedEmbedding", "DequantizedLinear", "real_layers", "use_layers"]


class DequantizedLinear(nn.Module):
    """Computes what the layer's float weight says."""

    def __init__(self, stored: StoredLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.stored = stored
        bias = stored.canonical.bias
        self.register_buffer("packed", stored.dequantize().to(dtype), persistent=False)
        self.register_buffer("packed_bias", None if bias is None else bias.to(dtype), persistent=False)

    @property
    def input_order(self) -> Tensor | None:
        return self.stored.input_order

    def canonical(self) -> Any:
        return self.stored.canonical

    def dequantize(self) -> Tensor:
        return self.packed

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.packed, self.packed_bias)


class DequantizedEmbedding(nn.Module):
    """The same for an embedding."""

    def __init__(self, stored: StoredLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.stored = stored
        self.register_buffer("packed", stored.dequantize().to(dtype), persistent=False)

    def canonical(self) -> Any:
        return self.stored.canonical

    def dequantize(self) -> Tensor:
        return self.packed

    def head(self) -> DequantizedLinear:
        layer = DequantizedLinear(self.stored, self.packed.dtype)
        layer.packed = self.packed
        return layer

    def forward(self, index: Tensor) -> Tensor:
        return nn.functional.embedding(index, self.packed)


def real_layers() -> bool:
    """Whether all layers that a checkpoint may need run here."""
    four = W4Canonical(pack_nibbles(torch.ones(16, 64)), torch.ones(16, 2), None, 64, 32, "dynamic_16bit")
    eight = W8Canonical(torch.ones(16, 64, dtype=torch.int8), torch.ones(16, 2), None, 32)
    try:
        for canonical in (four, eight):
            build.build_layer(canonical)(torch.ones(1, 64))
            build.build_embedding(canonical)(torch.tensor([0]))
    except Exception:
        return False
    return True


def use_layers(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Put the stand-ins in place where the real layers do not run; says whether the layers are real."""
    if real_layers():
        return True
    monkeypatch.setattr(
        build, "build_layer", lambda c, order=None, *, dtype=None: DequantizedLinear(StoredLayer(c, order), dtype)
    )
    monkeypatch.setattr(
        build, "build_embedding", lambda c, *, dtype=None, padding_idx=None: DequantizedEmbedding(StoredLayer(c), dtype)
    )
    return False
