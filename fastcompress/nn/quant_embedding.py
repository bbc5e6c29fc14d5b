"""``nn.Embedding`` with four- or eight-bit rows, and the output head that shares them."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from ..ops.rounding import round_to_nearest
from .base import Canonical
from .calls import raise_blob_error
from .group_quant_linear import GroupQuantized, GroupQuantLinear

__all__ = ["QuantEmbedding"]


class QuantEmbedding(GroupQuantized):
    """Drop-in replacement of ``nn.Embedding``: rows of four or eight bits, a scale for each group of their values.

    Shapes:
        input: int32 or int64 of any shape; output: that shape and ``embedding_dim``, in the logical dtype.

    Attributes:
        num_embeddings, embedding_dim, padding_idx: as in torch.

    Raises:
        TypeError: in ``forward``, for indices of another dtype.
        ValueError: in ``forward``, for an index out of range or another device.

    Example:
        >>> layer = QuantEmbedding.from_float(torch.nn.Embedding(1000, 64), weight_bits=8, group_size=32)
        >>> layer(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 64])

    Source: Guan et al. 2019, "Post-Training 4-bit Quantization on Embedding Tables" (arXiv 1911.02079).
    """

    replaces = "nn.Embedding"
    has_epilogue = False
    operator = torch.ops.fastcompress.embedding_packed.default
    bound = operator._op

    def __init__(self, c: Canonical, *, dtype: torch.dtype | None = None, padding_idx: int | None = None) -> None:
        super().__init__(c, dtype)
        self.num_embeddings, self.embedding_dim = c.weight_shape
        if padding_idx is not None and not -self.num_embeddings <= padding_idx < self.num_embeddings:
            rows = self.num_embeddings
            raise ValueError(
                f"{type(self).__name__}: `padding_idx` must be a row, -{rows} to {rows - 1}, got {padding_idx}"
            )
        self.padding_idx = None if padding_idx is None else padding_idx % self.num_embeddings  # as torch counts

    def _adopt(self, c: Any) -> None:
        if c.bias is not None or c.activation != "none":
            raise ValueError(
                f"{type(self).__name__}: rows have no `bias` and no `activation`, the canonical layer has "
                f"{'a bias' if c.bias is not None else repr(c.activation)}; leave it out"
            )
        super()._adopt(c)

    @classmethod
    def from_canonical(cls, c: Canonical, *, dtype: torch.dtype | None = None, padding_idx: int | None = None) -> Self:
        """Make a layer from canonical tensors: rows in place of output channels, no bias.

        Args:
            dtype: of the output; float32 by default.
            padding_idx: kept for whoever asks; gradients do not exist here.

        Raises:
            TypeError, ValueError: see ``fastcompress.ops.pack``; a bias or an activation, `padding_idx` out of range.
        """
        return cls(c, dtype=dtype, padding_idx=padding_idx)

    @classmethod
    def from_float(
        cls,
        module: nn.Embedding,
        *,
        weight_bits: int = 8,
        group_size: int | None = None,
        scale_dtype: torch.dtype = torch.bfloat16,
    ) -> Self:
        """Quantize a float embedding, each value to the nearest, symmetric around zero.

        Args:
            module: the layer; it is not changed.
            weight_bits: 4 or 8.
            group_size: values of a row that share a scale, a multiple of 8; None for the whole row.
            scale_dtype: float32, bfloat16 or float16.

        Raises:
            TypeError: not an ``nn.Embedding``, or a subclass with a ``forward`` of its own.
            ValueError: NaN/Inf in the weights, an argument out of range, or ``max_norm``, which rewrites weights.
        """
        if not isinstance(module, nn.Embedding) or type(module).forward is not nn.Embedding.forward:
            raise TypeError(
                f"{cls.__name__}.from_float: `module` must be an nn.Embedding with nn.Embedding's forward, got "
                f"{type(module).__name__}"
            )
        if module.max_norm is not None:
            raise ValueError(
                f"{cls.__name__}.from_float: `module` has max_norm, which changes weights when it runs; set it to None "
                "or keep the nn.Embedding"
            )
        c = round_to_nearest(
            module.weight, group_size, bits=weight_bits, scale_dtype=scale_dtype, input_mode="dynamic_16bit"
        )
        made = cls(c, dtype=module.weight.dtype, padding_idx=module.padding_idx)
        return made.train(module.training)

    def head(self) -> GroupQuantLinear:
        """The output head tied to this embedding: a linear layer without bias that shares its weight in memory.

        Example:
            >>> model.lm_head = model.embed_tokens.head()
        """
        layer = GroupQuantLinear.from_canonical(self.canonical(), dtype=self._dtype).train(self.training)
        layer.packed = self.packed
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Look the rows up."""
        try:
            return self._traced(input)
        except Exception as error:
            self._diagnose(input)
            raise_blob_error(error)
            raise

    def _traced(self, input: Tensor) -> Tensor:
        size = (self.num_embeddings, self.embedding_dim)
        result: Tensor = self.operator(input, self._buffers["packed"], *size, self._dtype)
        return result

    def _diagnose(self, input: Tensor) -> None:
        name = type(self).__name__
        if not isinstance(input, Tensor) or input.dtype not in (torch.int32, torch.int64):
            got = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"{name}: `input` must be an int32 or int64 tensor of indices, got {got}")
        if input.device != self.packed.device:
            raise ValueError(
                f"{name}: `input` is on device {input.device}, the layer on {self.packed.device}; move one of them"
            )
        if input.numel() and not bool(((input >= 0) & (input < self.num_embeddings)).all()):
            wrong = input[(input < 0) | (input >= self.num_embeddings)][0].item()
            raise ValueError(f"{name}: index {wrong} is out of range, the layer has {self.num_embeddings} rows")

    def extra_repr(self) -> str:
        """The constructor's view, for ``print(model)``."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        size = f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}{padding}"
        return f"{size}, weight_bits={self.weight_bits}, group_size={self.group_size}, dtype={self._dtype}"

    def _constants(self, input: Tensor) -> tuple[Any, ...]:
        raise NotImplementedError(f"{type(self).__name__}.run: rows have no epilogue; call the layer")
