"""What a folder of results says: which experiments are there, their tables, verdicts and missed aims."""

from __future__ import annotations

import pathlib
from typing import Any

from dnnlib import UserError
from experiments.paper.claims import CLAIMS
from experiments.paper.results import read_result, result_path, rows_of
from experiments.paper.tables import aims_table, aligned, claims_text, count_seeds, differences_table, main_tables
from experiments.paper.toy_experiments import EXPERIMENTS

SUMMARY_FILE = "summary.md"


def find_results(out: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Experiment -> result for those that `out` holds, in the order of the experiments; empty if there is no such folder.

    Raises:
        UserError: `out` is a file, or a result is damaged.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    return {name: read_result(path) for name in EXPERIMENTS if (path := result_path(out, name)).exists()}


def overview(out: pathlib.Path) -> str:
    """One line per experiment: its name, what `out` holds of it, and its title."""
    found = find_results(out)
    held = {name: count_seeds(result) for name, result in found.items()}
    width = max(map(len, EXPERIMENTS))
    return "\n".join(f"{name:{width}}  {held.get(name, 'not run'):>8}  {experiment.title}" for name, experiment in EXPERIMENTS.items())


def report(out: pathlib.Path) -> str:
    """All tables and verdicts of a folder as Markdown, verdicts first, and what is missing.

    Raises:
        UserError: `out` is no folder, or a result is damaged.
    """
    if not out.is_dir():
        raise UserError(f"--out={out} is no folder; run `python reproduce.py run all --out={out}` first, or give the folder of another run")
    found = find_results(out)
    missing = [name for name in EXPERIMENTS if name not in found]
    sections = ["# The toy experiments: ours beside the paper's", "## Verdicts", _verdicts(found)]
    for name, result in found.items():
        experiment = EXPERIMENTS[name]
        sections += [f"## {experiment.title}", *main_tables(experiment, result)]
        sections += [claims_text(result)] if result["claims"] else []
        sections += [f"Aims: {aims_table(result['aims'])}"] if result["aims"] else []
        sections += [differences_table(experiment, rows_of(result))] if experiment.comparisons else []
    sections.append("Missing: " + ", ".join(missing) + "." if missing else "Nothing is missing.")
    return "\n\n".join(sections) + "\n"


def _verdicts(found: dict[str, dict[str, Any]]) -> str:
    """A line for every claim on which a verdict is expected, and the aims of each table."""
    lines = [["claim", "experiment", "seeds", "verdict", "checks passed"]]
    for name, experiment in EXPERIMENTS.items():
        result = found.get(name)
        seeds = str(len(result["protocol"]["seeds"])) if result else "0"
        for claim in experiment.claims:
            verdict = result["claims"].get(claim) if result else None
            if verdict is None:
                lines.append([claim, name, seeds, "not judged", f"0 of {len(CLAIMS[claim].checks)}"])
                continue
            checks = verdict["evidence"]["checks"]
            passed = f"{sum(check['passed'] for check in checks)} of {len(checks)}"
            lines.append([claim, name, seeds, "holds" if verdict["holds"] else "does not hold", passed])
        if experiment.aims and result:
            met = sum(aim["met"] for aim in result["aims"])
            lines.append(["aims", name, seeds, "all met" if met == len(result["aims"]) else "some missed", f"{met} of {len(result['aims'])}"])
    return aligned(lines)
