"""Numbers as short text for status lines and messages, and foreign text made fit for them."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text from a file or the name of one as one line that cannot steer a terminal: control characters and the like become escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def format_time(seconds: float) -> str:
    """A duration in the two or three units that matter: "5s", "12m 34s", "3h 05m 09s", "1d 02h 03m". Rounds to whole seconds."""
    total = int(round(seconds))
    minutes, s = divmod(total, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}h {m:02}m"
    if hours:
        return f"{h}h {m:02}m {s:02}s"
    return f"{m}m {s:02}s" if minutes else f"{s}s"
