"""Setting up .venv: made where there is none, brought up to date where there is one, and never lost for want of a network."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# A Python that writes down what it is asked to do; `offline` and `no pip` are files beside it that make it fail, `version` is another version's.
PYTHON = """#!/bin/sh
case "$*" in
  "-c "*print*) cat "$(dirname "$0")/version" 2>/dev/null || echo 3.11; exit ;;
  "-c import pip") [ ! -e '{folder}/no pip' ]; exit ;;
  "-c "*) exit 0 ;;
esac
echo "$*" >> '{folder}/calls'
case "$*" in
  "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip --version") [ ! -e '{folder}/no pip' ] ;;
  "-m ensurepip") rm '{folder}/no pip' ;;
  "-m pip install "*) [ ! -e '{folder}/offline' ] ;;
esac
"""
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.fixture
def place(tmp_path):
    """A checkout with a lock and nothing set up; `python` is beside it."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("first")
    (tmp_path / "python").write_text(PYTHON.format(folder=tmp_path))
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def set_up(place):
    """Runs `make venv`; returns whether it succeeded and what Python was asked for."""
    (place / "calls").unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}
    done = subprocess.run(["make", "venv", f"PYTHON={place / 'python'}"], cwd=place, env=environment, capture_output=True, check=False)
    return done.returncode == 0, (place / "calls").read_text() if (place / "calls").exists() else ""


def test_a_bare_machine_is_set_up_once(place):
    fine, calls = set_up(place)
    assert fine and "-m venv" in calls and "--requirement requirements.lock" in calls
    assert set_up(place) == (True, "")


def test_another_version_of_python_gets_an_environment_of_its_own(place):
    assert set_up(place)[0]
    (place / ".venv" / "packages").touch()
    (place / ".venv" / "bin" / "version").write_text("3.10")
    (place / "requirements.lock").write_text("second")
    fine, calls = set_up(place)
    assert fine and "-m venv" in calls and not (place / ".venv" / "packages").exists()


def test_an_environment_whose_python_has_become_another_one_is_mended(place):
    assert set_up(place)[0]
    (place / "no pip").touch()  # as after an upgrade of the system: the packages lie in the folder of the version before
    fine, calls = set_up(place)
    assert fine and "-m ensurepip" in calls and "--requirement requirements.lock" in calls


def test_a_new_lock_without_a_network_leaves_what_was_there(place):
    assert set_up(place)[0]
    (place / ".venv" / "packages").touch()
    (place / "requirements.lock").write_text("second")
    (place / "offline").touch()
    assert not set_up(place)[0] and (place / ".venv" / "packages").exists() and (place / ".venv" / "bin" / "python").exists()
    (place / "requirements.lock").write_text("first")
    assert not set_up(place)[0]  # what half an installation left behind fits no lock
    (place / "offline").unlink()
    fine, calls = set_up(place)
    assert fine and "-m venv" not in calls and (place / ".venv" / "packages").exists()
    assert set_up(place) == (True, "")


def test_a_python_that_does_not_start_is_replaced(place):
    assert set_up(place)[0]
    (place / "requirements.lock").write_text("second")
    (place / ".venv" / "bin" / "python").unlink()
    (place / ".venv" / "bin" / "python").symlink_to("/no/longer/there")
    fine, calls = set_up(place)
    assert fine and "-m venv" in calls and set_up(place) == (True, "")


def test_a_setup_that_was_stopped_before_there_was_pip_is_finished(place):
    (place / "no pip").touch()
    fine, calls = set_up(place)
    assert fine and "-m ensurepip" in calls
