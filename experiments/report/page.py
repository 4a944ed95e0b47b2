"""The report of runs and tables: report.html, which needs nothing but itself, and report.md and report.json with the same content.

    make_page(tables, runs, pathlib.Path("results/cifar10"))
    make_page([], runs, pathlib.Path("compared"))
"""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dnnlib import UserError, atomic_write_text, make_folder
from dnnlib.json_files import read_json
from experiments.report.classes import classes_block
from experiments.report.differences import glance_block
from experiments.report.figures import glossary_of, title_of
from experiments.report.markup import Markup, count, element, join, with_spread
from experiments.report.notes import Notes, read_notes
from experiments.report.plain import Content, as_data, as_markdown
from experiments.report.samples import Gallery, encode_to_fit, make_galleries, reduced_words, samples_block, uncovered_block
from experiments.report.sections import cost_section, runs_section, signals_block, training_block
from experiments.report.studies import Series, Study, collect, find_studies, mean_and_spread, path_text
from experiments.report.tables import judged_on, table_section, verdict_sentence

if TYPE_CHECKING:
    from experiments.images.results import RunResult, TableResult
    from metrics.runs import Band

HTML_FILE, MARKDOWN_FILE, JSON_FILE = "report.html", "report.md", "report.json"
SPEED_FILE = "speed.json"
TITLE_OF_TABLES = "Pairing regularization on images: ours beside the published figures"
TITLE_OF_RUNS = "Training runs compared"
MOST_NAMED = 3  # series in the sentence on top
ASSETS = pathlib.Path(__file__).parent

Section = tuple[str, str, Markup]  # id, heading, content


def make_page(tables: Sequence[TableResult], runs: Sequence[RunResult], out: pathlib.Path) -> pathlib.Path:
    """Writes report.html, report.md and report.json.

    Args:
        tables: ours beside the published figures, with verdicts; may be empty.
        runs: further runs to show; those of the tables need not be given again.
        out: folder, made if need be.

    Returns:
        The path of report.html.

    Raises:
        UserError: there is nothing to show, or the files cannot be written.
    """
    results = collect(tables, runs)
    if not tables and not results:
        raise UserError("there is nothing to report: no table and no run is given; name at least one run folder")
    make_folder(out)
    studies, problems = find_studies(results)
    galleries = make_galleries(studies, problems)
    shown = [run for study in studies for series in study.series for run in series.results]
    title, notes = TITLE_OF_TABLES if tables else TITLE_OF_RUNS, read_notes(out)
    problems = [_without_machine(problem, results, out) for problem in problems] + notes.homeless(_places(tables, studies))
    content = Content(title, _verdict(tables, studies, results), judged_on(tables), tables, studies, shown, notes, out)
    atomic_write_text(out / MARKDOWN_FILE, as_markdown(content))
    atomic_write_text(out / JSON_FILE, json.dumps(as_data(content), indent=1) + "\n")
    before, after = _sections(content)
    encode_to_fit(galleries, _document(content, [*before, *_pictures(galleries, notes), *after], problems))
    atomic_write_text(out / HTML_FILE, _document(content, [*before, *_pictures(galleries, notes), *after], problems))
    return out / HTML_FILE


def _without_machine(sentence: str, results: Sequence[RunResult], out: pathlib.Path) -> str:
    """A sentence that names runs as the page does: it is passed on, and the paths of this machine are not."""
    for run in results:
        sentence = sentence.replace(run.path.as_posix(), path_text(run.path, out))
    return sentence


def _places(tables: Sequence[TableResult], studies: Sequence[Study]) -> set[str]:
    """Every name that a note may stand at."""
    images = {one.images for table in tables for one in table.differences}
    return {"glance", "samples", "uncovered", *images, *(table.name for table in tables), *(study.setting for study in studies)}


def _verdict(tables: Sequence[TableResult], studies: Sequence[Study], results: Sequence[RunResult]) -> str:
    """The page in one sentence: the claims' verdicts, or else where the runs ended."""
    if sentence := verdict_sentence(tables):
        return sentence
    for study in studies:
        for figure in study.points:
            ends = [(series, band) for series in study.series if (band := series.band(figure)) is not None]
            if len({int(band.kimg[-1]) for _, band in ends}) == 1:
                return _where_they_ended(figure, ends)
    methods = list(dict.fromkeys(run.method for run in results))
    if not results:
        return "No run is finished and measured yet."
    return f"{count(len(results), 'run')} of {', '.join(methods)}; nothing that can be compared is measured yet."


def _where_they_ended(figure: str, ends: Sequence[tuple[Series, Band]]) -> str:
    """The last value of every series, or of the lowest and the highest where there are many."""
    head = f"{title_of(figure)} at {int(ends[0][1].kimg[-1]):,} kimg"
    seeds = sorted({len(band.values) for _, band in ends})
    what = "seed" if all(series.made_once for series, _ in ends) else "run"
    of = f"one {what} each" if seeds == [1] else f"{' to '.join(map(str, seeds[:: len(seeds) - 1 or 1]))} {what}s each"
    rising = sorted(ends, key=lambda end: end[1].mean[-1])
    words = [f"{with_spread(*mean_and_spread(band.values[:, -1]))} ({series.label})" for series, band in (rising if len(ends) > MOST_NAMED else ends)]
    if len(ends) > MOST_NAMED:
        return f"{head} reaches from {words[0]} to {words[-1]}; {of}."
    return f"{head}: {', '.join(words)}; {of}."


def _sections(content: Content) -> tuple[list[Section], list[Section]]:
    """What there is to show above the pictures, and below them."""
    tables, studies, runs, notes, out = content.tables, content.studies, content.runs, content.notes, content.root
    anchors = {run.path.resolve(): f"run-{number}" for number, run in enumerate(runs, start=1)}
    charts = [
        join(training_block(study, f"training-{number}", notes), classes_block(study), signals_block(study))
        for number, study in enumerate(studies, start=1)
    ]
    before = _section("glance", "At a glance", [glance_block(tables, notes)])
    before += _section("tables", "Tables and claims", [table_section(table, anchors, out, notes) for table in tables])
    before += _section("training", "Over training", _titled(studies, charts))
    if not runs:
        return before, []
    after = _section("cost", "Cost", [cost_section(runs, _machine(out), anchors)])
    return before, after + _section("runs", "Runs", [runs_section(studies, anchors, out)])


def _pictures(galleries: Sequence[Gallery], notes: Notes) -> list[Section]:
    """Samples and uncovered reals, with the pictures as they are by now: empty before they are encoded."""
    studies = [gallery.study for gallery in galleries]
    sections = []
    for name, heading, blocks in (
        ("samples", "Samples", [samples_block(gallery, f"samples-{number}") for number, gallery in enumerate(galleries, start=1)]),
        ("uncovered", "Uncovered real images", [uncovered_block(gallery) for gallery in galleries]),
    ):
        if any(blocks):
            sections += _section(name, heading, [reduced_words(galleries), notes.block(name), *_titled(studies, blocks)])
    return sections


def _section(name: str, heading: str, blocks: Sequence[Markup | None]) -> list[Section]:
    """A section, or none where none of its blocks has anything to show."""
    shown = [block for block in blocks if block]
    return [(name, heading, join(shown))] if shown else []


def _titled(studies: Sequence[Study], blocks: Sequence[Markup | None]) -> list[Markup | None]:
    """Blocks under the names of their studies, where there are several."""
    if len(studies) == 1:
        return list(blocks)
    return [join(element("h3", study.title), block) if block else None for study, block in zip(studies, blocks)]


def _machine(out: pathlib.Path) -> str:
    """The machines whose speed was measured for this folder; empty where none was."""
    try:
        machines = read_json(out / SPEED_FILE)["machines"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "; ".join(map(str, machines)) if isinstance(machines, dict) else ""


def _glossary(content: Content) -> Markup | None:
    """What the figures of the page mean, folded up."""
    figures = [*(column for table in content.tables for column in table.columns), *(figure for study in content.studies for figure in study.points)]
    told = [element("div", element("dt", title), " ", element("dd", words)) for title, words in glossary_of(figures).items()]
    if not told:
        return None
    ball = "A neighbourhood is the ball around an image, in the detector's features, that reaches to its k-th nearest one of its own kind."
    return element("details", element("summary", "What the figures mean"), element("dl", *told), element("p", ball), class_="glossary")


def _document(content: Content, sections: Sequence[tuple[str, str, Markup]], problems: Sequence[str]) -> str:
    """The whole file. Its policy lets it load nothing, and run and style itself by what it carries only."""
    css, script = (Markup((ASSETS / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src {_digest(css)}; script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", content.title),
        element("link", rel="icon", href="data:,"),
        element("style", css),
    )
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    nav = element("nav", element("ul", *links), aria_label="Contents")
    notices = element("ul", *(element("li", problem) for problem in problems), class_="problems") if problems else None
    context = element("p", content.context, class_="context") if content.context else None
    verdict = element("p", content.verdict, class_="verdict")
    top = element("header", element("h1", content.title), verdict, context, nav, _glossary(content), notices, class_="top")
    parts = [element("section", element("h2", heading), content, id=name, class_="part") for name, heading, content in sections]
    skip = element("a", "Skip to the content", href="#content", class_="skip")
    body = element("body", skip, top, element("main", *parts, id="content"), element("script", script))
    return join(Markup("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), "\n")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
