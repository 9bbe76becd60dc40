"""Two ways of doing the same work, timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Part:
    """One row of the table: medians in seconds, and the ratio reference / ours with its extremes over the repeats."""

    part: str
    n: int  # cells, or whatever `note` says is counted
    d: int | None  # length of the embedding, where it matters
    reference_s: float
    ours_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int
    clock: str  # cpu: of this process, so that other work on the machine counts little; wall: where others work for it
    note: str = ""


def compare(
    part: str,
    reference: Callable[[], object],
    ours: Callable[[], object],
    *,
    n: int,
    d: int | None = None,
    repeats: int = 3,
    warm: bool = True,
    clock: str = "cpu",
    note: str = "",
) -> Part:
    """Run both in turn `repeats` times, after one unmeasured run each where `warm`. The ratio is the median of the
    ratios of each turn, which share the machine's mood."""
    if warm:
        reference()
        ours()
    now = time.process_time if clock == "cpu" else time.perf_counter
    pairs = [(_seconds(reference, now), _seconds(ours, now)) for _ in range(repeats)]
    return of_pairs(part, pairs, n=n, d=d, clock=clock, note=note)


def of_pairs(
    part: str, pairs: list[tuple[float, float]], *, n: int, d: int | None = None, clock: str = "cpu", note: str = ""
) -> Part:
    """The row of (reference, ours) seconds measured elsewhere."""
    references, own = zip(*pairs, strict=True)
    ratios = [reference / mine for reference, mine in pairs]
    return Part(
        part=part,
        n=n,
        d=d,
        reference_s=median(references),
        ours_s=median(own),
        ratio=median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        repeats=len(pairs),
        clock=clock,
        note=note,
    )


def _seconds(work: Callable[[], object], now: Callable[[], float]) -> float:
    began = now()
    work()
    return now() - began
