"""Results without their weights: what a page is made from, small enough to be committed, so that runs of other machines can be added to it.

    archive_runs(pathlib.Path("results/images"), pathlib.Path("docs/results/cifar10"))

An archived run keeps its options, measurements, the training's statistics that a page draws, and small pictures. Nothing can be trained or measured
from it; plans count it as it was when it was taken.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Sequence

from PIL import Image

from dnnlib import UserError
from dnnlib.json_files import read_json_lines
from experiments.images.folder_lock import hold
from experiments.images.plan import RUNS, join_plans, plan_path, read_plans, write_plans
from experiments.images.results import RunResult, load_longest, load_run
from experiments.images.run_state import ARCHIVE_FILE, SHEET_NUMBERS, archived_snapshots, read_options, run_folders, settings_difference
from experiments.images.speed import join_speeds
from experiments.report.figures import SIGNALS
from experiments.report.run_pictures import ARCHIVED, small_pictures, snapshots_shown
from experiments.report.sections import DEVICE_LINE, LOG_HEAD
from training.history import STATS_FILE
from training.run_files import LOG_FILE, OPTIONS_FILE, RunDir

KEPT_SIGNALS = (*SIGNALS, "Progress/kimg", "Progress/tick", "Timing/sec_per_kimg", "Timing/total_sec")
MOST_LINES = 200  # of a run's statistics
QUALITY = 70  # of WebP


@dataclasses.dataclass(frozen=True)
class Archived:
    """What was done with one run: its key, how far it was trained, and why it was not taken; empty if it was."""

    key: str
    kimg: int
    left: str = ""


def archive_runs(out: pathlib.Path, to: pathlib.Path) -> list[Archived]:
    """Adds the runs of a results folder, and its plan, to an archive. A run that the archive has is replaced by a longer or better measured one.

    Args:
        out: results folder of image experiments.
        to: the archive; made if need be.

    Returns:
        What became of every run, by key.

    Raises:
        UserError: there is no plan, the archive is of other data or another precision, or holds a run of that name with other settings or one
            that is no archived one. Nothing is written then.
    """
    plans = read_plans(out)
    if not plans:
        raise UserError(f"--out={out} has no {plan_path(out).name}: it is no folder of image experiments; plan or run some there first")
    if out.resolve() == to.resolve():
        raise UserError(f"--to={to} is the folder of the results itself; name another")
    runs = {parent.name: run for parent in sorted((out / RUNS).glob("*")) if (run := load_longest(parent)) is not None}
    with hold(to, f"--to={to}"):
        joined = join_plans(read_plans(to), plans, plan_path(to))
        left = {key: _why_not(run, to / RUNS / key) for key, run in runs.items()}
        for key, run in runs.items():
            if not left[key]:
                _take(run, to / RUNS / key, small_pictures(run.path, run.kimg, snapshots_shown(len(runs))))
        join_speeds(out, to)
        write_plans(plan_path(to), joined)
    return [Archived(key, run.kimg, left[key]) for key, run in runs.items()]


def _why_not(run: RunResult, parent: pathlib.Path) -> str:
    """Why a run is left where it is, if the archive has it already. Raises UserError if what is there must not be replaced."""
    for folder in run_folders(parent):
        if archived_snapshots(folder) is None:
            raise UserError(f"{folder} is a run with weights, which no archive may replace; give another folder by --to")
        if changed := settings_difference(read_options(folder), read_options(run.path)):
            raise UserError(f"{folder} is a run with other settings than {run.path} ({changed}); give another folder by --to")
        there = load_run(folder)
        if (there.kimg, _measurements(there)) >= (run.kimg, _measurements(run)):
            return f"is there to {there.kimg:,} kimg"
    return ""


def _measurements(run: RunResult) -> int:
    return sum(map(len, run.figures.values()))


def _take(run: RunResult, parent: pathlib.Path, pictures: dict[str, Image.Image]) -> None:
    """Writes a run beside what the archive has of it, and then takes its place."""
    unfinished = parent / f".{run.path.name}.tmp"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for path in (run.path / OPTIONS_FILE, run.path / SHEET_NUMBERS, *run.path.glob("metric-*.jsonl")):
            if path.is_file():
                shutil.copyfile(path, unfinished / path.name)
        (unfinished / STATS_FILE).write_text("".join(json.dumps(line) + "\n" for line in _thin(read_json_lines(run.path / STATS_FILE))))
        (unfinished / LOG_FILE).write_text(_device_line(run.path))
        for name, image in pictures.items():
            image.save(unfinished / f"{name}{ARCHIVED}", quality=QUALITY, method=6)
        kept = archived_snapshots(run.path)
        kept = RunDir(run.path).snapshots() if kept is None else kept  # an archive may be archived
        measured = {kimg for points in run.figures.values() for kimg in points}  # whose weights may have been deleted since
        (unfinished / ARCHIVE_FILE).write_text(json.dumps({"snapshots": sorted(measured.union(kept))}) + "\n")
        for folder in run_folders(parent):
            shutil.rmtree(folder)
        unfinished.rename(parent / run.path.name)  # as it is looked for, whatever an adopted run was called where it was made
    except OSError as error:
        raise UserError(f"cannot archive {run.path} in {parent}: {error.strerror or error}") from error


def _thin(lines: Sequence[dict]) -> list[dict]:
    """Statistics that a page draws, to six digits, of at most MOST_LINES ticks: evenly spaced, the last among them."""
    spacing = -(-len(lines) // MOST_LINES) or 1
    kept = []
    for line in lines[::-1][::spacing][::-1]:
        means = {name: line[name].get("mean") for name in KEPT_SIGNALS if isinstance(line.get(name), dict)}
        kept.append({name: {"mean": float(f"{mean:.6g}")} for name, mean in means.items() if isinstance(mean, int | float)})
    return kept


def _device_line(run: pathlib.Path) -> str:
    """The line of a log that says where the run was trained."""
    path = run / LOG_FILE
    if not path.is_file():
        return ""
    with open(path, encoding="utf-8", errors="replace") as handle:
        found = DEVICE_LINE.search(handle.read(LOG_HEAD))
    return f"{found[0]}\n" if found else ""
