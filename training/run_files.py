"""The files of a run folder: options, snapshots, training states, and which of them stay."""

from __future__ import annotations

import json
import os
import pathlib
import re

from dnnlib import EasyDict, UserError, atomic_write_text
from torch_utils import checkpoint

STATES_KEPT = 2  # the last good state and the one before
OPTIONS_FILE = "training_options.json"
ALARMS_FILE = "alarms.jsonl"
LINE_FILES = ("stats.jsonl", "metric-*.jsonl", ALARMS_FILE)


def as_easydict(value):
    """Plain JSON values with every dictionary an EasyDict."""
    if isinstance(value, dict):
        return EasyDict({key: as_easydict(item) for key, item in value.items()})
    return [as_easydict(item) for item in value] if isinstance(value, list) else value


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

    def best(self, metric: str | None) -> int | None:
        """kimg of the snapshot with the best first figure of a metric (lower for FID, KID, path length and collision, else higher), or None."""
        path = self.path / f"metric-{metric}.jsonl"
        if metric is None or not path.is_file():
            return None
        sign = -1 if metric.startswith(("fid", "kid", "ppl", "collision")) else 1
        values = []
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            number = re.search(r"snapshot-(\d+)", entry.get("snapshot_pkl") or "")
            if number:
                values.append((sign * next(iter(entry["results"].values())), int(number[1])))
        return max(values)[1] if values else None

    def prune(self, keep: int, metric: str | None) -> None:
        """Deletes training states but the last two and, with keep > 0, snapshots but the last `keep`, the best, and those of the states."""
        states = self.states()
        for kimg in states[:-STATES_KEPT]:
            self.state(kimg).unlink()
        if keep > 0:
            stay = {*self.snapshots()[-keep:], *states[-STATES_KEPT:], self.best(metric)}
            for kimg in self.snapshots():
                if kimg not in stay:
                    self.snapshot(kimg).unlink()
