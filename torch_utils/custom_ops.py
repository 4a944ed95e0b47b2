"""Builds the native ops once and loads them: C++ and CUDA sources with a C interface, through ctypes.

The library of a kind (`cpu` from *.cpp, `cuda` from *.cu) lies in the cache under a name made from everything that decides about it: the
sources, the flags, the compiler, the processor or the GPUs. It is built in a folder of its own that is renamed when it is whole, so a build
that was killed is never taken for one. A lock keeps several processes from doing the same work; rightness never depends on it, because two
builds at once would only be wasted work. Within a process every library is tried once.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import os
import pathlib
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from dnnlib import UserError
from dnnlib.download import cache_dir
from torch_utils import toolchain
from torch_utils.build_lock import BuildLock, sweep_workshops
from torch_utils.toolchain import BuildError

SOURCES = pathlib.Path(__file__).parent / "ops" / "csrc"
SUFFIXES = {"cpu": ".cpp", "cuda": ".cu"}
ABI_VERSION = 2  # as in csrc/abi.h
USUAL_SECONDS = {"cpu": 15, "cuda": 40}
BUILD_SECONDS = 900  # a build that takes longer has hung


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides about a library.

    Attributes:
        kind: `cpu` or `cuda`.
        sources: name and contents of every file that takes part, headers included.
        architectures: of the GPUs to make code for; empty for `cpu`.
        tools: identity of compiler, flags and processor.
    """

    kind: str
    sources: tuple[tuple[str, bytes], ...]
    architectures: tuple[int, ...]
    tools: str

    @property
    def key(self) -> str:
        """Name of the library's folder in the cache."""
        digest = hashlib.sha256(repr((self.kind, self.architectures, self.tools)).encode())
        for name, contents in self.sources:
            digest.update(f"\n{name} {len(contents)}\n".encode() + contents)
        return f"{self.kind}-{digest.hexdigest()[:24]}"

    @property
    def library(self) -> str:
        """File name of the library."""
        return f"lib{self.kind}_ops{toolchain.library_suffix()}"


def recipe(kind: str, folder: pathlib.Path | None = None) -> Recipe:
    """What a library of `kind` is made from on this machine; starts no program.

    Raises:
        BuildError: a tool, a GPU or the sources are missing.
    """
    folder = folder or SOURCES
    architectures = tuple(toolchain.architectures_at_hand()) if kind == "cuda" else ()
    if kind == "cuda" and not architectures:
        raise BuildError("there is no CUDA device that torch can use")
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".h", SUFFIXES[kind]))
        sources = tuple((path.name, path.read_bytes()) for path in files)
    except OSError as error:
        raise BuildError(f"the sources of the native ops cannot be read from {folder} ({error.strerror}); reinstall this package") from error
    if not any(name.endswith(SUFFIXES[kind]) for name, _ in sources):
        raise BuildError(f"{folder} has no {SUFFIXES[kind]} files; reinstall this package")
    return Recipe(kind, sources, architectures, toolchain.tool_identity(kind))


class NotBuilt(BuildError):
    """Nothing went wrong; nobody has built it yet, and this process was not to."""


_outcomes: dict[str, ctypes.CDLL | BuildError] = {}
_guard = threading.RLock()


def load(kind: str, build: bool = True) -> ctypes.CDLL:
    """The library of `kind` (`cpu`, `cuda`), built first where that has not been done on this machine.

    The first call decides: later ones return the same library or raise the same error without trying again.

    Args:
        build: False only loads what has been built before.

    Raises:
        NotBuilt: nothing has been built, and `build` is False. This is not remembered.
        BuildError: it cannot be built or loaded; one sentence with the first line that the compiler said, or with what is missing.
    """
    with _guard:
        if kind not in _outcomes:
            try:
                made = recipe(kind)
                if not build and find_built(made) is None:
                    raise NotBuilt("it has not been built yet")
                _outcomes[kind] = _obtain(made)
            except NotBuilt:
                raise
            except BuildError as error:
                _outcomes[kind] = error
        outcome = _outcomes[kind]
    if isinstance(outcome, BuildError):
        raise outcome
    return outcome


def forget() -> None:
    """Lets `load` try every library anew, for tests. What ops run in this process stays as it was found: `torch_utils.ops.backend` asks once."""
    with _guard:
        _outcomes.clear()


def _obtain(made: Recipe) -> ctypes.CDLL:
    """Loads the library, after building it where needed; one from the cache that does not load is built anew once."""
    path = find_built(made)
    if path is not None:
        with contextlib.suppress(BuildError):
            return _open(path)
        print(f"{path} is damaged and is built again", file=sys.stderr)
    return _open(_build(made, path))


def _open(path: pathlib.Path) -> ctypes.CDLL:
    """Loads a shared library and makes sure that it speaks this version of the interface."""
    try:
        library = ctypes.CDLL(os.fspath(path))
        version = library.abi_version()
    except (OSError, AttributeError) as error:
        reason = str(error).replace(os.fspath(path), path.name)
        raise BuildError(f"the library of native ops {path} does not load ({reason}); remove its folder to have it built again") from error
    if version != ABI_VERSION:
        raise BuildError(f"the library of native ops {path} has interface version {version} instead of {ABI_VERSION}; reinstall this package")
    return library


def _loads(path: pathlib.Path) -> bool:
    try:
        _open(path)
    except BuildError:
        return False
    return True


def _private_temporary_folder(make: bool = True) -> pathlib.Path:
    """A folder that stays between runs and that nobody else can put a library into.

    Args:
        make: whether to make it where it is missing.

    Raises:
        BuildError: it belongs to someone else, is missing, or cannot be made.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = None
    try:
        folder = pathlib.Path(tempfile.gettempdir()) / f"dnnlib-ops-{user}"  # raises where no folder can be written
        if make:
            folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise _nowhere(folder, error) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o022:
        raise BuildError(f"{folder} is open to other users, who could put code there; remove it, or set DNNLIB_CACHE_DIR to a writable folder")
    return folder


def _nowhere(folder: pathlib.Path | None, error: OSError) -> BuildError:
    place = folder or "a temporary folder"
    return BuildError(f"neither the cache nor {place} can be written ({error.strerror or error}); set DNNLIB_CACHE_DIR to a writable folder")


def find_built(made: Recipe) -> pathlib.Path | None:
    """The library as built before, in the cache or in the temporary folder that stands in for it; None where there is none."""
    for get_folder in (_cache_folder, functools.partial(_private_temporary_folder, make=False)):
        with contextlib.suppress(OSError, BuildError):
            path = get_folder() / made.key / made.library
            if path.is_file():
                return path
    return None


def _cache_folder() -> pathlib.Path:
    """ops/ in the cache; raises OSError where the cache cannot even be made."""
    try:
        return cache_dir("ops")
    except UserError as error:
        raise OSError(str(error)) from error


def _build(made: Recipe, damaged: pathlib.Path | None) -> pathlib.Path:
    """Builds the library in the cache, or where that cannot be written, in the temporary folder; returns its path."""
    try:
        folder = _cache_folder()
        lock = _locked(folder, made)
    except OSError as refused:
        folder = _private_temporary_folder()
        print(f"The cache cannot be written ({refused.strerror or refused}); native ops go into {folder}", file=sys.stderr)
        try:
            lock = _locked(folder, made)
        except OSError as error:
            raise _nowhere(folder, error) from error
    try:
        return _build_in(folder, made, lock, damaged)
    except OSError as error:
        raise BuildError(f"the native ops cannot be built in {folder} ({error.strerror or error}); make room there") from error
    finally:
        lock.release()


def _locked(folder: pathlib.Path, made: Recipe) -> BuildLock:
    """The lock on the building of one library, taken. Raises OSError where the folder cannot be written."""
    lock = BuildLock(folder / f"{made.key}.lock", f"building the native ops for {made.kind}")
    if not lock.acquire():
        raise BuildError(f"others have been building the native ops for too long; remove {lock.path}")
    return lock


def _build_in(folder: pathlib.Path, made: Recipe, lock: BuildLock, damaged: pathlib.Path | None) -> pathlib.Path:
    """Builds the library, unless the process that held the lock before has done so, or has just failed at it."""
    target, failure = folder / made.key, folder / f"{made.key}.failed"
    path = target / made.library
    if path.is_file() and (path != damaged or _loads(path)):  # others have found it damaged, too, and one of them has built it again
        return path
    if lock.waited_since is not None and failure.is_file() and failure.stat().st_mtime >= lock.waited_since:
        raise BuildError(failure.read_text(encoding="utf-8"))
    shutil.rmtree(target, ignore_errors=True)
    failure.unlink(missing_ok=True)
    print(f"Building native ops for {made.kind} (about {USUAL_SECONDS[made.kind]} s) ...", file=sys.stderr, flush=True)
    try:
        _make(made, lock.workshop, lock)
        lock.workshop.rename(target)
        sweep_workshops(lock)
    except BuildError as error:
        failure.write_text(str(error), encoding="utf-8")
        raise
    except OSError:
        if not path.is_file():  # else another process has put a whole one there
            raise
    finally:
        shutil.rmtree(lock.workshop, ignore_errors=True)
    return path


def _make(made: Recipe, workshop: pathlib.Path, lock: BuildLock) -> None:
    """Copies the sources into a new folder and builds the library in it."""
    command = toolchain.compile_command(made.kind, made.architectures)
    ninja = toolchain.find_ninja()
    workshop.mkdir()
    for name, contents in made.sources:
        (workshop / name).write_bytes(contents)
    compiled = [name for name, _ in made.sources if name.endswith(SUFFIXES[made.kind])]
    _write_build_file(workshop / "build.ninja", compiled, command, made.library)
    with open(workshop / "log.txt", "w+", encoding="utf-8", errors="replace") as log:
        code = _run([*ninja.command, "-C", os.fspath(workshop)], log, lock)
        log.seek(0)
        output = log.read()
    if code is None:
        raise BuildError(f"building the native ops for {made.kind} has taken {BUILD_SECONDS} s and was given up; {_remedy(made.kind)}")
    if code != 0:
        raise BuildError(f"building the native ops for {made.kind} failed: {toolchain.first_error(output)} ({_remedy(made.kind)})")
    with open(workshop / made.library, "rb") as handle:
        os.fsync(handle.fileno())


def _remedy(kind: str) -> str:
    """What to do about a build that fails although its tools are there."""
    if kind == "cpu":
        return "a C++17 compiler with OpenMP is needed, such as GCC 9 or later; name another one in CXX"
    return "a CUDA toolkit for this GPU and driver is needed, and a host compiler that it accepts; see python -m torch_utils.doctor"


def _write_build_file(path: pathlib.Path, sources: Sequence[str], command: Sequence[str], library: str) -> None:
    """Writes ninja's instructions: compile every source, link them into `library`. All files lie in the folder of `path`."""
    line = shlex.join(command).replace("$", "$$")  # quoted for the shell, then for ninja
    objects = [f"{name}.o" for name in sources]
    lines = [
        "rule compile",
        f"  command = {line} -c $in -o $out",
        "rule link",
        f"  command = {line} -shared $in -o $out",
        *(f"build {made}: compile {name}" for made, name in zip(objects, sources)),
        f"build {library}: link {' '.join(objects)}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _run(command: Sequence[str], log: TextIO, lock: BuildLock) -> int | None:
    """Runs a program with its output in `log`, keeping the lock alive; returns its exit code, or None where it took too long."""
    give_up = time.monotonic() + BUILD_SECONDS
    with subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"}) as process:
        try:
            while time.monotonic() < give_up:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=1)
                lock.touch()
            return None
        finally:
            if process.poll() is None:
                process.terminate()
