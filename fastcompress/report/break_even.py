"""The sparsity from which a block-sparse layer is faster than the dense one of the same precision, here and now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.models.adapters import Adapted
from fastcompress.models.flow import InputKind
from fastcompress.models.speed import Timer
from fastcompress.nn import BlockSparse, QuantConv2d, QuantizedLayer, QuantLinear
from fastcompress.nn.conv2d import PackedConv2d
from fastcompress.ops.block_csr import matrix_of, weight_of
from fastcompress.report.environment import isa_name
from fastcompress.report.measure import compare

__all__ = ["DENSITIES", "break_even", "interpolated", "measured_break_even"]

#: Densities of the synthetic weights.
DENSITIES: tuple[float, ...] = (0.05, 0.2, 0.4, 0.7, 1.0)

#: Seconds spent on each of the functions that are compared.
_MIN_TIME_S = 0.01

#: What was measured in this process; a shape takes some hundredths of a second.
_known: dict[tuple[Any, ...], float] = {}


def break_even(layer: BlockSparse, kind: InputKind) -> float:
    """`measured_break_even`, measured once for each shape, kind of input, instruction set and number of threads."""
    key = (
        *(type(layer), tuple(layer.weight.shape), layer.block_size, layer.canonical().blocks.dtype, layer.has_bias),
        *_geometry(layer),
        *(getattr(layer, "input_mode", ""), kind, isa_name(), torch.get_num_threads()),
    )
    if key not in _known:
        _known[key] = measured_break_even(layer, kind, _stopwatch)
    return _known[key]


def measured_break_even(layer: BlockSparse, kind: InputKind, timer: Timer) -> float:
    """Sparsity, 0 to 1, at which ``layer``'s shape and block take as long as the dense layer; above it they are faster.

    Synthetic weights of the layer's shape, of which a few fractions of the blocks are not zero (`DENSITIES`), are timed
    against the dense layer of the same precision, on inputs like ``kind``; between them the time is interpolated.

    Returns:
        0.0 where block-sparse is faster even without a single zero block, 1.0 where it is slower even at the highest
        sparsity tried (95%).

    Example:
        >>> measured_break_even(layer, InputKind((128, 768)), compare)
        0.31
    """
    x = kind.make()
    functions: dict[str, Callable[[], Any]] = {}
    dense, x_dense = _dense(layer, x)
    functions["dense"] = lambda: dense(x_dense)
    for density in DENSITIES:
        sparse = _sparse(layer, density)
        functions[f"sparse {density}"] = lambda sparse=sparse: sparse(x)  # type: ignore[misc]
    with torch.no_grad():
        seconds = timer(functions)
    return 1.0 - interpolated(DENSITIES, [seconds[f"sparse {d}"] for d in DENSITIES], seconds["dense"])


def interpolated(densities: Sequence[float], seconds: Sequence[float], dense: float) -> float:
    """The highest density up to which the polygon through (density, seconds) stays below ``dense`` seconds.

    0.0 where it is above from the beginning, 1.0 where it never is.

    Example:
        >>> interpolated([0.2, 0.6, 1.0], [1.0, 3.0, 5.0], 2.0)
        0.4
    """
    if seconds[0] >= dense:
        return 0.0
    for i in range(1, len(densities)):
        if seconds[i] >= dense:
            step = (dense - seconds[i - 1]) / (seconds[i] - seconds[i - 1])
            return densities[i - 1] + step * (densities[i] - densities[i - 1])
    return 1.0


def _stopwatch(functions: Any) -> dict[str, float]:
    return compare(functions, _MIN_TIME_S)


def _geometry(layer: BlockSparse) -> tuple[Any, ...]:
    if not isinstance(layer, PackedConv2d):
        return ()
    return (layer.stride, layer.padding4, layer.dilation, layer.same_padding)


def _float_layer(layer: BlockSparse, density: float) -> nn.Linear | nn.Conv2d:
    """A float layer of the same shape in which the given fraction of blocks is not zero."""
    shape = tuple(layer.weight.shape)
    dtype = torch.float32 if isinstance(layer, QuantizedLayer) else layer.canonical().blocks.dtype
    plain: nn.Linear | nn.Conv2d
    if isinstance(layer, PackedConv2d):
        kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
        plain = nn.Conv2d(shape[1], shape[0], kernel, stride, 0, dilation, bias=layer.has_bias, dtype=dtype)
    else:
        plain = nn.Linear(shape[1], shape[0], layer.has_bias, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    matrix = matrix_of(plain.weight.detach())
    height, width = layer.block_size
    grid = (matrix.shape[0] // height, matrix.shape[1] // width)
    kept = torch.randperm(grid[0] * grid[1], generator=generator) < round(density * grid[0] * grid[1])
    mask = kept.reshape(grid).repeat_interleave(height, 0).repeat_interleave(width, 1)
    values = torch.rand(matrix.shape, generator=generator) + 0.5
    with torch.no_grad():
        plain.weight.copy_(weight_of(torch.where(mask, values, 0.0), shape))
    return plain.eval()


def _options(layer: BlockSparse) -> dict[str, Any]:
    """Arguments of ``from_float`` that the dense and the block-sparse layer have in common."""
    options: dict[str, Any] = {}
    if isinstance(layer, QuantizedLayer):
        options = {name: getattr(layer, name) for name in ("input_mode", "input_scale", "input_zero_point")}
    if isinstance(layer, PackedConv2d):
        options |= {"padding": layer.padding4, "same_padding": layer.same_padding}
    return options


def _sparse(layer: BlockSparse, density: float) -> nn.Module:
    make: Any = type(layer)
    return make.from_float(_float_layer(layer, density), block_size=layer.block_size, **_options(layer))


def _dense(layer: BlockSparse, x: Tensor) -> tuple[Callable[[Tensor], Any], Tensor]:
    """The dense layer to beat, and its input: float layers take their weight's dtype only."""
    plain = _float_layer(layer, 1.0)
    if isinstance(layer, QuantizedLayer):
        make: Any = QuantConv2d if isinstance(plain, nn.Conv2d) else QuantLinear
        return make.from_float(plain, **_options(layer)), x
    x = x.to(plain.weight.dtype)
    if not isinstance(layer, PackedConv2d) or not isinstance(plain, nn.Conv2d):
        return plain, x
    top, bottom, left, right = layer.padding4
    if layer.same_padding or (top, left) != (bottom, right):
        return Adapted(plain, None if layer.same_padding else layer.padding4, same_padding=layer.same_padding), x
    plain.padding = (top, left)
    return plain, x
