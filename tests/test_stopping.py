"""Signals: what they ask for, when they are obeyed at once, and what is left of them afterwards."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from dnnlib.signals import STOP_SIGNALS
from torch_utils import distributed
from training import stopping
from training.stopping import Abandoned, Stopping

TEST_LIMIT = 60  # seconds


def test_a_second_signal_and_a_step_without_an_end_make_a_process_leave_at_once(monkeypatch):
    left = []
    late = threading.Event()
    monkeypatch.setattr(stopping, "_leave_now", lambda line, number: (left.append((line, number)), late.set()))
    monkeypatch.setattr(stopping, "LEAVE_SECONDS", 0)
    with Stopping() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.requested == asked.agreed() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)  # the same wish, passed on twice
        assert late.wait(TEST_LIMIT) and left == [("It took more than 0 s to come to an end: leaving without a new state.", signal.SIGTERM)]
        monkeypatch.setattr(stopping, "REPEAT_SECONDS", -1)
        os.kill(os.getpid(), signal.SIGINT)
        assert left[1] == ("SIGINT again: leaving at once.", signal.SIGINT)


def test_what_can_be_abandoned_is_abandoned_at_once_and_nothing_else():
    with Stopping() as asked:
        with pytest.raises(Abandoned), asked.abandonable():
            os.kill(os.getpid(), signal.SIGUSR1)
            raise AssertionError("gone on")
        with pytest.raises(Abandoned), asked.abandonable():
            raise AssertionError("begun")
    with Stopping() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.requested == signal.SIGUSR1


@pytest.mark.parametrize(("handler", "asks"), [("SIG_DFL", True), ("SIG_IGN", False)])
def test_a_terminal_that_goes_away_asks_for_an_end_unless_nohup_says_otherwise(pytestconfig, handler, asks):
    code = f"import signal as s; s.signal(s.SIGHUP, s.{handler}); from dnnlib.signals import STOP_SIGNALS; print(s.SIGHUP in STOP_SIGNALS)"
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, cwd=pytestconfig.rootpath)
    assert result.stdout == f"{asks}\n"


def test_the_launcher_passes_on_all_that_would_end_it(monkeypatch):
    """Its ranks have sessions of their own: what it does not pass on leaves them on their GPUs."""
    launched = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else it would be set for all tests to come
    monkeypatch.setattr("torch.distributed.run.main", launched.extend)
    monkeypatch.setattr(os, "_exit", launched.append)
    distributed.launch_local("script.py", [], 2)
    (passed_on,) = [argument.partition("=")[2] for argument in launched[:-1] if argument.startswith("--signals-to-handle=")]
    assert passed_on.split(",") == [*(number.name for number in STOP_SIGNALS), "SIGQUIT"] and launched[-1] == 0


def test_the_launcher_leaves_with_its_code_without_a_terminal(monkeypatch):
    codes = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("torch.distributed.run.main", lambda _: None)
    monkeypatch.setattr(os, "_exit", codes.append)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        distributed.launch_local("script.py", [], 2)
    assert codes == [0]


def test_a_signal_is_answered_on_the_error_stream_only_if_there_is_one(monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        stopping._tell("asked to end")
        patch.setattr(sys, "__stderr__", None)  # then descriptor 2 may be that of any file
        stopping._tell("not into that file")
    assert capfd.readouterr().err == "asked to end\n"
