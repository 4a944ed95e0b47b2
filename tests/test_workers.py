"""Processes that read ahead: they end with their parent and with what reads from them, and never keep a process from ending."""

import multiprocessing
import pathlib
import signal
import subprocess
import sys

import pytest

from dnnlib.workers import ReadAhead

ROOT = pathlib.Path(__file__).parents[1]
LIMIT_SECONDS = 60  # a process that hangs would take for ever; starting torch takes a few seconds

ENDS = """
import multiprocessing, os, sys
from dnnlib.workers import ReadAhead

reading = ReadAhead(list(range(100)), batch_size=2, num_workers=2)
assert next(reading).tolist() == [0, 1]
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
"""
FORKED = """
if os.fork() == 0:
    sys.exit()  # a child by another way than multiprocessing's must leave the workers to their parent
os.wait()
assert next(reading).tolist() == [2, 3]
"""


def is_running(pid):
    return pathlib.Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit(3)", 3), ("raise ValueError", 1), (FORKED, 0)])
def test_a_process_ends_though_it_still_reads(end, code):
    result = subprocess.run([sys.executable, "-c", ENDS + end], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert result.returncode == code, result.stderr
    workers = result.stdout.split()
    assert len(workers) == 2 and not any(map(is_running, workers))


SLOW_START = """
import multiprocessing, os, signal, time
from dnnlib import workers

ignore = workers._leave_ending_to_the_parent
workers._leave_ending_to_the_parent = lambda worker: (time.sleep(worker), ignore(worker))
reading = workers.ReadAhead(list(range(8)), batch_size=2, num_workers=2)
for worker in multiprocessing.active_children():
    os.kill(worker.pid, signal.SIGTERM)
assert [batch.tolist() for batch in reading] == [[0, 1], [2, 3], [4, 5], [6, 7]]
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked")
def test_a_worker_outlives_a_signal_that_comes_while_it_starts():
    subprocess.run([sys.executable, "-c", SLOW_START], cwd=ROOT, check=True, timeout=LIMIT_SECONDS)


@pytest.mark.parametrize("ending", [lambda held: held[0].close(), lambda held: held.clear()])
def test_workers_end_with_their_reader(ending):
    before = set(multiprocessing.active_children())
    held = [ReadAhead(list(range(10)), batch_size=2, num_workers=1)]
    next(held[0])
    (worker,) = set(multiprocessing.active_children()) - before
    ending(held)
    assert not worker.is_alive()
