"""Feeds damaged and hostile files to every reader. A table: inputs, refused, accepted, crashes, code run, files written elsewhere, memory, time.

    python -m bench.fuzz --inputs=10000
    python -m bench.fuzz --inputs=200 --reader=PNG --keep=crashes

An input is refused by a UserError of one line; whatever else comes out of a reader is a crash. Every reader has a process of its own, whose
address space may grow by 4 GB. There, Python's audit events tell of every file that is opened for writing, made, moved or removed outside of the
reader's folder and the project's cache, and of every process, connection and foreign library; a canary file tells of code that does without
Python. Memory is what the process grew by at its peak, from when it had read the sound files; time is CPU time of the slowest input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

import click
import psutil

from bench.fuzz_readers import Reader, make_reader, reader_names
from dnnlib import UserError, download, make_folder
from dnnlib.cli import run_command

MORE_MEMORY = 4 << 30
SECONDS = 60  # of CPU time, after which an input counts as a hang
RUNS_CODE = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pty.spawn",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
    "pickle.find_class",
)
COUNTS_GPUS = "libnvidia-ml.so.1"  # what torch made for CUDA opens whenever it is asked how many GPUs there are
CHANGES_FILES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime")


class Hang(BaseException):
    """An input took too long."""


@dataclasses.dataclass
class Outcome:
    """What a reader did. `crashes` and the like are told by short texts, one per input; peak in MB, longest in seconds of CPU time."""

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    crashes: list[str] = dataclasses.field(default_factory=list)
    executions: list[str] = dataclasses.field(default_factory=list)
    escapes: list[str] = dataclasses.field(default_factory=list)
    peak: float = 0.0
    longest: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened that must not."""
        return not (self.crashes or self.executions or self.escapes)


class Watch:
    """Sees through audit events what a reader does, while it is active. An audit hook stays for as long as the process."""

    def __init__(self) -> None:
        self.folder: pathlib.Path | None = None
        self._cache = download.cache_dir().resolve()
        self.executions: list[str] = []
        self.escapes: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in RUNS_CODE and args[:1] != (COUNTS_GPUS,):
            self.executions.append(f"{event} {args!r:.100}")
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes or event in CHANGES_FILES or event.startswith("shutil."):
            paths = [os.fsdecode(arg) for arg in args[:2] if isinstance(arg, str | bytes | os.PathLike)]
            self.escapes += [f"{event} {path}" for path in paths[: 1 if writes else 2] if not self._is_inside(path)]

    def _is_inside(self, path: str) -> bool:
        place = f"{os.path.realpath(path)}{os.sep}"
        return path == os.devnull or place.startswith((f"{self.folder}{os.sep}", f"{self._cache}{os.sep}"))


def fuzz(reader: Reader, count: int, seed: int, watch: Watch, keep: pathlib.Path | None = None, first: int = 0) -> Outcome:
    """Gives a reader `count` inputs.

    Args:
        reader: from make_reader.
        seed: of the inputs; input number i of a seed is always the same.
        watch: of this process.
        keep: where inputs that crash the reader are kept.
        first: number of the first input.
    """
    outcome = Outcome(reader.name)
    for data in reader.seeds:
        reader.path.write_bytes(data)
        with contextlib.suppress(UserError):
            reader.read(reader.path)  # unseen: what is imported or built at first use is none of the file's doing
    before = signal.signal(signal.SIGPROF, _hang)
    try:
        _try_all(reader, count, seed, watch, keep, first, outcome)
    finally:
        signal.signal(signal.SIGPROF, before)
    return outcome


def _try_all(reader: Reader, count: int, seed: int, watch: Watch, keep: pathlib.Path | None, first: int, outcome: Outcome) -> None:
    """The sound files, then the inputs; arguments as those of `fuzz`."""
    for data in reader.seeds:
        _try(reader, data, outcome, watch)
    if not outcome.accepted:
        outcome.crashes.append("no sound file is accepted")
    outcome.refused = outcome.accepted = 0
    before = _forget_peak()
    for index in range(first, first + count):
        r = random.Random(f"{reader.name} {seed} {index}")
        data = reader.damage(r, r.choice(reader.seeds))
        crashes = len(outcome.crashes)
        _try(reader, data, outcome, watch, f"input {index}: ")
        if keep is not None and len(outcome.crashes) > crashes:
            shutil.copyfile(reader.path, keep / f"{reader.name.replace(' ', '-')}-{index}{reader.path.suffix}")
        outcome.inputs += 1
    outcome.peak = (_peak_memory() - before) / 1e6


def _try(reader: Reader, data: bytes, outcome: Outcome, watch: Watch, name: str = "a sound file: ") -> None:
    """One input."""
    reader.path.write_bytes(data)
    watch.executions, watch.escapes, watch.folder = [], [], reader.folder.resolve()
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(reader.path)
        outcome.accepted += 1
    except UserError as error:
        outcome.refused += 1
        if not str(error).isprintable() or not 10 < len(str(error)) < 3000:
            outcome.crashes.append(f"{name}refused by {str(error)[:200]!r}")
    except (Exception, Hang) as error:
        outcome.crashes.append(f"{name}{type(error).__name__}: {str(error)[:200]}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.folder = None
    outcome.longest = max(outcome.longest, time.process_time() - start)
    if reader.canary.exists():
        reader.canary.unlink()
        watch.executions.append("the canary was made")
    outcome.executions += [name + text for text in watch.executions]
    outcome.escapes += [name + text for text in watch.escapes]


def _forget_peak() -> int:
    """Lets the peak begin anew where the system can (Linux), and returns it as it is now, in bytes."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _peak_memory()


def _peak_memory() -> int:
    """The most memory that the process has held, in bytes: since `_forget_peak`, or ever where that cannot be."""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _hang(*_: Any) -> None:
    raise Hang(f"more than {SECONDS} s")


def fuzz_here(name: str, count: int, seed: int, keep: pathlib.Path | None) -> Outcome:
    """Fuzzes one reader in this process, which serves for nothing else: its memory is bounded and what it prints is thrown away."""
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MORE_MEMORY,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        return fuzz(make_reader(name, pathlib.Path(folder) / "reader"), count, seed, Watch(), keep)


def fuzz_apart(name: str, count: int, seed: int, keep: pathlib.Path | None) -> Outcome:
    """Fuzzes one reader in a process of its own; one that ends by a signal is a crash."""
    command = [sys.executable, "-B", "-m", "bench.fuzz", f"--inputs={count}", f"--seed={seed}", f"--reader={name}", "--here"]
    done = subprocess.run(
        [*command, *([f"--keep={keep}"] if keep else [])], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    try:
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return Outcome(name, crashes=[f"the process ended with status {done.returncode}"])


HEAD = "| reader | inputs | refused | accepted | crashes | code run | escapes | peak MB | longest s |\n|---|---|---|---|---|---|---|---|---|"


def table_row(outcome: Outcome) -> str:
    """A line of the table."""
    counts = (len(found) for found in (outcome.crashes, outcome.executions, outcome.escapes))
    cells = [
        outcome.reader,
        *(f"{n:,}" for n in (outcome.inputs, outcome.refused, outcome.accepted, *counts)),
        f"{outcome.peak:.0f}",
        f"{outcome.longest:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--inputs", "count", help="Inputs per reader", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--reader", help="Only this one", type=click.Choice(reader_names()))
@click.option("--seed", help="Seed of the inputs", type=int, default=0, show_default=True)
@click.option("--keep", help="Folder for inputs that crash a reader", metavar="DIR", type=click.Path(path_type=pathlib.Path))
@click.option("--here", help="In this process, and one JSON line", is_flag=True, hidden=True)
def main(count: int, reader: str | None, seed: int, keep: pathlib.Path | None, here: bool) -> None:
    """Feeds damaged and hostile files to every reader and prints a table of what they did."""
    if keep is not None:
        make_folder(keep, f"--keep={keep}")
    if here:
        print(json.dumps(dataclasses.asdict(fuzz_here(reader, count, seed, keep))))
        return
    print(HEAD, flush=True)
    outcomes = []
    for name in [reader] if reader else reader_names():
        outcomes.append(fuzz_apart(name, count, seed, keep))
        print(table_row(outcomes[-1]), flush=True)
    found = [f"{outcome.reader}: {text}" for outcome in outcomes for text in (*outcome.crashes, *outcome.executions, *outcome.escapes)]
    if found:
        raise UserError(f"{len(found)} findings, the first of them: {' // '.join(found[:20])}")


if __name__ == "__main__":
    run_command(main)
