"""The files of a run folder: options, snapshots, training states, and which of them stay."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator

from dnnlib import EasyDict, UserError, atomic_write_text
from metrics.report import lines_path
from metrics.runs import LOWER_IS_BETTER
from torch_utils import checkpoint
from training.history import read_figures, read_lines

STATES_KEPT = 2  # the last good state and the one before
OPTIONS_FILE = "training_options.json"
ALARMS_FILE = "alarms.jsonl"
BEST_FILE, BEST_LINK = "best.json", "network-snapshot-best.safetensors"
LINE_FILES = ("stats.jsonl", "metric-*.jsonl", ALARMS_FILE)


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
        """Makes the folder `args.run_dir` with its training_options.json.

        Raises:
            UserError: it exists already, or the place is not writable.
        """
        run = cls(args.run_dir)
        try:
            run.path.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(f"--outdir: {run.path} exists already; start again, another run may have taken its number") from error
        except OSError as error:
            raise UserError(f"--outdir: cannot create {run.path}: {error.strerror}") from error
        atomic_write_text(run.path / OPTIONS_FILE, json.dumps(args, indent=2) + "\n")
        return run

    @classmethod
    def open(cls, path: str | os.PathLike) -> tuple[RunDir, EasyDict]:
        """An existing run folder and its options. Raises UserError if there is none or its options are damaged."""
        run = cls(path)
        try:
            args = as_easydict(json.loads((run.path / OPTIONS_FILE).read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"--continue-run={path}: no {OPTIONS_FILE} there ({error.strerror}), give the folder of a run") from error
        except ValueError as error:
            raise UserError(f"--continue-run={path}: {OPTIONS_FILE} is damaged: {error}") from error
        missing = [key for key in ("training_set_kwargs", "G_kwargs", "loss_kwargs", "total_kimg", "device") if key not in args]
        if missing:
            raise UserError(f"--continue-run={path}: {OPTIONS_FILE} is of another program, it has no {missing[0]!r}")
        return run, args

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.path / name

    def snapshot(self, kimg: int) -> pathlib.Path:
        """Where the networks at `kimg` are."""
        return self.path / f"network-snapshot-{kimg:06d}.safetensors"

    def state(self, kimg: int) -> pathlib.Path:
        """Where the training state at `kimg` is."""
        return self.path / f"training-state-{kimg:06d}.pt"

    def _numbered(self, pattern: str) -> list[int]:
        matches = (re.fullmatch(pattern, path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def snapshots(self) -> list[int]:
        """kimg of every snapshot, rising."""
        return self._numbered(r"network-snapshot-(\d{6,})\.safetensors")

    def states(self) -> list[int]:
        """kimg of every training state, rising."""
        return self._numbered(r"training-state-(\d{6,})\.pt")

    def line_sizes(self) -> dict[str, int]:
        """Sizes in bytes of the files that grow by lines, to be cut back to when a run continues from here."""
        return {path.name: path.stat().st_size for pattern in LINE_FILES for path in sorted(self.path.glob(pattern))}

    def cut_lines(self, sizes: dict[str, int]) -> None:
        """Takes back what was appended after a state was saved, so that a continued run writes no line twice."""
        for path in (path for pattern in LINE_FILES for path in self.path.glob(pattern)):
            size = sizes.get(path.name, 0)
            if path.stat().st_size > size:
                os.truncate(path, size)

    def sweep(self) -> None:
        """Deletes what a killed process was writing when it ended."""
        for path in self.path.glob(".*.tmp*"):
            path.unlink()

    def is_finished(self, total_kimg: int) -> bool:
        """Whether the networks and the state of the end are there."""
        return any(kimg >= total_kimg and self.snapshot(kimg).is_file() for kimg in self.states())

    def last_state(self) -> dict | None:
        """The newest state that can be read and whose snapshot is there; None where there is no state. Damaged ones are named and passed over.

        Raises:
            UserError: there are states, but none that can be used: starting afresh would throw the run away.
        """
        states = self.states()
        for kimg in reversed(states):
            try:
                if self.snapshot(kimg).is_file():
                    return checkpoint.load_state(self.state(kimg))
                reason = f"{self.state(kimg)} has no {self.snapshot(kimg).name} beside it"
            except UserError as error:
                reason = str(error)
            print(f"Warning: {reason}; trying the state before it.")
        if states:
            raise UserError(f"--continue-run={self.path}: none of its {len(states)} training states can be used; start a new run")
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
        sign = -1 if figure.startswith(LOWER_IS_BETTER) else 1
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
