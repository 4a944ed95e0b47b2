"""Ending a run that is asked to end: SIGINT (Ctrl-C), SIGTERM, SIGHUP (its terminal is gone, and it was not started by nohup), or SIGUSR1, which
schedulers send before they take a machine away.

The step that is running is finished, a state is written, and the process leaves with 128 + the number of the signal: 130, 143, 129, 138. What comes
more than `REPEAT_SECONDS` after the first signal makes it leave at once, and so does a step or a write that takes more than `LEAVE_SECONDS`:
the state before is whole then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist

from dnnlib.signals import STOP_SIGNALS, exit_code
from torch_utils.distributed import MESSAGE_TIMEOUT, world_size

LEAVE_SECONDS = 28  # what asks a process to end kills it after 30, mostly
REPEAT_SECONDS = 2  # torchrun, a terminal and a scheduler may all pass on the same wish


class Abandoned(BaseException):
    """Raised out of `Stopping.abandonable` by a signal, its first argument. No Exception, for what can fail must not take it for a failure."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"asked to end by {signal.Signals(self.number).name}"


class Stopping:
    """A context in which signals ask for an end instead of making one. In another thread than the main one they are left as they are.

    Attributes:
        requested: number of the signal that this process has been sent; 0: none.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._since = 0.0
        self._owner = os.getpid()
        self._abandonable = False
        self._before: dict[int, object] = {}
        self._timer: threading.Timer | None = None
        self._group = None
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        if world_size() > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo", timeout=MESSAGE_TIMEOUT)  # the answer is for the host, which should not wait for GPUs
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()
        if kind is None and self._asked is not None:
            self._asked[0].wait()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._owner:  # in a forked worker, which its parent ends
            return
        name, now = signal.Signals(number).name, time.monotonic()
        if self.requested:
            if now - self._since > REPEAT_SECONDS:
                _leave_now(f"{name} again: leaving at once.", number)
            return
        self.requested, self._since = number, now
        _tell(f"{name}: leaving after this step, with a state to go on from.")
        line = f"It took more than {LEAVE_SECONDS} s to come to an end: leaving without a new state."
        self._timer = threading.Timer(LEAVE_SECONDS, _leave_now, (line, number))
        self._timer.daemon = True
        self._timer.start()
        if self._abandonable:
            raise Abandoned(number)

    def agreed(self) -> int:
        """The signal after which all ranks are to leave now; 0: none. To be called once a step by every rank.

        Ranks hear of each other's signals one step later, so that none has to wait for an answer.
        """
        if world_size() == 1:
            return self.requested
        heard = 0
        if self._asked is not None:
            work, answer = self._asked
            work.wait()
            heard = int(answer)
        question = torch.tensor(self.requested)
        self._asked = dist.all_reduce(question, dist.ReduceOp.MAX, group=self._group, async_op=True), question
        return heard

    @contextlib.contextmanager
    def abandonable(self) -> Iterator[None]:
        """What is done within is worth nothing unless it is done whole: a signal, also one that came before, raises `Abandoned` out of it."""
        self._abandonable = True
        try:
            if self.requested:
                raise Abandoned(self.requested)
            yield
        finally:
            self._abandonable = False


def _tell(line: str) -> None:
    """Prints from where print may not be used: it could be what was interrupted."""
    if sys.__stderr__ is None:  # 2 was closed from the beginning, and may be any file's number since
        return
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode() if os.isatty(2) else f"{line}\n".encode())


def _leave_now(line: str, number: int) -> None:
    _tell(line)
    os._exit(exit_code(number))
