"""Fixtures that several test files share."""

import concurrent.futures.thread
import faulthandler
import gc
import http.server
import sys
import threading
import time

import psutil
import pytest
from tiny_runs import write_data, write_detector

import reproduce
from dnnlib.cli import run_command
from torch_utils import toolchain
from torch_utils.ops import backend
from torch_utils.toolchain import BuildError

END_SECONDS = 60
# Processes that serve multiprocessing and torch.compile until this one ends.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch/_inductor/compile_worker")


def pytest_unconfigure(config):
    """What keeps the process from ending after the last test is shown, and fails the run instead of holding it up.

    A worker of xdist is no such process: it idles until the others are done, and then its controller ends it, whatever it still does.
    """
    if not hasattr(config, "workerinput"):
        faulthandler.dump_traceback_later(END_SECONDS, exit=True)


def is_idle(thread):
    """Whether this is a thread of an executor (such as torch.compile keeps) that waits for work, as they do until the interpreter ends them."""
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) == (concurrent.futures.thread.__file__, "_worker")


def running():
    """The threads and children that this process would leave behind or wait for if it ended now, in words."""
    threads = {thread for thread in threading.enumerate() if not thread.daemon} - {threading.main_thread(), threading.current_thread()}
    found = {f"thread {thread.name!r} ({thread.ident})" for thread in threads if not is_idle(thread)}
    for child in psutil.Process().children():
        try:
            command = " ".join(child.cmdline())
        except psutil.NoSuchProcess:  # also said of one that has ended and that nobody has asked how
            continue
        if not any(name in command for name in HELPERS):
            found.add(f"process {child.pid}: {command}")
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_running():
    """A thread or a child that outlives the tests fails the run. It is reported with the last test, whichever has left it."""
    before = running()
    yield
    gc.collect()  # a loader in a cycle of references ends its workers when it is found
    give_up = time.monotonic() + END_SECONDS
    while (left := running() - before) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not left, f"tests of this process have left behind: {', '.join(sorted(left))}"


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
