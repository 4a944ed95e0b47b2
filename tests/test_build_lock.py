"""The lock on a build: taken over from the dead and the silent, never from the living, and an error where it cannot be taken over."""

import json
import os
import pathlib
import socket
import subprocess
import time

import pytest

from torch_utils import build_lock
from torch_utils.build_lock import BuildLock, where_pids_count


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def lock_file(pid, **other):
    """What a holder in this place writes, or one elsewhere, as `other` says; it works in x.other.tmp."""
    return json.dumps({"pid": pid, **where_pids_count(), "workshop": "x.other.tmp", **other})


@pytest.mark.parametrize(
    ("text", "age", "stale", "cleared"),
    [
        (lock_file(dead_pid()), 0, True, True),
        (lock_file(dead_pid()), 1000, True, True),
        (lock_file(os.getpid()), 0, False, False),
        (lock_file(os.getpid()), 1000, True, False),  # another process has that number by now, or it has been suspended
        (lock_file(dead_pid(), host="elsewhere"), 0, False, False),
        (lock_file(dead_pid(), host="elsewhere"), 1000, True, False),
        (lock_file(dead_pid(), pid_namespace="pid:[1]"), 0, False, False),
        (json.dumps({"pid": dead_pid(), "host": socket.gethostname(), "workshop": "x.other.tmp"}), 1000, True, False),
        ("", 0, False, False),  # about to be written
        ("", 1000, True, False),
        ("[nonsense", 1000, True, False),
    ],
    ids=[
        "dead",
        "long dead",
        "alive",
        "silent",
        "alive elsewhere",
        "silent elsewhere",
        "alive in a container",
        "silent, of an older version",
        "new and empty",
        "old and empty",
        "old and torn",
    ],
)
def test_a_lock_is_taken_over_when_its_holder_is_dead_or_silent(tmp_path, monkeypatch, text, age, stale, cleared):
    """And the holder's workshop is removed only when it is surely dead: what is silent here may be at work elsewhere."""
    monkeypatch.setattr(build_lock, "WAIT_SECONDS", 0.2)
    (tmp_path / "x.other.tmp").mkdir()
    path = tmp_path / "x.lock"
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    lock = BuildLock(path, "testing")
    assert lock.acquire() is stale
    assert (tmp_path / "x.other.tmp").exists() is not cleared
    lock.release()
    assert path.exists() is not stale


def test_a_stale_lock_that_cannot_be_removed_is_an_error(tmp_path, monkeypatch):
    """In a cache that only its owner may write to: whoever wants the lock then goes elsewhere, and does not try for ever."""
    tries = []

    def refuse(path, **_):
        tries.append(path)
        if len(tries) > 3:
            pytest.fail("tried again and again")
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "x.lock"
    path.write_text(lock_file(dead_pid()))
    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "unlink", refuse)
        with pytest.raises(PermissionError):
            BuildLock(path, "testing").acquire()
    assert tries == [path] and path.exists()


def test_a_lock_that_was_taken_over_is_not_given_up_for_the_new_holder(tmp_path):
    first, second = BuildLock(tmp_path / "x.lock", "testing"), BuildLock(tmp_path / "x.lock", "testing")
    assert first.acquire()
    os.utime(first.path, (0, 0))
    assert second.acquire()
    first.release()
    assert second.path.exists()
    second.release()
    assert not second.path.exists()
