"""The page's content as Markdown and as JSON, for people without a browser and for programs."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dnnlib.format import format_time
from experiments.paper.tables import aligned
from experiments.report.classes import class_tables
from experiments.report.differences import AT_A_GLANCE, DIFFERENCES, difference_rows, glance_of
from experiments.report.markup import NONE, number, with_spread
from experiments.report.notes import Notes
from experiments.report.studies import Study, path_text, seed_of
from experiments.report.tables import ARROWS, VERDICTS, figure_text, published_text
from metrics.runs import direction
from metrics.trajectories import as_json, describe_protocols

if TYPE_CHECKING:
    from experiments.images.results import RunResult, TableResult


@dataclasses.dataclass(frozen=True)
class Content:
    """What a page says, in whichever form.

    Attributes:
        title, verdict: its headings.
        context: what the verdict was found on; may be empty.
        tables, studies: in order.
        runs: those of the studies.
        notes: what stands under the headings besides.
        root: folder of the page.
    """

    title: str
    verdict: str
    context: str
    tables: Sequence[TableResult]
    studies: Sequence[Study]
    runs: Sequence[RunResult]
    notes: Notes
    root: pathlib.Path


def as_markdown(content: Content) -> str:
    """Verdict, tables with claims, figures over training and the runs with their cost."""
    tables, notes = content.tables, content.notes
    parts = [f"# {_line(content.title)}", _line(content.verdict), *([_line(content.context)] if content.context else [])]
    columns, places = glance_of(tables)
    if places:
        glance = [["trained on", "method", *columns, "seeds"]]
        glance += [[place, row.name, *row.cells(columns)] for place, rows in places.items() for row in rows]
        images = dict.fromkeys(row.images for rows in places.values() for row in rows)
        parts += ["## At a glance", AT_A_GLANCE, _aligned(glance), *_remarks(notes, "glance", *images)]
    for table in tables:
        parts += [f"## {_line(table.name)}: {_line(table.title)}", _facts(table), *_remarks(notes, table.name), table_text(table)]
        parts += [_line(table.note)] if table.note else []
        parts += [f"{DIFFERENCES}:", _aligned(difference_rows(table))] if table.differences else []
        parts += [
            f"- **{_line(claim.id)} {VERDICTS[claim.holds][0]}.** {_line(claim.statement)} {_line(claim.text)}".rstrip() for claim in table.claims
        ]
    for study in content.studies:
        if study.points:
            parts += [f"## Over training: {_line(study.title)}", *_remarks(notes, study.setting), study_text(study)]
            parts += [describe_protocols(study.points.values()).replace("\n", "  \n")]
        for figure, words, found in class_tables(study):
            parts += [_line(f"{words} ({figure}), {study.title}:"), _aligned(found)]
    rows = [["method", "seed", "kimg", "time", "folder"]]
    folders = {id(run): path_text(run.path, content.root) for run in content.runs}
    rows += [[run.method, seed_of(run).removeprefix("seed "), f"{run.kimg:,}", _time(run.seconds), folders[id(run)]] for run in content.runs]
    parts += ["## Runs", *_remarks(notes, "samples", "uncovered"), _aligned(rows)]
    return "\n\n".join(parts) + "\n"


def _remarks(notes: Notes, *names: str) -> list[str]:
    return [_line(note.text) + (f" [{_line(note.link)}]({note.link})" if note.link else "") for note in notes.of(*names)]


def _line(text: str) -> str:
    """Text in one line that Markdown does not take for markup."""
    return "".join("\\" + letter if letter in "\\`*_<>[]#" else letter for letter in " ".join(str(text).split()))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table, headings first, of texts that Markdown is to take as they are."""
    return aligned([[_line(cell) for cell in row] for row in rows])


def _facts(table: TableResult) -> str:
    return _line(f"Budget {table.budget}; detector {table.detector or NONE}.")


def table_text(table: TableResult) -> str:
    """A result table; "paper" heads the published figures."""
    header, published = ["method"], {}
    for name in table.columns:
        published[name] = any(name in row.paper for row in table.rows)
        header += [f"{name} {ARROWS[direction(name)]}".rstrip()] + (["paper"] if published[name] else [])
    rows = [[*header, "seeds"]]
    for row in table.rows:
        cells = [row.method]
        for name in table.columns:
            cells += [figure_text(row, name)] + ([published_text(row, name)] if published[name] else [])
        rows.append([*cells, str(len(row.runs))])
    return _aligned(rows)


def study_text(study: Study) -> str:
    """Figures at every step, mean and deviation over the seeds."""
    figures = list(study.points)
    rows = [["method", "seeds", "kimg", *figures]]
    for series in study.series:
        for kimg, (seeds, found) in numbers_of(study, series).items():
            rows.append([series.label, str(seeds), f"{kimg:,}", *(found.get(figure, "") for figure in figures)])
    return _aligned(rows)


def numbers_of(study: Study, series: Any, ranges: bool = False) -> dict[int, tuple[int, dict[str, str]]]:
    """kimg -> number of seeds that were measured there, and figure -> their mean and deviation as text, which says where they are fewer.

    Args:
        study: with the figures.
        series: whose.
        ranges: whether the lowest and the highest of several seeds are told as well.
    """
    found: dict[int, dict[str, tuple[str, int]]] = {}
    for figure in study.points:
        for (band,) in series.stretches(figure):
            spreads = band.values.std(axis=0, ddof=1) if len(band.values) > 1 else [math.nan] * len(band.kimg)
            for kimg, mean, spread, values in zip(band.kimg.tolist(), band.mean, spreads, band.values.T):
                text = with_spread(float(mean), float(spread))
                text += f" [{number(values.min(), like=mean)} to {number(values.max(), like=mean)}]" * (ranges and len(values) > 1)
                found.setdefault(kimg, {}).setdefault(figure, (text, len(values)))  # where a stretch begins all seeds are told
    numbers = {}
    for kimg in sorted(found):
        most = max(seeds for _, seeds in found[kimg].values())
        numbers[kimg] = most, {name: text + f" ({seeds} of them)" * (seeds < most) for name, (text, seeds) in found[kimg].items()}
    return numbers


def as_data(content: Content) -> dict[str, Any]:
    """Everything the page shows in numbers, JSON-able; what is no finite number is None."""
    data = {
        "title": content.title,
        "verdict": content.verdict,
        "context": content.context,
        "tables": [_table(table) for table in content.tables],
        "studies": [_study(study) for study in content.studies],
        "runs": [dataclasses.asdict(run) for run in content.runs],
        "notes": [dataclasses.asdict(note) for note in content.notes.notes],
    }
    return _clean(data, content.root)


def _study(study: Study) -> dict[str, Any]:
    found = as_json([series.group for series in study.series if series.group.runs], study.planes, study.points)
    for group in found["groups"]:
        group["runs"] = [run | {"path": pathlib.Path(run["path"])} for run in group["runs"]]
    return {"title": study.title, **found}


def _table(table: TableResult) -> dict[str, Any]:
    data = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    data["claims"] = [dataclasses.asdict(claim) for claim in table.claims]
    data["differences"] = [dataclasses.asdict(one) for one in table.differences]
    data["rows"] = [
        {
            "method": row.method,
            "runs": [run.path for run in row.runs],
            "ours": {name: {"mean": mean, "std": spread} for name, (mean, spread) in row.ours.items()},
            "paper": dict(row.paper),
        }
        for row in table.rows
    ]
    return data


def _clean(value: Any, root: pathlib.Path) -> Any:
    if isinstance(value, dict):
        return {str(name): _clean(item, root) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item, root) for item in value]
    if isinstance(value, pathlib.PurePath):
        return path_text(value, root)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def _time(seconds: float) -> str:
    return format_time(seconds) if seconds is not None and math.isfinite(seconds) else NONE
