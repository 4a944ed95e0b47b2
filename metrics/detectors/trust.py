"""Which TorchScript files may run here. Such a file is a program: it reads and writes files with the rights of whoever loads it.

The files that this project names are trusted by the address they are published at (`torchscript.py`). Any other runs only after its user
has said so, by --trust-detector or at the prompt of a terminal; its SHA-256 is then kept in the cache folder, so that one word is enough.
"""

from __future__ import annotations

import pathlib
import re
import sys

from dnnlib import UserError, download

TRUST_FILE = "trusted-detectors.txt"  # in the cache folder: one line per file, its SHA-256 and what it was called
_trusted_now: set[str] = set()


def is_trusted(digest: str) -> bool:
    """Whether a file of this SHA-256 may run: by what was said in this process, or is on record."""
    return digest in _trusted_now or digest in _on_record()


def trust(digest: str, name: str, remember: bool = True) -> None:
    """Lets a file of this SHA-256 run in this process and, with `remember`, from now on; a record that cannot be written is no failure."""
    _trusted_now.add(digest)
    if not remember or digest in _on_record():
        return
    try:
        with open(_record_file(), "a", encoding="utf-8") as handle:
            handle.write(f"{digest}  {ascii(name)[1:-1]}\n")
        print(f"trusting the detector {name} from now on (SHA-256 {digest}, kept in {_record_file()})", file=sys.stderr)
    except OSError as error:
        print(f"Warning: trust in {name} holds for this command only: {error.strerror or error}", file=sys.stderr)


def require_trust(path: pathlib.Path) -> None:
    """Asks about an unknown file where someone sits at a terminal.

    Raises:
        UserError: it is not trusted.
    """
    digest = download.file_digest(path)
    if is_trusted(digest):
        return
    what = f"{path} is a program (TorchScript) that would run with your rights, and its SHA-256 {digest} is not known here"
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{what}. Run it, now and later? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            trust(digest, path.name)
            return
    raise UserError(f"{what}; give --trust-detector once if you know where it comes from")


def _record_file() -> pathlib.Path:
    return download.cache_dir() / TRUST_FILE


def _on_record() -> set[str]:
    try:
        lines = _record_file().read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, UserError):
        return set()
    return {line[:64] for line in lines if re.match(r"[0-9a-f]{64}(\s|$)", line)}
