"""One row of the results table: what is measured, against what, and the number to reach."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Target", "shape_name", "unit_suffix"]


@dataclass(frozen=True)
class Target:
    """One row: what is measured, against which baseline, and the bound to meet (``None``: for information)."""

    key: str
    suite: str
    title: str
    baseline: str
    bound: float | None
    unit: str = "×"
    lower_is_better: bool = False

    def is_met(self, value: float) -> bool | None:
        """Return whether ``value`` meets the bound; ``None`` when the row has none."""
        if self.bound is None:
            return None
        return value <= self.bound if self.lower_is_better else value >= self.bound

    def bound_text(self) -> str:
        """Return the bound as the table shows it, for example ``≥ 0.90``."""
        if self.bound is None:
            return ""
        return f"{'≤' if self.lower_is_better else '≥'} {self.bound:g}{unit_suffix(self.unit)}"


def unit_suffix(unit: str) -> str:
    """Return the unit as it follows a number: ``×`` directly, words after a space."""
    return unit if unit in ("×", "%", "") else f" {unit}"


def shape_name(shape: tuple[int, int, int]) -> str:
    """Return ``M×K×N``."""
    return "×".join(map(str, shape))
