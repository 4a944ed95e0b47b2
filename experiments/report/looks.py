"""How a series looks wherever it is shown: its colour, its dashes, and the sample of its line that stands beside its name."""

from __future__ import annotations

from experiments.report.markup import Markup, element
from experiments.report.studies import COLOURS, SOLID, Series

DASHES = 6  # page.css has so many, whole lines among them


def style(series: Series) -> str:
    """The classes that give marks the colour, and dashes, of a series."""
    look = series.look % (SOLID * DASHES)
    return f"s{look % COLOURS}" + (f" d{look // SOLID}" if look >= SOLID else "")


def swatch() -> Markup:
    """A piece of line with its dot, in the looks of what it stands in."""
    line, dot = element("path", d="M1 5H29", class_="line"), element("circle", cx=15, cy=5, r=3.5)
    return element("svg", line, dot, viewBox="0 0 30 10", class_="swatch", aria_hidden="true")
