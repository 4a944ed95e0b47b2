"""Parts of the page below its tables: figures over training, what the runs cost, and the runs themselves with their options and files."""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dnnlib.format import format_time
from dnnlib.json_files import read_json_lines
from experiments.report.charts import curve_chart, has_bands, plane_chart
from experiments.report.figures import title_of
from experiments.report.looks import style, swatch
from experiments.report.markup import NONE, Markup, count, element, join, row_head, scroll_box, table_of
from experiments.report.notes import Notes
from experiments.report.plain import numbers_of
from experiments.report.signals import signals_of
from experiments.report.studies import NEAR, Series, Study, options_that_differ, path_text, read_options, seed_of
from experiments.report.tables import ARROWS, Anchors
from metrics.runs import direction
from metrics.trajectories import describe_protocols

if TYPE_CHECKING:
    from experiments.images.results import RunResult

MOST_FILES = 60
DEVICE_LINE = re.compile(r"^Device:\s+([^,\n]+)", re.MULTILINE)
PLACES = ("run_dir", "training_set_kwargs.path")  # of which the name is enough: a page is passed on, the folders of a machine are not
LOG_HEAD = 20_000  # characters of a log in which its device stands


def training_block(study: Study, name: str, notes: Notes) -> Markup | None:
    """Charts of a study, the control of their time, and every number in a table; None where nothing was measured.

    Args:
        study: what to show.
        name: of the block, for the ids of its controls.
        notes: of which those that name the setting stand above.
    """
    if not study.steps:
        return None
    planes = [_chart_box(title_of(plane.y) + " against " + title_of(plane.x).lower(), "", plane_chart(study, plane)) for plane in study.planes]
    curves = [_chart_box(title_of(figure), _raw(figure), curve_chart(study, figure)) for figure in study.curves]
    reading = "Paths run from the hollow dot, the first snapshot, to the last."
    if any(len(series.group.runs) > 1 for series in study.series):
        areas = " areas reach from the lowest seed to the highest," if has_bands(study) else ""
        reading += f" Lines are means over seeds,{areas} thin lines are single seeds."
        if any(len(series.stretches(figure)) > 1 for series in study.series for figure in study.points):
            reading += " Dotted lines are the seeds that go on where others end."
    return element(
        "div",
        notes.block(study.setting),
        element("p", reading, class_="reading"),
        _legend(study),
        _controls(study, name),
        _readout(study),
        element("div", *planes, class_="charts planes") if planes else None,
        element("div", *curves, class_="charts curves"),
        element("p", join(*describe_protocols(study.points.values()).split("\n"), by="<br>"), class_="protocol"),
        _numbers(study),
        class_="study",
    )


def signals_block(study: Study) -> Markup | None:
    """Charts of what a study's runs said while they trained, folded up; None where they said nothing."""
    signals = signals_of(study)
    if signals is None or not signals.steps:
        return None
    words = "Inside the training: " + ", ".join(_first_lower(title_of(name)) for name in signals.points)
    curves = [_chart_box(title_of(name), f"{name}, mean over each tick", curve_chart(signals, name, still=True)) for name in signals.points]
    return element("details", element("summary", words), _legend(signals), element("div", *curves, class_="charts curves"))


def _first_lower(words: str) -> str:
    return words if words[1:2] in ("'", "1") else words[:1].lower() + words[1:]


def _chart_box(title: str, raw: str, chart: Markup) -> Markup:
    words = [element("strong", title)] + ([" ", element("span", raw, class_="raw")] if raw else [])
    return element("figure", element("figcaption", *words), chart)


def _raw(figure: str) -> str:
    """A figure's own name, and which way is better."""
    way = direction(figure)
    return figure + (f", {way} is better" if way else "")


def _legend(study: Study) -> Markup:
    entries = []
    for series in study.series:
        if any(series.band(figure) is not None for figure in study.points):
            runs = series.group.runs
            seeds = count(len(runs), "seed" if series.made_once else "run")
            words = series.label if series.short == series.label else f"{series.short}: {series.label}"
            entries.append(element("li", swatch(), words, " ", element("small", seeds), class_=style(series)))
    return element("ul", *entries, class_="legend")


def _controls(study: Study, name: str) -> Markup:
    """A slider over the steps, with a button that walks through them."""
    steps = study.steps
    slider = element("input", type="range", id=f"{name}-time", min=0, max=len(steps) - 1, value=study.start, step=1)
    output = element("output", f"{steps[study.start]:,} kimg", for_=f"{name}-time")
    play = element("button", "Play", type="button", class_="play")
    parts = [element("label", "Training time", for_=f"{name}-time"), slider, output, play]
    whose = {"role": "group", "aria_label": f"Time in {study.title}"}
    return element("div", *parts, class_="controls", hidden=True, data_steps=" ".join(map(str, steps)), **whose)


def _readout(study: Study) -> Markup:
    """Figures of every series at the chosen time: the latest that were measured by then. page.js greys rows that are older."""
    figures = list(study.points)
    rows = []
    for series in study.series:
        found = numbers_of(study, series)
        if not found:
            continue
        cells = [element("th", swatch(), series.short, scope="row", class_=style(series))]
        most = max(seeds for seeds, _ in found.values())
        of = {seeds: f" ({seeds} of {most} seeds)" if seeds < most else "" for seeds, _ in found.values()}
        shown = {step: {"kimg": f"{step:,}{of[seeds]}", **texts} for step, (seeds, texts) in found.items()}
        for figure in ("kimg", *figures):
            texts: list[str] = []
            for step in study.steps:
                texts.append(shown.get(step, {}).get(figure) or (texts[-1] if texts else NONE))
            cells.append(element("td", texts[study.start], data_texts=json.dumps(texts, ensure_ascii=False)))
        measured = [int(any(step * (1 - NEAR) <= kimg <= step for kimg in found)) for step in study.steps]
        rows.append(element("tr", *cells, class_=None if measured[study.start] else "earlier", data_measured="".join(map(str, measured))))
    head = [element("th", words, scope="col") for words in ("At this time", "measured at kimg", *map(title_of, figures))]
    return scroll_box(table_of([head], [rows], "readout"), f"Figures of {study.title} at the chosen time")


def _numbers(study: Study) -> Markup:
    figures = list(study.points)
    head = [element("th", words, scope="col") for words in ("Method", "kimg", "seeds")]
    head += [element("th", join(figure, ARROWS[direction(figure)] or None, by=" "), scope="col") for figure in figures]
    rows = []
    for series in study.series:
        for kimg, (seeds, found) in numbers_of(study, series, ranges=True).items():
            cells = [row_head(series.label), element("td", f"{kimg:,}"), element("td", str(seeds))]
            cells += [element("td", found.get(figure, NONE)) for figure in figures]
            rows.append(element("tr", *cells))
    box = scroll_box(table_of([head], [rows], "numbers"), f"All numbers of {study.title}")
    return element("details", element("summary", "All numbers, mean ± standard deviation over seeds, and the lowest to the highest of them"), box)


def cost_section(runs: Sequence[RunResult], machine: str, anchors: Anchors) -> Markup:
    """Training time of every run, and of all of them; the machine where it is known."""
    rows = []
    for run in runs:
        name = row_head(run.method, element("a", run.method, href=f"#{anchors[run.path.resolve()]}"))
        speed = f"{run.seconds / run.trained:.1f}" if _known(run.seconds) and _known(run.trained) else NONE
        cells = [seed_of(run).removeprefix("seed "), f"{run.kimg:,}", _time(run.seconds), speed, _time(_measuring(run.path)), _device(run.path)]
        rows.append(element("tr", name, *(element("td", cell) for cell in cells)))
    known = [run for run in runs if _known(run.seconds)]
    total = f"{count(len(runs), 'run')}, {sum(run.kimg for run in runs):,} kimg, {_time(sum(run.seconds for run in known))} of training in all"
    total += f" (the time of {count(len(runs) - len(known), 'run')} is not known)" if len(known) < len(runs) else ""
    head = [element("th", words, scope="col") for words in ("Method", "Seed", "kimg", "Training", "s / kimg", "Measuring", "Device")]
    box = scroll_box(table_of([head], [rows], "numbers cost"), "Cost of every run")
    return join(element("p", total + (f", on {machine}." if machine else ".")), box)


def _known(seconds: float | None) -> bool:
    return seconds is not None and math.isfinite(seconds) and seconds > 0


def _time(seconds: float | None) -> str:
    return format_time(seconds) if _known(seconds) else NONE


def _measuring(run: pathlib.Path) -> float | None:
    """Seconds that the measurements of a run took. Metrics that share a pass each say its time: of those it counts once, the longest."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in run.glob("metric-*.jsonl"):
        for line in read_json_lines(path):
            taken, when = line.get("total_time"), line.get("timestamp", math.nan)
            if isinstance(taken, int | float) and isinstance(when, int | float):
                found.setdefault(str(line.get("snapshot_pkl")), []).append((when, taken))
    return sum(map(_one_by_one, found.values())) or None


def _one_by_one(lines: Sequence[tuple[float, float]]) -> float:
    """Seconds in all of (end, duration), those that overlap taken for one; of an end that is not known (NaN) nothing overlaps."""
    total, last_end, longest = 0.0, -math.inf, 0.0
    for end, taken in sorted(lines):
        if end - last_end <= max(taken, longest):
            longest = max(longest, taken)
        else:
            total, longest = total + longest, taken
        last_end = end
    return total + longest


def _device(run: pathlib.Path) -> str:
    """Where a run was trained, as its log says."""
    try:
        with open(run / "log.txt", encoding="utf-8", errors="replace") as handle:
            found = DEVICE_LINE.search(handle.read(LOG_HEAD))
    except OSError:
        found = None
    return found[1] if found else str(read_options(run).get("device", NONE))


def runs_section(studies: Sequence[Study], anchors: Anchors, root: pathlib.Path) -> Markup:
    """Every run with its path, options, figures and files, folded up."""
    members = [(series, run) for study in studies for series in study.series for run in series.results]
    options = {run.path.resolve(): _in_words(read_options(run.path)) for _, run in members}
    known = [table for table in options.values() if table]
    differing = options_that_differ(known)
    shared = {name: text for name, text in known[0].items() if all(table.get(name) == text for table in known)} if len(known) > 1 else {}
    parts = []
    for series, run in members:
        found = options[run.path.resolve()]
        own = {name: text for name, text in found.items() if name not in shared}
        parts.append(_run(series, run, own, bool(found and shared), differing, anchors[run.path.resolve()], root))
    if shared:
        label = "Options that all runs of this page share"
        parts.append(element("details", element("summary", label), _options(shared, set(), label)))
    return join(parts)


def _in_words(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as they are shown; of places the name alone."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return {name: pathlib.PurePath(text).name if name in PLACES else text for name, text in texts.items()}


def _run(
    series: Series, run: RunResult, options: Mapping[str, str], some_are_shared: bool, differing: set[str], anchor: str, root: pathlib.Path
) -> Markup:
    facts = f"{seed_of(run)}, {run.kimg:,} kimg"
    path = element("code", path_text(run.path, root))
    head = element("summary", swatch(), element("strong", series.label), " ", facts, " ", path)
    body = _options(options, differing, f"Options of {series.label}, {seed_of(run)}", some_are_shared)
    return element("details", head, body, _files(run.path), id=anchor, class_=f"run {style(series)}")


def _options(options: Mapping[str, str], differing: set[str], label: str, some_are_shared: bool = False) -> Markup:
    """Options as a table, those in which runs differ first; `some_are_shared`: with others that stand elsewhere."""
    if not options and some_are_shared:
        return element("p", "Its options are those that all runs share, below the last run.")
    if not options:
        return element("p", "No training_options.json that can be read lies in this run.")
    rows = []
    for name in sorted(options, key=lambda name: name not in differing):
        mark = "differs" if name in differing else None
        rows.append(element("tr", element("th", _breakable(name), scope="row"), element("td", options[name]), class_=mark))
    words = "Options; first, and marked, those in which runs of this page differ" if differing else "Options"
    caption = element("caption", f"{words}; those that all runs share stand below the last run" if some_are_shared else words)
    return scroll_box(element("table", caption, element("tbody", *rows), class_="options"), label)


def _breakable(name: str) -> Markup:
    """An option's name that may be broken at its dots and underscores."""
    return join(*re.split(r"(?<=[._])", name), by="<wbr>")


def _files(run: pathlib.Path) -> Markup:
    """The names and sizes of what lies in a run's folder."""
    files = sorted(path for path in run.iterdir() if path.is_file() and not path.name.startswith(".")) if run.is_dir() else []
    listed = [element("li", element("code", path.name), " ", element("small", _size(path))) for path in files[:MOST_FILES]]
    if len(files) > MOST_FILES:
        listed.append(element("li", f"and {count(len(files) - MOST_FILES, 'more file')}"))
    return join(element("h4", count(len(files), "file")), element("ul", *listed, class_="files"))


def _size(path: pathlib.Path) -> str:
    try:
        size = path.stat().st_size
    except OSError:
        return NONE
    return f"{size:,} bytes" if size < 1000 else f"{size / 1e3:,.0f} KB" if size < 1e6 else f"{size / 1e6:,.1f} MB"
