"""JSON from files that anyone may have written: bounded in size, and every way of being wrong is one of two exceptions."""

from __future__ import annotations

import json
import os
from typing import Any

MAX_BYTES = 1 << 26  # the largest that this project writes have a few megabytes
MAX_LINES_BYTES = 1 << 28  # a file of lines grows with the run
MAX_DEPTH = 100  # so that whoever walks through it recursively comes to an end


def parse_json(data: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """What a JSON text says. NaN and Infinity are numbers, as everywhere in Python.

    Raises:
        ValueError: no JSON, longer than `max_bytes`, or nested deeper than `MAX_DEPTH`; the text says which.
    """
    if len(data) > max_bytes:
        raise ValueError(f"longer than {max_bytes:,} bytes")
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = [child for item in level for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())]
        level = [child for child in inside if isinstance(child, list | dict)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def read_json(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
    """What a JSON file says.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `parse_json`.
    """
    return parse_json(_read_bounded(path, max_bytes), max_bytes)


def read_json_lines(path: str | os.PathLike, max_bytes: int = MAX_LINES_BYTES) -> list[dict[str, Any]]:
    """The tables that the lines of a file say, in order; lines that are torn or say something else are left out, and a missing file has none.

    Raises:
        OSError: the file is there and cannot be read.
        ValueError: it is longer than `max_bytes`.
    """
    if not os.path.exists(path):
        return []
    lines = map(parse_line, _read_bounded(path, max_bytes).splitlines())
    return [line for line in lines if line is not None]


def parse_line(text: bytes) -> dict[str, Any] | None:
    """The table that a line says; None where it is torn or says something else."""
    try:
        line = parse_json(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _read_bounded(path: str | os.PathLike, max_bytes: int) -> bytes:
    """The bytes of a regular file: a pipe or device of that name would never end."""
    if not os.path.isfile(path):
        raise FileNotFoundError(2, "no such file", os.fspath(path))
    with open(path, "rb") as handle:
        data = handle.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"longer than {max_bytes:,} bytes")
    return data
