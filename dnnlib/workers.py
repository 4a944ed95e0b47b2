"""Reading a data set ahead in worker processes of torch's DataLoader that end with their parent, neither before nor after it."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from dnnlib.signals import STOP_SIGNALS


class ReadAhead:
    """An iterator over what a DataLoader yields, whose workers end by `close`, with the last reference, or with this process.

    Schedulers and terminals signal every process of a job, and a worker that ended at once would take the step with it that its parent is about
    to finish; so workers ignore such signals. But multiprocessing, too, ends workers by a signal when their parent ends, and then waits for them:
    without end, were they not closed before.

    Args:
        dataset: what the workers read, as DataLoader takes it.
        options: of DataLoader.
    """

    def __init__(self, dataset: Any, **options: Any):
        # A generator of its own, else DataLoader would draw a seed from the global one, which is the training's.
        own = torch.Generator().manual_seed(0)
        loader = torch.utils.data.DataLoader(dataset, generator=own, worker_init_fn=_leave_ending_to_the_parent, **options)
        with _stop_signals_blocked():
            self._batches = iter(loader)
        _open.add(self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def close(self) -> None:
        """Ends the workers."""
        self._batches = iter(())


_open: weakref.WeakSet[ReadAhead] = weakref.WeakSet()
_owner = os.getpid()


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Within: they wait, and do so in processes started here for good, which would else be ended by one that comes before they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):  # as on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_ending_to_the_parent(worker: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register  # runs before torch's and multiprocessing's, which were registered when torch was imported
def _close_all() -> None:
    if os.getpid() == _owner:  # a process that was forked has copies of objects that are not its own
        for reading in list(_open):
            reading.close()
