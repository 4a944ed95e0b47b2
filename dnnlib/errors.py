"""The one exception that is the user's to mend. Commands print it as one sentence and exit with code 2."""

from __future__ import annotations

from dnnlib.format import printable

MAX_SENTENCE = 2000


class UserError(Exception):
    """A mistake in the input, not in the code: one sentence that names the option or file, what was found, and what would be right.

    Whatever a file put into it, it stays one line of printable characters, of at most MAX_SENTENCE.
    """

    def __init__(self, sentence: str = "") -> None:
        text = printable(str(sentence))
        super().__init__(text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE - 505]} ... {text[-500:]}")
