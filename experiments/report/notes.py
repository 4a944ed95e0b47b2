"""What people have to say about a results folder beside its figures: notes.json, whose notes stand on the page under the headings that they name.

    {"notes": [{"at": ["subset-2000", "2,000 images"], "text": "A third seed was trained in float32.", "link": "../other/report.html"}]}

`at` names settings, tables, training sets of the glance, or the sections "glance", "samples" and "uncovered"; `link`, which may be missing, is a path
from the page.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dnnlib import UserError
from dnnlib.json_files import read_json
from experiments.report.markup import Markup, element, join

NOTES_FILE = "notes.json"
LINK = re.compile(r"(?!/)[\w./-]+")  # no scheme, no other machine


@dataclasses.dataclass(frozen=True)
class Note:
    """A note: the names of where it stands, its words, and the path of a page that says more, or nothing."""

    at: tuple[str, ...]
    text: str
    link: str = ""


@dataclasses.dataclass(frozen=True)
class Notes:
    """The notes of a page."""

    notes: tuple[Note, ...] = ()

    def of(self, *names: str) -> list[Note]:
        """Those that stand at one of these names."""
        return [note for note in self.notes if set(note.at) & set(names)]

    def block(self, *names: str) -> Markup | None:
        """The same as paragraphs; None where there are none."""
        return join([_paragraph(note) for note in self.of(*names)]) or None

    def homeless(self, names: Iterable[str]) -> list[str]:
        """A sentence for every name that notes want to stand at and a page with these names has not."""
        known = set(names)
        missing = dict.fromkeys(name for note in self.notes for name in note.at if name not in known)
        return [f"A note of {NOTES_FILE} belongs to {name!r}, which is not on this page." for name in missing]


def read_notes(folder: pathlib.Path) -> Notes:
    """The notes of a results folder. Raises UserError where they are in no known form."""
    path = folder / NOTES_FILE
    if not path.is_file():
        return Notes()
    try:
        return Notes(tuple(_note(**entry) for entry in read_json(path)["notes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds notes in no known form ({type(error).__name__}: {error}); see experiments/report/notes.py") from error


def _note(at: Sequence[str], text: str, link: str = "", **other: Any) -> Note:
    if other or isinstance(at, str) or not at or not all(isinstance(words, str) for words in (*at, text, link)):
        raise ValueError(f"a note has a list of names `at`, a `text` and perhaps a `link`, not {sorted(other) or at!r}")
    if link and not LINK.fullmatch(link):
        raise ValueError(f"a link is a path from the page, as ../other/report.html, not {link!r}")
    return Note(tuple(at), text, link)


def _paragraph(note: Note) -> Markup:
    return element("p", note.text, [" ", element("a", note.link, href=note.link)] if note.link else None, class_="remark")
