"""Result tables of the page: ours beside what was published, small figures of the spread over seeds, and the verdicts on claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.report.axes import Axis
from experiments.report.figures import title_of
from experiments.report.markup import NONE, Markup, count, element, join, number, row_head, scroll_box, table_of, with_spread
from experiments.report.studies import path_text, seed_of
from metrics.runs import direction

if TYPE_CHECKING:
    import pathlib

    from experiments.images.claims import Verdict
    from experiments.images.results import Difference, TableResult, TableRow

Anchors = Mapping["pathlib.Path", str]  # resolved folder of a run -> id of its part of the page

FULL_LENGTH = "paper"  # the budget under which our figures may be set beside the published ones
DIFFERENCES = "Differences from the baseline, taken within each seed: mean and its 95% interval, which leaves out 0 by chance once in twenty"
STRIP = (96, 16)
ARROWS = {"higher": "↑", "lower": "↓", "": ""}
VERDICTS = {True: ("holds", "✓"), False: ("does not hold", "✗"), None: ("is undecided", "?")}


def is_full_length(table: TableResult) -> bool:
    """Whether a table was made with the published lengths of training."""
    return table.budget_name == FULL_LENGTH


def table_section(table: TableResult, anchors: Anchors, root: pathlib.Path) -> Markup:
    """A table with its budget and detector above, its verdicts and its note below.

    Args:
        table: what to show.
        anchors: where the runs are on the page.
        root: folder of the page.
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
    body = scroll_box(_table(table, anchors, root), f"Table {table.name}")
    note = element("p", table.note, class_="note") if table.note else None
    below = caution, note, differences_block(table), claims_list(table.claims)
    return element("section", head, body, *below, class_="result", id=f"table-{_slug(table.budget_name)}-{_slug(table.name)}")


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)


def _length(table: TableResult) -> str:
    """Where the rows' figures were taken; their runs may be longer."""
    reached = sorted({row.kimg for row in table.rows if row.runs})
    if not reached:
        return ""
    return f"{reached[0]:,} kimg" if len(reached) == 1 else f"{reached[0]:,} to {reached[-1]:,} kimg"


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
            cells.append(_ours(row, name, rulers[name], anchors, is_full_length(table)))
            if published:
                cells.append(element("td", published_text(row, name), class_="paper"))
        rows.append(element("tr", *cells, element("td", _seed_links(row, anchors, root), class_="seeds")))
    return table_of([top, second] if two else [top], rows, "figures")


def differences_block(table: TableResult) -> Markup | None:
    """Differences from the baseline as a table, each with its interval drawn about 0; None where there are none."""
    if not table.differences:
        return None
    head = [element("th", words, scope="col") for words in ("Method", *map(title_of, table.columns), "Seeds")]
    rulers = {column: _ruler_about_0([one for one in table.differences if one.column == column]) for column in table.columns}
    rows = []
    for (name, *cells, seeds), found in zip(difference_rows(table)[1:], _by_row(table).values(), strict=True):
        shown = []
        for column, text in zip(table.columns, cells, strict=True):
            one, ruler = found.get(column), rulers[column]
            strip = _strip(ruler, one.mean, one.interval, 0.0, "zero") if one and ruler else None
            shown.append(element("td", text, strip, class_=_judged(one) if one else None))
        rows.append(element("tr", row_head(name), *shown, element("td", seeds)))
    box = scroll_box(table_of([head], rows, "numbers differences"), f"Differences in table {table.name}")
    return element("details", element("summary", DIFFERENCES), box, open=True)


def _by_row(table: TableResult) -> dict[tuple[str, str], dict[str, Difference]]:
    """(method, baseline) -> column -> difference."""
    found: dict[tuple[str, str], dict[str, Difference]] = {}
    for one in table.differences:
        found.setdefault((one.method, one.baseline), {})[one.column] = one
    return found


def _ruler_about_0(differences: Sequence[Difference]) -> Axis | None:
    """The scale of a column's differences, with 0 in its middle. The intervals of two seeds, which are wide, may pass its ends."""
    ends = [end for one in differences if one.interval and one.seeds > 2 for end in one.interval]
    reach = max(map(abs, [*ends, *(one.mean for one in differences)]), default=0.0)
    return Axis(-reach, reach, 6, STRIP[0] - 6) if reach > 0 else None


def _judged(one: Difference) -> str | None:
    """Whether the whole interval is on the better or on the worse side of 0; None where it is on both, or neither is better."""
    if one.interval is None or one.interval[0] <= 0 <= one.interval[1] or not direction(one.column):
        return None
    return "better" if (one.mean > 0) == (direction(one.column) == "higher") else "worse"


def difference_rows(table: TableResult) -> list[list[str]]:
    """Differences as rows of text, headings first: what less what, mean and interval of every column, number of seeds."""
    rows = [["method", *table.columns, "seeds"]]
    for (method, baseline), columns in _by_row(table).items():
        cells = [_difference_text(columns[name]) if name in columns else NONE for name in table.columns]
        rows.append([_less(method, baseline), *cells, ", ".join(map(str, sorted({one.seeds for one in columns.values()})))])
    return rows


def _less(method: str, baseline: str) -> str:
    """Names of two rows with a minus between them; where they look, if it is the same, once."""
    _, comma, where = method.rpartition(", ")
    if comma and baseline.endswith(comma + where):
        return f"{method.removesuffix(comma + where)} − {baseline}"
    return f"{method} − {baseline}"


def _difference_text(one: Difference) -> str:
    mean = ("+" if one.mean >= 0 else "") + number(one.mean)
    return mean if one.interval is None else f"{mean} [{', '.join(number(end, like=one.mean) for end in one.interval)}]"


def figure_text(row: TableRow, column: str) -> str:
    """Our figure: mean and deviation, and of how many of the row's seeds they are, where not of all."""
    text = with_spread(*row.ours.get(column, (None, None)))
    return f"{text} ({row.fewer[column]} of {len(row.runs)})" if column in row.fewer else text


def published_text(row: TableRow, column: str) -> str:
    """A published figure with the digits it was published with."""
    return f"{row.paper[column]:g}" if column in row.paper else NONE


def _ours(row: TableRow, column: str, ruler: Axis | None, anchors: Anchors, full_length: bool) -> Markup:
    """Mean and deviation, a link to the first of the runs, and their place among the column's figures."""
    mean, spread = row.ours.get(column, (math.nan, math.nan))
    text = figure_text(row, column)
    if not math.isfinite(mean):
        return element("td", text, class_="ours none")
    link = element("a", text, href=f"#{anchors[row.runs[0].path.resolve()]}") if row.runs else text
    ends = (mean - spread, mean + spread) if math.isfinite(spread) else None
    strip = _strip(ruler, mean, ends, row.paper.get(column) if full_length else None, "published") if ruler else None
    return element("td", link, strip, class_="ours", data_value=repr(float(mean)))


def _ruler(table: TableResult, column: str) -> Axis | None:
    """The scale that a column's small figures share."""
    ends = []
    for row in table.rows:
        mean, spread = row.ours.get(column, (math.nan, math.nan))
        reach = spread if math.isfinite(spread) else 0.0
        ends += [mean - reach, mean + reach] if math.isfinite(mean) else []
        ends += [row.paper[column]] if is_full_length(table) and column in row.paper else []
    if not ends or max(ends) <= min(ends):
        return None
    return Axis(min(ends), max(ends), 6, STRIP[0] - 6)


def _strip(ruler: Axis, mean: float, ends: tuple[float, float] | None, tick: float | None, kind: str) -> Markup:
    """A dot at the mean, a line between the ends of its spread as far as the ruler goes, and a tick of some kind."""
    middle, (left, right) = STRIP[1] / 2, (2, STRIP[0] - 2)
    parts = [element("line", x1=left, x2=right, y1=middle, y2=middle, class_="rail")]
    if ends is not None:
        low, high = (min(max(ruler.at(end), left), right) for end in ends)
        parts.append(element("line", x1=low, x2=high, y1=middle, y2=middle, class_="spread"))
    if tick is not None:
        parts.append(element("line", x1=ruler.at(tick), x2=ruler.at(tick), y1=2, y2=STRIP[1] - 2, class_=kind))
    parts.append(element("circle", cx=ruler.at(mean), cy=middle, r=3.5, class_="mean"))
    return element("svg", *parts, viewBox=f"0 0 {STRIP[0]} {STRIP[1]}", class_="strip", aria_hidden="true")


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
    """What became of the claims of all tables, in one sentence; empty where none was judged."""
    judged: dict[str, dict[str, bool | None]] = {}
    for table in tables:
        for claim in table.claims:
            judged.setdefault(table.budget_name or "unnamed", {})[claim.id] = claim.holds
    clauses = []
    for budget, verdicts in judged.items():
        parts = []
        for holds, (words, _) in VERDICTS.items():
            if names := [name for name, found in verdicts.items() if found is holds]:
                parts.append(f"{_and(names)} {_plural(words, len(names))}")
        clauses.append(f"of {count(len(verdicts), 'claim')} under the {budget} budget, {_and(parts)}")
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _plural(verb: str, number: int) -> str:
    return verb if number == 1 else {"holds": "hold", "does not hold": "do not hold", "is undecided": "are undecided"}[verb]


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
