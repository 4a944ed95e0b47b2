"""What a run tells while it goes: the live line, the status line of each tick, stats.jsonl and the boards."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator

import psutil
import torch

from dnnlib import append_text
from dnnlib.format import format_time
from dnnlib.log import is_terminal
from torch_utils import training_stats
from torch_utils.distributed import busy, rank
from training.boards import Board, WandB, open_boards
from training.history import STATS_FILE
from training.run_files import RunDir
from training.state import TrainingState
from training.stopping import Abandoned

GB = 2**30


class Progress:
    """Timing and logging of a run. Every rank makes one, since statistics are joined over ranks; only rank 0 speaks and writes.

    Args:
        run: the run folder.
        total_kimg: where the run ends.

    Attributes:
        tick_nimg: images at the start of the running tick.
    """

    def __init__(self, run: RunDir, total_kimg: int):
        self.run, self.total_kimg = run, total_kimg
        self.tick_nimg = 0
        self.start_time = self.tick_start = time.time()
        self.maintenance = 0.0
        self.collector = training_stats.Collector()
        self.is_speaker = rank() == 0
        self._live = self.is_speaker and is_terminal(sys.stdout)
        self._last_live = 0.0
        self._started_at_nimg: int | None = None
        self._boards: list[Board] = []

    def begin(self) -> None:
        """Starts the clocks of a new run."""
        self.start_time = self.tick_start = time.time()

    def state_dict(self) -> dict:
        """Where the tick stands: what this rank's statistics have gathered in it so far, and the clocks, as seconds that have passed."""
        now = time.time()
        return {
            "tick_nimg": self.tick_nimg,
            "seconds": now - self.start_time,
            "tick_seconds": now - self.tick_start,
            "maintenance": self.maintenance,
            "statistics": training_stats.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes on in the tick of `state_dict`; what was reported in this process is forgotten."""
        self.tick_nimg, self.maintenance = state["tick_nimg"], state["maintenance"]
        self.start_time, self.tick_start = time.time() - state["seconds"], time.time() - state["tick_seconds"]
        training_stats.load_state_dict(state["statistics"])

    @contextlib.contextmanager
    def boards(self, state: TrainingState) -> Iterator[None]:
        """TensorBoard and what else the options name, while a training goes on; they take back what an interrupted part wrote beyond the last tick.

        Raises:
            UserError: one cannot be started.
        """
        if self.is_speaker:
            self._boards = open_boards(self.run, state.args, self.tick_nimg // 1000 + (state.cur_tick > 0))
        failed = True
        try:
            yield
            failed = False
        except Abandoned:  # asked to end
            failed = False
            raise
        finally:
            with busy("closing the boards"):  # a service may take long to get what it has not yet been sent
                for board in self._boards:
                    board.close(failed)

    def seconds(self) -> float:
        """Running time of the whole run so far."""
        return time.time() - self.start_time

    def _eta(self, state: TrainingState) -> str:
        """Time left at the speed of this process."""
        if self._started_at_nimg is None:
            self._started_at_nimg, self._started_at_time = state.cur_nimg, time.time()
        done = state.cur_nimg - self._started_at_nimg
        if done <= 0:
            return "-"
        left = max(self.total_kimg * 1000 - state.cur_nimg, 0)
        return format_time(left * (time.time() - self._started_at_time) / done)

    def live(self, state: TrainingState) -> None:
        """Rewrites the terminal's last line, at most twice a second; nothing where output goes to a file."""
        eta = self._eta(state)
        now = time.time()
        if not self._live or now - self._last_live < 0.5:
            return
        self._last_live = now
        share = min(state.cur_nimg / (self.total_kimg * 1000), 1)
        bar = "#" * int(24 * share) + "." * (24 - int(24 * share))
        print(f"\r[{bar}] {state.cur_nimg / 1e3:.1f} / {self.total_kimg} kimg, {eta} left   ", end="", flush=True)

    def _report(self, state: TrainingState, tick_seconds: float) -> None:
        per_kimg = tick_seconds / (state.cur_nimg - self.tick_nimg) * 1e3
        memory = psutil.Process().memory_info().rss / GB
        # What PyTorch holds, since what it has handed out leaves out the memory of CUDA graphs.
        gpu = torch.cuda.max_memory_reserved(state.device) / GB if state.device.type == "cuda" else 0.0
        if state.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(state.device)
        total = self.seconds()
        values = {
            "Progress/tick": state.cur_tick,
            "Progress/kimg": state.cur_nimg / 1e3,
            "Progress/augment": 0.0 if state.augment_pipe is None else float(state.augment_pipe.p),
            "Progress/nonfinite": float(state.nonfinite),
            "Timing/total_sec": total,
            "Timing/sec_per_tick": tick_seconds,
            "Timing/sec_per_kimg": per_kimg,
            "Timing/maintenance_sec": self.maintenance,
            "Timing/total_hours": total / 3600,
            "Timing/total_days": total / 86400,
            "Resources/cpu_mem_gb": memory,
            "Resources/peak_gpu_mem_gb": gpu,
        }
        for name, value in values.items():
            training_stats.report(name, value)
        state.report_times()
        self.collector.update()

    def tick(self, state: TrainingState) -> None:
        """Ends a tick: prints the status line and writes statistics. Raises UserError if they cannot be written."""
        if state.device.type == "cuda":
            torch.cuda.synchronize(state.device)  # the host may be many replays of CUDA graphs ahead, whose time is this tick's
        tick_seconds = time.time() - self.tick_start
        self._report(state, tick_seconds)
        stats = self.collector.as_dict()
        if self.is_speaker:
            mean = self.collector.mean
            fields = [
                f"tick {state.cur_tick:<5d}",
                f"kimg {state.cur_nimg / 1e3:<8.1f}",
                f"time {format_time(mean('Timing/total_sec')):<12s}",
                f"sec/tick {tick_seconds:<7.1f}",
                f"sec/kimg {mean('Timing/sec_per_kimg'):<7.2f}",
                f"maintenance {self.maintenance:<6.1f}",
                f"cpumem {mean('Resources/cpu_mem_gb'):<6.2f}",
                f"gpumem {mean('Resources/peak_gpu_mem_gb'):<6.2f}",
                f"augment {mean('Progress/augment'):.3f}",
            ]
            if self.collector.num("Loss/pairing/accuracy"):
                fields.append(f"pairing {mean('Loss/pairing/loss'):.3f} ({100 * mean('Loss/pairing/accuracy'):.0f}%)")
            fields.append(f"eta {self._eta(state)}")
            print(("\r" if self._live else "") + " ".join(fields), flush=True)
            append_text(self.run / STATS_FILE, json.dumps(dict(stats, timestamp=time.time())) + "\n")
            self._show({name: value.mean for name, value in stats.items()}, state)
        self.tick_nimg, self.tick_start = state.cur_nimg, time.time()

    def _show(self, values: dict[str, float], state: TrainingState) -> None:
        for board in self._boards:
            board.scalars(values, state.cur_nimg // 1000, self.seconds())

    def metric(self, name: str, value: float, state: TrainingState) -> None:
        """Adds a metric to the boards."""
        self._show({f"Metrics/{name}": value}, state)

    def picture(self, name: str, path: pathlib.Path, state: TrainingState) -> None:
        """Adds a picture file to the boards that take pictures."""
        for board in self._boards:
            if isinstance(board, WandB):
                board.picture(name, path, state.cur_nimg // 1000)

    def next_tick(self) -> None:
        """Starts the clock of the next tick; what passed since the last one ended was maintenance."""
        now = time.time()
        self.tick_start, self.maintenance = now, now - self.tick_start
