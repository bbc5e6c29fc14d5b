"""Codecs of the int8 layers: canonical tensors in the file, packed blobs in the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastcompress.formats.codec import LayerCodec
from fastcompress.formats.fields import Fields
from fastcompress.formats.plain import MAX_PADDING, check_geometry
from fastcompress.nn import QuantConv2d, QuantLinear
from fastcompress.ops.canonical import W8A8Canonical
from fastcompress.ops.constants import ACTIVATIONS, INPUT_MODES

__all__ = ["DTYPES", "QuantConv2dCodec", "QuantLinearCodec"]

#: The dtype that ``layer.weight`` reads as.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _W8A8Codec(LayerCodec):
    """What both layers share."""

    owns_tensors = True

    bias: bool
    activation: str
    input_mode: str
    dtype: str

    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the int8 weight."""

    @staticmethod
    def _describe(module: QuantLinear | QuantConv2d) -> dict[str, Any]:
        dtype = module.weight.dtype
        if dtype not in _DTYPE_NAMES:
            raise ValueError(f"logical dtype {dtype} cannot be saved; cast the model to {', '.join(DTYPES)}")
        return {
            "bias": module.has_bias,
            "activation": module.activation,
            "input_mode": module.input_mode,
            "dtype": _DTYPE_NAMES[dtype],
        }

    @staticmethod
    def _parse(fields: Fields, modes: set[str]) -> dict[str, Any]:
        return {
            "bias": fields.boolean("bias"),
            "activation": fields.string("activation", ACTIVATIONS),
            "input_mode": fields.string("input_mode", modes),
            "dtype": fields.string("dtype", DTYPES),
        }

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        shape = self.weight_shape()
        result: dict[str, tuple[str | None, tuple[int, ...]]] = {
            "weight": ("I8", shape),
            "weight_scale": ("F32", shape[:1]),
        }
        if self.bias:
            result["bias"] = ("F32", shape[:1])
        if self.input_mode == "static":
            result["input_scale"] = ("F32", ())
            result["input_zero_point"] = ("I32", ())
        return result

    def keeps(self, module: nn.Module) -> bool:
        return False

    def parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Everything canonical but the weight."""
        static = self.input_mode == "static"
        return {
            "weight_scale": tensors["weight_scale"],
            "bias": tensors.get("bias"),
            "input_mode": self.input_mode,
            "input_scale": float(tensors["input_scale"]) if static else 1.0,
            "input_zero_point": int(tensors["input_zero_point"]) if static else 0,
            "activation": self.activation,
        }

    def _canonical(self, tensors: Mapping[str, Tensor], groups: int) -> W8A8Canonical:
        return W8A8Canonical(weight=tensors["weight"], **self.parameters(tensors), groups=groups)


@dataclass(frozen=True)
class QuantLinearCodec(_W8A8Codec):
    """`fastcompress.nn.QuantLinear`."""

    module_class = QuantLinear

    in_features: int
    out_features: int

    @classmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        linear = cast(QuantLinear, module)
        return {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            **cls._describe(linear),
        }

    @classmethod
    def parse(cls, fields: Fields) -> QuantLinearCodec:
        return cls(
            in_features=fields.integer("in_features"),
            out_features=fields.integer("out_features"),
            **cls._parse(fields, set(INPUT_MODES)),
        )

    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def check_target(self, module: nn.Module) -> None:
        elems = self.in_features * self.out_features
        check_geometry(module, elems, {"in_features": self.in_features, "out_features": self.out_features})

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        layer = QuantLinear.from_canonical(self._canonical(tensors, 1), dtype=DTYPES[self.dtype])
        return layer.train(like.training)


@dataclass(frozen=True)
class QuantConv2dCodec(_W8A8Codec):
    """`fastcompress.nn.QuantConv2d`; the file's ``padding`` is (top, bottom, left, right) or "same"."""

    module_class = QuantConv2d

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
        conv = cast(QuantConv2d, module)
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
    def parse(cls, fields: Fields) -> QuantConv2dCodec:
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
            **cls._parse(fields, {"static"}),
        )
        if codec.in_channels % codec.groups or codec.out_channels % codec.groups:
            raise fields.error("groups", "must divide in_channels and out_channels")
        return codec

    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def check_target(self, module: nn.Module) -> None:
        keys = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
        shape = self.weight_shape()
        elems = shape[0] * shape[1] * shape[2] * shape[3]
        check_geometry(module, elems, {key: getattr(self, key) for key in keys})

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        layer = QuantConv2d.from_canonical(
            self._canonical(tensors, self.groups),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            same_padding=self.same_padding,
            dtype=DTYPES[self.dtype],
        )
        return layer.train(like.training)
