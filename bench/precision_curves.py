"""Loss curves in float32 and in low precision, over seeds: whether the precision shows beyond what another seed changes. A figure and a JSON line.

    python -m bench.precision_curves --data=cifar10.zip --kimg=100 --seeds=3 --outdir=runs/precision

Every run is `train.py --cfg=cifar-small` without augmentation; runs that are finished are not run again. At each tick the difference between
the means over seeds of the two precisions is compared with the spread between seeds.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import subprocess
import sys

import click

from dnnlib import UserError, atomic_path
from dnnlib.cli import run_command

CURVES = ("Loss/G/loss", "Loss/D/loss", "Loss/scores/real", "Loss/scores/fake", "Loss/r1_penalty")
TRAIN = pathlib.Path(__file__).resolve().parents[1] / "train.py"
Curves = dict[str, dict[int, dict[float, float]]]  # by precision, seed and kimg


def train(data: str, folder: pathlib.Path, precision: str, seed: int, kimg: int, tick: int) -> pathlib.Path:
    """The run folder of one training, made or found. Raises UserError if the training fails."""
    place = folder / f"{precision}-seed{seed}-kimg{kimg}"
    if not list(place.glob("*/stats.jsonl")):
        command = [sys.executable, str(TRAIN), f"--outdir={place}", f"--data={data}", "--cfg=cifar-small", "--cond=1", "--aug=noaug"]
        command += ["--metrics=none", f"--precision={precision}", f"--seed={seed}", f"--kimg={kimg}", f"--tick={tick}", "--snap=1000"]
    else:
        command = [sys.executable, str(TRAIN), f"--continue-run={next(place.glob('*/stats.jsonl')).parent}"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"the training in {place} failed; see its log.txt")
    return next(place.glob("*/stats.jsonl")).parent


def read_curve(run: pathlib.Path, name: str) -> dict[float, float]:
    """A statistic of a run by kimg, at the ticks that reported it."""
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return {line["Progress/kimg"]["mean"]: line[name]["mean"] for line in lines if name in line and line[name]["num"]}


def compare(curves: Curves) -> dict[str, float]:
    """Two precisions' curves of one statistic, as figures.

    Returns:
        difference: between the means over seeds, root mean square over ticks; spread: standard deviation over seeds, likewise (of both
        precisions together); ratio: of the two. Without an effect of the precision it is near sqrt(2 / seeds).

    Raises:
        UserError: fewer than two seeds, or no tick that all runs share.
    """
    first, second = curves.values()
    ticks = sorted(set.intersection(*(set(curve) for runs in curves.values() for curve in runs.values())))
    if min(len(first), len(second)) < 2 or not ticks:
        raise UserError(f"--seeds is at least 2 and the runs share at least one tick, found {len(first)} seeds and {len(ticks)} ticks")

    def columns(runs):
        return [[curve[tick] for curve in runs.values()] for tick in ticks]

    squares = [(statistics.fmean(a) - statistics.fmean(b)) ** 2 for a, b in zip(columns(first), columns(second))]
    variances = [(statistics.variance(a) + statistics.variance(b)) / 2 for a, b in zip(columns(first), columns(second))]
    difference, spread = statistics.fmean(squares) ** 0.5, statistics.fmean(variances) ** 0.5
    return {"difference": difference, "spread": spread, "ratio": difference / max(spread, 1e-12)}


def draw(curves: dict[str, Curves], path: pathlib.Path) -> None:
    """One panel per statistic, one line per run, one colour per precision."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3), layout="constrained")
    for axes, (name, of_precision) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        for colour, (precision, runs) in zip(("tab:blue", "tab:orange"), of_precision.items()):
            for index, curve in enumerate(runs.values()):
                axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.8, label=precision if index == 0 else None)
        axes.set(title=name, xlabel="kimg")
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


@click.command()
@click.option("--data", required=True, help="training set with labels, as train.py")
@click.option("--outdir", required=True, type=click.Path(path_type=pathlib.Path), help="folder for the runs and the figure")
@click.option("--precision", type=click.Choice(["bf16", "fp16"]), default="bf16", show_default=True, help="compared with fp32")
@click.option("--kimg", type=click.IntRange(min=1), default=100, show_default=True, help="length of each run")
@click.option("--tick", type=click.IntRange(min=1), default=4, show_default=True, help="kimg between two points of a curve")
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True, help="runs of each precision")
def main(data, outdir, precision, kimg, tick, seeds) -> None:
    """Train the same network in two precisions with several seeds, and compare the loss curves."""
    runs = {kind: {seed: train(data, outdir, kind, seed, kimg, tick) for seed in range(seeds)} for kind in ("fp32", precision)}
    curves = {name: {kind: {seed: read_curve(run, name) for seed, run in own.items()} for kind, own in runs.items()} for name in CURVES}
    draw(curves, outdir / f"precision-{precision}.png")
    figures = {name: compare(of_precision) for name, of_precision in curves.items()}
    print(json.dumps({"bench": "precision_curves", "precision": precision, "kimg": kimg, "seeds": seeds, **figures}))


if __name__ == "__main__":
    run_command(main)
