"""Finds the nearest neighbours of every point, and the pairs of points nearer than given limits, among all pairs in bounded memory.

Cheap bounds (`metrics.screening`) rule out nearly all pairs; the distances of the pairs that are left are computed exactly
(`metrics.points.exact_squared`), so that what is found is what all exact distances would say. Where a block of pairs is too tight for the
bounds to tell them apart, that block and all later ones are bounded in the next finer precision.

`metrics.kd_tree` does the same faster in few dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from metrics.points import PointSet, exact_squared, places
from metrics.screening import Screen, choose_precision, next_precision

SHORTLIST = 1 << 20  # candidates kept, or twice as many as there must be, before they are thinned out
FLOOD = 1 / 16  # share of a block's pairs that may stay undecided


class Shortlist:
    """For every point, the others that may be among its k nearest, each with the interval its squared distance lies in.

    Attributes:
        limits: upper bounds on the squared distances to the k-th nearest, float64 [N]; minus infinity where nothing nearer can be found.
    """

    def __init__(self, points: PointSet, k: int):
        self.points, self.k = points, k
        device = points.features.device
        self.limits = torch.full((len(points),), torch.inf, dtype=torch.float64, device=device)
        empty = torch.empty(0, dtype=torch.int64, device=device)
        self._parts = [(empty, empty, empty.double(), empty.double())]
        self._size, self._room = 0, max(SHORTLIST, 4 * k * len(points))

    def add(self, rows: torch.Tensor, partners: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        """Takes candidates [P]: row, neighbour, and the ends of the interval."""
        self._parts.append((rows, partners, low, high))
        self._size += len(rows)
        if self._size > self._room:
            self._thin_out()
            if self._size > self._room / 2:
                self._settle()

    def nearest(self) -> torch.Tensor:
        """Exact squared distances [N, k] to the k nearest, in rising order."""
        self._settle()
        _, _, exact, _ = self._parts[0]
        return exact.reshape(len(self.points), self.k)

    def _ranked(self, by: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """All candidates, grouped by row, in rising order of one of their columns; and each one's place in its row."""
        columns = [torch.cat(parts) for parts in zip(*self._parts)]
        order = columns[by].argsort(stable=True)
        order = order[columns[0][order].argsort(stable=True)]
        columns = [column[order] for column in columns]
        return columns, places(columns[0], len(self.points))

    def _keep(self, columns: list[torch.Tensor], mask: torch.Tensor) -> None:
        self._parts = [tuple(column[mask] for column in columns)]
        self._size = len(self._parts[0][0])

    def _lower(self, rows: torch.Tensor, limits: torch.Tensor) -> None:
        # Nothing is nearer than a copy of the point.
        self.limits[rows] = torch.minimum(self.limits[rows], torch.where(limits > 0, limits, -torch.inf))

    def _thin_out(self) -> None:
        """Lowers the limits and drops the candidates beyond them."""
        columns, place = self._ranked(by=3)
        rows, _, low, high = columns
        last = place == self.k - 1
        self._lower(rows[last], high[last])
        self._keep(columns, (place < self.k) | (low < self.limits[rows]))

    def _settle(self) -> None:
        """Computes the distances that the bounds leave open, and keeps the k nearest of each row."""
        self._thin_out()
        columns, place = self._ranked(by=3)
        rows, _, low, high = columns
        nearest = place < self.k
        self._compute(columns, nearest)
        # Exact values of k neighbours are a lower limit than bounds on them.
        worst = torch.full_like(self.limits, -torch.inf).scatter_reduce_(0, rows[nearest], high[nearest], "amax")
        full = torch.bincount(rows[nearest], minlength=len(worst)) == self.k
        self._lower(full.nonzero()[:, 0], worst[full])
        self._compute(columns, ~nearest & (low < self.limits[rows]))
        self._keep(columns, nearest | (low == high))
        columns, place = self._ranked(by=3)
        self._keep(columns, place < self.k)
        last = place == self.k - 1
        self._lower(columns[0][last], columns[3][last])

    def _compute(self, columns: list[torch.Tensor], mask: torch.Tensor) -> None:
        """Closes the intervals of the masked candidates, in place."""
        rows, partners, low, high = columns
        chosen = (mask & (low < high)).nonzero()[:, 0]
        # A pair of mutual neighbours stands in the list twice.
        first, second = torch.minimum(rows[chosen], partners[chosen]), torch.maximum(rows[chosen], partners[chosen])
        pairs, back = torch.unique(first * len(self.points) + second, return_inverse=True)
        exact = exact_squared(self.points, pairs // len(self.points), self.points, pairs % len(self.points))[back]
        low[chosen] = high[chosen] = exact


def k_nearest(points: PointSet, k: int, precision: str | None = None) -> torch.Tensor:
    """Exact squared distances [N, k] from every point to its k nearest others in rising order, in float64 and units of the set's scale.

    Each pair of blocks is bounded once and serves both of its sides.
    """
    points = points.recentred()
    shortlist = Shortlist(points, k)
    screen = Screen(points, choose_precision(points.features.device, points.features.shape[1], precision))
    blocks = points.blocks()
    # A point's own block gives every point a limit before blocks are crossed.
    pairs = [(own, own) for own in blocks] + [(own, other) for place, own in enumerate(blocks) for other in blocks[place + 1 :]]
    for own, other in pairs:
        while not _shortlist_block(shortlist, screen, own, other):
            screen = Screen(points, next_precision(screen.name))
    return shortlist.nearest()


def _shortlist_block(shortlist: Shortlist, screen: Screen, own: tuple[int, int], other: tuple[int, int]) -> bool:
    """Adds the candidates of a pair of blocks, to both of its sides; False where a finer precision should."""
    bounds = screen.lower_bounds(own, screen, other)
    if own == other:
        bounds.fill_diagonal_(torch.inf)
        sides = [(bounds, own, other)]
    else:
        sides = [(bounds, own, other), (bounds.t(), other, own)]
    found = [_candidates(shortlist, screen, *side) for side in sides]
    most = max(FLOOD * bounds.numel(), 4 * shortlist.k * sum(bounds.shape))
    if next_precision(screen.name) and any(len(rows) > most for rows, *_ in found):
        return False
    for candidates in found:
        shortlist.add(*candidates)
    return True


def _candidates(shortlist: Shortlist, screen: Screen, bounds: torch.Tensor, own: tuple[int, int], other: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """(rows, partners, low, high) of the pairs of a block that may be among the nearest of their rows."""
    k = shortlist.k
    limits = shortlist.limits[slice(*own)]
    mask = bounds < rounded_up(limits, bounds.dtype).unsqueeze(1)
    if int(mask.count_nonzero()) > 4 * k * len(bounds) and bounds.shape[1] > k:
        crowded = (mask.sum(dim=1) > 4 * k).nonzero()[:, 0]
        least, partners = bounds[crowded].topk(k, dim=1, largest=False, sorted=False)
        rows = crowded.repeat_interleave(k)
        _, high = screen.interval(rows + own[0], screen, partners.flatten() + other[0], least.flatten())
        limits[crowded] = torch.minimum(limits[crowded], high.reshape(-1, k).amax(dim=1))
        mask = bounds < rounded_up(limits, bounds.dtype).unsqueeze(1)
    rows, partners = positions(mask)
    bounds = bounds[rows, partners]
    rows, partners = rows + own[0], partners + other[0]
    low, high = screen.interval(rows, screen, partners, bounds)
    near = low < shortlist.limits[rows]
    return rows[near], partners[near], low[near], high[near]


def near_pairs(
    a: PointSet, a_bounds: torch.Tensor, b: PointSet, b_bounds: torch.Tensor, precision: str | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields (rows of a, rows of b, values) of all pairs whose rounded squared distance is below a bound of either point, and of some others.

    A value [P] is below a bound exactly if the rounded squared distance is. Every pair of points appears once at most.

    Args:
        a, b: sets of one `make_point_sets`.
        a_bounds: [S, N] bounds of the points of `a`, of the precision that distances are rounded to, in units of the scale.
        b_bounds: [T, M] of the points of `b`.
        precision: of the first screening; None chooses.
    """
    name = choose_precision(a.features.device, a.features.shape[1], precision)
    screens = Screen(a, name), Screen(b, name)
    limits = [torch.where(bounds.amax(dim=0) > 0, bounds.amax(dim=0).to(torch.float64), -torch.inf) for bounds in (a_bounds, b_bounds)]
    for own in a.blocks():
        for other in b.blocks():
            while (found := _near_in_block(screens, own, other, limits, (a_bounds, b_bounds))) is None:
                name = next_precision(name)
                screens = Screen(a, name), Screen(b, name)
            yield found


def _near_in_block(screens, own, other, limits, bounds) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The pairs of one block; None where a finer precision should find them."""
    (a, b), (a_bounds, b_bounds) = screens, bounds
    low = a.lower_bounds(own, b, other)
    mask = low < rounded_up(limits[0][slice(*own)], low.dtype).unsqueeze(1)
    mask |= low < rounded_up(limits[1][slice(*other)], low.dtype)
    rows, columns = positions(mask)
    low = low[rows, columns]
    rows, columns = rows + own[0], columns + other[0]
    low, high = a.interval(rows, b, columns, low)
    open_pairs = (_undecided(low, high, a_bounds[:, rows]) | _undecided(low, high, b_bounds[:, columns])).nonzero()[:, 0]
    if next_precision(a.name) and len(open_pairs) > FLOOD * mask.numel():
        return None
    exact = exact_squared(a.points, rows[open_pairs], b.points, columns[open_pairs])
    high[open_pairs] = exact.to(a.points.dtype).to(torch.float64)
    return rows, columns, high


def _undecided(low: torch.Tensor, high: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Whether rounding a number of the interval [P] may bring it to either side of any of the bounds [S, P]."""
    # What is at most the next number below a bound is not rounded up to it; what is at least the bound is not rounded down from it.
    below = torch.nextafter(bounds, torch.zeros_like(bounds))
    return ((high > below) & (low < bounds)).any(dim=0)


def rounded_up(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values` in another type, none of them smaller than before."""
    rounded = values.to(dtype)
    return torch.where(rounded < values, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)), rounded)


def positions(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns [P] of the true entries of a matrix of few."""
    if mask.stride(0) < mask.stride(1):
        return positions(mask.t())[::-1]
    flat = mask.reshape(-1)
    if flat.numel() % 8:
        flat = flat.nonzero()[:, 0]
    else:
        # Eight entries at once: nearly all of the words are empty.
        words = flat.view(torch.int64).nonzero()[:, 0]
        bits = flat.view(-1, 8)[words].nonzero()
        flat = words[bits[:, 0]] * 8 + bits[:, 1]
    return flat // mask.shape[1], flat % mask.shape[1]
