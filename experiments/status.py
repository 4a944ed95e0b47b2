"""Command: `python -m experiments.status RUN...`, a run folder on one screen: what it is, where it stands, how it does, and how to go on with it."""

from __future__ import annotations

import json
import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

import click

from dnnlib.cli import run_command
from dnnlib.format import format_time
from experiments.run_summary import summarise
from training.disk import GB

COLUMNS, LINES = 100, 24
LABEL = 10
MOST_FIGURES, MOST_ALARMS = 6, 3


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--json", "as_json", help="One JSON object per run and line instead of text", is_flag=True)
def main(runs: tuple[str, ...], as_json: bool) -> None:
    """Says on one screen each what is known of run folders, of this project or of StyleGAN2-ADA. Nothing is written or loaded.

    \b
    python -m experiments.status runs/00000-photos runs/00001-photos
    """
    summaries = [summarise(pathlib.Path(run)) for run in runs]
    if as_json:
        print("\n".join(map(json.dumps, summaries)))
    else:
        print("\n\n".join(map(describe, summaries)))


def describe(summary: Mapping[str, Any]) -> str:
    """A summary as text of at most LINES lines of COLUMNS."""
    name = pathlib.Path(summary["run"]).resolve().name
    lines = [name if len(name) <= COLUMNS else name[: COLUMNS - 3] + "..."]
    for label, texts in (
        ("what", [f"{summary['method'] or 'options cannot be read'}, by {summary['program']}"]),
        ("data", [_data(summary["data"])]),
        ("options", [_options(summary["options"])]),
        ("stands", [_stand(summary)]),
        ("state", [_state(summary)]),
        ("figures", _figures(summary["figures"])),
        ("training", [_training(summary["training"])]),
        ("alarms", _alarms(summary["alarms"])),
        ("disk", [_disk(summary)]),
    ):
        lines += _labelled(label, texts)
    return "\n".join([*lines, *_continuation(summary)][:LINES])


def _labelled(label: str, texts: list[str]) -> list[str]:
    """Texts behind a label, each on one line."""
    width = COLUMNS - LABEL - 2
    cut = [text if len(text) <= width else text[: width - 3] + "..." for text in texts]
    return [f"  {label if index == 0 else '':{LABEL}}{text}" for index, text in enumerate(cut)]


def _data(data: Mapping[str, Any]) -> str:
    images = f"{data['images']:,} images" if data["images"] is not None else "images"
    size = f" of {data['size'][1]}x{data['size'][0]}" if data["size"] is not None else ""
    extra = ", with labels" * data["labels"] + ", mirrored" * data["mirrored"]
    place = data["path"] or "unknown"
    room = COLUMNS - LABEL - 2 - len(images + size + extra) - 5
    return f"{images}{size}{extra}: {place if len(place) <= room else '...' + place[3 - room :]}"


def _options(options: Mapping[str, Any]) -> str:
    told = [f"{name} {value}" for name, value in options.items() if value is not None and name != "metrics" and (name, value) != ("gpus", 1)]
    return ", ".join([*told, f"metrics {','.join(options['metrics']) or 'none'}"])


def _stand(summary: Mapping[str, Any]) -> str:
    if summary["kimg"] is None:
        return "no tick yet" + (f" of {summary['total_kimg']:g} kimg" if summary["total_kimg"] is not None else "")
    total = summary["total_kimg"]
    share = f" of {total:g} kimg ({100 * min(summary['kimg'] / total, 1):.0f}%)" if total else " kimg"
    tick = f", tick {summary['tick']:.0f}" if summary["tick"] is not None else ""
    speed = f", {summary['sec_per_kimg']:.3g} s/kimg" if summary["sec_per_kimg"] is not None else ""
    left = f", {format_time(summary['seconds_left'])} left at this speed" if summary["seconds_left"] else ""
    return f"{summary['kimg']:.1f}{share}{tick}{speed}{left}"


def _state(summary: Mapping[str, Any]) -> str:
    age = summary["last_sign_seconds_ago"]
    sign = f", last sign of life {_age(age)} ago" if age is not None else ""
    words = {"running": "running", "stopped": "stopped, or silent for longer than its ticks take", "finished": "finished"}
    return words[summary["state"]] + sign


def _age(seconds: float) -> str:
    """A time span in its largest unit."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}{'s' * (seconds >= 2 * size)}"
    return f"{int(seconds)} seconds"


def _figures(figures: list[Mapping[str, Any]]) -> list[str]:
    if not figures:
        return ["none measured"]
    width = min(max(len(figure["figure"]) for figure in figures[:MOST_FIGURES]), 32)
    lines = []
    for figure in figures[:MOST_FIGURES]:
        best = "" if figure["best"] is None else f"  best {figure['best']:<7.4g} at {figure['best_at']:<5}"
        verdict = {True: ", good", False: ", bad", None: ""}[figure["trend_is_good"]]
        trend = f"  {figure['trend']}{verdict}" if figure["trend"] else ""
        lines.append(f"{figure['figure'][:width]:{width}}  {figure['last']:<7.4g} at {figure['at']:<5}{best}{trend}".rstrip())
    hidden = len(figures) - MOST_FIGURES
    return lines + ([f"and {hidden} more"] if hidden > 0 else [])


def _training(found: Mapping[str, float]) -> str:
    parts = []
    if "pairing_accuracy" in found:
        parts.append(f"pairing {100 * found['pairing_accuracy']:.0f}%" + (f" (loss {found['pairing_loss']:.3f})" if "pairing_loss" in found else ""))
    for name, words in (("augment", "augment {:.3f}"), ("r_t", "r_t {:.2f}"), ("score_real", "D real {:.2f}"), ("score_fake", "fake {:.2f}")):
        parts += [words.format(found[name])] if name in found else []
    parts += [f"not finite {found['nonfinite']:.0f}"] if "nonfinite" in found else []
    return ", ".join(parts) or "no statistics"


def _alarms(alarms: list[Mapping[str, Any]]) -> list[str]:
    lines = []
    for alarm in alarms[:MOST_ALARMS]:
        lines += textwrap.wrap(f"{alarm['kind']}: {alarm['text']}", COLUMNS - LABEL - 2, max_lines=2, placeholder="...")
    return lines or ["none"]


def _disk(summary: Mapping[str, Any]) -> str:
    disk, snapshots = summary["disk"], len(summary["snapshots"])
    text = f"{_size(disk['used'])} in {snapshots} snapshot{'s' * (snapshots != 1)} and {disk['states']} state{'s' * (disk['states'] != 1)}"
    if disk.get("needed"):
        text += f"; about {_size(disk['needed'])} to come"
    lacking = ": NOT ENOUGH" if disk.get("needed", 0) > disk["free"] else ""
    return f"{text}; {_size(disk['free'])} free{lacking}"


def _size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"


def _continuation(summary: Mapping[str, Any]) -> list[str]:
    """The command on lines of its own, broken as a shell would join them."""
    command = summary["continue"]
    if command is None:
        return _labelled("continue", ["finished, nothing to do" if summary["state"] == "finished" else "no network to start from"])
    if len(command) <= COLUMNS - LABEL - 2:
        return _labelled("continue", [command])
    size = COLUMNS - 1
    parts = [command[start : start + size] for start in range(0, len(command), size)]
    return ["  continue", *(part + "\\" * (part is not parts[-1]) for part in parts)]


if __name__ == "__main__":
    run_command(main)
