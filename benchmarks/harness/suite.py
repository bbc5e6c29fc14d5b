"""What a suite gets, and how it hands back rows; a part that fails becomes a visible row, never a missing one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.harness.ceilings import CeilingError, Ceilings
from benchmarks.harness.results import Measurement, Report
from benchmarks.harness.timing import Budget, Timing
from benchmarks.targets import by_key

__all__ = ["Context"]


@dataclass
class Context:
    """One run: its report, its ceilings, the time it may take, and where to say what it does."""

    report: Report
    ceilings: Ceilings
    budget: Budget
    quick: bool = False
    say: Callable[[str], None] = print

    def add(self, key: str, value: float | None, times: Mapping[str, Timing] | None = None, note: str = "") -> None:
        """Record the value of the row ``key``."""
        by_key(key)
        times_us = {name: round(timing.microseconds, 3) for name, timing in (times or {}).items()}
        self.report.measurements.append(Measurement(key, value, times_us, note))

    def add_ratio(self, key: str, times: Mapping[str, Timing], slow: str, fast: str, note: str = "") -> None:
        """Record how many times faster ``fast`` is than ``slow``."""
        self.add(key, times[slow].median / times[fast].median, times, note)

    def skip(self, keys: str | list[str], why: str) -> None:
        """Record rows that this machine cannot measure, and why."""
        for key in [keys] if isinstance(keys, str) else keys:
            self.add(key, None, note=why)
            self.say(f"skipped {key}: {why}")

    def check_ceiling(self, what: str, operations: float, seconds: float, ceiling: float) -> float:
        """Return the fraction of ``ceiling`` that ``operations`` in ``seconds`` reach; above it the run fails."""
        seen = operations / seconds
        try:
            self.ceilings.require_below(what, seen, ceiling, "op/s")
        except CeilingError as error:
            self.report.failures.append(str(error))
        return seen / ceiling

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run one part of a suite; an exception is recorded as a failure of the run and the other parts go on."""
        self.say(name)
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.report.failures.append(f"{name}: {type(error).__name__}: {error}")
