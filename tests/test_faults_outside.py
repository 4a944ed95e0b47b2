"""Faults around a run: nobody takes its output, its folder has a strange name, its ranks see different files."""

import errno
import io
import os
import pathlib
import signal
import sys

import pytest
from fault_tools import run_on, sending, step_with
from tiny_runs import stats_of, tiny_args

from dnnlib import UserError
from training.progress import Progress
from training.run_files import RunDir


@pytest.fixture
def args(place, tmp_path):
    """The configuration of a run of two steps that has not begun."""
    return tiny_args(str(place / "pics.zip"), tmp_path / "run", batch=512, kimg=1, tick=1)


class Gone(io.StringIO):
    """A pipe whose reader has gone after the first tick."""

    def write(self, text):
        if "tick 0 " in self.getvalue():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("make", [Gone, lambda: None], ids=["gone", "never there"])
def test_a_run_does_not_need_anyone_to_take_its_output(args, monkeypatch, make):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", make())
        assert run_on(args) == 0
    log = pathlib.Path(args.run_dir, "log.txt").read_text()
    assert RunDir(args.run_dir).is_finished(1) and log.count("Warning: stdout cannot be written") == 1
    assert "tick 0 " in log and "tick 1 " in log and log.endswith("Done.\n")


def test_a_closed_stream_gets_no_live_line(tmp_path, monkeypatch):
    stream = io.StringIO()
    stream.close()
    for lost in (None, stream):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", lost)
            assert Progress(RunDir(tmp_path), total_kimg=1)._live is False


def test_the_name_of_a_run_folder_need_not_be_text(args, tmp_path, monkeypatch):
    args.run_dir = str(tmp_path / os.fsdecode(b"caf\xe9"))
    assert run_on(args) == 0 and RunDir(args.run_dir).is_finished(1)
    assert f"Run folder:      {tmp_path}/caf\\udce9\n" in pathlib.Path(args.run_dir, "log.txt").read_text()


def with_rank_1_at(*position):
    """A replacement of gather_objects, as on rank 0 of two, of which the other stands at (images, steps)."""
    return lambda value: [value, position] if isinstance(value, tuple) else [value]


def test_ranks_that_would_go_on_from_different_states_are_refused(args):
    assert run_on(args, step=step_with(1, sending(signal.SIGTERM))) == signal.SIGTERM
    before, files = stats_of(args.run_dir), sorted(os.listdir(args.run_dir))
    sentence = r"run: rank 1 would go on at 0\.0 kimg \(step 0\), rank 0 at 0\.5 kimg \(step 1\); start again when all machines can read"
    with pytest.raises(UserError, match=sentence):
        run_on(args, gather_objects=with_rank_1_at(0, 0))
    assert stats_of(args.run_dir) == before and sorted(os.listdir(args.run_dir)) == files
    assert run_on(args, gather_objects=with_rank_1_at(512, 1)) == 0


def test_a_rank_that_does_not_see_the_run_is_refused(args):
    with pytest.raises(UserError, match=r"rank 1 would go on at 0\.5 kimg \(step 1\), rank 0 at 0\.0 kimg \(step 0\)"):
        run_on(args, gather_objects=with_rank_1_at(512, 1))
