"""One process per folder: a lock of the operating system on a file, which ends with its holder however that ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from dnnlib import UserError

LOCK_FILE = "lock"


@contextlib.contextmanager
def hold(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Holds the folder's lock within the block; the folder is made if need be.

    Args:
        folder: which one.
        what: what the folder is, for the message.

    Raises:
        UserError: another living process holds it, or it cannot be made.
    """
    try:
        import fcntl  # here, because Windows has none
    except ImportError as error:
        raise UserError("image experiments need a system with file locks (Linux or macOS)") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115 (the next block closes it)
    except OSError as error:
        raise UserError(f"cannot make {folder / LOCK_FILE}: {error.strerror or error}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"{what} is in use by {_holder(handle)}; wait until it ends, or give another --out") from error
            # Else this is a file system without locks, on which two at a time are the user's to prevent.
        try:
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), json.dumps(holder).encode())  # nothing is left in a buffer, to fail once more at the end
        except OSError as error:  # a full disk, say
            raise UserError(f"cannot write {folder / LOCK_FILE}: {error.strerror or error}") from error
        yield


@contextlib.contextmanager
def wait_for(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a file within the block, once whoever holds it lets go; a system without locks goes on."""
    with open(path, "a", encoding="utf-8") as handle:
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # here, because Windows has none

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _holder(handle) -> str:
    handle.seek(0)
    try:
        holder = json.loads(handle.read())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
