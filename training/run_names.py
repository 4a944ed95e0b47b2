"""Names of run folders, NNNNN-description: what the description says, which number is next, and how a run reserves it.

What is in a run folder is `training.run_files`' business.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from dnnlib import UserError
from training.options import RESUME_SOURCES, Options


def run_description(options: Options, typed: set[str], data_name: str) -> str:
    """What follows the number in the name of the run folder: the data set, and what was given that runs are told by."""
    o = options
    parts = [data_name]
    parts += ["cond"] if o.cond else []
    parts += [f"subset{o.subset}"] if o.subset is not None else []
    parts += ["mirror"] if o.mirror else []
    parts += [f"{o.cfg}{o.gpus}" if o.cfg == "auto" else o.cfg]
    parts += [f"gamma{o.gamma:g}"] if "gamma" in typed else []
    parts += [f"kimg{o.kimg}"] if "kimg" in typed else []
    parts += [f"batch{o.batch}"] if "batch" in typed else []
    parts += [o.aug] if "aug" in typed else []
    parts += [f"p{o.p:g}"] if "p" in typed else []
    parts += [f"target{o.target:g}"] if "target" in typed else []
    parts += [o.augpipe] if "augpipe" in typed else []
    parts += [f"pairing{o.pairing_weight:g}"] if o.pairing_weight > 0 else []
    parts += [f"ms{o.ms_weight:g}"] if o.ms_weight > 0 else []
    parts += [o.objective] if "objective" in typed and o.objective != "logistic" else []
    parts += [f"r2gamma{o.r2_gamma:g}"] if o.r2_gamma > 0 else []
    if "resume" in typed:
        parts += [o.resume] if o.resume == "noresume" else [f"resume{o.resume if o.resume in RESUME_SOURCES else 'custom'}"]
    parts += [f"freezed{o.freezed}"] if "freezed" in typed else []
    return "-".join(parts)


def is_run_name(path: str) -> bool:
    """Whether a folder is called like a run folder, NNNNN-description."""
    return re.match(r"\d{5}-.", os.path.basename(os.path.abspath(path))) is not None


@contextlib.contextmanager
def reserved_run_dir(outdir: str, description: str) -> Iterator[str]:
    """Yields a new, empty folder, named by `next_run_dir`, so that runs which start together get numbers of their own. It goes if it stays empty.

    Raises:
        UserError: it cannot be made.
    """
    fresh = not os.path.exists(outdir)
    path = ""
    try:
        os.makedirs(outdir, exist_ok=True)
        while not path:
            path = next_run_dir(outdir, description)
            try:
                os.mkdir(path)
            except FileExistsError:  # taken at this very moment
                path = ""
    except OSError as error:
        raise UserError(f"--outdir: cannot create {path or outdir}: {error.strerror}") from error
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # no longer empty, as it should be
            os.rmdir(path)
            if fresh:
                os.rmdir(outdir)


def next_run_dir(outdir: str, description: str) -> str:
    """OUTDIR/NNNNN-description, numbered one past the highest number there, be it of a folder, a file or a link to nothing called so."""
    numbers = []
    if os.path.isdir(outdir):
        matches = (re.match(r"\d+(?=-)", name) for name in os.listdir(outdir))
        numbers = [int(match.group()) for match in matches if match]
    return os.path.join(outdir, f"{max(numbers, default=-1) + 1:05d}-{description}")
