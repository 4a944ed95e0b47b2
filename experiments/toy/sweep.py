"""How pairing depends on its settings: its weight against its temperature, against R1's weight, and against the learning rate.

Each pair of settings is varied around the table's own; everything else stays. One cell is GAN+Pairing+R1 under a few seeds, trained
for half the table's steps.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dnnlib import atomic_write_text
from experiments.toy.figures import save_figure
from experiments.toy.figures_charts import HeatMap, heat_maps
from experiments.toy.methods import METHODS
from experiments.toy.parts import load_part, part_path
from experiments.toy.runner import protocol, run_jobs, unfinished
from experiments.toy.studies import STUDIES, Study

METHOD = METHODS["GAN+Pairing+R1"]
MEASURED = ("coverage", "precision")
FACTORS = {"pairing_weight": (0.2, 1.0, 4.0, 16.0), "tau": (0.5, 1.0, 3.0), "r1_gamma": (0.2, 1.0, 10.0), "lr": (0.3, 1.0, 3.0)}
LABELS = {"pairing_weight": "lambda", "tau": "tau", "r1_gamma": "R1 gamma", "lr": "learning rate"}


def cell(study: Study, **factors: float) -> Study:
    """The study with settings multiplied by factors, at half its length."""
    settings = study.settings
    values = {name: float(f"{getattr(settings, name) * factors.get(name, 1):.6g}") for name in FACTORS}
    changed = dataclasses.replace(settings, steps=settings.steps // 2, **values)
    shown = ", ".join(f"{LABELS[name]} {value:g}" for name, value in values.items())
    folder = "-".join(f"{name}={value:g}" for name, value in values.items())
    return Study(f"sweep/{study.name}/{folder}", f"{study.title}, {shown}", study.distribution, changed)


def cells(study: Study) -> dict[str, list[list[Study]]]:
    """For each other setting, a table of studies: its values down, lambda's across."""
    tables = {}
    for other in FACTORS:
        if other != "pairing_weight":
            rows = [[cell(study, pairing_weight=weight, **{other: factor}) for weight in FACTORS["pairing_weight"]] for factor in FACTORS[other]]
            tables[other] = rows
    return tables


def run_sweep(
    names: Sequence[str], seeds: Sequence[int], out: pathlib.Path, *, workers: int | None = None, progress: Callable[[str], None] = print
) -> list[pathlib.Path]:
    """Runs what is missing of the sweep, and writes sweep.json and one heat map per study.

    Args:
        names: studies.
        seeds: of every cell.
        out: folder of the results.
        workers: processes; 0: none but this one. Default is one per core.
        progress: told of every finished cell.

    Returns:
        The files written.

    Raises:
        UserError: a part was made with other settings, a model diverged, or a file cannot be written.
    """
    tables = {name: cells(STUDIES[name]) for name in names}
    # The tables of a study share the row of its own values.
    distinct = {study.name: study for table in tables.values() for rows in table.values() for row in rows for study in row}
    jobs = [job for study in distinct.values() for job in unfinished(study, METHOD, seeds, out)]
    run_jobs(jobs, workers, progress)
    described = {name: {} for name in names}
    for name, table in tables.items():
        for other, rows in table.items():
            described[name][other] = [[_summary(study, seeds, out) for study in row] for row in rows]
    path = out / "sweep.json"
    made_by = {name: protocol(STUDIES[name], METHOD) for name in names}
    atomic_write_text(path, json.dumps({"studies": described, "protocol": made_by, "seeds": list(seeds)}, indent=1) + "\n")
    files = [path]
    for name in names:
        files += save_figure(_figure(STUDIES[name], described[name]), out / f"sweep-{name}")
    return files


def _summary(study: Study, seeds: Sequence[int], out: pathlib.Path) -> dict[str, Any]:
    """Settings and figures of one cell."""
    found = [load_part(part_path(out, study.name, METHOD.name, seed))[0].measures for seed in seeds]
    figures = {name: {"mean": statistics.fmean(part[name] for part in found), "seeds": [part[name] for part in found]} for name in MEASURED}
    return {"settings": {name: getattr(study.settings, name) for name in FACTORS}, **figures}


def _figure(study: Study, tables: dict[str, list[list[dict[str, Any]]]]) -> Figure:
    """Coverage above precision, one column per other setting."""
    grid = []
    for measure in MEASURED:
        line = []
        for other, rows in tables.items():
            own = [[cell["settings"] for cell in row] for row in rows]
            marked = (FACTORS[other].index(1.0), FACTORS["pairing_weight"].index(1.0))
            values = np.array([[cell[measure]["mean"] for cell in row] for row in rows])
            downs, across = [f"{row[0][other]:g}" for row in own], [f"{cell['pairing_weight']:g}" for cell in own[0]]
            line.append(HeatMap(measure, values, downs, across, LABELS[other], LABELS["pairing_weight"], marked))
        grid.append(line)
    return heat_maps(grid, f"{study.title}: {METHOD.name}")
