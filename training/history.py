"""What a run folder tells about the past of its run: figures of metric-*.jsonl and statistics of stats.jsonl, by thousands of images.

Read for those who watch a run while it writes: a torn or foreign line is passed over, and of lines for the same moment the last counts. Runs that
are to be compared are read by `metrics.runs`, which refuses such lines.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from dnnlib.json_files import read_json_lines

STATS_FILE = "stats.jsonl"
KIMG, TICK = "Progress/kimg", "Progress/tick"
CLASS_OR_WORST = re.compile(r"_(class\d+|worst)$")  # figures of a single class, whose noise is larger


@dataclasses.dataclass(frozen=True)
class History:
    """A run's past.

    Attributes:
        figures: {figure: {kimg: value}}, finite, kimg rising.
        images: {figure: images compared}, of the smaller side; a figure is missing where its lines do not say.
        signals: {statistic: [(kimg at the end of the tick, mean over the tick)]}, finite, in the order of the file.
    """

    figures: dict[str, dict[int, float]]
    images: dict[str, int]
    signals: dict[str, list[tuple[float, float]]]


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file that are whole tables; none where there is no file, or none that can be read."""
    try:
        return read_json_lines(path)
    except (OSError, ValueError):
        return []


def read_history(run: pathlib.Path) -> History:
    """The past of the run in a folder; empty where nothing can be read."""
    figures, images = read_figures(run)
    return History(figures, images, read_signals(run))


def read_figures(run: pathlib.Path) -> tuple[dict[str, dict[int, float]], dict[str, int]]:
    """`figures` and `images` of a History."""
    figures: dict[str, dict[int, float]] = {}
    images: dict[str, int] = {}
    for line in (line for path in sorted(run.glob("metric-*.jsonl")) for line in read_lines(path)):
        number, results, protocol = snapshot_kimg(line.get("snapshot_pkl")), line.get("results"), line.get("protocol")
        if number is None or not isinstance(results, dict):
            continue
        counts = [protocol.get(side) for side in ("n_real", "n_fake")] if isinstance(protocol, dict) else []
        for figure, value in results.items():
            if is_finite(value):
                figures.setdefault(figure, {})[number] = float(value)
                images.update({figure: min(counts)} if counts and all(isinstance(count, int) and count > 0 for count in counts) else {})
    return {figure: dict(sorted(values.items())) for figure, values in figures.items()}, images


def read_signals(run: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
    """`signals` of a History."""
    signals: dict[str, list[tuple[float, float]]] = {}
    for line in read_lines(run / STATS_FILE):
        kimg = _mean(line.get(KIMG))
        if kimg is None:
            continue
        for name, value in line.items():
            if (mean := _mean(value)) is not None:
                signals.setdefault(name, []).append((kimg, mean))
    return signals


def _mean(value: Any) -> float | None:
    mean = value.get("mean") if isinstance(value, dict) else None
    return float(mean) if is_finite(mean) else None


def is_finite(value: Any) -> bool:
    """Whether something read from a file is a number to reckon with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def snapshot_kimg(name: Any) -> int | None:
    """kimg in the name of a snapshot, ours or StyleGAN2-ADA's; None where it names none."""
    match = re.search(r"snapshot-(\d+)", name) if isinstance(name, str) else None
    return int(match[1]) if match else None


def snapshot_moments(history: History, ticks: int, now: int | None = None) -> list[int]:
    """kimg at which snapshots were written, rising, also of those that were deleted since.

    Args:
        ticks: between snapshots.
        now: kimg of the snapshot of this moment, which at the end of a run lies at any tick.
    """
    regular = {int(kimg) for kimg, tick in history.signals.get(TICK, []) if round(tick) % max(ticks, 1) == 0}
    measured = {kimg for values in history.figures.values() for kimg in values}
    return sorted(regular | measured | ({now} if now is not None else set()))


def window_means(signal: Iterable[tuple[float, float]], moments: Iterable[int]) -> list[float | None]:
    """Mean of a statistic between each moment and the one before; None for a window without any."""
    values, means, index = sorted(signal), [], 0
    for moment in moments:
        window = []
        while index < len(values) and values[index][0] < moment + 1:
            window.append(values[index][1])
            index += 1
        means.append(sum(window) / len(window) if window else None)
    return means
