"""Fixtures that several test files share."""

import faulthandler

import pytest

import reproduce
from dnnlib.cli import run_command
from torch_utils import toolchain
from torch_utils.ops import backend
from torch_utils.toolchain import BuildError

END_SECONDS = 60


def pytest_unconfigure():
    """A thread or a child that keeps the process from ending after the last test is shown, and fails the run instead of holding it up."""
    faulthandler.dump_traceback_later(END_SECONDS, exit=True)


@pytest.fixture
def native_ops():
    """Native ops are required; a test is skipped only where there is nothing to build them with."""
    try:
        toolchain.tool_identity("cpu")
    except BuildError as error:
        pytest.skip(str(error))
    backend.set_policy("native")
    yield
    backend.set_policy("auto")


@pytest.fixture
def command(capsys):
    """Runs reproduce.py as a script: (exit status, output, errors)."""

    def execute(*args):
        with pytest.raises(SystemExit) as leaving:
            run_command(reproduce.main, [str(arg) for arg in args])
        printed = capsys.readouterr()
        return leaving.value.code, printed.out, printed.err

    return execute
