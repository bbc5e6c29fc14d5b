"""Sparsity patterns: which weights live and die together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from fastcompress.models.choices import nearest

__all__ = ["EXAMPLES", "Pattern", "parse_pattern"]

#: Patterns that messages list; any block size and any N:M are allowed.
EXAMPLES: tuple[str, ...] = ("unstructured", "16x4", "4x4", "1x4", "4x1", "16x1", "2:4", "4:8", "channel")

_ALLOWED = "'unstructured', blocks '<BH>x<BW>' such as '16x4', '<N>:<M>' such as '2:4', and 'channel'"


@dataclass(frozen=True)
class Pattern:
    """A sparsity pattern; make one with `parse_pattern`.

    Attributes:
        kind: ``"unstructured"``, ``"block"``, ``"nm"`` or ``"channel"``.
        block_rows, block_cols: outputs and inputs of a block; 1 and 1 unless ``kind`` is ``"block"``.
        n, m: ``n`` of every ``m`` consecutive inputs are kept; 0 and 0 unless ``kind`` is ``"nm"``.

    Example:
        >>> str(parse_pattern("16x4")), parse_pattern("2:4").fixed_sparsity
        ('16x4', 0.5)
    """

    kind: str
    block_rows: int = 1
    block_cols: int = 1
    n: int = 0
    m: int = 0

    def __str__(self) -> str:
        if self.kind == "block":
            return f"{self.block_rows}x{self.block_cols}"
        return f"{self.n}:{self.m}" if self.kind == "nm" else self.kind

    @property
    def fixed_sparsity(self) -> float | None:
        """The only sparsity that an N:M pattern has; None where it is free."""
        return 1.0 - self.n / self.m if self.kind == "nm" else None

    def fits(self, weight: Tensor, groups: int = 1) -> str | None:
        """None when masks of this pattern exist for ``weight``, otherwise the reason why not.

        Args:
            weight: ``[out, in]`` or ``[out, in/groups, kh, kw]``.
            groups: groups of the convolution; a block never spans two of them.
        """
        if weight.dim() not in (2, 4):
            return f"its weight has shape {list(weight.shape)}; patterns know [out, in] and [out, in/groups, kh, kw]"
        if self.kind == "channel":
            return "pattern 'channel' removes whole channels and has no mask; see prune_channels"
        out, inputs = weight.shape[0], weight.shape[1]
        if self.kind == "nm" and inputs % self.m:
            return f"pattern {self} needs input channels divisible by {self.m}, it has {inputs}"
        if self.kind == "block":
            if out % self.block_rows:
                return f"pattern {self} needs outputs divisible by {self.block_rows}, it has {out}"
            if inputs % self.block_cols:
                return f"pattern {self} needs input channels divisible by {self.block_cols}, it has {inputs}"
            if (out // groups) % self.block_rows:
                return (
                    f"pattern {self} needs outputs per group divisible by {self.block_rows}, it has {out // groups} in "
                    f"each of {groups} groups"
                )
        return None


def parse_pattern(text: str | Pattern) -> Pattern:
    """The `Pattern` that ``text`` names: unstructured, ``<BH>x<BW>`` blocks, ``<N>:<M>``, or channel.

    Blocks are BH outputs × BW input channels (of a convolution: at one tap). N:M keeps N of every M consecutive input
    channels.

    Raises:
        TypeError, ValueError: another text; the message lists what is allowed.

    Example:
        >>> parse_pattern("1x4").block_cols
        4
    """
    if isinstance(text, Pattern):
        return text
    if not isinstance(text, str):
        raise TypeError(f"parse_pattern: pattern must be a string, allowed are {_ALLOWED}; got {text!r:.80}")
    if text in ("unstructured", "channel"):
        return Pattern(text)
    if found := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text, re.ASCII):
        return Pattern("block", int(found[1]), int(found[2]))
    if found := re.fullmatch(r"([1-9]\d{0,5}):([1-9]\d{0,5})", text, re.ASCII):
        n, m = int(found[1]), int(found[2])
        if n >= m:
            raise ValueError(
                f"parse_pattern: pattern {text!r} keeps {n} of every {m}, which prunes nothing; N must be below M"
            )
        return Pattern("nm", n=n, m=m)
    hint = nearest(text, EXAMPLES, 1)
    raise ValueError(f"parse_pattern: pattern {text!r:.80} is unknown; allowed are {_ALLOWED}{hint}")
