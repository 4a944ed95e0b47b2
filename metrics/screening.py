"""Bounds on the squared distances between many points, from one fast matrix product, that no rounding can break.

For centred rows a and b the squared distance is |a|^2 + |b|^2 - 2 a.b. The product is computed from rounded rows a' and b', in sums that round
as well. With e and f the lengths that rounding took from a and b, Cauchy's inequality and 2 x y <= x^2 / t + t y^2 give, for any t > 0,

    2 |a.b - a'.b'| <= 2 e |b| + 2 f |a| + 2 e f <= [(1 + 1/t) e^2 + t |a|^2] + [(1 + 1/t) f^2 + t |b|^2]

and the sums add at most g (|a'|^2 + |b'|^2), where g = n u / (1 - n u) for n terms and roundoff u, whatever their order (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). So the error is bounded by one slack of each point, added, and comparing a bound with the
radius of a ball settles all pairs but those near the rim. A finished product that is itself rounded (bfloat16) adds a share of itself.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from dnnlib import UserError
from metrics.points import PointSet

KEPT_BYTES = 1 << 29  # of rounded rows; a larger set is rounded a block at a time, each time it is needed
PASS_ENTRIES = 1 << 20  # feature values that are measured at once
SPARE_TERMS = 32  # of the bound g: the additions around the product, with room
VANISHING = 2.0**-120  # what a float32 product of numbers of the order of 1 may lose where it underflows
FLOAT32_DIM, LOW_PRECISION_DIM = 32, 256  # dimensions from which a faster product outweighs its wider bounds
MAX_TERMS = 1 << 20  # beyond, the bound g is of no use but in float64


@dataclasses.dataclass(frozen=True)
class Precision:
    """The arithmetic of a product.

    Attributes:
        factors: type of the rounded rows.
        sums: type of the bounds.
        roundoff: largest relative error of an addition within the product.
        result: largest relative error of rounding the finished product.
    """

    factors: torch.dtype
    sums: torch.dtype
    roundoff: float
    result: float = 0.0


# Processors may round bfloat16 sums of two products at once, so twice float32's roundoff is allowed for.
LADDER = {
    "bfloat16": Precision(torch.bfloat16, torch.float32, 2.0**-23, 1.02 * 2.0**-8),
    "float32": Precision(torch.float32, torch.float32, 2.0**-24),
    "float64": Precision(torch.float64, torch.float64, 2.0**-53),
}


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies matrices faster in bfloat16 than in float32. GPUs, where float32 is fast enough, do not count.

    AMX makes it so, and so does AVX-512 on AMD's. Intel's processors have both, but virtual machines may hide AMX, and what is left of bfloat16
    there is slower than float32 (84 against 150 GFLOP/s on one core of a Xeon, docs/benchmarks.md).
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    by_intel = str(capabilities.get("cpu_name", "")).startswith("Intel")
    return bool(capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and not by_intel))


def choose_precision(device: torch.device, dim: int, name: str | None = None) -> str:
    """The precision to screen with first: `name`, or the fastest for products of `dim` terms.

    Raises:
        UserError: no known precision.
    """
    if name is not None and name not in LADDER:
        raise UserError(f"the screening precision is {name!r}; known are {', '.join(LADDER)}")
    if dim > MAX_TERMS:
        return "float64"
    if name is not None:
        return name
    if dim >= LOW_PRECISION_DIM and has_fast_bfloat16(device):
        return "bfloat16"
    return "float32" if dim >= FLOAT32_DIM or device.type == "cuda" else "float64"


def next_precision(name: str) -> str | None:
    """The next finer precision, or None after float64."""
    names = list(LADDER)
    return names[names.index(name) + 1] if name != names[-1] else None


class Screen:
    """A point set whose distances to others can be bounded.

    Args:
        points: around the centre that both sets of a product share.
        precision: a key of LADDER.

    Attributes:
        norms: squared lengths of the centred rows, float64 [N].
        firm: slack of each point but for the rounding of finished products, float64 [N].
        loose: slack with it, where nothing is known of the product, float64 [N].
    """

    def __init__(self, points: PointSet, precision: str):
        self.points = points
        self.name = precision
        self.precision = LADDER[precision]
        self.norms, lost = self._measure()
        terms = points.features.shape[1] + SPARE_TERMS
        growth = terms * self.precision.roundoff / (1 - terms * self.precision.roundoff)
        total = float(self.norms.sum())
        share = max(math.sqrt(float(lost.sum()) / total), 2.0**-53) if total > 0 else 1.0
        # Twice the growth leaves room for |a'| over |a| and for the rounding of the bounds themselves.
        self.firm = lost * (1 + 1 / share) + self.norms * (share + 2 * growth) + VANISHING * terms
        self.loose = self.firm + self.precision.result * self.norms
        self._base = (self.norms - self.loose).to(self.precision.sums)

    def _measure(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared lengths of the centred rows, and of what rounding takes from them, float64 [N] each; keeps the rounded rows if they are small."""
        points, factors = self.points, self.precision.factors
        size = points.features.numel() * torch.finfo(factors).bits // 8
        self._kept = torch.empty(points.features.shape, dtype=factors, device=points.features.device) if size <= KEPT_BYTES else None
        norms, lost = [], []
        for first, last in points.blocks(max(PASS_ENTRIES // points.features.shape[1], 1)):
            rows = points.centred(first, last)
            rounded = rows.to(factors)
            if self._kept is not None:
                self._kept[first:last] = rounded
            norms.append(rows.square().sum(dim=1))
            lost.append(rows.sub_(rounded).square_().sum(dim=1))
        norms = torch.cat(norms)
        further = factor_roundoff(points.features.device, factors)
        return norms, (torch.cat(lost).sqrt() + norms.sqrt() * further).square()

    def _rounded(self, first: int, last: int) -> torch.Tensor:
        if self._kept is not None:
            return self._kept[first:last]
        return self.points.centred(first, last).to(self.precision.factors)

    def lower_bounds(self, rows: tuple[int, int], other: Screen, columns: tuple[int, int]) -> torch.Tensor:
        """Lower bounds [n, m] on the squared distances of rows first..last-1 of this set and of the other, as (first, last) each."""
        product = self._rounded(*rows) @ other._rounded(*columns).t()
        bounds = torch.add(self._base[slice(*rows), None], product.to(self.precision.sums), alpha=-2)
        return bounds.add_(other._base[slice(*columns)])

    def interval(self, rows: torch.Tensor, other: Screen, columns: torch.Tensor, bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(lowest, highest) the exact squared distances [P] of some pairs can be, in float64, from their `lower_bounds`."""
        norms = self.norms[rows] + other.norms[columns]
        about = bounds.to(torch.float64) + self.loose[rows] + other.loose[columns]
        error = self.firm[rows] + other.firm[columns] + self.precision.result * (norms - about).abs()
        return (about - error).clamp_(min=0), about + error


def factor_roundoff(device: torch.device, factors: torch.dtype) -> float:
    """Largest relative error of a factor by the time it is multiplied, beyond that of its type.

    PyTorch may be told to multiply float32 matrices in TF32 or bfloat16, on a GPU for one call of another library as much as for this one.
    """
    if factors != torch.float32:
        return 2.0**-53
    if device.type == "cuda":
        return 2.0**-10
    return {"tf32": 2.0**-10, "bf16": 2.0**-8}.get(torch.backends.mkldnn.matmul.fp32_precision, 2.0**-53)
