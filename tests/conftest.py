"""Fixtures that several test files share."""

import pytest

import reproduce
from dnnlib.cli import run_command
from torch_utils import toolchain
from torch_utils.ops import backend
from torch_utils.toolchain import BuildError


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
