"""Reproduces the paper: one name per table and figure.

    python reproduce.py list
    python reproduce.py run table1 --seeds=3 --out=results/toy
    python reproduce.py report --out=results/toy
    python reproduce.py sweep --out=results/toy

The experiments are in the package `experiments`; this file only reads options.
"""

from __future__ import annotations

import pathlib
import shlex

import click

from dnnlib import UserError, atomic_write_text
from dnnlib.cli import CommaList, run_command
from dnnlib.log import Logger
from experiments.paper import report as reports
from experiments.paper.run import run_experiments
from experiments.paper.toy_experiments import EXPERIMENTS, choose_experiments
from experiments.toy.controls import run_control
from experiments.toy.studies import find_study
from experiments.toy.sweep import run_sweep

DEFAULT_OUT = pathlib.Path("results/toy")
COMMITTED = pathlib.Path(__file__).parent / "docs" / "results" / "toy"
LOG_FILE = "log.txt"
SWEPT = ("vertical", "ring", "grid")

out_option = click.option(
    "--out", help="Folder of the results", metavar="DIR", type=click.Path(path_type=pathlib.Path), default=DEFAULT_OUT, show_default=True
)

main = click.Group("reproduce", help="Reproduces the paper's tables and figures, ours beside the paper's, and judges its claims.")


def log_into(out: pathlib.Path) -> Logger:
    """Makes the folder, and copies what is printed to its log. Raises UserError if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder --out={out}: {error.strerror or error}") from error
    return Logger(out / LOG_FILE)


@main.command("list")
@out_option
def list_experiments(out: pathlib.Path) -> None:
    """Names the experiments, and says which results DIR holds."""
    click.echo(reports.overview(out))


@main.command(epilog=f"NAMES: {', '.join(EXPERIMENTS)}, or all.")
@click.argument("names", nargs=-1, metavar="NAMES...")
@click.option("--seeds", help="Number of seeds, counted from 0", type=click.IntRange(min=1), default=10, show_default=True)
@out_option
@click.option("--again", help="Train anew what is finished already", is_flag=True)
@click.option("--workers", help="Processes  [default: one per core]", type=click.IntRange(min=1))
def run(names: tuple[str, ...], seeds: int, out: pathlib.Path, again: bool, workers: int | None) -> None:
    """Runs experiments: writes DIR/NAME.json, DIR/NAME.md and pictures. What is finished is not run again."""
    experiments = choose_experiments(names)
    command = ["python", "reproduce.py", "run", *names, f"--seeds={seeds}", f"--out={out.as_posix()}"]
    command += ["--again"] if again else []
    command += [f"--workers={workers}"] if workers is not None else []
    with log_into(out):
        print(shlex.join(command))
        run_experiments(experiments, seeds, out, command=shlex.join(command), again=again, workers=workers)


@main.command()
@out_option
def control(out: pathlib.Path) -> None:
    """Measures generators made by hand, invertible and collapsed ones among them: writes DIR/control.json, .md, .png and .svg."""
    with log_into(out):
        print(shlex.join(["python", "reproduce.py", "control", f"--out={out.as_posix()}"]))
        for path in run_control(out):
            print(path)


@main.command()
@click.option("--study", "names", help=f"Studies: {', '.join(SWEPT)}", type=CommaList(), default=",".join(SWEPT), show_default=True)
@click.option("--seeds", help="Number of seeds per cell, counted from 0", type=click.IntRange(min=1), default=2, show_default=True)
@out_option
@click.option("--workers", help="Processes  [default: one per core]", type=click.IntRange(min=1))
def sweep(names: list[str], seeds: int, out: pathlib.Path, workers: int | None) -> None:
    """Varies lambda with tau, R1's weight and the learning rate: writes DIR/sweep.json and a heat map per study."""
    for name in names:
        find_study(name)
    command = ["python", "reproduce.py", "sweep", f"--study={','.join(names)}", f"--seeds={seeds}", f"--out={out.as_posix()}"]
    with log_into(out):
        print(shlex.join(command))
        for path in run_sweep(names, range(seeds), out, workers=workers):
            print(path)


@main.command()
@click.option(
    "--out", help="Folder of the results  [default: the committed ones, docs/results/toy]", metavar="DIR", type=click.Path(path_type=pathlib.Path)
)
@click.option("--write", help=f"Write the report to DIR/{reports.SUMMARY_FILE} instead of printing it", is_flag=True)
def report(out: pathlib.Path | None, write: bool) -> None:
    """Prints all tables and verdicts; writes nothing unless asked."""
    out = COMMITTED if out is None else out
    text = reports.report(out)
    if write:
        atomic_write_text(out / reports.SUMMARY_FILE, text)
        click.echo(f"Written to {out / reports.SUMMARY_FILE}.")
    else:
        click.echo(text, nl=False)


if __name__ == "__main__":
    run_command(main)
