"""The whole project in one command: learn handwritten digits on a CPU, show them, and measure them.

    python -m experiments.demo

Every step is a command of the project, printed before it runs, so that it can be repeated by hand with other options. This file only lines
them up, puts the growth of the pictures on one sheet, and sums up what the commands have written.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
import time

import click
import numpy as np
import PIL.Image
import torch

from dnnlib import UserError
from dnnlib.cli import run_command
from dnnlib.format import format_time
from experiments.readability import RESULT_FILE
from metrics.registry import parse_metrics
from metrics.report import format_table
from training.images import default_grid, save_image_grid
from training.run_files import RunDir

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = "datasets/digits.zip"
CLASSES, RESOLUTION = 10, 32
METRICS, DETECTOR = ("fid10k", "prdc10k5"), "embedded"
SHEET_SEEDS, WALK_SEEDS, WALK_CLASS, WALK_FRAMES = "0-15", "0-5", 8, 15
GROWTH_COLUMNS = 2  # latents per class that the growth sheet shows
AIM = 0.8  # of the samples named as asked: what makes the digits readable to a stranger


@dataclasses.dataclass(frozen=True)
class Step:
    """A command line of the project, run by this Python from the folder of the project, and what it is for."""

    purpose: str
    arguments: list[str]

    def shown(self) -> str:
        """As a user would type it."""
        return shlex.join(["python", *self.arguments])


def data_step() -> Step:
    """The digits of scikit-learn as a training set."""
    return Step("Real data: 1,797 handwritten digits", ["dataset_tool.py", "--source=digits", f"--dest={DATA}"])


def train_step(outdir: str, kimg: int | None, seed: int) -> Step:
    """Training with adaptive augmentation and pairing; pictures every 8 kimg."""
    options = ["--cfg=demo", "--cond=1", "--aug=ada", "--pairing-weight=0.05", "--metrics=none", "--tick=2", "--snap=4"]
    options += ["--device=cpu", "--precision=fp32"]  # the precision that every machine has
    options += [f"--seed={seed}"] + ([] if kimg is None else [f"--kimg={kimg}"])
    return Step("Training", ["train.py", f"--outdir={outdir}", f"--data={DATA}", *options])


def result_steps(network: str, run_dir: str, samples: int) -> list[Step]:
    """Pictures and figures of a trained network, written into its run folder."""
    look = ["generate.py", f"--network={network}", f"--outdir={run_dir}", "--device=cpu"]
    walk = [f"--seeds={WALK_SEEDS}", f"--class={WALK_CLASS}", "--walk=walk.gif", f"--frames={WALK_FRAMES}", "--fps=15"]
    metrics = ["calc_metrics.py", f"--network={network}", f"--metrics={','.join(METRICS)}", f"--detector={DETECTOR}", "--device=cpu"]
    reading = ["-m", "experiments.readability", f"--network={network}", f"--data={DATA}", f"--samples={samples}", "--device=cpu"]
    return [
        Step("A sheet with one class per row", [*look, f"--seeds={SHEET_SEEDS}", "--grid"]),
        Step(f"A walk through the latents of class {WALK_CLASS}", [*look, *walk]),
        Step("FID, precision, recall, density and coverage", metrics),
        Step("Can the digits be read?", reading),
    ]


def run_step(step: Step) -> None:
    """Runs a step with its output on the screen. Raises UserError if it fails; its own message is above then."""
    print(f"\n== {step.purpose}\n$ {step.shown()}", flush=True)
    code = subprocess.run([sys.executable, *step.arguments], cwd=ROOT).returncode
    if code != 0:
        raise UserError(f"the step `{step.shown()}` ended with code {code}; its own message stands above")


def numbered_folders(outdir: pathlib.Path) -> set[str]:
    """Names of the run folders below `outdir`."""
    return {path.name for path in outdir.iterdir() if path.name[:5].isdigit() and path.is_dir()} if outdir.is_dir() else set()


def growth_sheet(run: RunDir) -> pathlib.Path:
    """Puts the same latents of all snapshots below one another, one row per sheet fakes*.png, one pair of columns per class.

    Returns:
        growth.png in the run folder.
    """
    columns, _ = default_grid(RESOLUTION, RESOLUTION)
    rows = []
    for path in sorted(run.path.glob("fakes[0-9]*.png")):
        with PIL.Image.open(path) as picture:
            sheet = np.array(picture.convert("L"))
        cells = sheet.reshape(-1, RESOLUTION, columns, RESOLUTION).transpose(0, 2, 1, 3)  # the sheet's row is the class
        rows.append(cells[:CLASSES, :GROWTH_COLUMNS].reshape(-1, 1, RESOLUTION, RESOLUTION))
    save_image_grid(torch.from_numpy(np.concatenate(rows)), run / "growth.png", (CLASSES * GROWTH_COLUMNS, len(rows)))
    return run / "growth.png"


def last_lines(run: RunDir) -> list[dict]:
    """The last line that calc_metrics.py has written of every metric of the demo."""
    names = [spec.name for spec in parse_metrics(METRICS, DETECTOR)]
    return [json.loads((run / f"metric-{name}.jsonl").read_text(encoding="utf-8").splitlines()[-1]) for name in names]


def summary(run: RunDir, metric_lines: list[dict], reading: dict, seconds: float) -> str:
    """What came out, for the screen."""
    named, at_best = reading["share"], reading["classifier_accuracy"]
    lines = [
        f"\n== Done in {format_time(seconds)}",
        "",
        format_table(metric_lines),
        "",
        f"{named:.1%} of {reading['samples']} samples are named as asked by a classifier that names {at_best:.1%} of unseen real digits.",
        "",
    ]
    pictures = {
        "reals.png": "real digits, one class per row",
        "growth.png": "the same latents during training, from top to bottom",
        "grid.png": "generated digits, one class per row",
        "walk.gif": f"a walk through the latents of class {WALK_CLASS}",
    }
    lines += [f"{run / name!s}  {text}" for name, text in pictures.items()]
    return "\n".join(lines)


def run_demo(outdir: str, kimg: int | None, seed: int, samples: int) -> float:
    """Runs all steps and prints the summary. Returns the share of samples named as asked. Raises UserError if a step fails."""
    start = time.time()
    where = pathlib.Path(outdir)
    before = numbered_folders(ROOT / where)
    (ROOT / DATA).parent.mkdir(exist_ok=True)
    run_step(data_step())
    run_step(train_step(outdir, kimg, seed))
    name = max(numbered_folders(ROOT / where) - before)
    run = RunDir(ROOT / where / name)
    network = where / name / run.snapshot(run.snapshots()[-1]).name
    for step in result_steps(str(network), str(where / name), samples):
        run_step(step)
    growth_sheet(run)
    reading = json.loads((run / RESULT_FILE).read_text(encoding="utf-8"))
    print(summary(RunDir(where / name), last_lines(run), reading, time.time() - start))
    return reading["share"]


@click.command()
@click.option("--outdir", help="Folder for the numbered run folder, from the project's folder", metavar="DIR", default="runs", show_default=True)
@click.option("--kimg", help="Length of the training in thousand images  [default: that of --cfg=demo]", type=click.IntRange(min=1))
@click.option("--seed", help="Random seed of the training", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--samples", help="Images that the classifier reads", type=click.IntRange(min=CLASSES), default=500, show_default=True)
@click.option("--aim", help="Share of them that must be named as asked", type=click.FloatRange(0, 1), default=AIM, show_default=True)
def main(outdir: str, kimg: int | None, seed: int, samples: int, aim: float) -> None:
    """Learns handwritten digits on the CPU, and shows and measures what was learned.

    Ends with code 2 if a step fails or fewer digits than --aim can be read.
    """
    share = run_demo(outdir, kimg, seed, samples)
    if share < aim:
        raise UserError(f"{share:.1%} of the samples are named as asked, --aim={aim:.0%} are wanted; train longer with --kimg")


if __name__ == "__main__":
    run_command(main)
