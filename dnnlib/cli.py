"""Command-line parsing that the commands share: number ranges, comma lists, and user errors as one sentence with exit code 2."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Sequence

import click

from dnnlib.errors import UserError
from dnnlib.log import say_at_last

MAX_RANGE = 10_000_000
MAX_SEED = 2**32 - 1  # what numpy takes
USER_ERROR = 2  # exit code


class IntRangeList(click.ParamType):
    """`1,2,5-10` as a list of integers up to `most`, both ends of a range included, order and repetitions kept."""

    name = "a,b,c-d"

    def __init__(self, most: float = math.inf):
        self.most = most

    def convert(self, value, param, ctx) -> list[int]:
        """Parses the text; fails through click, which names the option."""
        if not isinstance(value, str):
            return list(value)
        numbers: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if match is None:
                self.fail(f"{part!r} is neither a number nor a range such as 5-10", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or last - first >= MAX_RANGE:
                self.fail(f"{part!r} is not an increasing range of at most {MAX_RANGE:,} numbers", param, ctx)
            if last > self.most:
                self.fail(f"{part!r} goes beyond {self.most}, the largest number there is", param, ctx)
            numbers.extend(range(first, last + 1))
        return numbers


class CommaList(click.ParamType):
    """`a,b` as ['a', 'b']; `none` (or nothing) as []."""

    name = "a,b"

    def convert(self, value, param, ctx) -> list[str]:
        """Parses the text; names keep their order, repetitions are dropped."""
        if not isinstance(value, str):
            return list(value)
        if value.strip().lower() in ("", "none"):
            return []
        return list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _at_home(argument: str) -> str:
    """`--name=~/folder` with the user's folder in place of ~, which shells put there only where a word begins with it."""
    name, separator, value = argument.partition("=")
    return name + separator + os.path.expanduser(value) if name.startswith("--") and value.startswith("~/") else argument


def run_command(command: click.Command, args: Sequence[str] | None = None) -> None:
    """Runs a click command as a script: UserError becomes one sentence on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        if args is not None or os.name != "nt":  # on Windows click itself expands what was typed, if it is left to it
            args = list(map(_at_home, sys.argv[1:] if args is None else args))
        result = command.main(args=args, standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        say_at_last(f"Error: {error.format_message()}")
        sys.exit(USER_ERROR)
    except UserError as error:
        say_at_last(f"Error: {error}")
        sys.exit(USER_ERROR)
