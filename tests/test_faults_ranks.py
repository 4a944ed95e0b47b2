"""Faults of runs of two ranks on one machine, through the command itself: asked to end, they agree on the step; killed, they end and go on."""

import contextlib
import subprocess
import sys
import time

import psutil
import pytest
from tiny_runs import learned_stats

import train
from dnnlib.signals import STOP_SIGNALS
from training.run_files import INTERRUPTED_STATE, RunDir

pytestmark = pytest.mark.slow
LEAVING_SECONDS = 30
FAULT_SECONDS = 60
LAST = "network-snapshot-000003.safetensors"


def start(place, run_dir):
    data = [f"--data={place / 'pics.zip'}", "--cfg=demo", "--cond=1", "--batch=64", "--kimg=3", "--tick=1", "--metrics=none", "--pairing-weight=0.05"]
    command = [sys.executable, train.__file__, f"--outdir={run_dir}", *data, "--device=cpu", "--gpus=2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_until(process, beginning):
    """Reads what a process prints up to a line with this beginning."""
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"ended with {process.wait()} before it printed {beginning!r}")


def finish(place, run_dir):
    with start(place, run_dir) as process:
        output = process.stdout.read()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def whole(place):
    """The run without any fault."""
    finish(place, place / "00000-whole")
    return place / "00000-whole"


def assert_same(run_dir, whole):
    assert (run_dir / LAST).read_bytes() == (whole / LAST).read_bytes()
    assert learned_stats(run_dir) == learned_stats(whole)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)  # as this process's, which its children inherit
def test_ranks_that_are_asked_to_end_leave_one_state(place, whole, tmp_path, number):
    run_dir = tmp_path / "00000-run"
    with start(place, run_dir) as process:
        read_until(process, "tick 1 ")
        asked = time.monotonic()
        process.send_signal(number)
        output = process.stdout.read()
        assert process.wait() == 128 + number, output
        assert time.monotonic() - asked < LEAVING_SECONDS
    assert (run_dir / INTERRUPTED_STATE).is_file() and "Error" not in output and f"with --continue-run={run_dir}" in output
    assert "Continuing at" in finish(place, run_dir)
    assert_same(run_dir, whole)


def test_one_killed_rank_ends_all_and_the_run_goes_on(place, whole, tmp_path):
    run_dir = tmp_path / "00000-run"
    with start(place, run_dir) as process:
        read_until(process, "tick 1 ")
        ranks = []
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                ranks += [child] if child.environ().get("LOCAL_RANK") == "1" else []
        ranks[0].kill()
        killed = time.monotonic()
        output = process.stdout.read()
        assert process.wait() not in (0, None) and "Error: " in output
        assert time.monotonic() - killed < FAULT_SECONDS
    assert RunDir(run_dir).states() == [0]
    assert "Continuing at 0.1 kimg." in finish(place, run_dir)
    assert_same(run_dir, whole)
