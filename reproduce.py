"""Reproduces the paper: one name per table and figure.

    python reproduce.py list
    python reproduce.py run table1 --seeds=3 --out=results/toy
    python reproduce.py report --out=results/toy
    python reproduce.py sweep --out=results/toy
    python reproduce.py plan table3 --budget=short --data=datasets/cifar10-train.zip
    python reproduce.py run table3 --budget=short --data=datasets/cifar10-train.zip
    python reproduce.py report --out=results/images

The experiments are in the package `experiments`; this file only reads options. Those in the plane are `experiments.toy` and `experiments.paper`,
those on images, which a budget goes with, `experiments.images`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import shlex

import click
from click.core import ParameterSource

from dnnlib import UserError, atomic_write_text, make_folder
from dnnlib.cli import CommaList, run_command
from dnnlib.log import Logger
from experiments.images import show
from experiments.images.adopt import adopt as adopt_runs
from experiments.images.budgets import BUDGETS
from experiments.images.experiments import EXPERIMENTS as IMAGE_EXPERIMENTS
from experiments.images.folder_lock import hold
from experiments.images.launchers import Slots, local_slots
from experiments.images.plan import RUNS, Choice, Plan, make_plan, plan_path, read_plans, remember_plan, write_keys
from experiments.images.probe import places, probe
from experiments.images.results import load_run, load_tables, unusable, without_copies
from experiments.images.run import LAUNCHERS, How, check_can_make, planned_run, run_plan, signals_as_interrupt
from experiments.images.speed import Speed
from experiments.images.work import make_run
from experiments.paper import report as reports
from experiments.paper.run import run_experiments
from experiments.paper.toy_experiments import EXPERIMENTS, choose_experiments
from experiments.toy.controls import run_control
from experiments.toy.studies import find_study
from experiments.toy.sweep import run_sweep
from training.options import PRECISIONS

DEFAULT_OUT = pathlib.Path("results/toy")
DEFAULT_IMAGES_OUT = pathlib.Path("results/images")
DEFAULT_PAGE = pathlib.Path("report")
COMMITTED = pathlib.Path(__file__).parent / "docs" / "results" / "toy"
LOG_FILE = "log.txt"
SWEPT = ("vertical", "ring", "grid")
TOY_SEEDS = 10

say = functools.partial(print, flush=True)

FOLDER = click.Path(path_type=pathlib.Path)
COUNT = click.IntRange(min=1)
out_option = click.option("--out", help="Folder of the results", metavar="DIR", type=FOLDER, default=DEFAULT_OUT, show_default=True)
images_out_option = click.option("--out", help="Folder of the results", metavar="DIR", type=FOLDER, default=DEFAULT_IMAGES_OUT, show_default=True)
budget_help = "Images: how long and how large; paper takes GPUs for days"
data_option = click.option("--data", help="Images: training set with labels  [default: the budget's]", metavar="PATH")
device_option = click.option("--device", help="Images: device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
precision_option = click.option("--precision", help="Images: of the training  [default: the budget's]", type=click.Choice(PRECISIONS))
gpus_option = click.option("--gpus", help="Images: processes of each run, one GPU each", type=COUNT, default=1, show_default=True)

main = click.Group("reproduce", help="Reproduces the paper's tables and figures, ours beside the paper's, and judges its claims.")


def log_into(out: pathlib.Path) -> Logger:
    """Makes the folder, and copies what is printed to its log. Raises UserError if it cannot be made, or its name cannot be printed."""
    if not str(out).isprintable():
        raise UserError(f"--out={str(out)!r} has characters that cannot be printed; give a folder of another name")
    make_folder(out, named=f"--out={out}")
    return Logger(out / LOG_FILE)


def check_kind(names: tuple[str, ...], budget: str | None) -> None:
    """Raises UserError for an image experiment without a budget, or one in the plane with a budget."""
    for name in names:
        if budget is None and name in IMAGE_EXPERIMENTS:
            raise UserError(f"{name} trains on images: say how long by --budget={'|'.join(BUDGETS)}")
        if budget is not None and name in EXPERIMENTS:
            raise UserError(f"{name} is in the plane and has no budgets; leave out --budget={budget}")


@main.command("list")
@out_option
@click.option("--images", help="Name the image experiments and budgets instead", is_flag=True)
def list_experiments(out: pathlib.Path, images: bool) -> None:
    """Names the experiments, and says which results DIR holds."""
    click.echo(show.overview() if images else reports.overview(out))


@main.command(epilog=f"NAMES: {', '.join(EXPERIMENTS)}, or all; with --budget: {', '.join(IMAGE_EXPERIMENTS)}, or all of the paper's.")
@click.argument("names", nargs=-1, metavar="NAMES...")
@click.option("--seeds", help=f"Number of seeds, counted from 0  [default: {TOY_SEEDS}; of images the budget's]", type=COUNT)
@click.option("--out", help=f"Folder of the results  [default: {DEFAULT_OUT}; of images {DEFAULT_IMAGES_OUT}]", metavar="DIR", type=FOLDER)
@click.option("--again", help="Train anew what is finished already", is_flag=True)
@click.option("--workers", help="Processes  [default: one per core; of images on each GPU as many as are fastest]", type=COUNT)
@click.option("--budget", help=budget_help, type=click.Choice(list(BUDGETS)))
@data_option
@device_option
@precision_option
@gpus_option
@click.option("--launcher", help="Images: where runs are made", type=click.Choice(LAUNCHERS), default="local", show_default=True)
@click.option("--slurm", help="Images: a parameter of submitit, as slurm_partition=gpu or timeout_min=600", metavar="NAME=VALUE", multiple=True)
@click.option("--yes", help="Images: start the paper budget", is_flag=True)
def run(
    names: tuple[str, ...], seeds: int | None, out: pathlib.Path | None, again: bool, workers: int | None, budget: str | None, **images
) -> int | None:
    """Runs experiments: writes DIR/NAME.json, DIR/NAME.md and pictures. What is finished is not run again.

    With --budget experiments on images: trains and measures what is missing in DIR/runs.
    """
    check_kind(names, budget)
    if budget is not None:
        if again:
            raise UserError("--again is for experiments in the plane; to train an image run anew, remove its folder in DIR/runs")
        if images["launcher"] == "slurm" and workers is not None:
            raise UserError("--workers is for --launcher=local; how many jobs of Slurm go at once is Slurm's to say")
        if images["slurm"] and images["launcher"] != "slurm":
            raise UserError(f"--slurm={images['slurm'][0]} goes with --launcher=slurm")
        how = How(images["launcher"], workers, slurm_parameters(images["slurm"]), images["yes"])
        if how.launcher == "slurm" and images["device"] == "auto":
            raise UserError("--launcher=slurm needs --device=cuda or --device=cpu, since the jobs' machines may have another device than this one")
        place = out or DEFAULT_IMAGES_OUT
        return run_images(Choice(names, budget, place, images["data"], seeds, images["device"], images["gpus"], images["precision"]), how)
    if given := [name for name in images if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE]:
        raise UserError(f"--{given[0]} is for experiments on images, which a --budget goes with")
    experiments = choose_experiments(names)
    seeds, out = seeds or TOY_SEEDS, out or DEFAULT_OUT
    command = ["python", "reproduce.py", "run", *names, f"--seeds={seeds}", f"--out={out.as_posix()}"]
    command += ["--again"] if again else []
    command += [f"--workers={workers}"] if workers is not None else []
    with log_into(out):
        print(shlex.join(command))
        run_experiments(experiments, seeds, out, command=shlex.join(command), again=again, workers=workers)
    return None


def slurm_parameters(given: tuple[str, ...]) -> dict[str, object]:
    """NAME=VALUE of --slurm, numbers as numbers. Raises UserError for anything else."""
    parameters: dict[str, object] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise UserError(f"--slurm={text} is not of the form NAME=VALUE, as in slurm_partition=gpu")
        parameters[name] = int(value) if value.isdigit() else value
    return parameters


def run_images(choice: Choice, how: How) -> int:
    """Executes a plan; returns the exit code: 1 if runs failed, which are listed."""
    log = log_into(choice.out)
    with log:
        failures = run_plan(make_plan(choice), how, log.write_file)
        for failure in failures:
            print(f"Failed: {failure.key}: {failure.error}")
        if failures:
            print(f"{len(failures)} run(s) failed; the same command goes on with them and leaves alone what is done.")
        else:
            print(f"All is measured. `python reproduce.py report --out={shlex.quote(str(choice.out))}` makes the page.")
    return 1 if failures else 0


@main.command(epilog=f"NAMES: {', '.join(IMAGE_EXPERIMENTS)}, or all of the paper's.")
@click.argument("names", nargs=-1, metavar="NAMES...")
@click.option("--budget", help=budget_help, type=click.Choice(list(BUDGETS)))
@click.option("--seeds", help="Number of seeds, counted from 0  [default: the budget's]", type=COUNT)
@images_out_option
@data_option
@device_option
@precision_option
@gpus_option
@click.option("--workers", help="Runs at once  [default: one per core, or on each GPU as many as are fastest]", type=COUNT)
@click.option("--no-probe", help="Do not measure this machine's speed if it is not known", is_flag=True)
def plan(names: tuple[str, ...], budget: str | None, seeds: int | None, out: pathlib.Path, workers: int | None, no_probe: bool, **where) -> None:
    """Lists the runs of image experiments: commands, what exists in DIR, and the time and space that the rest takes on this machine."""
    check_kind(names, budget)
    if budget is None:
        raise UserError(f"a plan needs --budget={'|'.join(BUDGETS)}")
    with log_into(out):
        made = make_plan(Choice(names, budget, out, where["data"], seeds, where["device"], where["gpus"], where["precision"]))
        speed = Speed(out)
        slots = find_places(made, workers, speed, measure=not no_probe) if has_devices(made.choice, workers) else ()
        at_once = len(slots) or workers or 1
        print(show.show_plan(made, speed, at_once))
        remember_plan(made, show.training_left(made, speed, at_once))
        print(f"The keys of these runs are in {write_keys(made)}.")


def find_places(made: Plan, workers: int | None, speed: Speed, measure: bool) -> Slots:
    """Where this machine makes a plan's runs, with the speed measured if that is asked for; not beside runs that would be measured with it."""
    with contextlib.ExitStack() as held:
        if measure:
            try:
                held.enter_context(hold(made.choice.out, f"--out={made.choice.out}"))
            except UserError as error:
                say(f"Speeds are not measured now: {error}")
                measure = False
        held.enter_context(signals_as_interrupt())
        slots = places(made, workers, speed, say, measure=measure)
        if measure:
            probe(made, speed, slots[0], say)
        return slots


def has_devices(choice: Choice, workers: int | None) -> bool:
    """Whether this machine could make the runs; if not, as where the plan is for another, says so."""
    try:
        return bool(local_slots(choice.device, choice.gpus, workers))
    except UserError as error:
        say(f"Times are not known: {error}")
        return False


@main.command("make")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@images_out_option
def make_planned(keys: tuple[str, ...], out: pathlib.Path) -> int:
    """Makes single runs of DIR/plan.json by name, as a job of a queue does; several processes may work on one DIR by different names."""
    plans = [
        make_plan(Choice(tuple(saved["experiments"]), budget, out, *(saved[key] for key in ("data", "seeds", "device", "gpus", "precision"))))
        for budget, saved in read_plans(out).items()
        if any(key.startswith(f"{budget}-") for key in keys)
    ]
    runs = [planned_run(plans, key) for key in keys]
    for made in plans:
        check_can_make(dataclasses.replace(made, runs=tuple(run for run in made.runs if run in runs)))
    with signals_as_interrupt():
        outcomes = [make_run(run, say=lambda step, key=run.key: say(f"{key}: {step}")) for run in runs]
    for outcome in outcomes:
        print(f"{outcome.key}: {outcome.error or 'measured'}")
    return int(any(outcome.error for outcome in outcomes))


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN_DIR...", type=FOLDER)
@click.option("--budget", help="Whose plan the runs belong to", type=click.Choice(list(BUDGETS)), required=True)
@click.option("--for", "names", help="Experiments whose runs they may be", type=CommaList(), default="all", show_default=True, metavar="a,b")
@images_out_option
@data_option
@precision_option
@click.option("--copy", help="Copy the folders instead of linking to them", is_flag=True)
def adopt(
    runs: tuple[pathlib.Path, ...], budget: str, names: list[str], out: pathlib.Path, data: str | None, precision: str | None, copy: bool
) -> None:
    """Takes finished runs that were made by hand into DIR/runs, if their options are those of the plan."""
    with log_into(out):
        choice = Choice(tuple(names), budget, out, data, precision=precision)
        for path, planned in zip(runs, adopt_runs(list(runs), choice, copy)):
            print(f"{path} is {planned.key}: {planned.look()}")


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
@click.argument("runs", nargs=-1, metavar="[RUN_DIR...]", type=FOLDER)
@click.option("--out", help="Folder of the results, or of the page of RUN_DIRs  [default: docs/results/toy, or report]", metavar="DIR", type=FOLDER)
@click.option("--write", help=f"Write the report in the plane to DIR/{reports.SUMMARY_FILE} instead of printing it", is_flag=True)
def report(runs: tuple[pathlib.Path, ...], out: pathlib.Path | None, write: bool) -> None:
    """Prints tables and verdicts of experiments in the plane, or writes a page of runs on images.

    In the plane nothing is written unless asked. Of image experiments (DIR with plan.json) or of any runs (RUN_DIR...) it writes report.html,
    report.md and report.json.
    """
    if not runs and out is not None and (out / RUNS).is_dir() and not plan_path(out).is_file():
        raise UserError(f"--out={out} has runs of image experiments but no {plan_path(out).name}; plan them again, or name the runs")
    if runs or (out is not None and plan_path(out).is_file()):
        write_page(runs, out or DEFAULT_PAGE)
        if runs or not reports.find_results(out):
            return
    out = COMMITTED if out is None else out
    text = reports.report(out)
    if write:
        atomic_write_text(out / reports.SUMMARY_FILE, text)
        click.echo(f"Written to {out / reports.SUMMARY_FILE}.")
    else:
        click.echo(text, nl=False)


@main.command()
@images_out_option
@click.option("--to", help="Folder of the archive, made if need be", metavar="DIR", type=FOLDER, required=True)
def archive(out: pathlib.Path, to: pathlib.Path) -> None:
    """Adds the runs of image experiments to an archive without their weights: small enough to be kept and passed on.

    `report --out=ARCHIVE` makes its page, and runs of other machines can be added to it.
    """
    from experiments.report.archive import archive_runs  # here, because nothing else needs it

    for run in archive_runs(out, to):
        click.echo(f"{run.key}: {run.left or f'taken at {run.kimg:,} kimg'}")


def write_page(runs: tuple[pathlib.Path, ...], out: pathlib.Path) -> None:
    """Writes the page of given runs, or else of the tables planned in `out`, and prints the verdicts."""
    from experiments.report.page import make_page  # here, because nothing else needs it
    from experiments.report.studies import collect

    tables = [] if runs else load_tables(out)
    for table in tables:
        for verdict in table.claims:
            word = {True: "holds", False: "does not hold", None: "undecided"}[verdict.holds]
            click.echo(f"{table.name}, {table.budget_name} budget: {verdict.id} {word}. {verdict.statement} {verdict.text}")
    shown, notices = without_copies([load_run(path) for path in runs])
    notices += [sentence for run in collect(tables, shown) for sentence in unusable(run)]
    for sentence in notices:
        click.echo(f"Note: {sentence}.")
    click.echo(make_page(tables, shown, out))


if __name__ == "__main__":
    run_command(main)
