"""The key-value cache of a generating transformer in int8 (``pip install fastcompress[transformers]``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from transformers.cache_utils import DynamicCache, DynamicLayer
except ImportError as error:
    raise ImportError(
        "fastcompress.integrations.kv_cache needs transformers: pip install 'fastcompress[transformers]'"
    ) from error

__all__ = ["Int8Cache", "Int8CacheLayer"]

_TINY = 2.0**-100
_FIRST_CAPACITY = 64


class _Int8States:
    """Keys or values: int8 ``[batch, heads, capacity, head_dim]`` and a float32 scale for each token of each head."""

    def __init__(self, like: Tensor) -> None:
        batch, heads, _, dim = like.shape
        self.length = 0
        self.codes = torch.empty(batch, heads, 0, dim, dtype=torch.int8, device=like.device)
        self.scales = torch.empty(batch, heads, 0, 1, dtype=torch.float32, device=like.device)

    def append(self, states: Tensor) -> None:
        """Quantize ``[batch, heads, tokens, head_dim]`` and put it behind what is there."""
        end = self.length + states.shape[-2]
        if end > self.codes.shape[-2]:
            # Doubling: each token is moved a constant number of times however long the text gets.
            capacity = max(_FIRST_CAPACITY, end, 2 * self.codes.shape[-2])
            self.codes, self.scales = _grown(self.codes, capacity), _grown(self.scales, capacity)
        wide = states.to(torch.float32)
        scale = (wide.abs().amax(-1, keepdim=True) / 127.0).clamp(min=_TINY)
        codes = torch.round(wide / scale)
        # A token with NaN or infinity stays what it is to whoever reads it: a scale of NaN, and codes that are defined.
        broken = ~torch.isfinite(scale)
        self.codes[:, :, self.length : end] = torch.where(broken, 0.0, codes).to(torch.int8)
        self.scales[:, :, self.length : end] = torch.where(broken, torch.nan, scale)
        self.length = end

    def read(self, dtype: torch.dtype) -> Tensor:
        """All tokens as floats ``[batch, heads, length, head_dim]``."""
        codes, scales = self.codes[:, :, : self.length], self.scales[:, :, : self.length]
        return (codes * scales).to(dtype)

    def select(self, rows: Tensor) -> None:
        """Keep these entries of the batch, in this order."""
        self.codes, self.scales = self.codes[rows], self.scales[rows]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are stored."""
        batch, heads, _, dim = self.codes.shape
        return batch * heads * self.length * (dim + self.scales.element_size())


def _grown(tensor: Tensor, capacity: int) -> Tensor:
    batch, heads, length, dim = tensor.shape
    grown = tensor.new_empty(batch, heads, capacity, dim)
    grown[:, :, :length] = tensor
    return grown


class Int8CacheLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not checked
    """One layer of `Int8Cache`: every token of every head has a scale of its own, symmetric around zero.

    What attention reads is always what was stored, the current tokens included, so it does not matter in how many
    pieces a prompt came.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._states: tuple[_Int8States, _Int8States] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty storage of the states' shape, dtype and device."""
        super().lazy_initialization(key_states, value_states)
        self.keys = self.values = None
        self._states = _Int8States(key_states), _Int8States(value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Store ``[batch, heads, tokens, head_dim]`` of both, and return all that is stored, in their dtype."""
        if self._states is None:
            self.lazy_initialization(key_states, value_states)
        assert self._states is not None
        keys, values = self._states
        keys.append(key_states)
        values.append(value_states)
        return keys.read(key_states.dtype), values.read(value_states.dtype)

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return 0 if self._states is None else self._states[0].length

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._states = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; as everywhere in transformers, the number is negative."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"Int8Cache.crop: `tokens_to_remove` must be negative or 0, got {tokens_to_remove}; -3 forgets three"
            )
        for states in self._states or ():
            states.length = max(0, states.length + tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the entries of the batch that a beam search goes on with."""
        for states in self._states or ():
            states.select(beam_idx.to(states.codes.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every entry of the batch."""
        for states in self._states or ():
            rows = torch.arange(states.codes.shape[0], device=states.codes.device)
            states.select(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these entries of the batch."""
        for states in self._states or ():
            states.select(indices.to(states.codes.device))

    def offload(self) -> None:
        """Raise NotImplementedError: the cache stays where the model is."""
        raise NotImplementedError("Int8Cache: offloading is not supported; use DynamicCache(offloading=True)")

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are stored."""
        return sum(states.nbytes for states in self._states or ())


class Int8Cache(DynamicCache):  # type: ignore[misc]
    """Key-value cache for ``generate`` that holds int8: a quarter of float32's memory, half of bfloat16's.

    Layers with a sliding window are small already and keep their dtype.

    Args:
        config: the model's config.

    Example:
        >>> model.generate(**tokens, past_key_values=Int8Cache(model.config))

    Source: Hooper et al. 2024, "KVQuant" (per-token values, arXiv 2401.18079); keys here have a scale by token too, so
    that no token waits for others.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.layers = [Int8CacheLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored in int8 layers."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, Int8CacheLayer))
