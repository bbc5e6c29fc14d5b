"""Which blocks a pruned weight is cut into, and what that is likely to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops.block_csr import BlockCSR, matrix_of
from ..ops.packing import KERNEL_BLOCKS
from .orders import NATURAL, Orders, permuted, reordered_name

__all__ = ["BREAK_EVEN", "Form", "block_density", "block_name", "cut", "fewest_blocks", "forms", "misfit", "promising"]

#: Density of stored blocks at which a layer is guessed to take as long as the dense one of the same precision. Guesses
#: for choosing what to measure and for deciding where nothing is measured; a measurement always outweighs them.
BREAK_EVEN: dict[tuple[torch.dtype, tuple[int, int]], float] = {
    (torch.int8, (16, 4)): 0.6,
    (torch.int8, (4, 4)): 0.5,
    (torch.int8, (1, 4)): 0.25,
    (torch.float32, (16, 1)): 0.8,
    (torch.float32, (4, 1)): 0.6,
    (torch.float32, (1, 1)): 0.3,
    (torch.bfloat16, (16, 2)): 0.5,
}

#: Forms are measured up to this guessed cost, and at most so many of them.
_WORTH_MEASURING = 1.4
_MOST_MEASURED = 2


@dataclass(frozen=True)
class Form:
    """One way of storing a weight.

    Attributes:
        block: ``(outputs, inputs)``, one of ``packing.KERNEL_BLOCKS``.
        density: stored blocks over all blocks, from 0 to 1.
        limit: the density at which it is guessed to be as fast as the dense layer.
        orders: of the channels, under which the weight has these blocks.
    """

    block: tuple[int, int]
    density: float
    limit: float
    orders: Orders = field(default=NATURAL, compare=False)

    @property
    def cost(self) -> float:
        """Guessed time over that of the dense layer."""
        return self.density / self.limit

    def __str__(self) -> str:
        order = f" with its {self.reordered} reordered" if self.reordered else ""
        return f"{self.density:.0%} of its {block_name(self.block)} blocks are not zero{order}"

    @property
    def reordered(self) -> str:
        """Which channels are reordered: ``"inputs"``, ``"outputs"``, ``"inputs and outputs"``, or ``""``."""
        return reordered_name(self.orders)


def block_name(block: Sequence[int]) -> str:
    """``(16, 4)`` as messages write it: ``16x4``."""
    return f"{block[0]}x{block[1]}"


def misfit(shape: Sequence[int], groups: int, dtype: torch.dtype, block: tuple[int, int] | None = None) -> str | None:
    """Why a weight cannot be cut into `block`, by default into any block of its dtype's kernels; None when it can.

    Args:
        shape: ``[out, in]`` or ``[out, in/groups, kh, kw]``.
        dtype: of the values: int8, float32 or bfloat16.
    """
    known = KERNEL_BLOCKS.get(dtype)
    if known is None:
        return (
            f"its weight is {dtype}; block-sparse kernels take float32 and bfloat16 values, cast the layer with "
            ".float() or .bfloat16()"
        )
    if groups != 1:
        return f"it has {groups} groups; block-sparse convolutions have one"
    if block is not None and tuple(block) not in known:
        return f"there is no kernel for {block_name(block)} blocks of {dtype}, only {', '.join(map(block_name, known))}"
    wanted = known if block is None else (block,)
    if any(_divides(shape, size) for size in wanted):
        return None
    size = f"{shape[0]}x{shape[1]}" + "".join(f"x{extent}" for extent in shape[2:])
    fitting = [block_name(other) for other in known if _divides(shape, other)]
    finer = f" (but of {' or '.join(fitting)})" if fitting else ""
    return f"its {size} weight cannot be cut into blocks of {' or '.join(map(block_name, wanted))}{finer}"


def _divides(shape: Sequence[int], block: tuple[int, int]) -> bool:
    return shape[0] % block[0] == 0 and shape[1] % block[1] == 0


def block_density(weight: Tensor, block: tuple[int, int]) -> float:
    """Fraction of the blocks of ``weight`` ``[out, in]`` or ``[out, in, kh, kw]`` that are not all zero.

    Example:
        >>> block_density(torch.eye(4), (2, 2))
        0.5
    """
    matrix = matrix_of(weight.detach())
    rows, columns = matrix.shape[0] // block[0], matrix.shape[1] // block[1]
    kept = (matrix != 0).reshape(rows, block[0], columns, block[1]).any(dim=3).any(dim=1)
    return int(kept.sum()) / kept.numel()


def fewest_blocks(weight: Tensor, block: tuple[int, int], orders: Orders = NATURAL) -> tuple[float, Orders]:
    """Density of `weight` in blocks, in whichever part of `orders` gives the lowest; no order that brings nothing."""
    inputs, outputs = orders
    best, chosen = block_density(weight, block), NATURAL
    tried: list[Orders] = [parts for parts in ((inputs, None), (None, outputs)) if any(o is not None for o in parts)]
    if len(tried) == 2:
        tried.append(orders)
    for parts in tried:
        density = block_density(permuted(weight.detach(), *parts), block)
        if density < best:
            best, chosen = density, parts
    return best, chosen


def forms(weight: Tensor, dtype: torch.dtype, groups: int = 1, orders: Orders = NATURAL) -> list[Form]:
    """The ways of cutting `weight` that are not beaten by a coarser one, the most promising first; may be empty.

    A finer block comes in only where it stores less: a mask made of 16x1 blocks has the one form 16x1.

    Args:
        weight: ``[out, in]`` or ``[out, in, kh, kw]``, of any dtype.
        dtype: of the values that will be stored.
        orders: of the channels, to be used for the blocks that become fewer in them.

    Example:
        >>> [form.block for form in forms(torch.ones(16, 8), torch.float32)]
        [(16, 1)]
    """
    found: list[Form] = []
    for block in KERNEL_BLOCKS.get(dtype, ()):
        if misfit(weight.shape, groups, dtype, block) is not None:
            continue
        density, chosen = fewest_blocks(weight, block, orders)
        if all(density < coarser.density for coarser in found):
            found.append(Form(block, density, BREAK_EVEN[dtype, block], chosen))
    return sorted(found, key=lambda form: form.cost)


def promising(
    weight: Tensor, dtype: torch.dtype, groups: int = 1, orders: Orders = NATURAL, *, measuring: bool
) -> list[Form]:
    """The `forms` worth building, the best first, which leave out at least one block.

    Without a measurement these are the forms guessed faster than dense; of a linear only that with the coarsest blocks,
    because fine ones lose where tokens are few. To be measured, forms may be guessed a little slower.

    Args:
        measuring: whether a measurement follows; then at most two are returned.
    """
    found = [form for form in forms(weight, dtype, groups, orders) if form.density < 1.0]
    if measuring:
        return [form for form in found if form.cost < _WORTH_MEASURING][:_MOST_MEASURED]
    found = [form for form in found if form.cost < 1.0]
    return found if weight.dim() == 4 else [form for form in found if form.block == KERNEL_BLOCKS[dtype][0]]


def cut(layer: str, weight: Tensor, block: tuple[int, int]) -> BlockCSR:
    """The non-zero blocks of a weight; `layer` is for messages.

    Raises:
        ValueError: NaN or infinity in a kept block.
    """
    if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{layer}: `weight` holds NaN or infinity; repair the model before compressing it")
    return BlockCSR.from_dense(matrix_of(weight.detach()), block)
