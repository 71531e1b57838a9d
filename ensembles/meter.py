"""The meter of a run: what it achieved, and how such numbers are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

__all__ = ["Achieved", "days", "each_and_all", "over", "short", "si", "years_per_day"]

_YEAR, _DAY = timedelta(days=365.25), 86400.0


@dataclass(frozen=True)
class Achieved:
    """What a run did; `print` it.

    Attributes:
        member_steps: steps times members that were made.
        dt: length of a step.
        wall: seconds from beginning to end.
        in_steps: of these, in the emulator.
        stalled: of these, waiting for the writer.
        operations: per member-step, see `StepCost`.
        flops: what the machine does at best, see `Rates`; None if it was not measured.
        peak_memory: bytes on the device, or of the process.
    """

    member_steps: int
    dt: timedelta
    wall: float
    in_steps: float
    stalled: float
    operations: float
    flops: float | None = None
    peak_memory: int = 0

    @property
    def member_steps_per_second(self) -> float:
        """Of wall time."""
        return over(self.member_steps, self.wall)

    @property
    def achieved_flops(self) -> float:
        """Operations per second while in steps."""
        return over(self.member_steps * self.operations, self.in_steps)

    @property
    def fraction(self) -> float | None:
        """Of the measured rate, while in steps; None if there is none."""
        return None if self.flops is None else over(self.achieved_flops, self.flops)

    @property
    def stall_fraction(self) -> float:
        """Of wall time, waiting for the writer."""
        return over(self.stalled, self.wall)

    @property
    def member_years_per_day(self) -> float:
        """Simulated years of all members per day of wall time."""
        return years_per_day(self.member_steps, self.dt, self.wall)

    def __str__(self) -> str:
        part = "" if self.fraction is None else f", {self.fraction:.0%} of the measured rate"
        rate = f" at {si(self.achieved_flops, 'FLOP/s')}{part}" if self.operations else ""  # which only a plan counts
        return "\n".join(
            (
                f"{self.member_steps:,} member-steps in {short(self.wall)}: "
                f"{self.member_steps_per_second:,.3g} a second, {self.member_years_per_day:,.0f} member-years a day",
                f"steps {short(self.in_steps)}{rate}",
                f"waiting for the writer {short(self.stalled)} ({self.stall_fraction:.1%})",
                f"peak memory {si(self.peak_memory, 'B')}",
            )
        )


def years_per_day(member_steps: int, dt: timedelta, seconds: float) -> float:
    """Simulated years of all members per day of wall time."""
    return over(member_steps * (dt / _YEAR) * _DAY, seconds)


def over(amount: float, rate: float) -> float:
    """A ratio, 0 where there is nothing to divide by."""
    return amount / rate if rate > 0 else 0.0


def each_and_all(each: float, number: int, unit: str) -> str:
    """An amount for one member-step and for all of them."""
    return f"{si(each, unit)} a member-step, {si(each * number, unit)} in all"


def si(value: float, unit: str) -> str:
    """Three digits and a decimal prefix."""
    power = min(max(int(math.log10(value) // 3), 0), 6) if value > 0 else 0
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}{unit}"


def short(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for size, unit in ((_DAY, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def days(dt: timedelta) -> str:
    """The length of a step."""
    length = dt / timedelta(days=1)
    return f"{length:g} days" if length > 1 else f"{24 * length:g} h"
