"""SparseGPT: prune a layer's weights one column after the other and let the remaining ones take over their part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcompress.models.hessian import Gram, inverse_factor

from .matrix import as_matrix, from_matrix
from .patterns import Pattern, parse_pattern
from .selection import block_scores, lowest, mask_from_scores, pruned_count

__all__ = ["Hessian", "Solution", "sparsegpt"]

#: Columns whose mask is chosen together; about the paper's 128 (section 3.3).
_GROUP_COLS = 128

#: An unfolded convolution input is made in pieces of about this many elements.
_UNFOLDED_ELEMS = 1 << 24


class Hessian(Gram):
    """``X^T X`` over all inputs of a layer, summed up batch by batch; half the Hessian of its squared output error.

    Columns are in the order of `as_matrix`, so a convolution's are (tap, channel).

    Args:
        layer: ``nn.Linear``, or ``nn.Conv2d`` with one group.

    Raises:
        TypeError: another layer, or a grouped convolution.

    Example:
        >>> hessian = Hessian(nn.Linear(2, 1))
        >>> hessian.update(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> hessian.matrix
        tensor([[1., 2.],
                [2., 5.]])
    """

    def __init__(self, layer: nn.Module) -> None:
        problem = self.problem(layer)
        if problem is not None:
            raise TypeError(f"Hessian: {problem}")
        weight: Tensor = layer.weight  # type: ignore[assignment]
        super().__init__(as_matrix(weight).shape[1], weight.device)
        self.layer = layer

    @staticmethod
    def problem(layer: nn.Module) -> str | None:
        """Why there is no Hessian for this layer; None when there is."""
        if isinstance(layer, nn.Linear):
            return None
        if not isinstance(layer, nn.Conv2d):
            return f"layer must be nn.Linear or nn.Conv2d, got {type(layer).__name__}"
        if layer.groups > 1:
            return f"SparseGPT does not know grouped convolutions (it has {layer.groups} groups)"
        return None

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take one input of the layer into account: ``[..., in]``, or ``[n, in, h, w]`` for a convolution."""
        if x.numel() == 0:
            return
        if isinstance(self.layer, nn.Conv2d):
            self._update_conv(self.layer, x)
        else:
            self.add(x.reshape(-1, x.shape[-1]))

    def _update_conv(self, conv: nn.Conv2d, x: Tensor) -> None:
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x if x.dim() == 4 else x[None], conv._reversed_padding_repeated_twice, mode=mode)
        taps = math.prod(conv.kernel_size)
        positions = max(1, x.shape[-2] * x.shape[-1] // math.prod(conv.stride))
        for piece in x.split(max(1, _UNFOLDED_ELEMS // (positions * taps * x.shape[1]))):
            # [n, in*taps, positions] with the channel outermost → rows (tap, channel).
            columns = F.unfold(piece.float(), conv.kernel_size, conv.dilation, 0, conv.stride)
            columns = columns.reshape(piece.shape[0], conv.in_channels, taps, -1)
            self.add(columns.permute(0, 3, 2, 1).reshape(-1, taps * conv.in_channels))


@dataclass(frozen=True)
class Solution:
    """What `sparsegpt` found for one layer.

    Attributes:
        weight: the new weight, zero where ``mask`` is False.
        mask: bool, True is kept.
        saliency: squared output error that pruning each weight of the original costs after the others took over.
    """

    weight: Tensor
    mask: Tensor
    saliency: Tensor


@torch.no_grad()
def sparsegpt(
    weight: Tensor, hessian: Tensor, pattern: Pattern | str, sparsity: float, *, mask: Tensor | None = None
) -> Solution:
    """Prune ``weight`` to ``pattern`` and update what is left so that the layer's output changes least.

    Masks are chosen for about 128 columns at a time, on weights already updated. Each group's share of
    ``round(sparsity * blocks)`` is that of the whole layer's least salient blocks, so groups that matter keep more.

    Args:
        weight: ``[out, in]``, or ``[out, in, kh, kw]`` of a convolution with one group.
        hessian: `Hessian.matrix` of the layer, ``[K, K]``.
        pattern: must fit the weight.
        sparsity: pruned fraction, in [0, 1).
        mask: an earlier mask; what it prunes stays pruned.

    Raises:
        ValueError: shapes, pattern or sparsity do not belong together, or the Hessian cannot be inverted.

    Example:
        >>> hessian = Hessian(layer)
        >>> hessian.update(x)
        >>> found = sparsegpt(layer.weight, hessian.matrix, "16x4", 0.8)

    Source: Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (arXiv
    2301.00774), algorithm 1 and section 3.3.
    """
    pattern = parse_pattern(pattern)
    problem = pattern.fits(weight)
    if problem is not None:
        raise ValueError(f"sparsegpt: {problem}")
    w = as_matrix(weight.detach()).float().clone()
    columns = w.shape[1]
    if tuple(hessian.shape) != (columns, columns):
        raise ValueError(f"sparsegpt: hessian has shape {list(hessian.shape)}, expected {[columns, columns]}")
    alive = torch.ones_like(w, dtype=torch.bool) if mask is None else as_matrix(mask)
    w *= alive
    w[:, hessian.diagonal() == 0] = 0.0
    u = inverse_factor(hessian)
    saliency = (w / u.diagonal()).square()
    counts = _counts(saliency, pattern, sparsity)
    keep = torch.ones_like(w, dtype=torch.bool)
    for start, count in counts:
        stop = min(start + _group_cols(pattern), columns)
        block, errors, factor = w[:, start:stop], torch.zeros_like(w[:, start:stop]), u[start:stop, start:stop]
        if pattern.kind != "nm":
            scores = block_scores((block * alive[:, start:stop] / factor.diagonal()).square(), pattern)
            dead = lowest(scores, count)
            keep[:, start:stop] = ~dead.repeat_interleave(pattern.block_rows, 0).repeat_interleave(
                pattern.block_cols, 1
            )
        for i in range(stop - start):
            if pattern.kind == "nm" and i % pattern.m == 0:
                part = slice(i, i + pattern.m)
                scores = (block[:, part] * alive[:, start:stop][:, part] / factor.diagonal()[part]).square()
                keep[:, start + i : start + i + pattern.m] = mask_from_scores(scores, pattern, sparsity)
            column = block[:, i].clone()
            kept = column * (keep[:, start + i] & alive[:, start + i])
            error = (column - kept) / factor[i, i]
            block[:, i:] -= error[:, None] * factor[i, i:]
            block[:, i] = kept
            errors[:, i] = error
        w[:, stop:] -= errors @ u[start:stop, stop:]
    keep &= alive
    new = torch.where(keep, w, 0.0)
    return Solution(
        from_matrix(new, weight.shape).to(weight.dtype),
        from_matrix(keep, weight.shape),
        from_matrix(saliency, weight.shape),
    )


def _group_cols(pattern: Pattern) -> int:
    unit = max(pattern.block_cols, pattern.m, 1)
    return max(1, _GROUP_COLS // unit) * unit


def _counts(saliency: Tensor, pattern: Pattern, sparsity: float) -> list[tuple[int, int]]:
    """(first column, blocks to prune) of each column group."""
    size = _group_cols(pattern)
    starts = range(0, saliency.shape[1], size)
    if pattern.kind == "nm":
        pruned_count(sparsity, 0, pattern)
        return [(start, 0) for start in starts]
    scores = block_scores(saliency, pattern)
    dead = lowest(scores, pruned_count(sparsity, scores.numel(), pattern))
    width = size // pattern.block_cols
    return [(start, int(dead[:, i * width : (i + 1) * width].sum())) for i, start in enumerate(starts)]
