"""The live table of all runs: rewritten lines on a terminal, a line for each event in a log."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from dnnlib import UserError
from dnnlib.format import format_time
from dnnlib.json_files import read_json_lines
from experiments.images.plan import PlannedRun
from experiments.images.run_state import run_folders

REDRAW_SECONDS = 2.0
LOG_SECONDS = 600.0  # between two lines about a run that goes on
UNLIKELY = 1e9  # kimg, or seconds for one; NaN is no less
ENDED = ("measured", "failed", "stopped")


class Board:
    """Shows what becomes of runs until `close`.

    Args:
        runs: in order.
        log: told every event where a terminal shows the table instead.
        stream: where to; a terminal is rewritten. Default: stdout; a terminal's own, past all who copy what is printed.
    """

    def __init__(self, runs: Sequence[PlannedRun], log: Callable[[str], None] = lambda text: None, stream: TextIO | None = None):
        self.stream = stream or (sys.__stdout__ if sys.stdout.isatty() and sys.__stdout__ else sys.stdout)
        self.live = self.stream.isatty()
        self.log = log
        self.runs = list(runs)
        self.states = dict.fromkeys((run.key for run in runs), "waiting")
        self._since: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._lines = 0
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def set(self, run: PlannedRun, state: str) -> None:
        """A run is in another state now: training, measuring, measured, failed: ..."""
        with self._lock:
            self.states[run.key] = state
            self._since[run.key] = self._told[run.key] = time.time()
            ended = sum(state.startswith(ENDED) for state in self.states.values())
            self._tell(f"{run.key}: {state}  ({ended} of {len(self.runs)} done)")

    def close(self) -> None:
        """Draws once more and stops."""
        self._closing.set()
        self._thread.join()
        self.draw()

    def draw(self) -> None:
        """Rewrites the table; in a log, adds lines about runs that nothing was said of for long."""
        with self._lock:
            if not self.live:
                self._log_progress()
                return
            try:
                self._rewrite()
            except (OSError, ValueError, OverflowError):  # the terminal is gone
                self.live = False

    def _rewrite(self) -> None:
        width, height = shutil.get_terminal_size()
        lines = [line[: width - 1] for line in table(self.runs, self.states, self._since, height - 2)]
        back = f"\x1b[{self._lines}F" if self._lines else ""
        self.stream.write(back + "".join(f"\x1b[2K{line}\n" for line in lines))
        self.stream.write("".join("\x1b[2K\n" for _ in range(self._lines - len(lines))))
        self._lines = max(self._lines, len(lines))
        self.stream.flush()

    def _log_progress(self) -> None:
        for run in self.runs:
            if self.states[run.key] == "training" and time.time() - self._told.get(run.key, 0) >= LOG_SECONDS:
                self._told[run.key] = time.time()
                self._tell(f"{run.key}: {progress(run)}")

    def _tell(self, event: str) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {event}"
        if not self.live:
            try:
                print(line, file=self.stream, flush=True)
                return
            except (OSError, ValueError):  # the terminal is gone
                pass
        self.log(line + "\n")

    def _watch(self) -> None:
        while not self._closing.wait(REDRAW_SECONDS):
            self.draw()


def table(runs: Sequence[PlannedRun], states: dict[str, str], since: dict[str, float], height: int) -> list[str]:
    """Lines of the table: a sum, then the runs; where there is no room for all, those that wait or are done are left out first."""
    counts = {}
    for state in states.values():
        word = state.partition(":")[0]
        counts[word] = counts.get(word, 0) + 1
    head = f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items())
    shown = list(runs)
    for word in ("waiting", "measured"):
        if len(shown) > max(height - 1, 1):
            shown = [run for run in shown if states[run.key] != word]
    shown = shown[: max(height - 1, 1)]
    width = max((len(run.key) for run in shown), default=0)
    lines = [head]
    for run in shown:
        state = states[run.key]
        going = f"  {format_time(time.time() - since[run.key])}" if state in ("training", "measuring") and run.key in since else ""
        lines.append(f"{run.key:{width}}  {progress(run) if state == 'training' else state}{going}")
    return lines


def progress(run: PlannedRun) -> str:
    """How far a training is, by its stats.jsonl."""
    last = _last_line(run)
    if last is None:
        return f"training, 0 of {run.kimg} kimg"
    kimg, speed = last["Progress/kimg"]["mean"], last["Timing/sec_per_kimg"]["mean"]
    left = format_time(max(run.kimg - kimg, 0) * speed)
    return f"training, {kimg:.1f} of {run.kimg} kimg, {speed:.2f} s/kimg, {left} left"


def _last_line(run: PlannedRun) -> dict | None:
    """The last of its stats.jsonl, if it says how far and how fast."""
    try:
        last = read_json_lines(run_folders(run.parent)[-1] / "stats.jsonl")[-1]
        known = all(0 <= last[name]["mean"] < UNLIKELY for name in ("Progress/kimg", "Timing/sec_per_kimg"))
        return last if known else None
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return None
