"""The files of a run folder that grow by lines: what a state remembers of them, and how they are put back to where it was written.

A process can end at any byte. Statistics of ticks after the state are made again, so they are taken back; figures of its snapshots and of those
before are kept, wherever the process ended, for they take long to measure.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib

from dnnlib import UserError, atomic_write_bytes
from training.history import STATS_FILE, snapshot_kimg
from training.run_files import ALARMS_FILE

NO_LINES = {"size": 0, "last": ""}  # the mark of a run that has not begun


def mark_lines(folder: pathlib.Path) -> dict:
    """What `restore_lines` needs to know of this moment: the size of stats.jsonl in bytes and its last line. They are on the disk on return."""
    path = folder / STATS_FILE
    if not path.is_file():
        return dict(NO_LINES)
    with _named(path), open(path, "r+b") as handle:  # Windows syncs only what may be written
        os.fsync(handle.fileno())
        data = handle.read()
    return {"size": len(data), "last": data.splitlines(keepends=True)[-1].decode() if data else ""}


def restore_lines(folder: pathlib.Path, mark: dict, last_snapshot: int) -> int:
    """Takes back what was written after a state, and makes its last line whole again.

    Args:
        folder: of the run.
        mark: what `mark_lines` returned then; NO_LINES to begin afresh.
        last_snapshot: kimg of the last snapshot before the state or at it; -1: none. Figures of later ones go.

    Returns:
        Bytes of statistics from before the state that are lost for good.

    Raises:
        UserError: a file cannot be read or written.
    """
    for path in (*sorted(folder.glob("metric-*.jsonl")), folder / ALARMS_FILE):
        with _named(path):
            data = path.read_bytes() if path.is_file() else b""
            kept = _kept(data, last_snapshot)
            if kept != data:
                atomic_write_bytes(path, kept)
    path = folder / STATS_FILE
    if not path.is_file() and mark["size"] == 0:
        return 0
    with _named(path), open(path, "ab") as handle:
        size, last = handle.tell(), mark["last"].encode()
        if size < mark["size"] - len(last):
            handle.truncate(_whole_lines(path))
            return mark["size"] - size
        handle.truncate(mark["size"] - len(last))
        handle.write(last)
    return 0


def _kept(data: bytes, last_snapshot: int) -> bytes:
    """The lines about snapshots up to `last_snapshot`, and those about something else, but not a torn one at the end."""
    lines = data.splitlines(keepends=True)
    if lines and _parsed(lines[-1]) is None:
        lines.pop()
    return b"".join(line for line in lines if _moment(_parsed(line)) <= last_snapshot)


def _parsed(line: bytes) -> dict | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _moment(entry: dict | None) -> int:
    """kimg of the snapshot that a figure or an alarm is about; -2 where it is about none."""
    kimg = (entry or {}).get("kimg", snapshot_kimg((entry or {}).get("snapshot_pkl")))
    return kimg if isinstance(kimg, int) else -2


def _whole_lines(path: pathlib.Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


@contextlib.contextmanager
def _named(path: pathlib.Path):
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read or write {path}: {error.strerror or error}") from error
