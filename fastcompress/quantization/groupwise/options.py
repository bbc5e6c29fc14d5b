"""What the algorithms on a whole model can be told beside the grid."""

from __future__ import annotations

from dataclasses import dataclass

from fastcompress.schemes import ALGORITHMS

__all__ = ["ALGORITHMS", "GroupwiseOptions"]


@dataclass(frozen=True)
class GroupwiseOptions:
    """Settings of the algorithms; each reads its own.

    Attributes:
        search: how ``rtn`` and ``gptq`` find scales: ``"minmax"``, ``"mse"``, for GPTQ also ``"output"``; None:
            ``"minmax"`` for ``rtn``, ``"output"`` for ``gptq``.
        hqq_p: norm of ``hqq``, in (0, 1].
        dampening: of ``gptq``, share of the mean diagonal, in (0, 1].
        act_order: whether ``gptq`` begins with the inputs that matter most.
        block_cols: columns that ``gptq`` updates the rest with at once.
        sweeps: rounds of refinement behind ``gptq``; 0 is the paper's algorithm.
        sequential: whether ``gptq`` collects statistics anew behind each quantized linear of a block; takes a run of
            the block for each.
        awq_steps: exponents that ``awq`` tries.
        awq_clip: whether ``awq`` searches for the best clipping.
        awq_rounding: how ``awq`` rounds the scaled weights: ``"nearest"``, or ``"gptq"`` with that one's settings.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> GroupwiseOptions(search="mse").dampening
        0.01
    """

    search: str | None = None
    hqq_p: float = 0.7
    dampening: float = 0.01
    act_order: bool = True
    block_cols: int = 128
    sweeps: int = 3
    sequential: bool = False
    awq_steps: int = 20
    awq_clip: bool = True
    awq_rounding: str = "nearest"

    def __post_init__(self) -> None:
        if self.search not in (None, "minmax", "mse", "output"):
            raise ValueError(
                f"GroupwiseOptions: search must be 'minmax', 'mse' or 'output' (GPTQ only), got {self.search!r}"
            )
        if self.awq_rounding not in ("nearest", "gptq"):
            raise ValueError(f"GroupwiseOptions: awq_rounding must be 'nearest' or 'gptq', got {self.awq_rounding!r}")
        for name in ("hqq_p", "dampening"):
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise ValueError(f"GroupwiseOptions: {name} must lie in (0, 1], got {value!r}")
        for name, least in (("block_cols", 1), ("sweeps", 0), ("awq_steps", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"GroupwiseOptions: {name} must be a whole number from {least} on, got {value!r}")
