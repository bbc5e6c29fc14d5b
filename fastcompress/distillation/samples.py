"""The samples of a batch: their number, a content hash of each, and some of them as a smaller batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["KEY_BYTES", "Samples", "tensor_bytes"]

#: 160 bits: among 2^40 samples two share a key by accident with a probability of 2^-81.
KEY_BYTES = 20

_PLAIN = (bool, int, float, str, bytes, type(None))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of ``tensor`` in row-major order."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return memoryview(cast(Any, flat.view(torch.uint8).numpy()))


class Samples:
    """A batch seen as samples along the first dimension of its tensors.

    Args:
        batch: a tensor, or mappings, tuples and lists of tensors and plain values. The first tensor's first dimension
            is the batch size; tensors of another first dimension, and plain values, belong to every sample; a list of
            as many plain values has one for each.
        whole: all of a tuple or list counts (a ``forward_fn`` may read it); otherwise its first element, as in the
            batch protocol, so that labels are no part of the key.

    Raises:
        TypeError: it holds no tensor with a dimension, or something else that has no content to hash.
    """

    def __init__(self, batch: Any, *, whole: bool = False) -> None:
        while not whole and isinstance(batch, (tuple, list)) and batch:
            batch = batch[0]
        self.batch = batch
        self._leaves = list(_leaves(batch, ""))
        sizes = [leaf.shape[0] for _, leaf in self._leaves if isinstance(leaf, Tensor) and leaf.dim() > 0]
        if not sizes:
            raise TypeError(
                f"TeacherCache: a batch of type {type(batch).__name__} holds no tensor that has samples; batches must "
                "be tensors, or dicts, tuples and lists of them"
            )
        self.size: int = sizes[0]
        self.device = next(leaf.device for _, leaf in self._leaves if isinstance(leaf, Tensor) and leaf.dim() > 0)

    def hashes(self) -> list[str]:
        """For each sample a hash of its bytes, dtypes and shapes, and of what all samples share."""
        shared = hashlib.blake2b(digest_size=KEY_BYTES)
        rows: list[Sequence[memoryview | bytes]] = []
        for path, leaf in self._leaves:
            own = self._is_own(leaf)
            if not isinstance(leaf, Tensor):
                if own:
                    rows.append([f"{path}={_plain(entry)};".encode() for entry in leaf])
                else:
                    shared.update(f"{path}={_plain(leaf)};".encode())
                continue
            shared.update(f"{path}:{leaf.dtype}{list(leaf.shape[1:] if own else leaf.shape)}:{own};".encode())
            if own:
                data = tensor_bytes(leaf)
                step = len(data) // max(1, self.size)
                rows.append([data[index * step : (index + 1) * step] for index in range(self.size)])
            else:
                shared.update(tensor_bytes(leaf))
        result = []
        for index in range(self.size):
            key = shared.copy()
            for row in rows:
                key.update(row[index])
            result.append(key.hexdigest())
        return result

    def subset(self, indices: Sequence[int]) -> Any:
        """A batch of these samples only."""

        def rows(leaf: Any) -> Any:
            if not self._is_own(leaf):
                return leaf
            if isinstance(leaf, Tensor):
                return leaf[torch.as_tensor(indices, device=leaf.device)]
            return [leaf[index] for index in indices]

        return _mapped(self.batch, rows)

    def _is_own(self, leaf: Any) -> bool:
        """Whether each sample has its own part of ``leaf``; collated strings and numbers are lists."""
        if isinstance(leaf, Tensor):
            return leaf.dim() > 0 and leaf.shape[0] == self.size
        return isinstance(leaf, (list, tuple)) and len(leaf) == self.size


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(entry, _PLAIN) for entry in value)


def _plain(value: Any) -> str:
    return f"{type(value).__name__}:{value!r}"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}/{key}")
    elif _is_plain_list(value):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{path}/{index}")
    elif isinstance(value, (Tensor, *_PLAIN)):
        yield path, value
    else:
        raise TypeError(
            f"TeacherCache: the batch holds a {type(value).__name__} at {path or 'its root'}, whose content is "
            "unknown; batches must hold tensors, numbers and strings only, or leave the cache out"
        )


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(entry, function) for key, entry in value.items()}
    if isinstance(value, (tuple, list)) and not _is_plain_list(value):
        entries = [_mapped(entry, function) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return function(value)
