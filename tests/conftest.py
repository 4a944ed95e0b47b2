"""Fixtures that several test files share."""

import faulthandler
import http.server
import threading

import pytest
from tiny_runs import write_data, write_detector

import reproduce
from dnnlib.cli import run_command
from torch_utils import toolchain
from torch_utils.ops import backend
from torch_utils.toolchain import BuildError

END_SECONDS = 60


def pytest_unconfigure():
    """A thread or a child that keeps the process from ending after the last test is shown, and fails the run instead of holding it up."""
    faulthandler.dump_traceback_later(END_SECONDS, exit=True)


@pytest.fixture(autouse=True)
def default_ops():
    """A command chooses the implementations of the ops for its whole process; the next test starts with the default again."""
    yield
    backend.set_policy("auto")


@pytest.fixture
def native_ops():
    """Native ops are required; a test is skipped only where there is nothing to build them with."""
    try:
        toolchain.tool_identity("cpu")
    except BuildError as error:
        pytest.skip(str(error))
    backend.set_policy("native")


@pytest.fixture
def command(capsys):
    """Runs reproduce.py as a script: (exit status, output, errors)."""

    def execute(*args):
        with pytest.raises(SystemExit) as leaving:
            run_command(reproduce.main, [str(arg) for arg in args])
        printed = capsys.readouterr()
        return leaving.value.code, printed.out, printed.err

    return execute


@pytest.fixture
def site(tmp_path):
    """(URL, folder) of a web server on this machine that serves the folder."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *_):
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set, pics.zip, and a detector, pool.pt; caches go there, too."""
    place = tmp_path_factory.mktemp("place")
    write_data(place / "pics.zip")
    write_detector(place / "pool.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNNLIB_CACHE_DIR", str(place / "cache"))
        yield place
