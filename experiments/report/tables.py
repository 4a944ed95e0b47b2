"""Result tables of the page: ours beside what was published, small figures of the spread over seeds, and the verdicts on claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.images.budgets import BUDGETS
from experiments.report.axes import Axis
from experiments.report.differences import differences_block
from experiments.report.figures import title_of
from experiments.report.markup import NONE, Markup, element, join, row_head, scroll_box, table_of, with_spread
from experiments.report.notes import Notes
from experiments.report.strips import ruler_around, strip
from experiments.report.studies import path_text, seed_of
from metrics.runs import direction

if TYPE_CHECKING:
    import pathlib

    from experiments.images.claims import Verdict
    from experiments.images.results import TableResult, TableRow

Anchors = Mapping["pathlib.Path", str]  # resolved folder of a run -> id of its part of the page

FULL_LENGTH = "paper"  # the budget under which our figures may be set beside the published ones
ARROWS = {"higher": "↑", "lower": "↓", "": ""}
VERDICTS = {True: ("holds", "✓"), False: ("does not hold", "✗"), None: ("is undecided", "?")}


def is_full_length(table: TableResult) -> bool:
    """Whether a table was made with the published lengths of training."""
    return table.budget_name == FULL_LENGTH


def table_section(table: TableResult, anchors: Anchors, root: pathlib.Path, notes: Notes) -> Markup:
    """A table with its budget and detector above, its verdicts and its note below.

    Args:
        table: what to show.
        anchors: where the runs are on the page.
        root: folder of the page.
        notes: of which those that name the table stand under its head.
    """
    facts = [("budget", table.budget), ("training", table.training), ("detector", table.detector), ("length", _length(table))]
    facts.append(("seeds", _seeds(table)))
    shown = [element("div", element("dt", name), " ", element("dd", value)) for name, value in facts if value]
    head = element("header", element("h3", element("code", table.name), " ", table.title.removesuffix(".")), element("dl", *shown, class_="facts"))
    published = any(row.paper for row in table.rows)
    caution = None
    if published and not is_full_length(table):
        words = "Not at the published length: compare the order of the rows, not the values."
        caution = element("p", words, class_="caution")
    body = join(notes.block(table.name), scroll_box(_table(table, anchors, root), f"Table {table.name}"))
    note = element("p", table.note, class_="note") if table.note else None
    below = caution, note, differences_block(table), claims_list(table.claims)
    return element("section", head, body, *below, class_="result", id=f"table-{_slug(table.budget_name)}-{_slug(table.name)}")


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)


def _length(table: TableResult) -> str:
    """Where the rows' figures were taken; their runs may be longer."""
    reached = [row.kimg for row in table.rows if row.runs]
    return f"{_span(reached)} kimg" if reached else ""


def _seeds(table: TableResult) -> str:
    numbers = sorted({len(row.runs) for row in table.rows if row.runs})
    return " or ".join(map(str, numbers)) + " per row" if numbers else ""


def _table(table: TableResult, anchors: Anchors, root: pathlib.Path) -> Markup:
    columns = {name: any(name in row.paper for row in table.rows) for name in table.columns}
    rulers = {name: _ruler(table, name) for name in columns}
    two = 2 if any(columns.values()) else None
    top, second = [element("th", "Method", scope="col", rowspan=two)], []
    for name, published in columns.items():
        arrow = element("span", ARROWS[direction(name)], title=f"{direction(name)} is better") if direction(name) else None
        top.append(element("th", join(title_of(name), arrow, by=" "), scope="colgroup", colspan=2 if published else 1))
        second += [element("th", "ours", scope="col")] + ([element("th", "paper", scope="col", class_="paper")] if published else [])
    top.append(element("th", "Seeds", scope="col", rowspan=two))
    rows = []
    for row in table.rows:
        cells = [row_head(row.method)]
        for name, published in columns.items():
            cells.append(_ours(row, name, rulers[name], is_full_length(table)))
            if published:
                cells.append(element("td", published_text(row, name), class_="paper"))
        rows.append(element("tr", *cells, element("td", _seed_links(row, anchors, root), class_="seeds")))
    return table_of([top, second] if two else [top], [rows], "figures")


def figure_text(row: TableRow, column: str) -> str:
    """Our figure: mean and deviation, and of how many of the row's seeds they are, where not of all."""
    text = with_spread(*row.ours.get(column, (None, None)))
    return f"{text} ({row.fewer[column]} of {len(row.runs)})" if column in row.fewer else text


def published_text(row: TableRow, column: str) -> str:
    """A published figure with the digits it was published with."""
    return f"{row.paper[column]:g}" if column in row.paper else NONE


def _ours(row: TableRow, column: str, ruler: Axis | None, full_length: bool) -> Markup:
    """Mean and deviation, and their place among the column's figures."""
    mean, spread = row.ours.get(column, (math.nan, math.nan))
    text = figure_text(row, column)
    if not math.isfinite(mean):
        return element("td", text, class_="ours none")
    ends = (mean - spread, mean + spread) if math.isfinite(spread) else None
    drawn = strip(ruler, mean, ends, row.paper.get(column) if full_length else None, "published") if ruler else None
    return element("td", text, drawn, class_="ours", data_value=repr(float(mean)))


def _ruler(table: TableResult, column: str) -> Axis | None:
    """The scale that a column's small figures share."""
    ends = []
    for row in table.rows:
        mean, spread = row.ours.get(column, (math.nan, math.nan))
        reach = spread if math.isfinite(spread) else 0.0
        ends += [mean - reach, mean + reach] if math.isfinite(mean) else []
        ends += [row.paper[column]] if is_full_length(table) and column in row.paper else []
    return ruler_around(ends)


def _seed_links(row: TableRow, anchors: Anchors, root: pathlib.Path) -> Markup | str:
    if not row.runs:
        return "none"
    links = []
    for run in row.runs:
        words = NONE if run.seed is None else str(run.seed)
        where = {"href": f"#{anchors[run.path.resolve()]}", "title": path_text(run.path, root), "aria_label": f"{row.method}, {seed_of(run)}"}
        links.append(element("a", words, **where))
    return join(links, by=" ")


def claims_list(claims: Sequence[Verdict]) -> Markup | None:
    """Claims with their verdicts; None where there are none."""
    items = []
    for claim in claims:
        words, sign = VERDICTS[claim.holds]
        kind = {True: "yes", False: "no", None: "open"}[claim.holds]
        badge = element("span", element("span", sign, aria_hidden="true"), " ", words.removeprefix("is "), class_=f"badge {kind}")
        head = element("p", element("strong", claim.id), " ", badge)
        evidence = element("ul", *(element("li", part) for part in claim.text.split("; ")), class_="evidence")
        items.append(element("li", head, element("p", claim.statement), evidence, class_="claim"))
    return element("ul", *items, class_="claims") if items else None


def verdict_sentence(tables: Sequence[TableResult]) -> str:
    """What became of the claims of all tables, in the claims' own words; empty where none was judged."""
    judged: dict[str, dict[str, Verdict]] = {}
    for table in tables:
        for claim in table.claims:
            judged.setdefault(table.budget_name or "unnamed", {})[claim.id] = claim
    sentences = []
    for budget, claims in judged.items():
        sentences += [f"Under the {budget} budget:"] if len(judged) > 1 else []
        for holds, (words, _) in VERDICTS.items():
            if told := [f"“{claim.statement.rstrip('.')}” ({claim.id})" for claim in claims.values() if claim.holds is holds]:
                words = words.removeprefix("is ")
                sentences.append(f"{words[0].upper()}{words[1:]}: {_and(told)}.")
    return " ".join(sentences)


def judged_on(tables: Sequence[TableResult]) -> str:
    """What the claims were judged on: training set, network and length, against the published one; empty where none was judged."""
    judged = [table for table in tables if table.claims]
    sentences = []
    for budget in dict.fromkeys(table.budget for table in judged):
        own = [table for table in judged if table.budget == budget]
        training = ", ".join(dict.fromkeys(table.training for table in own if table.training))
        words = [f"Trained on {training}" if training else "", f"budget {budget}"]
        rows = [row for table in own for row in table.rows if row.runs]
        length = f"{_span([row.kimg for row in rows])} kimg" if rows else ""
        regimes = BUDGETS[FULL_LENGTH].regimes
        settings = {run.setting for row in rows for run in row.runs if row.paper and run.setting in regimes}
        if settings and not is_full_length(own[0]):
            length += f", where the published runs take {_span([regimes[setting].kimg for setting in settings])}"
        text = "; ".join(filter(None, [*words, length]))
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    return " ".join(sentences)


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
