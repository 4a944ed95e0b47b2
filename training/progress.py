"""What a run tells while it goes: the live line, the status line of each tick, stats.jsonl and the boards."""

from __future__ import annotations

import json
import pathlib
import sys
import time

import psutil
import torch

from dnnlib import EasyDict
from dnnlib.format import format_time
from torch_utils import training_stats
from torch_utils.distributed import rank
from training.boards import Board, open_boards
from training.run_files import RunDir
from training.state import TrainingState

GB = 2**30


class Progress:
    """Clock and mouth of a run. Every rank makes one, since statistics are joined over ranks; only rank 0 speaks and writes.

    Args:
        run: the run folder.
        total_kimg: where the run ends.
        seconds_before: running time of the parts before this one, if the run was continued.
    """

    def __init__(self, run: RunDir, total_kimg: int, seconds_before: float = 0):
        self.run, self.total_kimg = run, total_kimg
        self.start_time = time.time() - seconds_before
        self.tick_start = time.time()
        self.maintenance = 0.0
        self.collector = training_stats.Collector()
        self.is_speaker = rank() == 0
        self._live = self.is_speaker and sys.stdout.isatty()
        self._last_live = 0.0
        self._started_at_nimg: int | None = None
        self._boards: list[Board] = []

    def open_boards(self, state: TrainingState) -> None:
        """Starts TensorBoard and what else the options name. Raises UserError where that is impossible."""
        if self.is_speaker:
            self._boards = open_boards(self.run, state.args, state.cur_nimg)

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

    def _report(self, state: TrainingState, tick_seconds: float, nimg: int) -> None:
        per_kimg = tick_seconds / nimg * 1e3
        memory = psutil.Process().memory_info().rss / GB
        gpu = torch.cuda.max_memory_allocated(state.device) / GB if state.device.type == "cuda" else 0.0
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

    def tick(self, state: TrainingState, nimg: int) -> EasyDict:
        """Ends a tick of `nimg` images: prints the status line, writes statistics, and returns them."""
        tick_seconds = time.time() - self.tick_start
        self._report(state, tick_seconds, nimg)
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
            self._write(stats, state)
        return stats

    def _write(self, stats: EasyDict, state: TrainingState) -> None:
        with open(self.run / "stats.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(dict(stats, timestamp=time.time())) + "\n")
        self._show({name: value.mean for name, value in stats.items()}, state)

    def _show(self, values: dict[str, float], state: TrainingState) -> None:
        for board in self._boards:
            board.scalars(values, state.cur_nimg // 1000, self.seconds())

    def metric(self, name: str, value: float, state: TrainingState) -> None:
        """Adds a metric to the boards."""
        self._show({f"Metrics/{name}": value}, state)

    def picture(self, name: str, path: pathlib.Path, state: TrainingState) -> None:
        """Adds a picture file to the boards that show pictures."""
        for board in self._boards:
            board.picture(name, path, state.cur_nimg // 1000)

    def next_tick(self, tick_end: float) -> None:
        """Starts the clock of the next tick; what passed since `tick_end` was maintenance."""
        self.tick_start = time.time()
        self.maintenance = self.tick_start - tick_end

    def close(self) -> None:
        """Flushes and closes the boards."""
        for board in self._boards:
            board.close()
