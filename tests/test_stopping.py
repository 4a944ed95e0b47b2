"""Signals: what they ask for, when they are obeyed at once, and what is left of them afterwards."""

import os
import signal
import threading

import pytest

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
