"""Result lines: what one measurement says about itself, on disk (`metric-<name>.jsonl`) and on the screen."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from dnnlib import UserError
from dnnlib.format import format_time
from dnnlib.json_files import parse_line, read_json_lines

NOTES = ("chance", "among_real")  # in the protocol of a line: what its figures are read against, no part of how they were measured
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


def stamp_line(
    line: dict, snapshot_path: str | os.PathLike | None = None, run_dir: str | os.PathLike | None = None, sides: dict[str, str] | None = None
) -> dict:
    """Adds `snapshot_pkl` (relative to `run_dir` where there is one), `timestamp`, and what was compared (`sides`) to a line."""
    snapshot = None if snapshot_path is None else os.fspath(snapshot_path)
    if snapshot is not None and run_dir is not None:
        snapshot = os.path.relpath(snapshot, run_dir)
    head = {key: value for key, value in line.items() if key != "protocol"}
    return {**head, **(sides or {}), "snapshot_pkl": snapshot, "timestamp": time.time(), "protocol": line["protocol"]}


def lines_path(run_dir: str | os.PathLike, metric: str) -> pathlib.Path:
    """Where a run directory keeps the lines of a metric."""
    return pathlib.Path(run_dir) / f"metric-{metric}.jsonl"


def is_measured(run_dir: str | os.PathLike, metric: str, snapshot: str, protocol: dict) -> bool:
    """Whether the line that counts, the last of this metric for this snapshot (its path in the run directory), was measured by this very protocol.

    Raises:
        UserError: the file cannot be read.
    """
    own = [line for line in read_lines(run_dir, metric) if line.get("snapshot_pkl") == snapshot and is_finite(line)]
    return bool(own) and without_notes(own[-1].get("protocol")) == without_notes(json.loads(json.dumps(protocol)))


def is_finite(line: Mapping[str, Any]) -> bool:
    """Whether all figures of a line are numbers, which those of a network that diverged need not be."""
    results = line.get("results")
    if not isinstance(results, Mapping):
        return False
    return all(isinstance(value, int | float) and abs(value) < math.inf for value in results.values())


def without_notes(protocol: Any) -> Any:
    """What of a line's protocol says how it was measured; what is no table is given back as it is."""
    return {name: value for name, value in protocol.items() if name not in NOTES} if isinstance(protocol, Mapping) else protocol


def has_line(run_dir: str | os.PathLike, metric: str, snapshot: str) -> bool:
    """Whether a run directory holds a whole line of this metric for this snapshot (its path in the directory), measured in whatever way.

    Raises:
        UserError: the file cannot be read.
    """
    return any(line.get("snapshot_pkl") == snapshot for line in read_lines(run_dir, metric))


def read_lines(run_dir: str | os.PathLike, metric: str) -> list[dict]:
    """The lines of a metric that a run directory holds, without damaged ones. Raises UserError if the file cannot be read."""
    path = lines_path(run_dir, metric)
    try:
        return read_json_lines(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"cannot read {path}: it is {error}; move it away") from error


def write_line(line: dict, run_dir: str | os.PathLike) -> pathlib.Path:
    """Appends a line to `metric-<name>.jsonl` in a run directory, in the place of a torn last one; returns the file.

    Raises:
        UserError: the file cannot be written.
    """
    path = lines_path(run_dir, line["metric"])
    try:
        before, separator, last = path.read_bytes().rpartition(b"\n") if path.is_file() else (b"", b"", b"")
        with open(path, "ab") as handle:
            if last and not parse_line(last):  # what a killed process left
                handle.truncate(len(before) + len(separator))
            handle.write(b"\n" * bool(parse_line(last)) + json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def format_table(lines: Iterable[dict]) -> str:
    """Results as an aligned table: figure, value, images compared, detector."""
    rows = [("figure", "value", "real", "generated", "detector", "note")]
    for line in lines:
        protocol = line["protocol"]
        for key, value in line["results"].items():
            counts = f"{protocol['n_real']:,}", f"{protocol['n_fake']:,}"
            rows.append((key, f"{value:.6g}", *counts, protocol["detector"] or "-", _note(key, protocol)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (1, 2, 3)
    cells = [[cell.rjust(width) if column in right else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths))] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def _note(figure: str, protocol: dict) -> str:
    """What to read a figure against."""
    if "coverage_ceiling" in protocol and "coverage" in figure:
        return f"at most about {protocol['coverage_ceiling']:.3f}"
    if "among_real" in protocol:
        return f"about {protocol['among_real']:.2g} among real images"
    return f"about {protocol['chance']:.2g} by chance" if "chance" in protocol else ""
