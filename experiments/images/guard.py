"""A command that does not outlive who started it: `python -m experiments.images.guard COMMAND...` ends it when its own standard input closes.

A killed `reproduce.py` would otherwise leave trainings behind, and the next one would write into the same folders beside them. The pipe closes
with its owner however that ends. Only the standard library and psutil are loaded, so the guard costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import psutil

from dnnlib.signals import STOP_SIGNALS

GRACE_SECONDS = 30  # for a training to write a state and leave
# What queues send before they take a machine away, and a terminal that goes; its Ctrl-C is for the owner to decide on.
QUEUE_SIGNALS = [number for number in STOP_SIGNALS if number != signal.SIGINT]
TERMINATED = 128 + signal.SIGTERM


def end_trees(*pids: int) -> None:
    """Ends processes with all that they started: politely and all at once, then not."""
    trees: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            trees += [*root.children(recursive=True), root]
    for process in trees:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(trees, GRACE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main(command: list[str]) -> int:
    """Runs the command; returns its exit code, or that of a terminated one if it was ended from here."""
    ended = threading.Event()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end(*_) -> None:
        ended.set()
        end_trees(child.pid)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        end()

    for number in QUEUE_SIGNALS:
        signal.signal(number, end)
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    if ended.is_set():  # who waits for the tree takes its code away, and what is left reads as 0
        return TERMINATED
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
