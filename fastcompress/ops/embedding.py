"""``torch.ops.fastcompress.embedding_packed`` in plain torch, and its fake kernel."""

import torch
from torch import Tensor

from . import checks, reference_groups

__all__ = ["embedding_packed", "embedding_packed_fake"]

_OP = "embedding_packed"
_INDICES = (torch.int64, torch.int32)


def _check(indices: Tensor, packed: Tensor, num_embeddings: int, embedding_dim: int, out_dtype: torch.dtype) -> None:
    if indices.dtype not in _INDICES:
        got = str(indices.dtype).removeprefix("torch.")
        raise TypeError(f"{_OP}: `indices` has dtype {got}, allowed: int32, int64; convert it with .long()")
    if out_dtype not in checks.FLOATS:
        raise TypeError(f"{_OP}: `out_dtype` must be float32, bfloat16 or float16, got {out_dtype}")
    checks.check_packed(_OP, packed, indices, "indices")
    if num_embeddings < 1 or embedding_dim < 1:
        raise ValueError(
            f"{_OP}: `num_embeddings` and `embedding_dim` must be at least 1, got {num_embeddings} and {embedding_dim}"
        )


def embedding_packed(
    indices: Tensor, packed: Tensor, num_embeddings: int, embedding_dim: int, out_dtype: torch.dtype
) -> Tensor:
    """Rows `indices` (any shape, int32 or int64) of a reference blob as floats ``[..., embedding_dim]``.

    A row is that of the canonical layer's ``dequantize()``, rounded to `out_dtype`.

    Raises:
        TypeError: a wrong dtype.
        ValueError: another weight, or an index out of range, which is named.
        PackedBlobError: the blob is corrupt or in another layout.
    """
    _check(indices, packed, num_embeddings, embedding_dim, out_dtype)
    if not reference_groups.is_reference(packed):
        raise ValueError(f"{_OP}: `packed` holds no layer with weights in groups in the reference layout")
    c = reference_groups.unpack(packed)
    if c.weight_shape != (num_embeddings, embedding_dim):
        raise ValueError(
            f"{_OP}: `packed` holds a weight of shape {list(c.weight_shape)}, `num_embeddings` is {num_embeddings} "
            f"and `embedding_dim` {embedding_dim}"
        )
    bad = ((indices < 0) | (indices >= num_embeddings)).flatten().nonzero()
    if bad.numel():
        place = int(bad[0])
        raise ValueError(
            f"{_OP}: indices has {int(indices.flatten()[place])} at place {place}, allowed: 0 to num_embeddings - 1 = "
            f"{num_embeddings - 1}"
        )
    return c.dequantize().to(out_dtype)[indices.long()]


def embedding_packed_fake(
    indices: Tensor, packed: Tensor, num_embeddings: int, embedding_dim: int, out_dtype: torch.dtype
) -> Tensor:
    """The shape and dtype of `embedding_packed`."""
    _check(indices, packed, num_embeddings, embedding_dim, out_dtype)
    return packed.new_empty([*indices.shape, embedding_dim], dtype=out_dtype)
