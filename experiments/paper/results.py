"""The result of one experiment as DIR/NAME.json: figures of every seed, published ones, verdicts, aims and the protocol. No running, no layout."""

from __future__ import annotations

import json
import math
import pathlib
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dnnlib import UserError, atomic_write_text
from dnnlib.json_files import read_json
from experiments.paper.checks import Rows
from experiments.paper.claims import CLAIMS, evaluate_aims
from experiments.paper.toy_experiments import Experiment

ROOT = pathlib.Path(__file__).parent.parent.parent
SECTIONS = ("rows", "paper", "claims", "aims", "protocol")
ROUNDING = 1e-9


def result_path(out: pathlib.Path, name: str) -> pathlib.Path:
    """Where the result of an experiment lies."""
    return out / f"{name}.json"


def build_result(experiment: Experiment, rows: Rows, protocol: dict[str, Any]) -> dict[str, Any]:
    """Everything that the result file of an experiment says.

    Args:
        experiment: what was run.
        rows: method -> metric -> one value per seed, in the order of protocol["seeds"].
        protocol: how the figures were made, JSON-able.

    Returns:
        {"rows": {method: {metric: {"mean", "std", "seeds"}}}, "paper", "claims": {id: {"holds", "evidence"}}, "aims", "protocol"}; a figure
        that is no finite number is None.
    """
    return {
        "rows": {method: {metric: summarize(values) for metric, values in figures.items()} for method, figures in rows.items()},
        "paper": {method: dict(figures) for method, figures in experiment.paper.items()},
        "claims": {name: CLAIMS[name].evaluate(rows) for name in experiment.claims},
        "aims": evaluate_aims(rows, experiment.paper) if experiment.aims else [],
        "protocol": protocol,
    }


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds (n - 1) and all values. None: not a finite number, or a deviation of one value alone."""
    finite = all(map(math.isfinite, values))
    return {
        "mean": statistics.fmean(values) if finite else None,
        "std": statistics.stdev(values) if finite and len(values) > 1 else None,
        "seeds": [value if math.isfinite(value) else None for value in values],
    }


def rows_of(result: Mapping[str, Any]) -> Rows:
    """Method -> metric -> values per seed of a result; NaN where it holds none."""
    return {
        method: {metric: [math.nan if value is None else value for value in figure["seeds"]] for metric, figure in figures.items()}
        for method, figures in result["rows"].items()
    }


def write_result(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a result. Raises UserError if that is impossible."""
    atomic_write_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")


def read_result(path: pathlib.Path) -> dict[str, Any]:
    """Reads a result back.

    Raises:
        UserError: a file that cannot be read, or does not hold what `build_result` makes; it names the file and what is wrong.
    """
    try:
        result = read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); remove it and run the experiment again") from error
    try:
        wrong = _what_is_wrong(result)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        wrong = f"its layout is unknown ({type(error).__name__}: {error})"
    if wrong:
        raise UserError(f"{path} is no result of an experiment: {wrong}; remove it and run the experiment again")
    return result


def _what_is_wrong(result: Any) -> str:
    """The first fault of a parsed result; empty if there is none."""
    if not isinstance(result, dict) or set(result) != set(SECTIONS):
        return f"the sections {', '.join(SECTIONS)} are expected"
    num_seeds = len(result["protocol"]["seeds"])
    if not isinstance(result["protocol"]["methods"], dict) or not isinstance(result["protocol"]["command"], str):
        return "its protocol is not in the expected form"
    for method, figures in result["rows"].items():
        for metric, figure in figures.items():
            if len(figure["seeds"]) != num_seeds:
                return f"{metric} of {method} has {len(figure['seeds'])} values for {num_seeds} seeds"
            if not _agrees(figure, summarize([math.nan if value is None else float(value) for value in figure["seeds"]])):
                return f"mean and std of {metric} of {method} are not those of its seeds"
    for name, claim in result["claims"].items():
        if not isinstance(claim["holds"], bool) or not isinstance(claim["evidence"]["checks"], list):
            return f"the verdict on {name} is not in the expected form"
    for aim in result["aims"]:
        if not isinstance(aim["met"], bool):
            return f"the aim {aim['aim']!r} is not in the expected form"
    return "" if num_seeds and result["rows"] else "it holds no rows"


def _agrees(figure: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    for key in ("mean", "std"):
        found, wanted = figure[key], expected[key]
        if (found is None) != (wanted is None) or (found is not None and not math.isclose(found, wanted, rel_tol=ROUNDING, abs_tol=ROUNDING)):
            return False
    return True


def versions() -> dict[str, str | None]:
    """Versions of what the figures were made with; "code" is the commit, with -dirty after it if files were changed, None outside a checkout."""
    return {"torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform(), "code": _commit()}


def _commit() -> str | None:
    try:
        top = _git("rev-parse", "--show-toplevel")
        return _git("describe", "--always", "--dirty", "--exclude=*") if pathlib.Path(top).resolve() == ROOT.resolve() else None
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
