"""The signals that ask a process to end, and what workers of such a process do about them."""

from __future__ import annotations

import signal

# Ctrl-C; kill, docker stop and schedulers; the warning that schedulers send some time before.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


def exit_code(number: int) -> int:
    """What a process ends with that a signal has made to leave: 128 + the signal's number, as shells count."""
    return 128 + number


def leave_ending_to_the_parent(worker: int = 0) -> None:
    """For worker processes (a worker_init_fn of torch's DataLoader): schedulers and terminals signal every process of a job, and a worker that
    ended at once would take the step with it that its parent is about to finish."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
