"""Figures of single classes as tables: which classes a generator has lost, method by method."""

from __future__ import annotations

import statistics

from experiments.report.figures import title_of
from experiments.report.markup import Markup, element, join, row_head, scroll_box, table_of, with_spread
from experiments.report.studies import Study, mean_and_spread
from metrics.runs import direction
from metrics.trajectories import ONE_CLASS

MOST_CLASSES = 12  # of more than these the worst are shown

ClassTable = tuple[str, str, list[list[str]]]  # figure without its class, what it shows in words, rows of text with their headings first


def class_tables(study: Study) -> list[ClassTable]:
    """Every figure that a study has of single classes, when it was last measured: mean and deviation over the seeds of each method."""
    names = {name for series in study.series for run in series.group.runs for name in run.points if ONE_CLASS.search(name)}
    tables = []
    for figure in sorted({ONE_CLASS.sub("", name) for name in names}):
        classes = sorted(int(name.rpartition("_class")[2]) for name in names if ONE_CLASS.sub("", name) == figure)
        ends = {}
        for series in study.series:
            if bands := series.bands(*(f"{figure}_class{number}" for number in classes)):
                ends[series] = int(bands[0].kimg[-1]), {number: band.values[:, -1] for number, band in zip(classes, bands)}
        if not ends:
            continue
        shown = _worst(classes, {number: statistics.fmean(end[number].mean() for _, end in ends.values()) for number in classes}, figure)
        words = f"{title_of(figure)} of single classes"
        words += f", the {len(shown)} worst of {len(classes):,}" if len(shown) < len(classes) else ""
        rows = [["Method", "kimg", *(f"class {number}" for number in shown)]]
        for series, (kimg, end) in ends.items():
            rows.append([series.label, f"{kimg:,}", *(with_spread(*mean_and_spread(end[number])) for number in shown)])
        tables.append((figure, words, rows))
    return tables


def _worst(classes: list[int], means: dict[int, float], figure: str) -> list[int]:
    """At most MOST_CLASSES of the classes, by number."""
    return sorted(sorted(classes, key=means.__getitem__, reverse=direction(figure) == "lower")[:MOST_CLASSES])


def classes_block(study: Study) -> Markup | None:
    """The tables of a study's single classes, folded up; None where there are none."""
    blocks = []
    for figure, words, (header, *lines) in class_tables(study):
        head = [element("th", word, scope="col") for word in header]
        rows = [element("tr", row_head(name), *(element("td", cell) for cell in cells)) for name, *cells in lines]
        box = scroll_box(table_of([head], [rows], "numbers"), f"{words} in {study.title}")
        blocks.append(element("details", element("summary", words, " ", element("span", figure, class_="raw")), box))
    return join(*blocks) if blocks else None
