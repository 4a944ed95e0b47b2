"""A copy of everything that is printed, in a file: the run directory's log.txt."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, TextIO

from dnnlib.errors import UserError


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody may be watching what is written to a stream: not where it is closed, or None as the standard streams of a daemon."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def say_at_last(text: str) -> None:
    """Writes a line to stderr, if anybody reads it. If not, the stream is given up: Python would flush it in the end, and exit with 120."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = None


class Logger:
    """Context manager that copies stdout and stderr into a file, appending to it.

    The file receives whole lines, in the state in which they were left: a progress line that was rewritten with carriage
    returns appears once. An exception that leaves the block is written to the file with its traceback (a UserError as its
    sentence). Blocks nest, also of the same Logger. If the file cannot be written any more, printing goes on and says so once. So does the
    file if a stream cannot (a pipe without a reader, a terminal that is gone, a full disk, a closed stream): nothing ends because nobody listens.

    Args:
        path: the file; its folder must exist.

    Raises:
        UserError: on entering, if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path)
        self._depth = 0
        self._lock = threading.RLock()
        self._file: TextIO | None = None
        self._failed = False
        self._tees: list[_Tee] = []

    def __enter__(self) -> Logger:
        self._depth += 1
        if self._depth > 1:
            return self
        try:
            self._file = open(self.path, "a", encoding="utf-8", errors="backslashreplace")  # paths need not be UTF-8
        except OSError as error:
            self._depth = 0
            raise UserError(f"cannot write the log {self.path}: {error.strerror or error}") from error
        self._tees = [_Tee(sys.stdout, "stdout", self), _Tee(sys.stderr, "stderr", self)]
        sys.stdout, sys.stderr = self._tees
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        for tee in self._tees:
            tee.finish()
        if kind is not None and not (kind is SystemExit and error.code in (None, 0)):
            self.write_file(f"Error: {error}\n" if kind is UserError else "".join(traceback.format_exception(kind, error, trace)))
        # Something that was put on top in the meantime keeps working: a finished tee just passes everything on.
        if sys.stdout is self._tees[0]:
            sys.stdout = self._tees[0].living_stream()
        if sys.stderr is self._tees[1]:
            sys.stderr = self._tees[1].living_stream()
        self._close()

    def write_file(self, text: str) -> None:
        """Appends to the file only, and flushes it."""
        with self._lock:
            if self._file is None or self._failed:
                return
            try:
                self._file.write(text)
                self._file.flush()
            except OSError as error:
                self._failed = True  # the file stays open: to close it would take the lock of the run away, which is on the same file
                self._tees[1].pass_on(f"Warning: the log {self.path} cannot be written any more: {error.strerror or error}\n")

    def _close(self) -> None:
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError):  # of what could not be written before
                    self._file.close()
                self._file, self._failed = None, False


class _Tee:
    """Stands in for a text stream: passes everything on, and whole lines to the logger."""

    def __init__(self, stream: TextIO | None, name: str, logger: Logger) -> None:
        self.stream = stream
        self._name, self._logger = name, logger
        self._failing = self._told = False
        self._line = ""
        self._finished = False

    def write(self, text: str) -> int:
        """As of any text stream."""
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        self.pass_on(text)
        if not self._finished:
            *lines, self._line = (self._line + text).split("\n")
            # Kept short: of a line that is rewritten again and again only the last version matters.
            self._line = "\r".join(self._line.split("\r")[-2:])
            if lines:
                self._logger.write_file("".join(_last_version(line) + "\n" for line in lines))
        return len(text)

    def finish(self) -> None:
        """Hands over an unfinished line and stops copying."""
        if self._line:
            self._logger.write_file(_last_version(self._line) + "\n")
        self._line, self._finished = "", True
        self.flush()

    def flush(self) -> None:
        """As of any text stream."""
        self.pass_on("", flush=True)

    def isatty(self) -> bool:
        """As of any text stream."""
        return is_terminal(self.stream)

    def pass_on(self, text: str, flush: bool = False) -> None:
        """Writes to the stream alone, if that can be done; the first failure is told in the file."""
        try:  # each text again: a disk may have room once more
            if self.stream is None:
                raise ValueError("it is closed")
            self._write(self.stream, text)
            if flush:
                self.stream.flush()
            self._failing = self._failing and not text
        except (OSError, ValueError) as error:
            self._failing = True
            if not self._told:
                self._told = True
                reason = getattr(error, "strerror", None) or error
                self._logger.write_file(f"Warning: {self._name} cannot be written: {reason}; what it lacks is in this file.\n")

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:  # a path that is not UTF-8, or an encoding of few letters
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def living_stream(self) -> TextIO | None:
        """The stream, or None if the last that was tried has failed. Python would flush it in the end, fail, and exit with 120."""
        return None if self._failing else self.stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _last_version(line: str) -> str:
    """What a terminal would show of a line with carriage returns (the last non-empty rewriting)."""
    versions = [version for version in line.split("\r") if version.strip()]
    return versions[-1].rstrip() if versions else ""
