"""Codecs of plain torch layers.

Compression changes these as well: a folded BatchNorm becomes ``Identity`` and gives its convolution a bias, an adapted
subclass that is kept dense becomes a ``Conv2d`` with explicit padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor, nn

from fastcompress.formats.codec import LayerCodec
from fastcompress.formats.fields import Fields

__all__ = ["MAX_PADDING", "Conv2dCodec", "IdentityCodec", "LinearCodec", "check_geometry"]

MAX_PADDING = 65_535


def check_geometry(module: nn.Module, weight_elems: int, expected: Mapping[str, Any]) -> None:
    """Compare ``expected`` with the attributes of the same name that ``module`` has, and the number of weights.

    Raises:
        ValueError: one of them differs, or ``module`` has no weight at all.
    """
    weight = getattr(module, "weight", None)
    if weight is None:
        raise ValueError(f"the file has a layer with weights here, the model a {type(module).__name__} without")
    if math.prod(weight.shape) != weight_elems:
        raise ValueError(f"the weight has {weight_elems} elements in the file, {math.prod(weight.shape)} in the model")
    for key, value in expected.items():
        actual = getattr(module, key, value)
        if isinstance(value, tuple) and isinstance(actual, int):
            actual = (actual,) * len(value)
        elif isinstance(actual, list):
            actual = tuple(actual)
        if actual != value:
            raise ValueError(f"{key} is {value} in the file, {actual} in the model's {type(module).__name__}")


@dataclass(frozen=True)
class IdentityCodec(LayerCodec):
    """What a folded or fused module leaves behind."""

    module_class = nn.Identity
    owns_tensors = True

    @classmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        return {}

    @classmethod
    def parse(cls, fields: Fields) -> IdentityCodec:
        return cls()

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        return {}

    def check_target(self, module: nn.Module) -> None:
        return None

    def keeps(self, module: nn.Module) -> bool:
        return type(module) is nn.Identity

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class LinearCodec(LayerCodec):
    """``torch.nn.Linear``."""

    module_class = nn.Linear
    owns_tensors = False

    in_features: int
    out_features: int
    bias: bool

    @classmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        linear = cast(nn.Linear, module)
        return {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
        }

    @classmethod
    def parse(cls, fields: Fields) -> LinearCodec:
        return cls(fields.integer("in_features", 0), fields.integer("out_features", 0), fields.boolean("bias"))

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        shape = (self.out_features, self.in_features)
        result: dict[str, tuple[str | None, tuple[int, ...]]] = {"weight": (None, shape)}
        if self.bias:
            result["bias"] = (None, (self.out_features,))
        return result

    def check_target(self, module: nn.Module) -> None:
        elems = self.in_features * self.out_features
        check_geometry(module, elems, {"in_features": self.in_features, "out_features": self.out_features})

    def keeps(self, module: nn.Module) -> bool:
        return type(module) is nn.Linear and (module.bias is not None) == self.bias

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features, self.bias, device="meta").train(like.training)


@dataclass(frozen=True)
class Conv2dCodec(LayerCodec):
    """``torch.nn.Conv2d``."""

    module_class = nn.Conv2d
    owns_tensors = False

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    padding_mode: str

    @classmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        conv = cast(nn.Conv2d, module)
        return {
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "kernel_size": list(conv.kernel_size),
            "stride": list(conv.stride),
            "padding": conv.padding if isinstance(conv.padding, str) else list(conv.padding),
            "dilation": list(conv.dilation),
            "groups": conv.groups,
            "bias": conv.bias is not None,
            "padding_mode": conv.padding_mode,
        }

    @classmethod
    def parse(cls, fields: Fields) -> Conv2dCodec:
        padding = fields.any("padding")
        if not isinstance(padding, str):
            padding = Fields({"padding": padding}, "module").integers("padding", 2, 0, MAX_PADDING)
        elif padding not in ("same", "valid"):
            raise fields.error("padding", f"{padding!r:.40} is not one of same, valid")
        codec = cls(
            in_channels=fields.integer("in_channels"),
            out_channels=fields.integer("out_channels"),
            kernel_size=fields.integers("kernel_size", 2),
            stride=fields.integers("stride", 2),
            padding=padding,
            dilation=fields.integers("dilation", 2),
            groups=fields.integer("groups"),
            bias=fields.boolean("bias"),
            padding_mode=fields.string("padding_mode", {"zeros", "reflect", "replicate", "circular"}),
        )
        if codec.in_channels % codec.groups or codec.out_channels % codec.groups:
            raise fields.error("groups", "must divide in_channels and out_channels")
        return codec

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        result: dict[str, tuple[str | None, tuple[int, ...]]] = {"weight": (None, shape)}
        if self.bias:
            result["bias"] = (None, (self.out_channels,))
        return result

    def check_target(self, module: nn.Module) -> None:
        keys = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
        check_geometry(module, math.prod(self.tensors()["weight"][1]), {key: getattr(self, key) for key in keys})

    def keeps(self, module: nn.Module) -> bool:
        return type(module) is nn.Conv2d and self.describe(module) == {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        values: dict[str, Any] = asdict(self)
        return nn.Conv2d(**values, device="meta").train(like.training)
