"""Curves of a run's metrics over training, from its metric-*.jsonl: `python -m experiments.curve RUN --out=curve.png`."""

from __future__ import annotations

import json
import pathlib
import re

import click

from dnnlib import UserError, atomic_path
from dnnlib.cli import run_command


def read_curves(run: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Every figure of a run as (kimg, value) points, rising in kimg; of repeated measurements the last counts.

    Raises:
        UserError: the folder holds no metric lines, or damaged ones.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted(run.glob("metric-*.jsonl")):
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                line = json.loads(text)
                kimg = int(re.search(r"snapshot-(\d+)", line["snapshot_pkl"])[1])
                for key, value in line["results"].items():
                    points.setdefault(key, {})[kimg] = float(value)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}, is no metric line of a snapshot") from error
    if not points:
        raise UserError(f"{run} holds no metric-*.jsonl; measure its snapshots with calc_metrics.py first")
    return {key: sorted(values.items()) for key, values in points.items()}


def plot_curves(curves: dict[str, list[tuple[int, float]]], path: pathlib.Path, title: str) -> None:
    """Draws FID-like figures (lower is better) in one panel and shares between 0 and 1 in another. Raises UserError if it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    distances = {key: curve for key, curve in curves.items() if key.startswith(("fid", "kid"))}
    shares = {key: curve for key, curve in curves.items() if key not in distances}
    panels = [(name, group) for name, group in (("lower is better", distances), ("higher is better", shares)) if group]
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 3.6), squeeze=False)
    for axis, (name, group) in zip(axes[0], panels):
        for key, curve in sorted(group.items()):
            axis.plot(*zip(*curve), marker="o", markersize=3, label=key)
        axis.set(xlabel="training length (thousand real images)", ylabel=name, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)


@click.command()
@click.argument("run", type=click.Path(file_okay=False, path_type=pathlib.Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=pathlib.Path), required=True, help="picture to write (.png or .svg)")
@click.option("--title", default=None, help="heading  [default: the run's name]")
def main(run: pathlib.Path, out: pathlib.Path, title: str | None) -> None:
    """Plot the metrics of RUN over its training and print them as a Markdown table."""
    curves = read_curves(run)
    plot_curves(curves, out, title or run.name)
    keys = sorted(curves)
    print("| kimg | " + " | ".join(keys) + " |\n|---|" + "---|" * len(keys))
    for kimg in sorted({kimg for curve in curves.values() for kimg, _ in curve}):
        values = [dict(curves[key]).get(kimg) for key in keys]
        print(f"| {kimg} | " + " | ".join("" if value is None else f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    run_command(main)
