"""A lock file between processes that may die: it names its holder, is touched while the holder lives, and is taken over when it is not.

It saves work, not correctness: in the worst case (clocks that disagree, a holder that was suspended) two processes do the same work.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import socket
import sys
import time
import uuid

STALE_SECONDS = 120  # since the holder's last sign of life, on whatever machine it is
WAIT_SECONDS = 3600  # a bound for what should never happen: one holder after the other
ABANDONED_SECONDS = 86400  # after which a workshop is nobody's
POLL_SECONDS = 0.1
MESSAGE_SECONDS = 1  # of waiting, after which the user is told


class BuildLock:
    """Held between `acquire` and `release`.

    Attributes:
        workshop: name of a folder beside the lock that is the holder's own while it holds it. Whoever takes over the lock of a holder that is
            known to be dead removes its workshop; one that was only silent may still be at work there.
        waited_since: time (as of time.time) at which waiting for another holder began; None: there was none.

    Args:
        path: the lock file.
        what: what is being done under it, for the message to those who wait.
    """

    def __init__(self, path: pathlib.Path, what: str) -> None:
        self.path, self._what = path, what
        self.workshop = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}.tmp")
        self.waited_since: float | None = None
        self._content = json.dumps({"pid": os.getpid(), **where_pids_count(), "workshop": self.workshop.name})

    def acquire(self) -> bool:
        """Takes the lock, waiting for whoever has it; returns False where others have had it for `WAIT_SECONDS`.

        Raises:
            OSError: the folder cannot be written, or a stale lock in it cannot be removed.
        """
        told = False
        while not self._create():
            holder = self._holder()
            if holder is not None and ((dead := self._is_dead(holder)) or holder["age"] > STALE_SECONDS):
                self._evict(holder, dead)
                continue
            now = time.time()
            self.waited_since = self.waited_since or now
            if now - self.waited_since > WAIT_SECONDS:
                return False
            if holder is not None and not told and now - self.waited_since > MESSAGE_SECONDS:
                print(f"Waiting for process {holder.get('pid')} on {holder.get('host')}, which is {self._what} ...", file=sys.stderr, flush=True)
                told = True
            time.sleep(POLL_SECONDS)
        return True

    def touch(self) -> None:
        """A sign of life; at least every minute while the lock is held."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Gives the lock up, unless somebody has taken it over."""
        with contextlib.suppress(OSError):
            if self.path.read_text() == self._content:
                self.path.unlink()

    def _create(self) -> bool:
        """Makes the lock file; False where there is one already."""
        try:
            with open(self.path, "x", encoding="utf-8") as handle:
                handle.write(self._content)
        except FileExistsError:
            return False
        return True

    def _holder(self) -> dict | None:
        """What the lock file says, with its age in seconds; None where it has just gone."""
        try:
            text = self.path.read_text()
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        try:
            holder = json.loads(text)
        except ValueError:
            holder = {}
        return {**(holder if isinstance(holder, dict) else {}), "age": age, "text": text}

    def _is_dead(self, holder: dict) -> bool:
        """Whether the holder is dead as far as this process can tell. A file without a text may be about to get one."""
        if not isinstance(holder.get("pid"), int) or any(holder.get(name) != value for name, value in where_pids_count().items()):
            return False
        import psutil  # slow to import, and only those who wait need it

        return not psutil.pid_exists(holder["pid"])

    def _evict(self, holder: dict, dead: bool) -> None:
        """Removes a stale lock, if it is still the same, and what a dead holder left behind. Raises OSError where the lock cannot be removed."""
        with contextlib.suppress(FileNotFoundError):  # somebody else was quicker
            if self.path.read_text() == holder["text"]:
                self.path.unlink()
        name = holder.get("workshop")
        if dead and isinstance(name, str) and name.startswith(self.path.stem) and "/" not in name:
            shutil.rmtree(self.path.with_name(name), ignore_errors=True)


def sweep_workshops(lock: BuildLock) -> None:
    """Removes old workshops beside a lock: of holders that were taken for silent, as from elsewhere nobody can see that they are dead."""
    for folder in lock.path.parent.glob(f"{lock.path.stem}.*.tmp"):
        with contextlib.suppress(OSError):  # somebody else's
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def where_pids_count() -> dict[str, str | None]:
    """Where a process number means the same process as here: the machine, and on Linux the namespace, as containers may share the machine's name."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = None
    return {"host": socket.gethostname(), "pid_namespace": namespace}
