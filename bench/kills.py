"""Trainings that are killed at random moments and continued by the same command, compared with one that was left alone. One JSON line.

    python -m bench.kills --count=200

The kills are SIGKILLs, at moments drawn uniformly over the time that a whole run takes from its start to its end: some hit a step, some a
picture, a snapshot, a state or a metric. A run is started again until it has ended by itself; then its weights, its statistics (without times
and memory) and its figures must be those of the reference, line by line. The networks are those of --cfg=demo with at most 8
channels. The processes are forked from this one, where all packages are loaded: the kills are for the training, not for the import of PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import random
import re
import runpy
import signal
import sys
import tempfile
import time
from typing import NoReturn

import click
import torch

from dnnlib import UserError
from dnnlib.cli import run_command
from metrics.detectors import trust_detector
from training import options, training_loop  # noqa: F401 (what train.py needs, loaded before the forks)
from training.presets import PRESETS
from training.run_files import RunDir

ROOT = pathlib.Path(__file__).resolve().parent.parent
READY = re.compile("^(Continuing at|No training state yet|Training images)", re.MULTILINE)  # lines of a training that is about to begin
CLOCKS = re.compile("Timing|Resources|timestamp|total_time")  # what they and the machine decide
POLL_SECONDS = 0.01
OPTIONS = ["--cfg=demo", "--cond=1", "--batch=200", "--tick=1", "--snap=1", "--metrics=prdc10k5"]
OPTIONS += ["--pairing-weight=0.05", "--pairing-target=0.5", "--pairing-dim=8", "--device=cpu", "--precision=fp32"]
IMAGES = 100
SMALL = dict(channel_max=8, fmaps=1 / 512, z_dim=8, w_dim=8, regularize_path=True)  # --cfg=demo for this benchmark


class MeanColours(torch.nn.Module):
    """A detector that costs nothing: the means of sixteen parts of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 48]."""
        return torch.nn.functional.adaptive_avg_pool2d(images.to(torch.float32), 4).flatten(1)


@dataclasses.dataclass
class Tally:
    """What has been seen.

    Attributes:
        kills: processes killed; in_training: those of them that had begun to train.
        runs: whole runs.
        differences: files or lines that differ from the reference's.
        lost: lines missing or there twice.
        longest_restart: seconds from the start of a process to that of its training.
    """

    kills: int = 0
    in_training: int = 0
    runs: int = 0
    differences: int = 0
    lost: int = 0
    longest_restart: float = 0.0


def prepare(place: pathlib.Path) -> None:
    """Makes the data set, digits of 8 x 8 pixels, and the detector."""
    size = ["--width=8", "--height=8", "--resize-filter=box", f"--max-images={IMAGES}"]
    Attempt(["dataset_tool.py", "--source=digits", f"--dest={place / 'digits.zip'}", *size], place / "output.txt").end(math.inf)
    torch.jit.script(MeanColours()).save(str(place / "means.pt"))
    trust_detector(str(place / "means.pt"), remember=False)  # the forks know it from here


def command(place: pathlib.Path, run_dir: pathlib.Path, kimg: int) -> list[str]:
    """The command that starts a run, and goes on with it."""
    data = [f"--data={place / 'digits.zip'}", f"--detector={place / 'means.pt'}", f"--kimg={kimg}"]
    return ["train.py", f"--outdir={run_dir}", *data, *OPTIONS]


class Attempt:
    """A process that runs a command of this project.

    Attributes:
        ready: seconds from its start to the first line of a training; None: it has not come so far.
    """

    def __init__(self, arguments: list[str], output: pathlib.Path):
        self.arguments, self.output = arguments, output
        self.ready: float | None = None
        output.write_text("")
        self.start = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._execute()

    def _execute(self) -> NoReturn:
        code = 1
        try:
            descriptor = os.open(self.output, os.O_WRONLY | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.argv = self.arguments
            runpy.run_path(str(ROOT / self.arguments[0]), run_name="__main__")
        except SystemExit as leaving:
            code = leaving.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def end(self, moment: float) -> bool:
        """Kills the process `moment` seconds after its start. Returns whether it has ended by itself before.

        Raises:
            UserError: it has failed.
        """
        pid = status = 0
        while pid == 0:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            seconds = time.monotonic() - self.start
            if self.ready is None and READY.search(self.output.read_text()):
                self.ready = seconds
            if pid == 0 and seconds >= moment:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return False
            time.sleep(POLL_SECONDS)
        if status != 0:
            code = os.waitstatus_to_exitcode(status)
            raise UserError(f"{' '.join(self.arguments)} ended with code {code}: {self.output.read_text()[-2000:]}")
        return True


def lines_of(run_dir: pathlib.Path) -> dict[str, list[dict]]:
    """Statistics and figures of a run, without what a clock or the machine decides."""
    found = {}
    for path in sorted(run_dir.glob("*.jsonl")):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{key: value for key, value in entry.items() if not CLOCKS.match(key)} for entry in entries]
    return found


def compare(reference: pathlib.Path, run_dir: pathlib.Path) -> tuple[int, int]:
    """(files and lines that differ, lines lost or doubled) of a run that has ended."""
    differences = lost = 0
    ours, theirs = lines_of(run_dir), lines_of(reference)
    for name in ours.keys() | theirs.keys():
        a, b = ours.get(name, []), theirs.get(name, [])
        lost += abs(len(a) - len(b))
        differences += sum(x != y for x, y in zip(a, b))
    for kimg in RunDir(reference).snapshots():
        for path in (RunDir(reference).snapshot(kimg), reference / f"fakes{kimg:06d}.png"):
            same = (run_dir / path.name).is_file() and (run_dir / path.name).read_bytes() == path.read_bytes()
            differences += not same
    differences += RunDir(run_dir).snapshots() != RunDir(reference).snapshots()
    return differences, lost


def torture(place: pathlib.Path, count: int, kimg: int, seed: int, say=lambda text: None) -> Tally:
    """Makes a reference in `place`, then runs that are killed `count` times in all.

    Raises:
        UserError: a process has failed by itself or hung.
    """
    PRESETS["demo"] = dataclasses.replace(PRESETS["demo"], **SMALL)  # in the processes forked from this one, too
    torch.set_num_threads(1)
    prepare(place)
    moments, tally = random.Random(seed), Tally()
    reference, output = place / "00000-reference", place / "output.txt"
    Attempt([*command(place, reference, kimg), "--dry-run"], output).end(math.inf)  # builds the native ops where that was not done before
    start = time.monotonic()
    Attempt(command(place, reference, kimg), output).end(math.inf)
    seconds = time.monotonic() - start
    say(f"A whole run takes {seconds:.1f} s.")
    while tally.kills < count:
        tally.runs += 1
        run_dir = place / f"{tally.runs:05d}-killed"
        ended = False
        while not ended:
            attempt = Attempt(command(place, run_dir, kimg), output)
            ended = attempt.end(moments.uniform(0, seconds) if tally.kills < count else math.inf)
            tally.kills += not ended
            tally.in_training += not ended and attempt.ready is not None
            tally.longest_restart = max(tally.longest_restart, round(attempt.ready or 0, 1))
        differences, lost = compare(reference, run_dir)
        tally.differences, tally.lost = tally.differences + differences, tally.lost + lost
        say(f"Run {tally.runs}: {tally.kills} kills so far, {differences} differences, {lost} lines lost.")
    return tally


@click.command()
@click.option("--count", help="Kills in all", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--kimg", help="Length of the runs in thousand images", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seed", help="Random seed of the moments", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--keep", help="Folder for the runs  [default: one that is removed again]", metavar="DIR")
def main(count: int, kimg: int, seed: int, keep: str | None) -> None:
    """Kills trainings at random moments, continues them, and compares what comes out. Ends with code 2 if anything differs."""
    with tempfile.TemporaryDirectory() as temporary:
        start = time.monotonic()
        place = pathlib.Path(keep or temporary).absolute()
        place.mkdir(parents=True, exist_ok=True)
        tally = torture(place, count, kimg, seed, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps({"bench": "kills", "kimg": kimg, "seed": seed, **dataclasses.asdict(tally), "seconds": round(time.monotonic() - start)}))
    if tally.differences or tally.lost:
        raise UserError(f"{tally.differences} files or lines differ and {tally.lost} are lost; a continued run is not exact")


if __name__ == "__main__":
    run_command(main)
