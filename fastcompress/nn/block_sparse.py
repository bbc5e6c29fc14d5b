"""What block-sparse layers share, int8 or float: blocks and density, and how a float module becomes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from ..ops import packing
from ..ops.canonical import W8A8Canonical
from ..ops.canonical_sparse import SparseCanonical, SparseW8A8Canonical
from .base import PackedLayer
from .blocks import block_name, cut, fewest_blocks, forms, misfit
from .calls import below_autograd, is_compiling, is_grad_enabled, is_transforming, raise_blob_error, refuse_transforms
from .lazy_weight import LazyWeight
from .orders import NATURAL, Orders, checked_order, gathered, mask_orders, permuted, reordered_name, restored

__all__ = ["BlockSparse", "coarsest_block", "sparse_canonical", "sparse_quantized"]

#: Buffers and entries of the ``state_dict``.
_ORDERS = ("input_order", "output_order")


class BlockSparse(PackedLayer):
    """Base of the layers that store and run only the non-zero blocks of their weight.

    Attributes:
        block_size: ``(outputs, inputs)`` of one block.
        input_order, output_order: int64 permutations of the input and output channels in which the blocks are stored;
            None where that is the natural order. The layer undoes them: what it takes and gives, ``weight``, ``bias``
            and ``dequantize()`` are in the natural order, ``canonical()`` and the ``state_dict`` in the stored one.
        reordered: whether there is such an order.
    """

    block_size: tuple[int, int]
    input_order: Tensor | None
    output_order: Tensor | None

    #: Entry ``i`` is the place at which output ``i`` is stored: the inverse of `output_order`.
    _output_places: Tensor | None

    #: The channel dimension of inputs and outputs.
    _channel_dim: ClassVar[int] = -1

    #: The layer to use where the weight has no fitting blocks, for messages.
    dense: ClassVar[str]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reorder(None, None)

    @property
    def orders(self) -> Orders:
        """``(input_order, output_order)``."""
        return self.input_order, self.output_order

    def _adopt(self, c: Any) -> None:
        super()._adopt(c)
        self.block_size = c.blocks.block_size

    @staticmethod
    def values_dtype(module: nn.Module) -> torch.dtype:
        """The dtype of the values that a layer made from `module` stores."""
        return cast(torch.Tensor, module.weight).dtype

    @classmethod
    def problem(cls, module: nn.Module, block_size: tuple[int, int] | None = None) -> str | None:
        """Why the weight of `module` cannot be cut into `block_size` (None: into any that has a kernel), or None."""
        weight = cast(torch.Tensor, module.weight)
        return misfit(weight.shape, getattr(module, "groups", 1), cls.values_dtype(module), block_size)

    @classmethod
    def _refuse_misfit(cls, module: nn.Module, block_size: tuple[int, int] | None) -> None:
        problem = cls.problem(module, block_size)
        if problem is not None:
            kind = TypeError if cls.values_dtype(module) not in packing.KERNEL_BLOCKS else ValueError
            raise kind(f"{cls.__name__}.from_float: {problem}; use {cls.dense}")

    @classmethod
    def _orders_of(cls, module: nn.Module, block_size: tuple[int, int], orders: Orders | None) -> Orders:
        """The given orders, checked; by default those of the mask on `module`, as far as they save blocks."""
        weight = cast(Tensor, module.weight)
        if orders is None:
            found = mask_orders(module)
            return (
                NATURAL
                if not any(order is not None for order in found)
                else fewest_blocks(weight, block_size, found)[1]
            )
        return cls._checked(orders, weight.shape)

    @classmethod
    def _checked(cls, orders: Orders, shape: Any) -> Orders:
        def check(name: str, order: Tensor | None, channels: int) -> Tensor | None:
            return None if order is None else checked_order(f"{cls.__name__}: `{name}`", order, channels)

        return check("input_order", orders[0], shape[1]), check("output_order", orders[1], shape[0])

    # -- orders --------------------------------------------------------------------------------------------------

    def reorder(self, input_order: Tensor | None, output_order: Tensor | None) -> Self:
        """Say in which orders of the channels the stored blocks are; returns self.

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
        # Orders belong to the blocks: they come and go with them.
        given = [state_dict.get(prefix + name) for name in _ORDERS]
        has_blocks = prefix + "values" in state_dict
        rest = state_dict
        faults: list[str] = []
        if any(order is not None for order in given):
            keys = [prefix + name for name in _ORDERS]
            rest = {key: value for key, value in state_dict.items() if key not in keys}
            for key, order, channels in zip(keys, given, (self._weight_shape[1], self._weight_shape[0]), strict=True):
                try:
                    if order is not None:
                        checked_order(f"load_state_dict: `{key}`", order, channels)
                        if not has_blocks:
                            faults.append(f"load_state_dict: `{key}` came without the blocks that it belongs to")
                except ValueError as error:
                    faults.append(str(error))
        if faults:
            error_msgs.extend(faults)
            return
        before = len(error_msgs)
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if has_blocks and len(error_msgs) == before:
            self.reorder(given[0], given[1])

    def canonical(self) -> SparseW8A8Canonical | SparseCanonical:
        """The portable tensors behind this layer, bit for bit (without native kernels, all-zero blocks are dropped)."""
        c = packing.unpack(self.packed)
        assert isinstance(c, SparseW8A8Canonical | SparseCanonical)
        return c

    @property
    def density(self) -> float:
        """Stored blocks over all blocks, from 0 to 1."""
        header = packing.info(self.packed)
        if "blocks" not in header:
            return self.canonical().blocks.density
        return float(header["blocks"]) * self.block_size[0] * self.block_size[1] / (header["n"] * header["k"])

    def extra_repr(self) -> str:
        """The constructor's view, for ``print(model)``."""
        text = f"{super().extra_repr()}, block_size={block_name(self.block_size)}, density={self.density:.3g}"
        return f"{text}, reordered={reordered_name(self.orders)!r}" if self.reordered else text


def sparse_quantized(
    layer: str, c: W8A8Canonical, block_size: tuple[int, int], orders: Orders = NATURAL
) -> SparseW8A8Canonical:
    """The block-sparse form, in the given orders, of a dense int8 layer without groups; `layer` is for messages."""
    return SparseW8A8Canonical(
        cut(layer, permuted(c.weight, *orders), block_size),
        permuted(c.weight_scale, None, orders[1]),
        None if c.bias is None else permuted(c.bias, None, orders[1]),
        c.input_mode,
        c.input_scale,
        c.input_zero_point,
        c.activation,
        _kernel_size(c.weight_shape),
    )


def coarsest_block(module: nn.Module, orders: Orders | None) -> tuple[int, int]:
    """The most promising block of a float layer, in the given orders or in those of its mask."""
    weight = cast(Tensor, module.weight).detach()
    if orders is not None:
        return forms(permuted(weight, *orders), weight.dtype)[0].block
    return forms(weight, weight.dtype, orders=mask_orders(module))[0].block


def sparse_canonical(
    layer: str, module: Any, block_size: tuple[int, int], activation: str, orders: Orders = NATURAL
) -> SparseCanonical:
    """The block-sparse form of a float linear or convolution whose blocks fit; see `SparseLinear.from_float`."""
    weight = permuted(module.weight.detach(), *orders)
    bias = None if module.bias is None else module.bias.detach().to(torch.float32).clone()
    bias = None if bias is None else permuted(bias, None, orders[1])
    return SparseCanonical(cut(layer, weight, block_size), bias, activation, _kernel_size(weight.shape))


def _kernel_size(shape: Any) -> tuple[int, int] | None:
    return (shape[2], shape[3]) if len(shape) == 4 else None
