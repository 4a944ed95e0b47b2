"""Makes one planned run: trains it or goes on with it, then measures what is not measured. Every launcher calls this; it decides by looking."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from dnnlib import UserError
from experiments.images.folder_lock import hold
from experiments.images.guard import end_trees
from experiments.images.plan import PlannedRun
from experiments.images.run_state import SHEET, SHEET_STEM
from torch_utils.allocator import MALLOC_VARIABLES
from training.run_files import RunDir

OUTPUT = "output.txt"
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SCRIPTS = ROOT  # where train.py and calc_metrics.py are


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        key: of the run.
        error: empty if it is trained and measured.
        trained: whether some of its training was done now.
        since: Unix time at which that began.
    """

    key: str
    error: str = ""
    trained: bool = False
    since: float = 0.0


class Stop(threading.Event):
    """Set to end what is running; processes that are to be ended register themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._running: set[int] = set()
        self._mutex = threading.Lock()

    def started(self, pid: int) -> None:
        """A process that `set` has to end."""
        with self._mutex:
            self._running.add(pid)
        if self.is_set():
            end_trees(pid)

    def ended(self, pid: int) -> None:
        """It has ended."""
        with self._mutex:
            self._running.discard(pid)

    def set(self) -> None:
        """Ends all."""
        super().set()
        with self._mutex:
            running = list(self._running)
        end_trees(*running)


def make_run(
    run: PlannedRun, environment: Mapping[str, str] | None = None, say: Callable[[str], None] = lambda text: None, stop: Stop | None = None
) -> Outcome:
    """Trains and measures a run as far as that is not done.

    Args:
        run: which.
        environment: variables to add for its processes.
        say: told "training", "measuring" and "looking".
        stop: ends it early.

    Returns:
        The outcome. A failure of the run is not raised: others must not suffer from it.
    """
    trained, since = False, time.time()
    try:
        with hold(run.parent, f"the run {run.key}"):
            if (found := run.look()).archived:
                reason = f"{found.path} is archived at {found.kimg} kimg, without the weights to go on from; move it away to train the run anew"
                return Outcome(run.key, "" if found.finished else reason)
            for step, command in STEPS:
                arguments = command(run)
                if arguments is not None and not (stop and stop.is_set()):
                    say(step)
                    if step == "training" and found.path:
                        (found.path / SHEET).unlink(missing_ok=True)  # of an end that is not the end any more
                    execute(arguments, run.parent / OUTPUT, environment or {}, stop)
                    trained = trained or step == "training"
            state = run.look()
            if state.is_measured:
                return Outcome(run.key, trained=trained, since=since)
            return Outcome(run.key, "stopped" if stop and stop.is_set() else f"ended without an error, but is {state}")
    except UserError as error:
        return Outcome(run.key, "stopped" if stop and stop.is_set() else str(error))
    except OSError as error:  # a full disk, say, or a file that cannot be written
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return Outcome(run.key, "stopped" if stop and stop.is_set() else f"{reason} (errno {error.errno})")
    except Exception as error:  # whatever a run's files hold, the others go on
        return Outcome(run.key, "stopped" if stop and stop.is_set() else f"{type(error).__name__}: {error}")


def training_command(run: PlannedRun) -> list[str] | None:
    """train.py and its arguments to make the run or go on with it; None if it is finished."""
    state = run.look()
    if state.finished:
        return None
    if state.path is None:
        return [str(SCRIPTS / "train.py"), *run.arguments]
    gpus = [f"--gpus={run.gpus}"] if run.gpus > 1 else []
    data = run.options["training_set_kwargs"]["path"]  # which may have moved since the run was started
    return [str(SCRIPTS / "train.py"), f"--continue-run={state.path.as_posix()}", f"--data={data}", f"--kimg={run.kimg}", *gpus]


def measuring_command(run: PlannedRun) -> list[str] | None:
    """calc_metrics.py and its arguments to measure what is not measured; None if all is."""
    state = run.look()
    if state.measured == state.snapshots:
        return None
    return metrics_command(run, state.path, run.metrics)


def ending_command(run: PlannedRun) -> list[str] | None:
    """calc_metrics.py and its arguments for what is measured of the planned end alone; None if it is there."""
    state = run.look()
    if state.end_measured or not state.finished:
        return None
    return metrics_command(run, RunDir(state.path).snapshot(state.end), run.end_metrics)


def metrics_command(run: PlannedRun, network: pathlib.Path, metrics: Sequence[str]) -> list[str]:
    """calc_metrics.py and its arguments to measure a snapshot, or all of a run folder."""
    command = [str(SCRIPTS / "calc_metrics.py"), f"--network={network.as_posix()}", f"--metrics={','.join(metrics)}", *run.measuring]
    if run.gpus == 1:
        return command
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.gpus}", *command, f"--gpus={run.gpus}"]


def looking_command(run: PlannedRun) -> list[str] | None:
    """calc_metrics.py and its arguments to draw the sheets of the last snapshot; None if they are there or not wanted."""
    state = run.look()
    if state.looked_at or not state.finished:
        return None
    last = RunDir(state.path).snapshot(state.kimg)
    return [str(SCRIPTS / "calc_metrics.py"), "show", f"--fake={last.as_posix()}", f"--out={(state.path / SHEET_STEM).as_posix()}", *run.looking]


STEPS = (("training", training_command), ("measuring", measuring_command), ("measuring", ending_command), ("looking", looking_command))


def execute(arguments: Sequence[str], output: pathlib.Path, environment: Mapping[str, str], stop: Stop | None = None) -> None:
    """Runs this Python with arguments, under a guard, its output added to a file.

    Raises:
        UserError: it fails; with the last thing it said.
    """
    added = {name: value for name, value in {**MALLOC_VARIABLES, **environment}.items() if name not in os.environ or name in environment}
    guard = [sys.executable, "-m", "experiments.images.guard", sys.executable, *arguments]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(output, "ab") as handle:
        handle.write(f"$ python {' '.join(arguments)}\n".encode(errors="surrogateescape"))  # paths need not be UTF-8
        handle.flush()
        start = handle.tell()
        process = subprocess.Popen(
            guard,
            stdin=subprocess.PIPE,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env={**os.environ, **added, "PYTHONPATH": path},
            start_new_session=True,  # what a terminal sends is for us to decide on
        )
        if stop:
            stop.started(process.pid)
        try:
            code = process.wait()
        except BaseException:  # this process is to end: the guard ends its tree, which writes a state first
            process.stdin.close()
            process.wait()
            raise
        process.stdin.close()
        if stop:
            stop.ended(process.pid)
    if code != 0:
        script = next(pathlib.Path(argument).name for argument in arguments if argument.endswith(".py"))
        raise UserError(f"{script} ended with code {code}: {last_words(output, start)} (all in {output})")


def last_words(output: pathlib.Path, start: int = 0) -> str:
    """The last error, or else the last line, that a process has printed, and the last warning, which may be its reason."""
    with open(output, "rb") as handle:
        handle.seek(start)
        lines = [line.strip() for line in handle.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    last = (errors or lines or ["it said nothing"])[-1]
    warning = next((line for line in reversed(lines) if line.startswith("Warning: ") and line != last), "")
    return " - ".join(text[:300] for text in (last.removeprefix("Error: "), warning) if text)
