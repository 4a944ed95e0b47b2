"""Where a converted data set goes: a zip or a folder that is whole or not there, and what killed conversions have left of one.
What is written into it is made in dataset_writer.py."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator

from dnnlib import UserError, atomic_path
from training.dataset_labels import LABEL_FILE
from training.image_store import SYSTEM_FOLDERS

ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold

Write = Callable[[str, bytes], None]


def is_zip_name(dest: pathlib.Path) -> bool:
    """Whether a zip is to be written under this name; else it is a folder."""
    return dest.suffix.lower() == ".zip"


def real_dest(dest: pathlib.Path) -> pathlib.Path:
    """What is written for this name: where a link leads to, which may not be there yet; any other name itself."""
    return pathlib.Path(os.path.realpath(dest)) if os.path.islink(dest) else dest


def left_overs(dest: str | os.PathLike) -> list[pathlib.Path]:
    """What conversions to `dest` that were killed have left beside it, or one that is running now has there."""
    is_zip, dest = is_zip_name(pathlib.Path(dest)), real_dest(pathlib.Path(dest)).absolute()
    stem, end = (dest.stem, dest.suffix) if is_zip else (dest.name, "")
    pattern = re.compile(rf"\.{re.escape(stem)}\.[0-9a-f]{{8}}\.tmp{re.escape(end)}")  # as atomic_path and _folder_writer name them
    try:
        return sorted(dest.with_name(name) for name in os.listdir(dest.parent) if pattern.fullmatch(name))
    except OSError:  # the folder is not there yet, or may not be listed
        return []


@contextlib.contextmanager
def open_dest(dest: str | os.PathLike) -> Iterator[Write]:
    """Yields write(name, data) for a zip or a folder. It appears under its name when the block ends well; after any error nothing is left.
    Where the name is a link, what it leads to is written, and the link stays.

    Raises:
        UserError: the destination is a folder with something in it, a file that is no zip, or cannot be written.
    """
    dest = pathlib.Path(dest)
    is_zip = is_zip_name(dest)
    is_folder = os.path.isdir(dest)
    if is_folder and is_zip:
        raise UserError(f"--dest={dest} is a folder, though its name ends in .zip; give another name")
    if is_folder and _is_filled(real_dest(dest)):
        raise UserError(f"--dest={dest} is a folder with something in it; give an empty or new one, or a .zip")
    if os.path.exists(dest) and not is_folder and not is_zip:
        raise UserError(f"--dest={dest} exists and is neither a .zip nor a folder; give another name")
    dest = real_dest(dest)
    with _parents(dest), _zip_writer(dest) if is_zip else _folder_writer(dest) as write:
        yield write


def _is_filled(folder: pathlib.Path) -> bool:
    try:
        return any(path.name not in SYSTEM_FOLDERS and not _is_left_over(path, folder) for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"--dest={folder} cannot be listed: {error.strerror}") from error


def _is_left_over(path: pathlib.Path, dest: pathlib.Path) -> bool:
    """Whether this is what a conversion into `dest` that was killed has left in it."""
    return path.name.startswith(f".{dest.absolute().name}.") and path.suffix == ".tmp"


@contextlib.contextmanager
def _parents(dest: pathlib.Path) -> Iterator[None]:
    """Makes the folders above `dest`, and removes those again if the block fails."""
    new = [folder for folder in dest.absolute().parents if not os.path.exists(folder)]
    try:
        dest.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror} ({error.filename})") from error
    try:
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _move_into(folder: pathlib.Path, dest: pathlib.Path) -> None:
    """Moves what is in a folder to another on the same disk, the labels last: without them the set is not whole."""
    moved: list[pathlib.Path] = []
    try:
        for child in sorted(folder.iterdir(), key=lambda path: (path.name == LABEL_FILE, path.name)):
            os.rename(child, dest / child.name)
            moved.append(dest / child.name)
    except BaseException:
        for path in moved:
            shutil.rmtree(path, ignore_errors=True)
        raise


@contextlib.contextmanager
def _zip_writer(dest: pathlib.Path) -> Iterator[Write]:
    with atomic_path(dest) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(name, ZIP_DATE)
            info.create_system = 3  # Unix everywhere, so that bytes do not depend on the system
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)

        yield write


@contextlib.contextmanager
def _folder_writer(dest: pathlib.Path) -> Iterator[Write]:
    there = os.path.isdir(dest)  # and perhaps a link, the place of a volume, or in a folder that is not the user's: it is filled, not replaced
    temporary = (dest if there else dest.absolute().parent) / f".{dest.absolute().name}.{uuid.uuid4().hex[:8]}.tmp"

    for old in [path for path in dest.iterdir() if _is_left_over(path, dest)] if there else []:
        shutil.rmtree(old, ignore_errors=True)

    def write(name: str, data: bytes) -> None:
        (temporary / name).parent.mkdir(exist_ok=True)
        (temporary / name).write_bytes(data)

    try:
        temporary.mkdir()
        yield write
        if there:
            _move_into(temporary, dest)
        else:
            os.rename(temporary, dest)
    except OSError as error:
        raise UserError(f"--dest={dest} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
