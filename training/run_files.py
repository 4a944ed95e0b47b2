"""The files of a run folder: options, snapshots, training states, and which of them stay."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dnnlib import EasyDict, UserError, atomic_write_text
from metrics.report import has_line, lines_path
from metrics.runs import OPTIONS_FILE, direction, read_options
from torch_utils import checkpoint
from training.history import read_figures, read_lines

STATES_KEPT = 2  # the last good state and the one before
ALARMS_FILE = "alarms.jsonl"
MAY_CHANGE = ("total_kimg", "wandb")  # of a run's options, when it goes on
BEST_FILE, BEST_LINK = "best.json", "network-snapshot-best.safetensors"
INTERRUPTED_STATE = "training-state-interrupted.pt"
LOG_FILE = "log.txt"


def as_easydict(value):
    """Plain JSON values with every dictionary an EasyDict."""
    if isinstance(value, dict):
        return EasyDict({key: as_easydict(item) for key, item in value.items()})
    return [as_easydict(item) for item in value] if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Best:
    """The best snapshot: by which figure, at which kimg, and its value."""

    figure: str
    kimg: int
    value: float


class RunDir:
    """One run folder.

    Args:
        path: the folder; created by `create`, found by `open`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)

    @classmethod
    def create(cls, args: EasyDict) -> RunDir:
        """Makes the folder `args.run_dir` with its training_options.json: both at once, so that no process can end between them.

        Raises:
            UserError: it exists already and is not empty, or the place is not writable.
        """
        run = cls(args.run_dir)
        unnamed = run.path.with_name(f".{run.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            unnamed.mkdir(parents=True)
            atomic_write_text(unnamed / OPTIONS_FILE, json.dumps(args, indent=2) + "\n")
            if os.name == "nt":  # there it does not take the place of the empty folder that kept the number
                with contextlib.suppress(OSError):
                    run.path.rmdir()
            unnamed.rename(run.path)
        except OSError as error:
            shutil.rmtree(unnamed, ignore_errors=True)
            if run.path.exists():
                raise UserError(f"--outdir: {run.path} exists already; start again, another run may have taken its number") from error
            raise UserError(f"--outdir: cannot create {run.path}: {error.strerror}") from error
        return run

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keeps other processes from training in this folder within the block. The system ends it with the process, however that ends.

        Raises:
            UserError: another process does.
        """
        try:
            import fcntl  # here, because Windows has none
        except ImportError:
            yield
            return
        try:
            handle = open(self / LOG_FILE, "a")  # noqa: SIM115 (the next block closes it)
        except OSError as error:
            raise UserError(f"cannot write {self / LOG_FILE}: {error.strerror or error}") from error
        with handle:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # else a file system without locks
                    raise UserError(f"{self.path} is in use by another process that trains there; wait until it has ended, or end it") from error
            yield

    @classmethod
    def is_at(cls, path: str | os.PathLike | None) -> bool:
        """Whether there is a run folder."""
        return path is not None and os.path.isfile(os.path.join(path, OPTIONS_FILE))

    @classmethod
    def open(cls, path: str | os.PathLike, option: str = "--continue-run") -> tuple[RunDir, EasyDict]:
        """An existing run folder, which a command-line option names, and its options. Raises UserError if there is none or these are damaged."""
        run = cls(path)
        try:
            args = as_easydict(read_options(run.path))
        except UserError as error:
            raise UserError(f"{option}={path}: {error}") from error
        if args is None:
            raise UserError(f"{option}={path}: no {OPTIONS_FILE} there, give the folder of a run")
        needed = {"training_set_kwargs": dict, "G_kwargs": dict, "loss_kwargs": dict, "total_kimg": int, "device": str}
        missing = [key for key, kind in needed.items() if not isinstance(args.get(key), kind)]
        if missing:
            raise UserError(f"{option}={path}: {OPTIONS_FILE} has no usable {missing[0]!r}, so it is of another program; give a run of train.py")
        return run, args

    def set_options(self, args: Mapping[str, Any]) -> None:
        """Takes down in training_options.json what may change while a run goes on, and has: its length, and where it reports to."""
        _, found = self.open(self.path)
        wanted = {name: value for name, value in found.items() if name not in MAY_CHANGE} | {name: args[name] for name in MAY_CHANGE if name in args}
        if wanted != found:
            atomic_write_text(self / OPTIONS_FILE, json.dumps(wanted, indent=2) + "\n")

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.path / name

    def snapshot(self, kimg: int) -> pathlib.Path:
        """Where the networks at `kimg` are."""
        return self.path / f"network-snapshot-{kimg:06d}.safetensors"

    def state(self, kimg: int) -> pathlib.Path:
        """Where the training state of the snapshot at `kimg` is."""
        return self.path / f"training-state-{kimg:06d}.pt"

    @property
    def interrupted_state(self) -> pathlib.Path:
        """Where the state of a run is that was asked to end between two snapshots."""
        return self / INTERRUPTED_STATE

    def _numbered(self, pattern: str) -> list[int]:
        matches = (re.fullmatch(pattern, path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def snapshots(self) -> list[int]:
        """kimg of every snapshot, rising."""
        return self._numbered(r"network-snapshot-(\d{6,})\.safetensors")

    def states(self) -> list[int]:
        """kimg of every training state, rising."""
        return self._numbered(r"training-state-(\d{6,})\.pt")

    def sweep(self) -> None:
        """Deletes what a killed process was writing when it ended."""
        for path in self.path.glob(".*.tmp*"):
            path.unlink()

    def unmeasured(self, kimg: int, metrics: Iterable[str]) -> list[str]:
        """Those of the metrics (by the names of their results) that there is no line of for the snapshot at `kimg`."""
        return [name for name in metrics if not has_line(self.path, name, self.snapshot(kimg).name)]

    def is_finished(self, total_kimg: int, metrics: Iterable[str] = ()) -> bool:
        """Whether the networks and the state of the end are there, and its figures by the metrics."""
        ends = [kimg for kimg in self.states() if kimg >= total_kimg and self.snapshot(kimg).is_file()]
        return any(not self.unmeasured(kimg, metrics) for kimg in ends)

    def last_state(self) -> dict | None:
        """The newest state that can be read; None where there is no state. Damaged ones are named and passed over.

        Raises:
            UserError: there are states, but none that can be used: starting afresh would throw the run away.
        """
        numbered = [self.state(kimg) for kimg in reversed(self.states())]
        paths = [path for path in (self.interrupted_state, *numbered) if path.is_file()]
        for path in paths:
            try:
                return _upgrade_state(checkpoint.load_state(path))
            except UserError as error:
                reason = str(error)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"{path} holds something else than a training state ({error})"
            print(f"Warning: {reason}; trying the state before it.")
        if paths:
            raise UserError(f"{self.path}: none of its {len(paths)} training states can be used; start a new run")
        return None

    def best(self, metric: str | None) -> Best | None:
        """The best of the snapshots by a metric or figure (lower for FID, KID, path length and collision, else higher), or None.

        Args:
            metric: name of a metric, of which the first figure counts, or of a figure.
        """
        figures, _ = read_figures(self.path)
        figure = metric if metric in figures else next((name for line in self._metric_lines(metric) for name in line["results"]), None)
        there = set(self.snapshots())
        values = {kimg: value for kimg, value in figures.get(figure, {}).items() if kimg in there}
        if not values:
            return None
        sign = -1 if direction(figure) == "lower" else 1
        kimg = max(values, key=lambda kimg: (sign * values[kimg], kimg))
        return Best(figure, kimg, values[kimg])

    def _metric_lines(self, metric: str | None) -> Iterator[dict]:
        return (line for line in read_lines(lines_path(self.path, str(metric))) if isinstance(line.get("results"), dict))

    def mark_best(self, metric: str | None) -> None:
        """Says in best.json which snapshot is the best, and makes network-snapshot-best.safetensors lead to it where links can be made."""
        best = self.best(metric)
        if best is None:
            return
        snapshot = self.snapshot(best.kimg).name
        atomic_write_text(self.path / BEST_FILE, json.dumps({**dataclasses.asdict(best), "snapshot": snapshot}) + "\n")
        temporary = self.path / f".{pathlib.Path(BEST_LINK).stem}.{os.getpid()}.tmp.safetensors"
        with contextlib.suppress(OSError, NotImplementedError):  # some file systems have no links; best.json is enough
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(snapshot)
            os.replace(temporary, self.path / BEST_LINK)

    def prune(self, keep: int, metric: str | None) -> None:
        """Deletes training states but the last two and, with keep > 0, snapshots but the last `keep`, the best, and those of the states."""
        states = self.states()
        for kimg in states[:-STATES_KEPT]:
            self.state(kimg).unlink()
        if keep > 0:
            best = self.best(metric)
            stay = {*self.snapshots()[-keep:], *states[-STATES_KEPT:], best and best.kimg}
            for kimg in self.snapshots():
                if kimg not in stay:
                    self.snapshot(kimg).unlink()


def _upgrade_state(saved: dict) -> dict:
    """A saved state as it would be written now. Older ones were written at snapshots only, after these had been measured."""
    if "lines" in saved:
        return saved
    counters = saved["training"]["counters"]
    counters |= {"told_nonfinite": int(counters["nonfinite"]), "snapshot_nimg": counters["cur_nimg"]}
    clocks = {"tick_nimg": counters["cur_nimg"], "seconds": saved["seconds"], "tick_seconds": 0.0, "maintenance": 0.0, "statistics": {}}
    lines = {"size": saved["line_sizes"].get("stats.jsonl", 0), "last": ""}
    return {**saved, "progress": [clocks] * len(saved["training"]["ranks"]), "lines": lines}
