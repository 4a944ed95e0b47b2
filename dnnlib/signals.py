"""The signals that ask a process to end."""

from __future__ import annotations

import signal


def _stop_signals() -> tuple[signal.Signals, ...]:
    # Ctrl-C; kill, docker stop and schedulers; a terminal that goes away; the warning that schedulers send some time before.
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    # Under nohup the terminal may go: what is started ignores that from the beginning, and shall go on.
    return tuple(number for number in numbers if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN)


STOP_SIGNALS = _stop_signals()


def exit_code(number: int) -> int:
    """What a process ends with that a signal has made to leave: 128 + the signal's number, as shells count."""
    return 128 + number
