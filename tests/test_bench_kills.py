"""Trainings that are killed at random moments and started again come to the same end."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def kills(count, tmp_path):
    command = [sys.executable, "-m", "bench.kills", f"--count={count}", "--kimg=1", f"--keep={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_three_kills_change_nothing(tmp_path):
    printed = kills(3, tmp_path)
    assert '"kills": 3' in printed and '"differences": 0, "lost": 0' in printed


@pytest.mark.slow
def test_thirty_kills_change_nothing(tmp_path):
    assert '"differences": 0, "lost": 0' in kills(30, tmp_path)
