"""The paper's claims about its toy experiments, each as a list of checks that must all pass, and the aims of the reproduction.

Since every check of a claim must pass, testing several costs no confidence: the claim is asserted falsely no more often than its weakest check.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping
from typing import Any

from experiments.paper.checks import Check, Contrast, MostSeeds, Rows, higher, not_lower

VERTICAL_MODES = 5
THIN = 0.5  # of its equal share: a mode with fewer samples is poorly covered
EQUAL_PRECISION = 0.05  # loss of precision that "at equal precision" allows; the paper's own pair is .981 and .970
LEVEL_SLACK = 0.05  # how far below the paper's level a pairing row may end
SMALLEST_GAP = 0.05  # gaps of the paper that are smaller are no aim
GAP_SHARE = 0.5  # of the paper's gap
GAP_METRICS = ("precision", "recall", "coverage")
LEVEL_METRICS = ("coverage", "recall")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the paper and what it takes for it to hold.

    Attributes:
        says: the statement in one sentence.
        source: where the paper makes it.
        checks: what must pass.
    """

    says: str
    source: str
    checks: tuple[Check, ...]

    def evaluate(self, rows: Rows) -> dict[str, Any]:
        """Judges the claim by figures of one study.

        Args:
            rows: method -> metric -> one value per seed, in one order of seeds.

        Returns:
            {"holds": bool, "evidence": {"claim", "source", "summary", "checks": [...]}}, JSON-able.
        """
        results = [check.evaluate(rows) for check in self.checks]
        failed = [result for result in results if not result["passed"]]
        summary = f"{len(results) - len(failed)} of {len(results)} checks pass"
        if failed:
            summary += "; not passed: " + "; ".join(f"{result['check']} ({describe(result)})" for result in failed)
        return {"holds": not failed, "evidence": {"claim": self.says, "source": self.source, "summary": summary + ".", "checks": results}}


def describe(result: Mapping[str, Any]) -> str:
    """Mean, interval and note of an evaluated check as short text."""
    parts = []
    if result["mean"] is not None:
        parts.append(f"{result['mean']:+.3f}" if "share" not in result["bound"] else f"{result['mean']:.2f}")
    if result["interval"] is not None:
        parts.append("[{:.3f}, {:.3f}]".format(*result["interval"]))
    return " ".join(parts) + (", " if parts and result["note"] else "") + result["note"]


def _best(metric: str, method: str, others: tuple[str, ...]) -> tuple[Check, ...]:
    return tuple(higher(metric, method, other) for other in others)


def _reaches(method: str) -> MostSeeds:
    return MostSeeds(f"{method} reaches all {VERTICAL_MODES} modes under most seeds", "modes", method, VERTICAL_MODES, reached=True)


def _misses(method: str) -> MostSeeds:
    return MostSeeds(f"{method} leaves one of {VERTICAL_MODES} modes uncovered under most seeds", "modes", method, VERTICAL_MODES, reached=False)


def _serves(method: str) -> MostSeeds:
    return MostSeeds(f"{method} gives every mode at least {THIN:g} of its share under most seeds", "thinnest mode", method, THIN, reached=True)


def _starves(method: str) -> MostSeeds:
    return MostSeeds(f"{method} gives some mode less than {THIN:g} of its share under most seeds", "thinnest mode", method, THIN, reached=False)


CLAIMS = {
    "C1": Claim(
        "Pairing raises coverage and recall over GAN and over GAN+R1; with R1 it is the best of the four.",
        "Table 1, vertical Gaussians",
        (
            *(higher(metric, "GAN+Pairing", other) for metric in LEVEL_METRICS for other in ("GAN", "GAN+R1")),
            *(check for metric in LEVEL_METRICS for check in _best(metric, "GAN+Pairing+R1", ("GAN", "GAN+R1", "GAN+Pairing"))),
        ),
    ),
    "C1b": Claim(
        "GAN and GAN+Pairing leave a mode uncovered, while R1 reaches all modes with and without pairing.",
        "Figure 1, vertical Gaussians",
        (_misses("GAN"), _misses("GAN+Pairing"), _reaches("GAN+R1"), _reaches("GAN+Pairing+R1")),
    ),
    "C1b-shares": Claim(
        "The same by mass, since one stray sample captures a mode: GAN and GAN+Pairing cover a mode poorly, with R1 all modes get their share.",
        "Figure 1, vertical Gaussians",
        (_starves("GAN"), _starves("GAN+Pairing"), _serves("GAN+R1"), _serves("GAN+Pairing+R1")),
    ),
    "C2": Claim(
        "R1 alone raises recall but not coverage, where 'not' means by less than half of pairing's gain (the paper's own are .036 and .515); "
        "pairing raises coverage over GAN and GAN+R1 at equal precision.",
        "Table 2, ring",
        (
            higher("recall", "GAN+R1", "GAN"),
            Contrast(
                "half of pairing's gain in coverage over GAN above R1's gain",
                "coverage",
                {"GAN+Pairing": 0.5, "GAN+R1": -1, "GAN": 0.5},
                above=0,
            ),
            higher("coverage", "GAN+Pairing", "GAN"),
            higher("coverage", "GAN+Pairing", "GAN+R1"),
            not_lower("precision", "GAN+Pairing", "GAN", EQUAL_PRECISION),
        ),
    ),
    "C3": Claim(
        "GAN+Pairing+R1 has the best coverage and precision among the paper's rows; mode seeking loses precision against GAN+R1.",
        "Appendix A, grid",
        (
            *_best("coverage", "GAN+Pairing+R1", ("GAN", "GAN+R1", "MS-GAN+R1")),
            *_best("precision", "GAN+Pairing+R1", ("GAN", "GAN+R1", "MS-GAN+R1")),
            higher("precision", "GAN+R1", "MS-GAN+R1"),
        ),
    ),
}


def evaluate_aims(rows: Rows, paper: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Whether means come up to the paper's: levels of the pairing rows, and gaps between methods.

    Args:
        rows: method -> metric -> one value per seed.
        paper: method -> metric -> the paper's figure.

    Returns:
        One {"aim", "metric", "ours", "paper", "bound", "met"} per aim; `ours` is None, and the aim missed, where we have no finite figure.
    """
    levels = [
        _aim(f"{metric} of {method} at least the paper's less {LEVEL_SLACK:g}", metric, _mean(rows, method, metric), figures[metric], -LEVEL_SLACK)
        for method, figures in paper.items()
        for metric in LEVEL_METRICS
        if "Pairing" in method
    ]
    gaps = []
    for metric, pair in itertools.product(GAP_METRICS, itertools.combinations(paper, 2)):
        better, worse = sorted(pair, key=lambda method: -paper[method][metric])
        gap = round(paper[better][metric] - paper[worse][metric], 6)  # .05 between decimals is .05, whatever binary fractions make of it
        if gap >= SMALLEST_GAP:
            ours = _mean(rows, better, metric) - _mean(rows, worse, metric)
            gaps.append(_aim(f"{metric} of {better} above {worse} by at least half the paper's gap", metric, ours, gap, (GAP_SHARE - 1) * gap))
    return levels + gaps


def _aim(says: str, metric: str, ours: float, paper: float, slack: float) -> dict[str, Any]:
    bound = round(paper + slack, 6)
    found = ours if math.isfinite(ours) else None
    return {"aim": says, "metric": metric, "ours": found, "paper": paper, "bound": bound, "met": found is not None and round(found, 6) >= bound}


def _mean(rows: Rows, method: str, metric: str) -> float:
    values = rows.get(method, {}).get(metric, [])
    return statistics.fmean(values) if values else math.nan
