"""What the codecs of layers with stored orders of their channels share (`fastcompress.nn.reordered`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from fastcompress.formats.fields import Fields
from fastcompress.formats.packed import PackedCodec
from fastcompress.nn.orders import checked_order
from fastcompress.nn.reordered import ReorderedLayer

__all__ = ["ReorderedCodec"]

#: (input order, output order) → the configuration's name for it.
_NAMES = {(False, False): "", (True, False): "inputs", (False, True): "outputs", (True, True): "both"}


@dataclass(frozen=True)
class ReorderedCodec(PackedCodec):
    """Where a weight is stored in other orders of the channels, ``reordered`` says of which; the file holds them."""

    reordered: str

    @classmethod
    def _describe(cls, module: Any) -> dict[str, Any]:
        name = _NAMES[module.input_order is not None, module.output_order is not None]
        return {**({"reordered": name} if name else {}), **super()._describe(module)}

    @classmethod
    def _parse(cls, fields: Fields) -> dict[str, Any]:
        found = next((name for name in _NAMES.values() if name and fields.takes("reordered", name)), "")
        return {**super()._parse(fields), "reordered": found}

    def _orders(self) -> dict[str, int]:
        """Name of each order in the file → its number of channels."""
        shape = self.weight_shape()
        return {
            **({"input_order": shape[1]} if self.reordered in ("inputs", "both") else {}),
            **({"output_order": shape[0]} if self.reordered in ("outputs", "both") else {}),
        }

    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        orders: dict[str, tuple[str | None, tuple[int, ...]]] = {
            name: ("I64", (channels,)) for name, channels in self._orders().items()
        }
        return {**orders, **super().tensors()}

    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        orders = {
            name: checked_order(f"`{name}`", tensors[name], channels) for name, channels in self._orders().items()
        }
        layer = cast(ReorderedLayer, super().build(tensors, like))  # type: ignore[safe-super]
        return layer.reorder(orders.get("input_order"), orders.get("output_order"))
