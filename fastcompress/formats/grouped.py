"""Codecs of the layers whose weights have scales by group: four or eight bits, float or int8 activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastcompress.formats.fields import Fields
from fastcompress.formats.packed import DTYPES, LinearGeometry, PackedCodec
from fastcompress.formats.plain import check_geometry
from fastcompress.formats.reordered import ReorderedCodec
from fastcompress.nn import GroupQuantLinear, QuantEmbedding
from fastcompress.ops.canonical_w4 import W4Canonical
from fastcompress.ops.canonical_w8 import W8Canonical

__all__ = ["GroupCodec", "GroupQuantLinearCodec", "QuantEmbeddingCodec"]

#: Dtype of the scales: name in the configuration → name in the tensor file.
_SCALES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_SCALE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

#: What is taken off four-bit values: name in the configuration → (tensor, its dtype); ``eight`` needs none.
_ZEROS = {"eight": None, "zero_point": ("weight_zero_point", "U8"), "minimum": ("weight_min", "F32")}

_MODES = {4: ("float", "dynamic_symmetric"), 8: ("float",)}


@dataclass(frozen=True)
class GroupCodec(PackedCodec):
    """A weight in groups: its bits, the size of its groups, the dtype of its scales and the kind of its zeros."""

    weight_bits: int
    group_size: int
    scale_dtype: str
    zero: str
    input_mode: str

    @classmethod
    def _describe(cls, module: Any) -> dict[str, Any]:
        c = module.canonical()
        zero = "eight"
        if isinstance(c, W4Canonical):
            zero = "zero_point" if c.weight_zero_point is not None else "minimum" if c.weight_min is not None else zero
        return {
            **super()._describe(module),
            "weight_bits": module.weight_bits,
            "group_size": module.group_size,
            "scale_dtype": _SCALE_NAMES[c.weight_scale.dtype],
            "zero": zero,
            "input_mode": module.input_mode,
        }

    @classmethod
    def _parse(cls, fields: Fields) -> dict[str, Any]:
        bits = fields.integer("weight_bits", 4, 8)
        if bits not in _MODES:
            raise fields.error("weight_bits", f"must be 4 or 8, is {bits}")
        return {
            **super()._parse(fields),
            "weight_bits": bits,
            "group_size": fields.integer("group_size"),
            "scale_dtype": fields.string("scale_dtype", _SCALES),
            "zero": fields.string("zero", _ZEROS if bits == 4 else ("eight",)),
            "input_mode": fields.string("input_mode", _MODES[bits]),
        }

    def _check_groups(self, fields: Fields) -> Self:
        inputs = self.weight_shape()[1]
        if self.group_size > inputs or (self.group_size % 8 and self.group_size != inputs):
            raise fields.error("group_size", f"must be a multiple of 8, or all {inputs} inputs, is {self.group_size}")
        return self

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        out, inputs = self.weight_shape()
        groups = (out, -(-inputs // self.group_size))
        result = {**super().tensors(), "weight_scale": (_SCALES[self.scale_dtype], groups)}
        if self.weight_bits == 4:
            result["weight_packed"] = ("I32", (out, -(-inputs // 8)))
        else:
            result["weight"] = ("I8", (out, inputs))
        zero = _ZEROS[self.zero]
        if zero is not None:
            result[zero[0]] = (zero[1], groups)
        return result

    def canonical(self, tensors: Mapping[str, Tensor]) -> W4Canonical | W8Canonical:
        shared: dict[str, Any] = {
            **self.parameters(tensors),
            "weight_scale": tensors["weight_scale"],
            "group_size": self.group_size,
            "input_mode": self.input_mode,
        }
        if self.weight_bits == 8:
            return W8Canonical(tensors["weight"], **shared)
        return W4Canonical(
            tensors["weight_packed"],
            in_features=self.weight_shape()[1],
            weight_zero_point=tensors.get("weight_zero_point"),
            weight_min=tensors.get("weight_min"),
            **shared,
        )


@dataclass(frozen=True)
class GroupQuantLinearCodec(ReorderedCodec, GroupCodec, LinearGeometry):
    """`fastcompress.nn.GroupQuantLinear`."""

    module_class = GroupQuantLinear

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        return super().parse(fields)._check_groups(fields)


@dataclass(frozen=True)
class QuantEmbeddingCodec(GroupCodec):
    """`fastcompress.nn.QuantEmbedding`; ``padding_idx`` is -1 where there is none."""

    module_class = QuantEmbedding

    num_embeddings: int
    embedding_dim: int
    padding_idx: int

    @classmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        layer: Any = module
        return {
            "num_embeddings": layer.num_embeddings,
            "embedding_dim": layer.embedding_dim,
            "padding_idx": -1 if layer.padding_idx is None else layer.padding_idx,
            **cls._describe(layer),
        }

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        rows = fields.integer("num_embeddings")
        codec = cls(
            num_embeddings=rows,
            embedding_dim=fields.integer("embedding_dim"),
            padding_idx=fields.integer("padding_idx", -1, rows - 1),
            **cls._parse(fields),
        )
        if codec.bias or codec.activation != "none":
            raise fields.error("bias", "an embedding has neither bias nor activation")
        return codec._check_groups(fields)

    def weight_shape(self) -> tuple[int, ...]:
        return self.num_embeddings, self.embedding_dim

    def check_target(self, module: nn.Module) -> None:
        expected = {"num_embeddings": self.num_embeddings, "embedding_dim": self.embedding_dim}
        check_geometry(module, self.num_embeddings * self.embedding_dim, expected)

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        padding = None if self.padding_idx < 0 else self.padding_idx
        c = self.canonical(tensors)
        return QuantEmbedding.from_canonical(c, dtype=DTYPES[self.dtype], padding_idx=padding).train(like.training)
