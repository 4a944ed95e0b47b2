"""Results as Markdown whose columns line up, for pages and for the screen: ours beside the paper's, verdicts with their evidence, all seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.paper.checks import CONFIDENCE, Rows, higher
from experiments.paper.claims import describe
from experiments.paper.results import rows_of
from experiments.paper.toy_experiments import PRDC, Experiment
from experiments.toy.measures import MEASURES

NONE = "–"
DECIMALS = {"modes": 1, "collision": 5}  # of figures that are not shown with three
COMPARED = ("precision", "recall", "coverage", "reverse KL", "folded")


def page(experiment: Experiment, result: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The whole page of an experiment.

    Args:
        experiment: what was run.
        result: its result (experiments.paper.results).
        pictures: files beside the page; those that are PNGs are shown.

    Returns:
        Markdown.
    """
    shown = [f"![{experiment.title}]({name})" for name in pictures if name.endswith(".png")]
    parts = [
        f"# {experiment.title}",
        _introduction(result),
        *main_tables(experiment, result),
        _legend(experiment),
        *shown,
        *(["## Claims of the paper", claims_text(result)] if result["claims"] else []),
        *(["## Aims", aims_table(result["aims"])] if result["aims"] else []),
        *(["## Differences, seed by seed", differences_table(experiment, rows_of(result))] if experiment.comparisons else []),
        "## All seeds",
        seeds_table(result),
        "## Protocol",
        _protocol(result["protocol"]),
    ]
    return "\n\n".join(parts) + "\n"


def main_tables(experiment: Experiment, result: Mapping[str, Any]) -> list[str]:
    """Fidelity and diversity, and what else the experiment shows, as two tables, so that each fits a page."""
    groups = [metric for metric in experiment.columns if metric in PRDC], [metric for metric in experiment.columns if metric not in PRDC]
    return [main_table(result, columns) for columns in groups if columns]


def main_table(result: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Our mean ± standard deviation of each column, beside the published figure where there is one."""
    published = {metric for figures in result["paper"].values() for metric in figures}
    header = ["method"]
    for metric in columns:
        header += [metric, "published"] if metric in published else [metric]
    lines = []
    for method, figures in result["rows"].items():
        line = [method]
        for metric in columns:
            line.append(_mean_and_std(metric, figures.get(metric)))
            if metric in published:
                line.append(_number(metric, result["paper"].get(method, {}).get(metric)))
        lines.append(line)
    return aligned([header, *lines])


def claims_text(result: Mapping[str, Any]) -> str:
    """Each claim with its verdict, and a table of its checks."""
    texts = []
    for name, claim in result["claims"].items():
        evidence = claim["evidence"]
        verdict = f"**{name} {'holds' if claim['holds'] else 'does not hold'}.** {evidence['claim']} ({evidence['source']}) {evidence['summary']}"
        lines = [["check", "mean", f"{CONFIDENCE:.0%} interval", "bound", "seeds", "passed", "note"]]
        for check in evidence["checks"]:
            mean, interval = _number("", check["mean"]), _interval(check["interval"])
            lines.append([check["check"], mean, interval, check["bound"], str(check["n"]), _yes(check["passed"]), check["note"]])
        texts += [verdict, aligned(lines)]
    return "\n\n".join(texts)


def aims_table(aims: Sequence[Mapping[str, Any]]) -> str:
    """Aims that are missed, then those that are met."""
    missed = [aim for aim in aims if not aim["met"]]
    lines = [["aim", "ours", "paper", "bound", "met"]]
    for aim in [*missed, *(aim for aim in aims if aim["met"])]:
        lines.append([aim["aim"], *(_number(aim["metric"], aim[key]) for key in ("ours", "paper", "bound")), _yes(aim["met"])])
    return f"{len(aims) - len(missed)} of {len(aims)} are met.\n\n{aligned(lines)}"


def differences_table(experiment: Experiment, rows: Rows) -> str:
    """Mean differences of the experiment's pairs of methods with their intervals, in those of its columns that are compared."""
    metrics = [metric for metric in COMPARED if metric in experiment.columns]
    lines = [["difference", *metrics]]
    for method, other in experiment.comparisons:
        lines.append([f"{method} less {other}", *(describe(higher(metric, method, other).evaluate(rows)) for metric in metrics)])
    return aligned(lines)


def seeds_table(result: Mapping[str, Any]) -> str:
    """Every figure of every seed."""
    metrics = list(next(iter(result["rows"].values())))
    lines = [["method", "seed", *metrics]]
    for method, figures in result["rows"].items():
        for index, seed in enumerate(result["protocol"]["seeds"]):
            lines.append([method, str(seed), *(_number(metric, figures[metric]["seeds"][index]) for metric in metrics)])
    return aligned(lines)


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of text, the first of them headings, as a Markdown table with columns of even width; all but the first aligned right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows)]
    header, *body = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([header, rule, *body])


def count_seeds(result: Mapping[str, Any]) -> str:
    """Number of seeds in words: "1 seed", "10 seeds"."""
    number = len(result["protocol"]["seeds"])
    return "1 seed" if number == 1 else f"{number} seeds"


def _introduction(result: Mapping[str, Any]) -> str:
    protocol = result["protocol"]
    text = (
        f"Mean ± standard deviation over {count_seeds(result)}; k = {protocol['k']}, {protocol['real']:,} real and "
        f"{protocol['generated']:,} generated samples, so a perfect generator has a coverage of about {1 - 0.5 ** protocol['k']:.3f}."
    )
    return text + (f" Published: {protocol['reference']}." if protocol["reference"] else "")


def _legend(experiment: Experiment) -> str:
    return "\n".join(f"- {metric}: {MEASURES[metric]}" for metric in experiment.columns)


def _protocol(protocol: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in protocol["settings"].items())
    made_with = ", ".join(f"{name} {value or 'unknown'}" for name, value in protocol["versions"].items())
    return f"    {protocol['command']}\n\nStudy `{protocol['study']}`, the same settings for all rows: {settings}. Made with {made_with}."


def _mean_and_std(metric: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["mean"] is None:
        return NONE
    mean = _number(metric, figure["mean"])
    return mean if figure["std"] is None else f"{mean} ± {_number(metric, figure['std'])}"


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.{DECIMALS.get(metric, 3)}f}"


def _interval(interval: Sequence[float] | None) -> str:
    return NONE if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _yes(passed: bool) -> str:
    return "yes" if passed else "no"
