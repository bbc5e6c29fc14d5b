"""Codecs of the dense int8 layers: canonical tensors in the file, packed blobs in the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from fastcompress.formats.fields import Fields
from fastcompress.formats.packed import ConvGeometry, LinearGeometry, PackedCodec
from fastcompress.nn import QuantConv2d, QuantLinear
from fastcompress.ops.canonical import W8A8Canonical
from fastcompress.ops.canonical_conv4 import unpack_conv_weight
from fastcompress.ops.constants import INPUT_MODES

__all__ = ["QuantConv2dCodec", "QuantLinearCodec", "W8A8Codec"]


@dataclass(frozen=True)
class W8A8Codec(PackedCodec):
    """What the int8 layers add: how activations are quantized."""

    input_mode: str

    @classmethod
    def _describe(cls, module: Any) -> dict[str, Any]:
        return {**super()._describe(module), "input_mode": module.input_mode}

    @classmethod
    def _parse(cls, fields: Fields) -> dict[str, Any]:
        modes = {"static"} if issubclass(cls, ConvGeometry) else set(INPUT_MODES) - {"dynamic_16bit"}
        return {**super()._parse(fields), "input_mode": fields.string("input_mode", modes)}

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        result = {**super().tensors(), "weight_scale": ("F32", self.weight_shape()[:1])}
        if self.input_mode == "static":
            result["input_scale"] = ("F32", ())
            result["input_zero_point"] = ("I32", ())
        return result

    def parameters(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        static = self.input_mode == "static"
        return {
            **super().parameters(tensors),
            "weight_scale": tensors["weight_scale"],
            "input_mode": self.input_mode,
            "input_scale": float(tensors["input_scale"]) if static else 1.0,
            "input_zero_point": int(tensors["input_zero_point"]) if static else 0,
        }


@dataclass(frozen=True)
class QuantLinearCodec(LinearGeometry, W8A8Codec):
    """`fastcompress.nn.QuantLinear`."""

    module_class = QuantLinear
    weight_dtype = "I8"

    def canonical(self, tensors: Mapping[str, Tensor]) -> W8A8Canonical:
        return W8A8Canonical(tensors["weight"], **self.parameters(tensors))


@dataclass(frozen=True)
class QuantConv2dCodec(ConvGeometry, W8A8Codec):
    """`fastcompress.nn.QuantConv2d`; the field ``weight_bits`` is there where it is 4."""

    module_class = QuantConv2d
    weight_dtype = "I8"

    weight_bits: int

    @classmethod
    def _describe(cls, module: Any) -> dict[str, Any]:
        bits = {"weight_bits": 4} if module.weight_bits == 4 else {}
        return {**super()._describe(module), **bits}

    @classmethod
    def _parse(cls, fields: Fields) -> dict[str, Any]:
        bits = fields.integer("weight_bits", 4, 4) if fields.has("weight_bits") else 8
        return {**super()._parse(fields), "weight_bits": bits}

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        codec = super().parse(fields)
        if codec.weight_bits == 4 and codec.weight_shape()[1] == 1 and codec.groups == codec.out_channels > 1:
            raise fields.error("weight_bits", "a depthwise convolution has eight")
        return codec

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        result = super().tensors()
        if self.weight_bits == 4:
            del result["weight"]
            out, *inputs = self.weight_shape()
            result["weight_packed"] = ("I32", (out, -(-math.prod(inputs) // 8)))
        return result

    def canonical(self, tensors: Mapping[str, Tensor]) -> W8A8Canonical:
        if self.weight_bits == 4:
            weight = unpack_conv_weight(tensors["weight_packed"], self.weight_shape())
        else:
            weight = tensors["weight"]
        return W8A8Canonical(weight, **self.parameters(tensors), groups=self.groups, weight_bits=self.weight_bits)
