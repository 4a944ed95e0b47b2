"""Files that are either whole or not there: write to a temporary name, sync, rename."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator

from dnnlib.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path in the folder of `path`; on success it is synced and renamed to `path`, on any error removed.

    Raises:
        UserError: the folder is missing, not writable, or the disk is full; `path` is a folder without a name, as `.` is.
    """
    path = pathlib.Path(path)
    if not path.name:
        raise UserError(f"cannot write {path}: it names no file")
    # The suffix stays, because writers such as PIL choose the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as handle:  # Windows syncs only what may be written
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be the very thing that is missing or forbidden
            temporary.unlink(missing_ok=True)


def beginning_of_names(path: str, option: str) -> pathlib.Path:
    """What the names of several files begin with. Raises UserError, naming the option, for what names a folder and no file, as `.` does."""
    if os.path.basename(path) in ("", ".", ".."):
        raise UserError(f"{option}={path} names no file; give the common beginning of the files, such as {os.path.join(path, 'look')}")
    return pathlib.Path(path)


def nearest_folder(path: str | os.PathLike) -> pathlib.Path:
    """What exists of a path that may not be there yet: itself or the nearest above it; at last the root, there or not (an absent drive)."""
    place = pathlib.Path(os.path.abspath(path))
    while not os.path.exists(place) and place != place.parent:  # not Path.exists: it raises where a folder may not be searched
        place = place.parent
    return place


def make_folder(path: str | os.PathLike, named: str = "") -> None:
    """Makes a folder and those above it, where they are missing.

    Args:
        named: how the message calls it, such as --out=DIR; default is the path.

    Raises:
        UserError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {named or path}: {error.strerror or error}") from error


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all. Raises UserError where that is impossible."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 to `path`, whole or not at all. Raises UserError where that is impossible."""
    atomic_write_bytes(path, text.encode("utf-8"))


def append_text(path: str | os.PathLike, text: str) -> None:
    """Adds `text` as UTF-8 to the end of a file, which is made where it is missing. Raises UserError where that is impossible."""
    try:
        with open(path, "a", encoding="utf-8") as handle:
            handle.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
