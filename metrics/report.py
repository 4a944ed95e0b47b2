"""Result lines: what one measurement says about itself, on disk (`metric-<name>.jsonl`) and on the screen."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Iterable

from dnnlib import UserError
from dnnlib.format import format_time

CODE_VERSION = "0.1.0"  # Of the measuring code: raise it when a figure of the same network and data would come out differently.


def result_line(name: str, results: dict[str, float], total_time: float, num_gpus: int, protocol: dict) -> dict:
    """One measurement as a JSON-able dictionary in StyleGAN2-ADA's layout, with its protocol."""
    return {
        "results": results,
        "metric": name,
        "total_time": total_time,
        "total_time_str": format_time(total_time),
        "num_gpus": num_gpus,
        "protocol": protocol,
    }


def stamp_line(line: dict, snapshot_path: str | os.PathLike | None = None, run_dir: str | os.PathLike | None = None) -> dict:
    """Adds `snapshot_pkl` (relative to `run_dir` where there is one) and `timestamp` to a line."""
    snapshot = None if snapshot_path is None else os.fspath(snapshot_path)
    if snapshot is not None and run_dir is not None:
        snapshot = os.path.relpath(snapshot, run_dir)
    head = {key: value for key, value in line.items() if key != "protocol"}
    return {**head, "snapshot_pkl": snapshot, "timestamp": time.time(), "protocol": line["protocol"]}


def write_line(line: dict, run_dir: str | os.PathLike) -> pathlib.Path:
    """Appends a line to `metric-<name>.jsonl` in a run directory; returns the file.

    Raises:
        UserError: the file cannot be written.
    """
    path = pathlib.Path(run_dir) / f"metric-{line['metric']}.jsonl"
    try:
        with open(path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def format_table(lines: Iterable[dict]) -> str:
    """Results as an aligned table: figure, value, images compared, detector."""
    rows = [("figure", "value", "real", "generated", "detector", "note")]
    for line in lines:
        protocol = line["protocol"]
        for key, value in line["results"].items():
            ceiling = protocol.get("coverage_ceiling")
            note = f"at most about {ceiling:.3f}" if ceiling is not None and "coverage" in key else ""
            rows.append((key, f"{value:.6g}", f"{protocol['n_real']:,}", f"{protocol['n_fake']:,}", protocol["detector"], note))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (1, 2, 3)
    cells = [[cell.rjust(width) if column in right else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths))] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)
