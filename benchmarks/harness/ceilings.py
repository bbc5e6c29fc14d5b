"""The machine's own limits: operations per second of register-only loops, and read bandwidths."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field

from benchmarks.harness.rotation import last_level_cache_bytes
from fastcompress.ops import native

__all__ = ["KINDS", "TOLERANCE", "CeilingError", "CeilingSamples", "Ceilings"]

#: Kinds by unit; ``int8:<isa>``, the int8 multiplication of one instruction set, is measured besides.
KINDS = ("int8", "amx_int8", "bf16", "amx_bf16", "fp32")

#: A kernel's median may exceed the best ceiling seen by this much before the run fails: the clock moves that far.
TOLERANCE = 1.03


@dataclass
class CeilingSamples:
    """Ceilings measured in the pauses of a kernel's own rounds.

    The clock of a shared machine drifts by several percent within seconds. The best ceiling of a whole run belongs to
    another clock than most of its kernels; the median of samples taken in turn with a kernel belongs to the kernel's.
    """

    kind: str
    ceilings: Ceilings
    samples: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Take one sample (a burst of about 0.2 ms); the best of all stands as the ceiling no kernel may exceed."""
        seen = float(native.require("the ceilings").ceiling(self.kind, 0.0))
        self.samples.append(seen)
        self.ceilings.operations[self.kind] = max(seen, self.ceilings.operations.get(self.kind, 0.0))

    def median(self) -> float:
        """Return the median of the samples, in operations per second."""
        return statistics.median(self.samples)


class CeilingError(RuntimeError):
    """A kernel measured above what the machine can do: the measurement, or the operation count, is wrong."""


@dataclass
class Ceilings:
    """Best operations per second by kind, and read bandwidth by working-set size; ``remeasure`` keeps the best seen."""

    operations: dict[str, float] = field(default_factory=dict)
    bandwidth: dict[int, float] = field(default_factory=dict)

    @classmethod
    def measure(cls, seconds: float = 0.5) -> Ceilings:
        """Measure every kind that this machine has and the bandwidth of L1, L2, the last level and memory."""
        ceilings = cls()
        ceilings.remeasure(seconds)
        cache = last_level_cache_bytes()
        for size in (32 << 10, 1 << 20, min(16 << 20, cache), 2 * cache):
            ceilings.read_bandwidth(size, seconds)
        return ceilings

    def remeasure(self, seconds: float = 0.5) -> None:
        """Measure the operation ceilings again; the larger number stands (a busy neighbour can only lower it)."""
        _C = native.require("the ceilings")
        for kind in (*KINDS, *(f"int8:{isa}" for isa in _C.isa_supported())):
            try:
                seen = float(_C.ceiling(kind, seconds))
            except (RuntimeError, ValueError):
                continue  # this machine has no such unit
            if seen > 0:
                self.operations[kind] = max(seen, self.operations.get(kind, 0.0))

    def read_bandwidth(self, size_bytes: int, seconds: float = 0.5) -> float:
        """Return bytes per second of reading a working set of ``size_bytes``, the best measurement so far."""
        _C = native.require("the read bandwidth")
        seen = float(_C.read_bandwidth(size_bytes, seconds))
        self.bandwidth[size_bytes] = max(seen, self.bandwidth.get(size_bytes, 0.0))
        return self.bandwidth[size_bytes]

    def sampler(self, kind: str) -> CeilingSamples:
        """Return a candidate for ``interleave`` that measures one ceiling next to the kernel held against it."""
        return CeilingSamples(kind, self)

    def own_int8(self, isa: str) -> float:
        """Return the ceiling of the int8 multiplication that the kernels of ``isa`` are made of."""
        return self.operations[f"int8:{isa}"]

    def best_int8_kind(self) -> str:
        """Return the kind of the larger of the vector and the tile unit's int8 ceilings."""
        return max(("int8", "amx_int8"), key=lambda kind: self.operations.get(kind, 0.0))

    def require_below(self, what: str, seen: float, limit: float, unit: str) -> None:
        """Raise ``CeilingError`` when ``seen`` exceeds ``limit`` by more than the tolerance."""
        if seen > limit * TOLERANCE:
            raise CeilingError(
                f"{what}: measured {seen / 1e9:.1f} G{unit}, above the machine's own ceiling of {limit / 1e9:.1f} "
                f"G{unit}; the measurement or the operation count is wrong"
            )

    def as_json(self) -> dict[str, object]:
        """Return plain values for the results file."""
        return asdict(self)
