"""The paper's claims about images (C4, C4b, C5, C6), judged over seeds by the checks of `experiments.paper.checks`.

A claim holds if every check passes, is contradicted if the whole interval of one lies on the wrong side, and is undecided otherwise: with fewer
than three seeds always.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.paper.checks import Check, Contrast, Rows, higher
from experiments.paper.claims import describe

SAME = 0.02  # shares that differ by less are "equal", "the same within noise"; the paper's own pairs differ by .002 to .004


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        id: "C4" and so on.
        statement: the claim in one sentence.
        holds: True: every check passes; False: one is contradicted; None: undecided.
        text: figures with their confidence intervals.
    """

    id: str
    statement: str
    holds: bool | None
    text: str


@dataclasses.dataclass(frozen=True)
class ImageClaim:
    """A statement of the paper.

    Attributes:
        statement: in one sentence.
        methods: whose runs are needed.
        checks: makes the checks for stages of training (kimg); most claims look at the end alone.
    """

    statement: str
    methods: tuple[str, ...]
    checks: Callable[[Sequence[int]], tuple[Check, ...]]


@dataclasses.dataclass(frozen=True)
class Supporting(Contrast):
    """A contrast that a claim needs to hold, one of many: if it alone comes out the wrong way, that may be chance and contradicts nothing."""


def at_stage(column: str, kimg: int) -> str:
    """Name of a column's figure at a stage of the training; without a stage it is the figure at the row's end."""
    return f"{column} at {kimg} kimg"


def over_stages(column: str) -> str:
    """Name of a column's mean over all stages of the training."""
    return f"{column}, mean over training,"


def lower(metric: str, method: str, than: str) -> Contrast:
    """The figure of one method is below another's."""
    return Contrast(f"{metric} of {method} below {than}", metric, {method: 1, than: -1}, below=0)


def same(metric: str, method: str, other: str) -> Contrast:
    """The figures of two methods differ by less than SAME; the whole interval says so."""
    return Contrast(f"{metric} of {method} within {SAME:g} of {other}", metric, {method: 1, other: -1}, above=-SAME, below=SAME)


def _c4(stages: Sequence[int]) -> tuple[Check, ...]:
    pair = "Pairing-GAN", "StyleGAN2"
    return higher("coverage", *pair), same("precision", *pair), same("recall", *pair), lower("FID", *pair)


def _c4b(stages: Sequence[int]) -> tuple[Check, ...]:
    pair = "MS-GAN(+R1)", "StyleGAN2"
    return lower("recall", *pair), lower("coverage", *pair)


def _c5(stages: Sequence[int]) -> tuple[Check, ...]:
    pair = "Pairing-GAN-ADA", "StyleGAN2-ADA"
    every = (higher(at_stage("precision", kimg), *pair) for kimg in stages)
    single = (Supporting(**vars(check)) for check in every)
    return same("recall", *pair), same("coverage", *pair), higher(over_stages("precision"), *pair), *single


def _c6(stages: Sequence[int]) -> tuple[Check, ...]:
    low, middle, high = "Pairing-GAN(.01)", "Pairing-GAN", "Pairing-GAN(.10)"
    return higher("coverage", middle, low), higher("coverage", high, middle), lower("precision", high, middle)


CLAIMS: dict[str, ImageClaim] = {
    "C4": ImageClaim(
        f"Without augmentation pairing raises coverage at equal precision and recall (within {SAME:g}) and lowers FID.",
        ("StyleGAN2", "Pairing-GAN"),
        _c4,
    ),
    "C4b": ImageClaim("Mode seeking loses recall and coverage.", ("StyleGAN2", "MS-GAN(+R1)"), _c4b),
    "C5": ImageClaim(
        f"With ADA recall and coverage are the same (within {SAME:g}), and precision is higher with pairing at every stage of training.",
        ("StyleGAN2-ADA", "Pairing-GAN-ADA"),
        _c5,
    ),
    "C6": ImageClaim("Coverage grows with lambda; precision falls past 0.05.", ("Pairing-GAN(.01)", "Pairing-GAN", "Pairing-GAN(.10)"), _c6),
}


def judge(name: str, rows: Rows, stages: Sequence[int] = ()) -> Verdict:
    """The verdict on a claim.

    Args:
        name: of the claim.
        rows: method -> column, or column at a stage (`at_stage`) -> one value per seed, in one order of seeds.
        stages: kimg at which all of the claim's methods were measured.

    Returns:
        Undecided where figures are missing or fewer than three seeds are there. Stages decide for a claim all together, and against it by
        their mean.
    """
    claim = CLAIMS[name]
    checks, rows = claim.checks(stages), _with_means(rows, stages)
    results = [check.evaluate(rows) for check in checks]
    marks = [_outcome(result, check) for result, check in zip(results, checks)]
    holds = False if False in marks else None if None in marks else True
    words = {True: "passes", False: "is contradicted", None: "is open"}
    text = "; ".join(f"{result['check']} {words[mark]}: {describe(result) or 'no figures'}" for result, mark in zip(results, marks))
    return Verdict(name, claim.statement, holds, f"{text}.")


def _with_means(rows: Rows, stages: Sequence[int]) -> Rows:
    """The same figures with the mean over all stages, seed by seed, of every column that has them."""
    more: dict[str, dict[str, Sequence[float]]] = {}
    for method, own in rows.items():
        more[method] = dict(own)
        for column in own:
            found = [own[at_stage(column, kimg)] for kimg in stages if at_stage(column, kimg) in own]
            if found and len(found) == len(stages):
                more[method][over_stages(column)] = [statistics.fmean(values) for values in zip(*found)]
    return more


def _outcome(result: Mapping[str, Any], check: Check) -> bool | None:
    """True: passed; False: its whole interval lies on the wrong side; None: open."""
    if result["passed"]:
        return True
    if result["interval"] is None:
        return None
    if isinstance(check, Supporting):
        return None
    low, high = result["interval"]
    return False if high <= check.above or low >= check.below else None
