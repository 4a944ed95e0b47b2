"""HTML and SVG as text that is escaped wherever it did not come from here: names of runs, options and notes cannot become markup."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any

VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta", "wbr"})
# Shapes are closed by a slash, as SVG asks for; every other element gets an end tag.
SHAPES = frozenset({"circle", "line", "path", "polyline", "rect"})
NONE = "–"
LONG_NAME = 18
NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(value: Any) -> Markup:
    """Anything as markup: markup as it is, other text with its special characters replaced; control characters, which HTML forbids, as "�"."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(CONTROLS.sub("�", str(value)), quote=True))


def join(*parts: Any, by: str = "") -> Markup:
    """Parts, escaped one by one, in a row; lists are taken apart, None is left out."""
    flat: list[Markup] = []
    for part in parts:
        if isinstance(part, (list, tuple)):
            flat.append(join(*part, by=by))
        elif part is not None:
            flat.append(escape(part))
    return Markup(by.join(flat))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An HTML or SVG element.

    Args:
        name: of the element.
        children: its content, as in `join`.
        attributes: underscores stand for hyphens, one at the end is dropped (`class_`); True is the attribute alone, None and False are none.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{escape(value)}"')
    if not all(map(NAME.fullmatch, (name, *(word.partition("=")[0] for word in words)))):
        raise ValueError(f"no name of an element or attribute among {words}")
    if name in VOID:
        return Markup(f"<{' '.join(words)}>")
    if name in SHAPES and not children:
        return Markup(f"<{' '.join(words)}/>")
    return Markup(f"<{' '.join(words)}>{join(*children)}</{name}>")


def table_of(heads: Sequence[Sequence[Markup]], bodies: Sequence[Sequence[Markup]], kind: str) -> Markup:
    """A table of rows of heading cells above groups of whole rows."""
    return element("table", element("thead", *(element("tr", *cells) for cells in heads)), *(element("tbody", *rows) for rows in bodies), class_=kind)


def row_head(name: str, content: Markup | None = None) -> Markup:
    """The first cell of a row; a long name may be broken into lines."""
    return element("th", name if content is None else content, scope="row", class_="long" if len(name) > LONG_NAME else None)


def scroll_box(content: Markup, label: str) -> Markup:
    """Something wide in a box that scrolls by itself, which the keyboard can reach."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def number(value: float | None, like: float | None = None) -> str:
    """A measured figure as text: shares with three decimals, larger figures with fewer; a dash where there is none.

    Args:
        value: the figure.
        like: another one, whose number of decimals is taken.
    """
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value if like is None else like)
    decimals = 3 if size < 9.9995 else 2 if size < 99.995 else 1 if size < 9999.95 else 0
    return f"{value:.{decimals}f}".replace("-", "−")


def with_spread(mean: float | None, spread: float | None) -> str:
    """A mean and its standard deviation; the mean alone where there is no deviation."""
    if mean is None or not math.isfinite(mean) or spread is None or not math.isfinite(spread):
        return number(mean)
    return f"{number(mean)} ± {number(spread, like=mean)}"


def count(number_of: int, what: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{number_of:,} {what}{'' if number_of == 1 else 's'}"
