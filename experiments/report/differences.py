"""Differences from the baseline, with their intervals drawn about 0: of every table, and of all tables at a glance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.report.axes import Axis
from experiments.report.figures import title_of
from experiments.report.markup import NONE, Markup, element, number, row_head, scroll_box, table_of
from experiments.report.notes import Notes
from experiments.report.strips import ruler_about_0, strip
from metrics.runs import direction

if TYPE_CHECKING:
    from experiments.images.results import Difference, TableResult

HOW = "taken within each seed: mean and its 95% interval"
DIFFERENCES = f"Differences from the baseline, {HOW}"
AT_A_GLANCE = f"Every method less the baseline, {HOW}; at the longest training with the most seeds of both, and at a longer one with fewer seeds."
WAYS = ("better", "worse")
FEWEST = 3  # seeds for which a longer training is worth a row of its own
CHANCE = 0.05  # that an interval leaves out 0 where there is no difference
FIRST = ("coverage", "recall")  # columns of the glance, as far as a narrow window shows them


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a method differs by from its baseline, after one training.

    Attributes:
        method, baseline: their names.
        images: what they were trained on, in words.
        kimg: after so much.
        found: column -> difference.
    """

    method: str
    baseline: str
    images: str
    kimg: int
    found: Mapping[str, Difference]

    @property
    def name(self) -> str:
        """Both names with a minus between them."""
        return f"{self.method} − {self.baseline}"

    @property
    def place(self) -> str:
        """What they were trained on, and for how long."""
        return f"{self.images}, {self.kimg:,} kimg"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The numbers of seeds that its differences are of."""
        return tuple(sorted({one.seeds for one in self.found.values()}))

    @property
    def most(self) -> int:
        """The largest of them."""
        return max(self.seeds, default=0)

    def cells(self, columns: Sequence[str]) -> list[str]:
        """Mean and interval of every column, and the numbers of seeds, as text."""
        texts = [_text(self.found[name]) if name in self.found else NONE for name in columns]
        return [*texts, ", ".join(map(str, self.seeds))]


def comparisons_of(table: TableResult) -> list[Comparison]:
    """The differences of a table, those of one row together."""
    found: dict[tuple[str, str, str, int], dict[str, Difference]] = {}
    for one in table.differences:
        found.setdefault((one.method, one.baseline, one.images, one.kimg), {})[one.column] = one
    return [Comparison(*names, columns) for names, columns in found.items()]


def difference_rows(table: TableResult) -> list[list[str]]:
    """The differences of a table as rows of text, headings first; where its rows look at several lengths, each says at which."""
    lengths = {row.kimg for row in table.rows if row.kimg}
    rows = [["method", *table.columns, "seeds"]]
    for row in comparisons_of(table):
        rows.append([f"{row.name}, {row.kimg:,} kimg" if len(lengths) > 1 else row.name, *row.cells(table.columns)])
    return rows


def differences_block(table: TableResult) -> Markup | None:
    """Differences from the baseline as a table, each with its interval drawn about 0; None where there are none."""
    if not table.differences:
        return None
    rows, rulers = comparisons_of(table), _rulers(table.differences, table.columns)
    body = [_drawn_row(words[0], row, rulers) for words, row in zip(difference_rows(table)[1:], rows, strict=True)]
    box = scroll_box(table_of([_head(table.columns)], [body], "numbers differences"), f"Differences in table {table.name}")
    words = by_chance(table.differences)
    return element("details", element("summary", DIFFERENCES), element("p", words, class_="reading") if words else None, box, open=True)


def by_chance(differences: Sequence[Difference]) -> str:
    """What is bold, if anything is, and in how many differences anything would be if there were none; empty where none has an interval."""
    known = [one for one in differences if one.interval is not None]
    if not known:
        return ""
    apart = sum(not one.interval[0] <= 0 <= one.interval[1] for one in known)
    count = f"of these {len(known)}, where about {len(known) * CHANCE:.1f} would by chance"
    if apart:
        words = f"Bold: the interval leaves out 0, as in {apart} {count}. Where one way is better it says which."
    else:
        words = f"The interval leaves out 0 in none {count}."
    return words + " An arrowhead: the interval goes on beyond the scale."


def glance_of(tables: Sequence[TableResult]) -> tuple[tuple[str, ...], dict[str, list[Comparison]]]:
    """The differences of all tables at their longest trainings.

    Args:
        tables: a method that is in several is told from the one with most seeds, length and figures.

    Returns:
        The columns, those of the first table with differences, the telling ones first; and place -> rows, where places are training sets with
        the length of the training and, where there are several, its budget. Both are empty if all is in one place, which its table shows.
    """
    columns = next((table.columns for table in tables if table.differences), ())
    columns = tuple(sorted(columns, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)))
    found: dict[tuple[str, str], dict[tuple[str, str], list[Comparison]]] = {}
    for table in tables:
        for row in comparisons_of(table):
            row = dataclasses.replace(row, found={name: row.found[name] for name in columns if name in row.found})
            if row.found:
                found.setdefault((table.budget_name, row.images), {}).setdefault((row.method, row.baseline), []).append(row)
    several = len({budget for budget, _ in found}) > 1
    places: dict[str, list[Comparison]] = {}
    for (budget, _), methods in found.items():
        for row in sorted((row for rows in methods.values() for row in _telling(rows)), key=lambda row: row.kimg):
            places.setdefault(f"{budget} budget, {row.place}" if several else row.place, []).append(row)
    return (columns, places) if len(places) > 1 else ((), {})


def _telling(rows: Sequence[Comparison]) -> list[Comparison]:
    """Of several rows about the same the longest with most seeds, and a longer one if it has seeds enough for an interval to say something."""
    best = max(rows, key=lambda row: (row.most, row.kimg, len(row.found), row.seeds))
    longer = [row for row in rows if row.kimg > best.kimg and row.most >= FEWEST]
    return [best, max(longer, key=lambda row: (row.kimg, row.most, len(row.found)))] if longer else [best]


def glance_block(tables: Sequence[TableResult], notes: Notes) -> Markup | None:
    """What `glance_of` finds as one table, drawn on scales that all rows share; None where it is empty."""
    columns, places = glance_of(tables)
    if not places:
        return None
    differences = [one for rows in places.values() for row in rows for one in row.found.values()]
    rulers = _rulers(differences, columns)
    bodies = []
    for place, rows in places.items():
        said = notes.block(rows[0].images)
        head = element("tr", element("th", place, said, scope="rowgroup", colspan=len(columns) + 2), class_="place")
        bodies.append([head, *(_drawn_row(row.name, row, rulers) for row in rows)])
    box = scroll_box(table_of([_head(columns)], bodies, "numbers differences glance"), "Differences of all tables")
    words = element("p", f"{AT_A_GLANCE} {by_chance(differences)}".rstrip(), class_="reading")
    return element("div", notes.block("glance"), words, box)


def _head(columns: Sequence[str]) -> list[Markup]:
    return [element("th", words, scope="col") for words in ("Method", *map(title_of, columns), "Seeds")]


def _rulers(differences: Sequence[Difference], columns: Sequence[str]) -> dict[str, Axis | None]:
    """Column -> the scale of its differences. The intervals of two seeds, which are wide, may pass its ends."""
    rulers = {}
    for column in columns:
        own = [one for one in differences if one.column == column]
        ends = [end for one in own if one.interval and one.seeds > 2 for end in one.interval]
        rulers[column] = ruler_about_0([*ends, *(one.mean for one in own)])
    return rulers


def _drawn_row(name: str, row: Comparison, rulers: Mapping[str, Axis | None]) -> Markup:
    """A row with every interval drawn about 0."""
    *texts, seeds = row.cells(list(rulers))
    shown = []
    for (column, ruler), text in zip(rulers.items(), texts, strict=True):
        one = row.found.get(column)
        drawn = strip(ruler, one.mean, one.interval, 0.0, "zero") if one and ruler else None
        judged = _judged(one) if one else None
        way = element("span", judged, class_="way") if judged in WAYS else None
        shown.append(element("td", text, " " if way else None, element("span", way, drawn, class_="drawn") if drawn else way, class_=judged))
    return element("tr", row_head(name), *shown, element("td", seeds))


def _judged(one: Difference) -> str | None:
    """Whether the whole interval is on the better or on the worse side of 0, or on one of which neither is better; None where it is on both."""
    if one.interval is None or one.interval[0] <= 0 <= one.interval[1]:
        return None
    if not direction(one.column):
        return "apart"
    return "better" if (one.mean > 0) == (direction(one.column) == "higher") else "worse"


def _text(one: Difference) -> str:
    mean = ("+" if one.mean >= 0 else "") + number(one.mean)
    return mean if one.interval is None else f"{mean} [{', '.join(number(end, like=one.mean) for end in one.interval)}]"
