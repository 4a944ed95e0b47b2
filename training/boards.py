"""Boards that a run reports to besides its own files: TensorBoard, and Weights & Biases where --wandb names a project.

Both take scalars; pictures go to Weights & Biases only, since TensorBoard's files lie beside them. `training.progress` calls them on rank 0.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import secrets
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

from dnnlib import UserError, atomic_write_text
from training.run_files import RunDir

WANDB_FILE = "wandb-run.json"  # the id of a run at Weights & Biases, so that a continued run goes on there
STEP = "Progress/kimg"  # what curves there are drawn over


class Board(Protocol):
    """Something that shows curves."""

    def scalars(self, values: Mapping[str, float], kimg: int, seconds: float) -> None:
        """Adds numbers at `kimg`, after `seconds` of training."""

    def close(self, failed: bool = False) -> None:
        """Flushes and ends. `failed`: the training did not end where it should."""


class TensorBoard:
    """Event files in the run folder. It takes back what an interrupted part wrote from `first_kimg` on.

    One that cannot be written any more, or is in a folder whose name is no text to it, is a warning, and is given up.

    Raises:
        ImportError: the package is missing.
        UserError: there can be no file.
    """

    def __init__(self, run: RunDir, first_kimg: int):
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(run.path), purge_step=first_kimg)
        except UnicodeEncodeError:
            self._writer = None
            print("Warning: TensorBoard cannot have its file in a folder whose name is not UTF-8.", flush=True)
        except OSError as error:
            raise UserError(f"cannot write TensorBoard's file in {run.path}: {error.strerror or error}") from error

    def scalars(self, values: Mapping[str, float], kimg: int, seconds: float) -> None:
        """As `Board`."""
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, global_step=kimg, walltime=seconds)
            self._writer.flush()
        except OSError as error:
            self._writer = None
            print(f"Warning: TensorBoard's file cannot be written any more: {error.strerror or error}", flush=True)

    def close(self, failed: bool = False) -> None:
        """As `Board`."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # of its last values; what counts is in other files
                self._writer.close()


def import_wandb(project: str) -> ModuleType:
    """The package of Weights & Biases. Raises UserError where it is not installed."""
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        wandb, reason = None, str(error)
    if not hasattr(wandb, "init"):  # a folder of that name, which it makes for its own files, can be imported as well
        found = reason if wandb is None else "a folder of that name is no package"
        raise UserError(f"--wandb={project}: the package wandb is not installed ({found}); pip install wandb, or give --wandb=none")
    return wandb


class WandB:
    """A run of a project at Weights & Biases, or offline as WANDB_MODE says. One that fails in the middle is a warning, and is given up.

    Args:
        run: the run folder; it keeps the id by which a continued run goes on.
        project: at Weights & Biases.
        config: the options of the run.

    Raises:
        UserError: the package is missing, or the run cannot be started.
    """

    def __init__(self, run: RunDir, project: str, config: Mapping[str, Any]):
        self._wandb: Any = import_wandb(project)
        known = _read_id(run / WANDB_FILE)
        run_id = known or secrets.token_hex(6)
        try:
            self._run = self._wandb.init(project=project, id=run_id, resume="allow", name=run.path.name, dir=str(run.path), config=dict(config))
        except Exception as error:  # of an account, a network or a server, of which the package has many kinds
            reason = " ".join(str(error).split())[:200]
            advice = "log in with `wandb login`, set WANDB_MODE=offline, or give --wandb=none"
            raise UserError(f"--wandb={project}: Weights & Biases cannot be started ({reason}); {advice}") from error
        if known is None:
            atomic_write_text(run / WANDB_FILE, json.dumps({"project": project, "id": run_id}) + "\n")
        # Its own count of steps only rises, and drops what a continued run says once more; so everything is drawn over a figure of ours.
        self._do(lambda run: run.define_metric(STEP))
        self._do(lambda run: run.define_metric("*", step_metric=STEP))

    def _do(self, what: Any) -> None:
        if self._run is None:
            return
        try:
            what(self._run)
        except Exception as error:  # training is worth more than a curve
            self._run = None
            print(f"Warning: Weights & Biases gets no more of this run: {error}", flush=True)

    def scalars(self, values: Mapping[str, float], kimg: int, seconds: float) -> None:
        """As `Board`."""
        self._do(lambda run: run.log({**values, STEP: kimg}))

    def picture(self, name: str, path: pathlib.Path, kimg: int) -> None:
        """Adds a picture file at `kimg`."""
        self._do(lambda run: run.log({name: self._wandb.Image(str(path)), STEP: kimg}))

    def close(self, failed: bool = False) -> None:
        """As `Board`."""
        self._do(lambda run: run.finish(exit_code=int(failed)))


def _read_id(path: pathlib.Path) -> str | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    run_id = found.get("id") if isinstance(found, dict) else None
    return run_id if isinstance(run_id, str) else None


def open_boards(run: RunDir, args: Mapping[str, Any], first_kimg: int) -> list[Board]:
    """The boards of a run that writes from `first_kimg` on: TensorBoard where it is installed, and Weights & Biases where the options name a project.

    Raises:
        UserError: as `TensorBoard` and `WandB`.
    """
    boards: list[Board] = []
    try:
        boards.append(TensorBoard(run, first_kimg))
    except ImportError as error:
        print(f"Skipping TensorBoard: {error}")
    if args.get("wandb"):
        boards.append(WandB(run, args["wandb"], args))
    return boards
