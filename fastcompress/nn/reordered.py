"""Layers that store their weight in another order of the channels than they take and give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from .base import PackedLayer
from .calls import below_autograd, is_compiling, is_grad_enabled, is_transforming, raise_blob_error, refuse_transforms
from .lazy_weight import LazyWeight
from .orders import Orders, checked_order, gathered, restored

__all__ = ["ReorderedLayer"]

#: Buffers and entries of the ``state_dict``.
_ORDERS = ("input_order", "output_order")


class ReorderedLayer(PackedLayer):
    """Base of the layers whose weight may be stored permuted.

    Attributes:
        input_order, output_order: int64 permutations of the input and output channels in which the weight is stored;
            None where that is the natural order. The layer undoes them: what it takes and gives, ``weight``, ``bias``
            and ``dequantize()`` are in the natural order, ``canonical()`` and the ``state_dict`` in the stored one.
        reordered: whether there is such an order.
    """

    input_order: Tensor | None
    output_order: Tensor | None

    #: Entry ``i`` is the place at which output ``i`` is stored: the inverse of `output_order`.
    _output_places: Tensor | None

    #: The channel dimension of inputs and outputs.
    _channel_dim: ClassVar[int] = -1

    #: The entry of the ``state_dict`` that orders belong to: they come and go with it.
    _ordered_entry: ClassVar[str]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reorder(None, None)

    @property
    def orders(self) -> Orders:
        """``(input_order, output_order)``."""
        return self.input_order, self.output_order

    @classmethod
    def _checked(cls, orders: Orders, shape: Any) -> Orders:
        def check(name: str, order: Tensor | None, channels: int) -> Tensor | None:
            return None if order is None else checked_order(f"{cls.__name__}: `{name}`", order, channels)

        return check("input_order", orders[0], shape[1]), check("output_order", orders[1], shape[0])

    def reorder(self, input_order: Tensor | None, output_order: Tensor | None) -> Self:
        """Say in which orders of the channels the weight is stored; returns self.

        Args:
            input_order: int64 ``[in]``: stored input ``i`` is the layer's input ``input_order[i]``; None for no order.
            output_order: int64 ``[out]``, the same of the outputs.

        Raises:
            ValueError: one of them is no permutation of the channels; the layer is unchanged.

        Example:
            >>> layer = SparseLinear.from_canonical(c).reorder(torch.tensor([2, 0, 1, 3]), None)
        """
        inputs, outputs = self._checked((input_order, output_order), self._weight_shape)
        device = self.packed.device
        self.register_buffer("input_order", None if inputs is None else inputs.detach().to(device, copy=True))
        self.register_buffer("output_order", None if outputs is None else outputs.detach().to(device, copy=True))
        places = None if outputs is None else torch.argsort(outputs).to(device)
        self.register_buffer("_output_places", places, persistent=False)
        self.reordered = inputs is not None or outputs is not None
        return self

    def _forward_reordered(self, input: Tensor) -> Tensor:
        if is_compiling():
            return self._run_reordered(input)
        try:
            if is_transforming():
                refuse_transforms(type(self).__name__, input)
                return self._run_reordered(input)
            if input.requires_grad and is_grad_enabled():
                return self._run_reordered(input)
            with below_autograd():
                return self._run_reordered(input)
        except Exception as error:
            self._diagnose(input)
            raise_blob_error(error)
            raise

    def _run_reordered(self, input: Tensor) -> Tensor:
        dim, inputs, places = self._channel_dim, self.input_order, self._output_places
        if inputs is not None:
            if input.shape[dim] != self._weight_shape[1]:
                self._diagnose(input)  # a longer input would be gathered without an error
            input = gathered(input, dim, inputs)
        output = self._traced(input)
        return output if places is None else gathered(output, dim, places)

    def _lazy(self, field: str, size: tuple[int, ...]) -> Tensor:
        stored = super()._lazy(field, size)
        if not self.reordered:
            return stored
        orders = (self.input_order if field == "weight" else None, self.output_order)
        if is_compiling():
            return restored(stored, *orders)
        read: Callable[[], Tensor] = cast(LazyWeight, stored).materialize
        return LazyWeight(lambda: restored(read(), *orders), size, stored.dtype, stored.device, self.remedy)

    def dequantize(self) -> Tensor:
        """The weight as an ordinary float tensor of the logical dtype and shape, in the natural order (new memory)."""
        return restored(super().dequantize(), self.input_order, self.output_order)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name in (*_ORDERS, "_output_places"):
            order = self._buffers[name]
            if order is not None:
                moved = fn(order)  # a cast must not touch the numbers
                self._buffers[name] = moved if moved.dtype == torch.int64 else order.to(self.packed.device)
        return self

    # -- state ---------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: self._buffers[name] for name in _ORDERS if self._buffers[name] is not None})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = [state_dict.get(prefix + name) for name in _ORDERS]
        has_weight = prefix + self._ordered_entry in state_dict
        rest = state_dict
        faults: list[str] = []
        if any(order is not None for order in given):
            keys = [prefix + name for name in _ORDERS]
            rest = {key: value for key, value in state_dict.items() if key not in keys}
            for key, order, channels in zip(keys, given, (self._weight_shape[1], self._weight_shape[0]), strict=True):
                try:
                    if order is not None:
                        checked_order(f"load_state_dict: `{key}`", order, channels)
                        if not has_weight:
                            faults.append(f"load_state_dict: `{key}` came without the weight that it belongs to")
                except ValueError as error:
                    faults.append(str(error))
        if faults:
            error_msgs.extend(faults)
            return
        before = len(error_msgs)
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if has_weight and len(error_msgs) == before:
            self.reorder(given[0], given[1])
