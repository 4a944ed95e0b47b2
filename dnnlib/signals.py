"""The signals that ask a process to end."""

from __future__ import annotations

import signal

# Ctrl-C; kill, docker stop and schedulers; the warning that schedulers send some time before.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


def exit_code(number: int) -> int:
    """What a process ends with that a signal has made to leave: 128 + the signal's number, as shells count."""
    return 128 + number
