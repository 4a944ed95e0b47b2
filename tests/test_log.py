"""The log file holds what was printed, once, and never loses a traceback; durations read well."""

import errno
import io
import os
import subprocess
import sys

import pytest

import dnnlib
from dnnlib import UserError
from dnnlib.format import format_time
from dnnlib.log import Logger, is_terminal


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def test_both_streams_reach_screen_and_file(log, capsys):
    with Logger(log):
        print("to stdout")
        print("to stderr", file=sys.stderr)
    print("afterwards")
    captured = capsys.readouterr()
    assert captured.out == "to stdout\nafterwards\n" and captured.err == "to stderr\n"
    assert log.read_text() == "to stdout\nto stderr\n"


def test_appends_and_restores(log, capsys):
    before = sys.stdout, sys.stderr
    for _ in range(2):
        with Logger(log):
            print("again")
    assert (sys.stdout, sys.stderr) == before and log.read_text() == "again\nagain\n"


def test_lines_are_in_the_file_while_the_block_runs(log, capsys):
    with Logger(log):
        print("first\nunfinished", end="")
        assert log.read_text() == "first\n"
    assert log.read_text() == "first\nunfinished\n"


def test_rewritten_progress_lines_appear_once(log, capsys):
    with Logger(log):
        for percent in (1, 50, 100):
            print(f"\rprogress {percent}%", end="", file=sys.stderr)
        print(file=sys.stderr)
        print("windows\r\nline")
        print("kept\r", end="")
    assert log.read_text() == "progress 100%\nwindows\nline\nkept\n"
    assert "progress 1%" in capsys.readouterr().err


def test_traceback_is_kept_and_raised(log, capsys):
    with pytest.raises(ZeroDivisionError), Logger(log):
        print("before")
        _ = 1 / 0
    text = log.read_text()
    assert text.startswith("before\nTraceback") and "ZeroDivisionError" in text and "1 / 0" in text


def test_user_errors_are_one_sentence_and_clean_exits_nothing(log, capsys):
    with pytest.raises(UserError), Logger(log):
        raise UserError("--data is missing")
    with pytest.raises(SystemExit), Logger(log):
        sys.exit(0)
    assert log.read_text() == "Error: --data is missing\n"
    with pytest.raises(KeyboardInterrupt), Logger(log):
        raise KeyboardInterrupt
    assert "KeyboardInterrupt" in log.read_text()


def test_nested_loggers(log, tmp_path, capsys):
    outer = Logger(log)
    with outer:
        with outer, Logger(tmp_path / "inner.txt"):
            print("both")
        print("outer only")
    assert log.read_text() == "both\nouter only\n" and (tmp_path / "inner.txt").read_text() == "both\n"
    assert capsys.readouterr().out == "both\nouter only\n"


def test_something_put_on_top_keeps_working(log, capsys):
    original = sys.stdout
    with Logger(log):
        top = sys.stdout
        sys.stdout = replacement = io.StringIO()
    assert sys.stdout is replacement
    sys.stdout = original
    print("late", file=top)
    assert capsys.readouterr().out == "late\n" and log.read_text() == ""


def test_streams_keep_their_attributes(log, monkeypatch):
    class Terminal(io.StringIO):
        encoding = "koi8-r"

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    with Logger(log):
        assert not isinstance(sys.stdout, Terminal)
        assert sys.stdout.isatty() and sys.stdout.encoding == "koi8-r" and sys.stdout.writable()


def test_unwritable_log_is_one_sentence(tmp_path):
    before = sys.stdout
    with pytest.raises(UserError, match=r"log\.txt"), Logger(tmp_path / "none" / "log.txt"):
        pass
    assert sys.stdout is before


def test_a_full_disk_does_not_stop_the_printing(capsys):
    with Logger("/dev/full"):
        print("one")
        print("two")
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n" and captured.err.count("Warning") == 1


class Broken(io.StringIO):
    """A stream whose writes or flushes fail as long as `error` is set."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error = at, error

    def write(self, text):
        if self.at == "write" and self.error and text:
            raise self.error
        return super().write(text)

    def flush(self):
        if self.at == "flush" and self.error:
            raise self.error


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


LOST = {
    "pipe without a reader": lambda: Broken("write", BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "full disk": lambda: Broken("flush", OSError(errno.ENOSPC, "No space left on device")),
    "closed": closed,
    "never open": lambda: None,
}


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("make", LOST.values(), ids=LOST)
def test_what_a_stream_does_not_take_is_in_the_file(log, capsys, monkeypatch, make, name):
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, make())
        with Logger(log):
            tee = getattr(sys, name)
            for line in ("one", "two"):
                print(line, file=tee, flush=True)
            assert not tee.isatty()
        print("nobody is listening, which ends nothing", file=getattr(sys, name))
    warning, *lines = sorted(log.read_text().splitlines(), key=lambda line: not line.startswith("Warning"))
    assert warning.startswith(f"Warning: {name} cannot be written: ") and lines == ["one", "two"]


def test_a_disk_with_room_again_is_written_to_again(log, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream := Broken("write", OSError(errno.ENOSPC, "No space left on device")))
        with Logger(log):
            for error in (stream.error, None, stream.error, None):
                stream.error = error
                print(f"room: {error is None}")
        assert sys.stdout is stream and stream.getvalue() == "room: True\n" * 2
    assert log.read_text().count("Warning") == 1 and log.read_text().count("room") == 4


def test_neither_stream_nor_file_ends_a_run(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", LOST["full disk"]())
        patch.setattr(sys, "stderr", LOST["pipe without a reader"]())
        with Logger("/dev/full"):
            print("one")


def test_the_exit_code_is_that_of_the_program_whoever_listens(log, pytestconfig):
    reader, writer = os.pipe()
    os.close(reader)
    code = f"import sys; from dnnlib.log import Logger\nwith Logger({str(log)!r}): print('said', flush=True)\nsys.exit(7)"
    result = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=pytestconfig.rootpath)
    os.close(writer)
    assert result.returncode == 7 and result.stderr == "" and log.read_text().endswith("said\n")


def test_names_that_are_no_text_are_written_as_their_bytes(log, monkeypatch):
    name = os.fsdecode(b"caf\xe9") if sys.getfilesystemencoding() == "utf-8" else "caf\udce9"
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with Logger(log):
            print(name)
    assert log.read_text() == stream.buffer.getvalue().decode() == "caf\\udce9\n"


def test_only_an_open_terminal_is_one():
    assert not any(map(is_terminal, (None, closed(), io.StringIO())))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (5.4, "5s"),
        (59.6, "1m 00s"),
        (754, "12m 34s"),
        (3599.7, "1h 00m 00s"),
        (11109, "3h 05m 09s"),
        (93780, "1d 02h 03m"),
        (86400 * 123, "123d 00h 00m"),
    ],
)
def test_durations(seconds, text):
    assert format_time(seconds) == text


def test_a_mistake_keeps_its_exit_code_where_nobody_reads_it():
    code = """if True:
        import types, dnnlib, dnnlib.cli
        def main(**options): raise dnnlib.UserError("no")
        dnnlib.cli.run_command(types.SimpleNamespace(main=main), [])"""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stderr:
        assert subprocess.run([sys.executable, "-c", code], stderr=stderr, cwd=os.path.dirname(dnnlib.__path__[0])).returncode == 2
