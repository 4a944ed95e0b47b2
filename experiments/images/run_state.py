"""What exists of a planned run: found by looking into its folder, never believed from a flag."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dnnlib import UserError
from dnnlib.json_files import read_json
from experiments.images.planned_config import difference, same_data
from metrics import report, runs
from metrics.registry import parse_metrics
from metrics.runs import OPTIONS_FILE
from training.run_files import RunDir

RUN_FOLDER = re.compile(r"\d{5}-")  # how the names of train.py's run folders begin
SHEET_STEM = "look"  # of the files of `calc_metrics.py show` in a run folder
SHEET, SHEET_NUMBERS = f"{SHEET_STEM}-uncovered.png", f"{SHEET_STEM}.json"
ARCHIVE_FILE = "archive.json"  # in a run without its weights (`experiments.report.archive`): which snapshots it had


@dataclasses.dataclass(frozen=True)
class RunState:
    """A run as found.

    Attributes:
        path: its run folder; None where there is none.
        kimg: of the last state to go on from or, finished, of the last snapshot; 0 without.
        snapshots: number of snapshots there.
        measured: number of these with every metric.
        finished: whether the snapshot of the end is there.
        end: kimg of the snapshot that is nearest to the planned end, since a run may be longer; 0 without.
        end_measured: whether that of the end has what is measured of it alone.
        looked_at: whether the sheets that are wanted of the last snapshot are there.
        archived: whether it is without its weights, so that nothing can be added to it.
    """

    path: pathlib.Path | None = None
    kimg: int = 0
    snapshots: int = 0
    measured: int = 0
    finished: bool = False
    end: int = 0
    end_measured: bool = True
    looked_at: bool = True
    archived: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether nothing is left to do."""
        return self.finished and (self.archived or (self.measured == self.snapshots and self.end_measured and self.looked_at))

    def __str__(self) -> str:
        if self.archived:
            return "archived" if self.finished else f"archived at {self.kimg} kimg"
        if self.is_measured:
            return "measured"
        if self.finished:
            missing = ("" if self.end_measured else ", metrics of the end missing") + ("" if self.looked_at else ", sheets missing")
            return f"finished, {self.measured} of {self.snapshots} snapshots measured{missing}"
        return "missing" if self.path is None else f"partial at {self.kimg} kimg"


def run_folders(parent: pathlib.Path) -> list[pathlib.Path]:
    """Run folders of train.py in a folder, by number; those that were never filled are passed over. Raises UserError for a link to nowhere."""
    named = sorted(path for path in parent.glob("*") if RUN_FOLDER.match(path.name)) if parent.is_dir() else []
    for path in named:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to {path.readlink()}, which is not there; bring it back, or remove the link to train the run anew")
    return [path for path in named if (path / OPTIONS_FILE).is_file()]


def read_options(path: pathlib.Path) -> dict[str, Any]:
    """The training_options.json of a run folder. Raises UserError if there is none or it is damaged."""
    options = runs.read_options(path)
    if options is None:
        raise UserError(f"{path} is no run folder, it has no {OPTIONS_FILE}; give the folder of a run")
    data = options.get("training_set_kwargs")
    if not isinstance(data, dict) or not isinstance(data.get("path"), str):
        raise UserError(f"{path / OPTIONS_FILE} holds no options of a training; restore it, or remove the folder to train anew")
    return options


def settings_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What tells a run's options from those of a plan, in words; empty if it is the same training."""
    if changed := difference(found, wanted):
        return changed
    paths = [options["training_set_kwargs"]["path"] for options in (found, wanted)]
    return "" if same_data(*paths) else f"data set {paths[0]} instead of {paths[1]}, with other content"


def look(parent: pathlib.Path, wanted: Mapping[str, Any], metrics: Sequence[str], detector: str | None) -> RunState:
    """What is there of the run with options `wanted` below `parent`. A run that is like it but shorter is its beginning, a longer one holds it.

    Raises:
        UserError: a run of other options is there; it names the difference.
    """
    folders = run_folders(parent)
    if not folders:
        return RunState()
    for folder in folders:
        options = read_options(folder)
        if archived_snapshots(folder) is not None:  # its snapshots are gone: those that were measured serve, however far apart
            options["network_snapshot_ticks"] = wanted["network_snapshot_ticks"]
        if changed := settings_difference(options, wanted):
            raise UserError(f"{folder} is a run with other settings ({changed}); give another --out, or move that folder away")
    return max((look_at(folder, wanted["total_kimg"], metrics, detector) for folder in folders), key=lambda state: (state.finished, state.kimg))


def look_at(path: pathlib.Path, total_kimg: int, metrics: Sequence[str], detector: str | None) -> RunState:
    """What is there in one run folder."""
    run, archived = RunDir(path), archived_snapshots(path)
    snapshots = run.snapshots() if archived is None else archived
    finished = bool(snapshots) and snapshots[-1] >= total_kimg
    kimg = snapshots[-1] if finished else max(run.states() if archived is None else archived, default=0)
    have = measured_snapshots(path, [spec.name for spec in parse_metrics(metrics, detector)])
    end = min(snapshots, key=lambda k: abs(k - total_kimg), default=0)
    measured = len(have & {run.snapshot(k).name for k in snapshots})
    return RunState(path, kimg, len(snapshots), measured, finished, end, archived=archived is not None)


def archived_snapshots(path: pathlib.Path) -> list[int] | None:
    """kimg of the snapshots that an archived run had, rising; None for a run that is none. Raises UserError where its file is damaged."""
    file = path / ARCHIVE_FILE
    if not file.is_file():
        return None
    try:
        snapshots = read_json(file)["snapshots"]
        if not all(type(kimg) is int and kimg >= 0 for kimg in snapshots):
            raise ValueError(f"snapshots are {snapshots!r}")
        return sorted(snapshots)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error}); restore it, or remove its folder") from error


def measured_snapshots(path: pathlib.Path, names: Sequence[str]) -> set[str]:
    """Snapshots that a run folder has a line of every metric of, of finite figures. Whether the protocol is today's, calc_metrics.py sees."""
    whole = [[line for line in report.read_lines(path, name) if report.is_finite(line)] for name in names]
    found = [{line["snapshot_pkl"] for line in lines if isinstance(line.get("snapshot_pkl"), str)} for lines in whole]
    return set.intersection(*found) if found else set()


def sheet_snapshot(path: pathlib.Path) -> str:
    """Name of the snapshot that the sheets of a run folder show; empty where there are none, or they do not say."""
    try:
        name = read_json(path / SHEET_NUMBERS)["fake"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) and (path / SHEET).is_file() else ""
