"""Checks on figures of several seeds: a contrast of methods taken seed by seed, and the share of seeds that reach a count.

A seed gives every method the same initial weights, data and latents, so differences are taken within a seed. An interval is two-sided and holds
the true value in 95 of 100 cases. Whatever cannot be judged - missing methods, unequal or fewer than three seeds, values that are no finite
numbers - fails with its reason; it never passes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from scipy import special

Rows = Mapping[str, Mapping[str, Sequence[float]]]  # method -> metric -> one value per seed, in one order of seeds

CONFIDENCE = 0.95
MIN_SEEDS = 3
NO_SPREAD = 1e-9  # figures are shares of 10,000 points, so a smaller spread is rounding


class Check(Protocol):
    """One part of a claim."""

    says: str

    def evaluate(self, rows: Rows) -> dict[str, Any]:
        """JSON-able {"check", "metric", "mean", "interval", "n", "bound", "passed", "note"}."""
        ...


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A weighted sum of methods' figures, taken seed by seed; its whole interval must lie between the bounds.

    Attributes:
        says: the check in words.
        metric: name of the figure.
        weights: of the methods; {a: 1, b: -1} is a's gain over b.
        above, below: bounds, excluded.
    """

    says: str
    metric: str
    weights: Mapping[str, float]
    above: float = -math.inf
    below: float = math.inf

    def evaluate(self, rows: Rows) -> dict[str, Any]:
        """Mean and Student-t interval of the sum over seeds."""
        result = _blank(self.says, self.metric, _bound_text(self.above, self.below))
        if reason := why_unfit(rows, self.metric, list(self.weights)):
            return result | {"note": reason}
        weighted = [[weight * value for value in rows[method][self.metric]] for method, weight in self.weights.items()]
        sums = [math.fsum(values) for values in zip(*weighted)]
        result |= {"mean": statistics.fmean(sums), "n": len(sums)}
        interval = mean_interval(sums)
        if interval is None:
            return result | {"note": f"all {len(sums)} seeds give the same value, too few to bound it"}
        return result | {"interval": list(interval), "passed": self.above < interval[0] and interval[1] < self.below}


@dataclasses.dataclass(frozen=True)
class MostSeeds:
    """The figure of a method reaches, or stays below, a count under most seeds: the whole interval of their share lies above one half.

    Attributes:
        says: the check in words.
        metric: name of the figure.
        method: whose figure.
        count: the count.
        reached: whether it must be reached (figure >= count) or missed (figure < count).
    """

    says: str
    metric: str
    method: str
    count: float
    reached: bool

    def evaluate(self, rows: Rows) -> dict[str, Any]:
        """Share of the seeds and its exact interval."""
        result = _blank(self.says, self.metric, "share of seeds above 0.5")
        if reason := why_unfit(rows, self.metric, [self.method]):
            return result | {"note": reason}
        hits = [(value >= self.count) == self.reached for value in rows[self.method][self.metric]]
        low, high = share_interval(sum(hits), len(hits))
        note = f"{sum(hits)} of {len(hits)} seeds"
        if share_interval(len(hits), len(hits))[0] <= 0.5:  # even all of them would not do
            note += ", too few to tell"
        return result | {"mean": sum(hits) / len(hits), "interval": [low, high], "n": len(hits), "passed": low > 0.5, "note": note}


def higher(metric: str, method: str, than: str) -> Contrast:
    """The figure of one method is above another's."""
    return Contrast(f"{metric} of {method} above {than}", metric, {method: 1, than: -1}, above=0)


def not_lower(metric: str, method: str, than: str, margin: float) -> Contrast:
    """The figure of one method is below another's by less than a margin, if at all (the whole interval says so, not its middle alone)."""
    return Contrast(f"{metric} of {method} not below {than} by {margin:g}", metric, {method: 1, than: -1}, above=-margin)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Two-sided Student-t interval of the mean of at least two values.

    Values without spread tell the t distribution nothing. Then a sign test decides: where so many equal values would be chance in less than 5%
    of cases (six or more), the interval is their value; with fewer there is none (None).
    """
    n, mean, spread = len(values), statistics.fmean(values), statistics.stdev(values)
    if spread < NO_SPREAD:
        return (mean, mean) if 2 * 0.5**n < 1 - CONFIDENCE else None
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * spread / math.sqrt(n)
    return mean - half, mean + half


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Two-sided exact (Clopper-Pearson) interval of a share of `hits` in `n`."""
    tail = (1 - CONFIDENCE) / 2
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high


def why_unfit(rows: Rows, metric: str, methods: Sequence[str]) -> str:
    """Why the methods' figures cannot be compared; empty if they can."""
    for method in methods:
        if metric not in rows.get(method, {}):
            return f"there is no {metric} of {method}"
        if not all(math.isfinite(value) for value in rows[method][metric]):
            return f"{metric} of {method} is not a finite number under every seed"
    counts = {len(rows[method][metric]) for method in methods}
    if len(counts) > 1:
        return f"the methods have unequal numbers of seeds: {', '.join(map(str, sorted(counts)))}"
    if (n := counts.pop()) < MIN_SEEDS:
        return f"too few seeds: {n}, where {MIN_SEEDS} are needed"
    return ""


def _blank(says: str, metric: str, bound: str) -> dict[str, Any]:
    return {"check": says, "metric": metric, "mean": None, "interval": None, "n": 0, "bound": bound, "passed": False, "note": ""}


def _bound_text(above: float, below: float) -> str:
    if math.isinf(below):
        return f"above {above:g}"
    return f"below {below:g}" if math.isinf(above) else f"between {above:g} and {below:g}"
