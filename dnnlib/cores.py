"""How many processor cores this process may use."""

from __future__ import annotations

import math
import os
import pathlib

QUOTA_FILE = pathlib.Path("/sys/fs/cgroup/cpu.max")  # of a container's group, as docker --cpus=4 sets it


def available_cores() -> int:
    """At least 1: a queue may leave a process fewer than the machine has, and a container may give it a share of their time."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, QUOTA_FILE.read_text().split())
    except (OSError, ValueError):  # no Linux of today, or `max`: no limit
        return there
    return max(min(there, math.ceil(quota / period)), 1) if period > 0 else there
