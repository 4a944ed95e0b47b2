"""The one exception that is the user's to mend. Commands print it as one sentence and exit with code 2."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input, not in the code: one sentence that names the option or file, what was found, and what would be right."""
