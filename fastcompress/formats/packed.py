"""What the codecs of all packed layers share: geometry, activation, logical dtype, and building from canonical tensors.

A codec is put together from a geometry (linear or convolution) and a kind of weight: int8 or float, dense or sparse.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from fastcompress.formats.codec import LayerCodec
from fastcompress.formats.fields import Fields
from fastcompress.formats.plain import MAX_PADDING, check_geometry
from fastcompress.nn.base import Canonical
from fastcompress.ops.constants import ACTIVATIONS

__all__ = ["DTYPES", "ConvGeometry", "LinearGeometry", "PackedCodec"]

#: The dtype that ``layer.weight`` reads as.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: Name → (dtype name, shape), as `LayerCodec.tensors` gives them.
Tensors = dict[str, tuple[str | None, tuple[int, ...]]]


@dataclass(frozen=True)
class PackedCodec(LayerCodec):
    """What every packed layer has."""

    owns_tensors = True

    #: Dtype of the dense weight in the file; empty where the weight is stored as blocks.
    weight_dtype: ClassVar[str] = ""

    bias: bool
    activation: str
    dtype: str

    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""

    @abstractmethod
    def canonical(self, tensors: Mapping[str, Tensor]) -> Canonical:
        """The canonical layer; ``ValueError`` or ``TypeError`` says which index or value is wrong."""

    @classmethod
    def _describe(cls, module: Any) -> dict[str, Any]:
        dtype = module.weight.dtype
        if dtype not in _DTYPE_NAMES:
            raise ValueError(f"logical dtype {dtype} cannot be saved; cast the model to {', '.join(DTYPES)}")
        return {"bias": module.has_bias, "activation": module.activation, "dtype": _DTYPE_NAMES[dtype]}

    @classmethod
    def _parse(cls, fields: Fields) -> dict[str, Any]:
        return {
            "bias": fields.boolean("bias"),
            "activation": fields.string("activation", ACTIVATIONS),
            "dtype": fields.string("dtype", DTYPES),
        }

    def tensors(self) -> Tensors:
        shape = self.weight_shape()
        result: Tensors = {"weight": (self.weight_dtype, shape)} if self.weight_dtype else {}
        if self.bias:
            result["bias"] = ("F32", shape[:1])
        return result

    def keeps(self, module: nn.Module) -> bool:
        return False

    def parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Everything canonical but the weight."""
        return {"bias": tensors.get("bias"), "activation": self.activation}


@dataclass(frozen=True)
class LinearGeometry(PackedCodec):
    """A layer in the place of an ``nn.Linear``."""

    in_features: int
    out_features: int

    @classmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        linear: Any = module
        return {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            **cls._describe(linear),
        }

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        return cls(
            in_features=fields.integer("in_features"),
            out_features=fields.integer("out_features"),
            **cls._parse(fields),
        )

    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def check_target(self, module: nn.Module) -> None:
        elems = self.in_features * self.out_features
        check_geometry(module, elems, {"in_features": self.in_features, "out_features": self.out_features})

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        layer_class = cast(Any, self.module_class)
        return layer_class.from_canonical(self.canonical(tensors), dtype=DTYPES[self.dtype]).train(like.training)


@dataclass(frozen=True)
class ConvGeometry(PackedCodec):
    """A layer in the place of an ``nn.Conv2d``; the file's ``padding`` is (top, bottom, left, right) or "same"."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    same_padding: bool
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        conv: Any = module
        return {
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "kernel_size": list(conv.kernel_size),
            "stride": list(conv.stride),
            "padding": "same" if conv.same_padding else list(conv.padding4),
            "dilation": list(conv.dilation),
            "groups": conv.groups,
            **cls._describe(conv),
        }

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        same = fields.takes("padding", "same")
        codec = cls(
            in_channels=fields.integer("in_channels"),
            out_channels=fields.integer("out_channels"),
            kernel_size=fields.integers("kernel_size", 2),
            stride=fields.integers("stride", 2),
            padding=(0, 0, 0, 0) if same else fields.integers("padding", 4, 0, MAX_PADDING),
            same_padding=same,
            dilation=fields.integers("dilation", 2),
            groups=fields.integer("groups"),
            **cls._parse(fields),
        )
        if codec.in_channels % codec.groups or codec.out_channels % codec.groups:
            raise fields.error("groups", "must divide in_channels and out_channels")
        return codec

    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def check_target(self, module: nn.Module) -> None:
        keys = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
        elems = math.prod(self.weight_shape())
        check_geometry(module, elems, {key: getattr(self, key) for key in keys})

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        layer_class = cast(Any, self.module_class)
        layer = layer_class.from_canonical(
            self.canonical(tensors),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            same_padding=self.same_padding,
            dtype=DTYPES[self.dtype],
        )
        return layer.train(like.training)
