"""What a run folder says of its run, ours or StyleGAN2-ADA's, as plain data: whatever is missing, torn or strange in it is left out, never an error.

The words and the layout are `experiments.status`' work.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import shlex
import time
from collections.abc import Mapping
from typing import Any

from dnnlib import UserError
from metrics.runs import OPTIONS_FILE, direction, read_options
from torch_utils.image_size import written_size
from training.alarm import Setting, find_events, open_alarms
from training.disk import Sizes, free_bytes, measure_sizes, needed_bytes, snapshots_left
from training.history import CLASS_OR_WORST, STATS_FILE, History, is_finite, read_history, read_lines, snapshot_kimg, snapshot_moments
from training.run_files import BEST_FILE, LOG_FILE, RunDir

SIGNS = (STATS_FILE, LOG_FILE, OPTIONS_FILE)
SILENT_TICKS, SILENT_SECONDS = 3, 60  # a run that says nothing for this many of its ticks and this long besides is taken for stopped
RECENT = 3  # evaluations that a trend is read off
FLAT = 0.02  # relative change below which figures count as level
FIGURE_ORDER = ("fid", "coverage", "recall", "precision", "kid", "collision", "pairing")
STATISTICS = {
    "pairing_loss": "Loss/pairing/loss",
    "pairing_accuracy": "Loss/pairing/accuracy",
    "augment": "Progress/augment",
    "r_t": "Loss/signs/real",
    "score_real": "Loss/scores/real",
    "score_fake": "Loss/scores/fake",
    "nonfinite": "Progress/nonfinite",
}


def summarise(path: pathlib.Path, now: float | None = None) -> dict[str, Any]:
    """A run folder as plain data; what is not known is None or missing.

    Args:
        path: the folder.
        now: seconds since 1970; default is the clock.

    Raises:
        UserError: the path is no run folder.
    """
    check_run(path)
    options, history, run = _options_or_empty(path), read_history(path), RunDir(path)
    snapshots = sorted(kimg for file in path.glob("network-snapshot-*") if (kimg := snapshot_kimg(file.name)) is not None)
    theirs = any(path.glob("network-snapshot-*.pkl")) or ("kimg_per_tick" not in options and "device" not in options and bool(options))
    progress = _progress(path, options, history, snapshots, time.time() if now is None else now)
    summary = {
        "run": str(path),
        "program": "StyleGAN2-ADA" if theirs else "Pairing-GAN",
        **_identity(options),
        **progress,
        "figures": _figures(path, history),
        "training": {name: signal[-1][1] for name, of in STATISTICS.items() if (signal := history.signals.get(of))},
        "alarms": _alarms(history, options),
        "snapshots": snapshots,
        "disk": _disk(run, options, progress["kimg"] or 0),
        "continue": _continuation(run, theirs, progress["state"], snapshots),
    }
    return _finite(summary)


def _finite(value: Any) -> Any:
    """The same with None for numbers beyond all bounds: damaged files hold some, and products of large ones become some."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_run(path: pathlib.Path) -> None:
    """Raises UserError if there is no run in a folder; names the runs in it where it holds some."""
    if not path.is_dir():
        raise UserError(f"{path} is {'no folder' if path.exists() else 'missing'}; give the folder of a run, such as runs/00000-photos")
    if any((path / name).is_file() for name in SIGNS) or any(path.glob("network-snapshot-*")):
        return
    inside = sorted(child.parent for depth in ("*", "*/*") for child in path.glob(f"{depth}/{OPTIONS_FILE}"))
    if inside:
        raise UserError(f"{path} holds {len(inside)} run{'s' * (len(inside) > 1)} but is none; give one of them, such as {inside[-1]}")
    raise UserError(f"{path} is no run: there is none of {', '.join(SIGNS)} in it, and no snapshot")


def _options_or_empty(path: pathlib.Path) -> dict[str, Any]:
    """The training_options.json of a run, empty where it cannot be read."""
    try:
        return read_options(path) or {}
    except UserError:
        return {}


def _get(options: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """An entry by its dotted name; None where it is missing or of another type."""
    value: Any = options
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, kind) and (isinstance(value, bool) == (kind is bool)) else None


NUMBER = (int, float)


def _identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is trained, on what, and how."""
    return {
        "method": _method(options),
        "data": {
            "path": _get(options, "training_set_kwargs.path", str),
            "images": _get(options, "training_set_kwargs.max_size", int),
            "size": written_size(_get(options, "training_set_kwargs.resolution", (int, list))),  # (height, width)
            "mirrored": bool(_get(options, "training_set_kwargs.xflip", bool)),
            "labels": bool(_get(options, "training_set_kwargs.use_labels", bool)),
        },
        "options": {
            "batch": _get(options, "batch_size", int),
            "gpus": _get(options, "num_gpus", int),
            "gamma": _get(options, "loss_kwargs.r1_gamma", NUMBER),
            "seed": _get(options, "random_seed", int),
            "device": _get(options, "device", str),
            "precision": _get(options, "precision", str),
            "resumed from": _get(options, "resume_pkl", str),
            "metrics": [name for name in _get(options, "metrics", list) or [] if isinstance(name, str)],
        },
    }


def _method(options: Mapping[str, Any]) -> str | None:
    if not options:
        return None
    parts = ["StyleGAN2-ADA" if is_finite(options.get("ada_target")) else "StyleGAN2"]
    parts += [f"augmentation at {options['augment_p']:g}"] if is_finite(options.get("augment_p")) else []
    loss = options.get("loss_kwargs") if isinstance(options.get("loss_kwargs"), dict) else {}
    words = {"pairing_weight": "pairing", "ms_weight": "mode seeking", "r2_gamma": "R2"}
    words |= {name: name.removesuffix("_weight") for name in loss if name.endswith("_weight") and name not in {*words, "pl_weight"}}
    parts += [f"{words[name]} {loss[name]:g}" for name in words if is_finite(loss.get(name)) and loss[name]]
    parts += ["relativistic"] if loss.get("objective") == "relativistic" else []
    return " + ".join(parts)


def _progress(path: pathlib.Path, options: Mapping[str, Any], history: History, snapshots: list[int], now: float) -> dict[str, Any]:
    """How far it is, how fast, and whether it lives."""

    def last(name: str) -> float | None:
        return history.signals[name][-1][1] if name in history.signals else None

    total, kimg, per_kimg = _get(options, "total_kimg", NUMBER), last("Progress/kimg"), last("Timing/sec_per_kimg")
    sign = _last_sign(path)
    age = None if sign is None else max(now - sign, 0.0)
    pause = max((seconds for _, seconds in history.signals.get("Timing/maintenance_sec", [])), default=0.0)
    patience = SILENT_TICKS * (last("Timing/sec_per_tick") or 0.0) + pause + SILENT_SECONDS
    if total is not None and max(snapshots, default=-1) >= total:
        state = "finished"
    elif age is None or age > patience:
        state = "stopped"
    else:
        state = "running"
    left = None if None in (total, kimg, per_kimg) or state == "finished" else max(total - kimg, 0) * per_kimg
    return {
        "kimg": kimg,
        "total_kimg": total,
        "tick": last("Progress/tick"),
        "sec_per_kimg": per_kimg,
        "seconds_left": left,
        "state": state,
        "last_sign_seconds_ago": age,
    }


def _last_sign(path: pathlib.Path) -> float | None:
    """When the run last wrote a line, by the line itself, for a copy of a folder looks young; by the youngest file where no line says it."""
    lines = (line for file in (path / STATS_FILE, *path.glob("metric-*.jsonl")) for line in read_lines(file))
    told = [line["timestamp"] for line in lines if is_finite(line.get("timestamp"))]
    if told:
        return max(told)
    files = [file.stat().st_mtime for file in path.iterdir() if file.is_file()]
    return max(files) if files else None


def _figures(path: pathlib.Path, history: History) -> list[dict[str, Any]]:
    """Last and best value of every figure and where it goes, the best snapshot's figure first."""
    chosen = next((line.get("figure") for line in read_lines(path / BEST_FILE)), None)
    names = [name for name in history.figures if not CLASS_OR_WORST.search(name)]
    return [_figure(name, history.figures[name]) for name in sorted(names, key=lambda name: (name != chosen, _rank(name), name))]


def _rank(name: str) -> int:
    return next((index for index, part in enumerate(FIGURE_ORDER) if part in name), len(FIGURE_ORDER))


def _figure(name: str, values: Mapping[int, float]) -> dict[str, Any]:
    way = direction(name)
    sign = -1 if way == "lower" else 1
    last = max(values)
    best = None if not way else max(values, key=lambda kimg: (sign * values[kimg], kimg))
    recent = list(values.values())[-RECENT:]
    change = (recent[-1] - recent[0]) / max(abs(recent[0]), 1e-12) if len(recent) > 1 else None
    trend = None if change is None else "level" if abs(change) <= FLAT else "up" if change > 0 else "down"
    return {
        "figure": name,
        "last": values[last],
        "at": last,
        "best": None if best is None else values[best],
        "best_at": best,
        "trend": trend,
        "trend_is_good": None if trend in (None, "level") or not way else (trend == "up") == (sign > 0),
        "evaluations": len(values),
    }


def _alarms(history: History, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Alarms that are not over, worked out from the figures and statistics that are there now, measured during the training or after it."""
    setting = Setting.of(options)
    events = find_events(history, snapshot_moments(history, setting.snapshot_ticks), setting)
    return [{"kind": event.kind, "kimg": event.kimg, "since": event.since, "text": event.text} for event in open_alarms(events)]


def _disk(run: RunDir, options: Mapping[str, Any], kimg: float) -> dict[str, Any]:
    """Space used, needed for the rest where that can be told, and free."""
    ours, states, used = run.snapshots(), run.states(), 0
    for file in run.path.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a training that goes on removes old ones
            used += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    found = {"used": used, "states": len(states), "free": free_bytes(run.path)}
    needed = ("kimg_per_tick", "batch_size", "network_snapshot_ticks", "total_kimg")
    sizes = measure_sizes(run, Sizes(0, 0, 0))
    if all(is_finite(options.get(name)) and options[name] > 0 for name in needed) and sizes.snapshot and sizes.state:
        keep = _get(options, "keep_snapshots", int) or 0
        found["needed"] = needed_bytes(sizes, int(snapshots_left(options, int(kimg * 1000))), keep, len(ours), len(states))
    return found


def _continuation(run: RunDir, theirs: bool, state: str, snapshots: list[int]) -> str | None:
    """The command that goes on with the run; None where there is nothing to go on with."""
    if state == "finished":
        return None
    if not theirs:
        return f"python train.py --continue-run={shlex.quote(str(run.path))}"
    newest = [path for path in run.path.glob("network-snapshot-*.pkl") if snapshot_kimg(path.name) == max(snapshots, default=None)]
    return f"python train.py --outdir=runs --data=DATA --resume={shlex.quote(str(newest[0]))}" if newest else None
