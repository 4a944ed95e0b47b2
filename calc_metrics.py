"""Measures trained networks, and compares any two sets of images, by name of metric, from one pass over each side.

    python calc_metrics.py --network=runs/00000-.../network-snapshot-001000.safetensors --metrics=fid50k_full,pr50k3,coverage
    python calc_metrics.py --network=runs/00000-... --metrics=coverage       # all its snapshots, going on where it stopped
    python calc_metrics.py --real=photos.zip --fake=pictures/ --metrics=fid50k_full
    python calc_metrics.py plot runs/00000-... runs/00001-...

The metrics are in the package `metrics`, and `training.metric_sides` opens what is measured; this file connects them to options and the screen.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import click

from dnnlib import EasyDict, UserError, download
from dnnlib.cli import USER_ERROR, CommaList, run_command
from dnnlib.files import beginning_of_names
from metrics import registry, report
from metrics.collectors import Rows
from metrics.detectors import detector_name, get_detector, trust_detector
from metrics.feature_cache import FeatureCache
from metrics.feature_files import FeatureFile, check_feature_path, save_features
from metrics.features import succeed_together
from metrics.runs import OPTIONS_FILE, with_figures
from metrics.sides import DataSide, FileSide, GeneratorSide, Images, PassOptions, Side, check_sizes
from torch_utils import distributed, slurm
from torch_utils.distributed import broadcast_object
from training.config import choose_device
from training.dataset import ImageFolderDataset, data_to_compare
from training.metric_sides import find_networks, generator_side, load_generator_and_data, open_side
from training.options import DEVICES, Options

MAX_SHOWN = 50_000  # images of a side that `show` looks through


@click.group(invoke_without_command=True)
@click.option("--network", help="Network file or URL, run directory, or pattern of several", metavar="PATH")
@click.option("--real", help="Real side of a comparison: data set, network or feature file", metavar="PATH")
@click.option("--fake", help="Other side of it: data set, network or feature file", metavar="PATH")
@click.option("--metrics", help="Comma-separated metrics, or none", metavar="a,b", type=CommaList(), default="fid50k_full", show_default=True)
@click.option("--save-features", help="Write the features of --real or --fake to this file instead", metavar="FILE")
@click.option("--samples", help="Generated images whose features are saved", type=click.IntRange(min=2), default=50_000, show_default=True)
@click.option("--data", help="Data set to compare with, folder or zip  [default: the network's own]", metavar="PATH")
@click.option("--mirror", help="Whether mirrored copies count as data for fid50k, kid50k, pr50k3  [default: as in training]", type=bool)
@click.option("--gpus", help="Number of processes; more than 1 through torchrun or srun", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--device", help="Where to compute", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--detector", help="inception, vgg16, embedded or a TorchScript file  [default: each metric's own]", metavar="NAME|PATH")
@click.option("--trust-detector", help="Run the file of --detector, now and later: TorchScript is a program", is_flag=True)
@click.option("--metric-seed", help="Seed of latents, labels and subsets", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--batch", help="Images per detector call", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--verbose", help="Show progress and the use of the cache", type=bool, default=True, show_default=True)
@click.option("--no-cache", help="Compute the features of real images anew and keep none", is_flag=True)
@click.pass_context
def main(context: click.Context, **options: Any) -> None:
    """Measures trained networks against their data set, or compares any two sets of images.

    Prints a table and one JSON line per metric, and appends the lines to metric-NAME.jsonl beside a network that lies in its run directory.
    """
    given = [name for name in options if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if context.invoked_subcommand is not None:
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} is no option of `{context.invoked_subcommand}`; put its options behind it")
        return
    opts = EasyDict(options)
    _check_choice(opts)
    if opts.trust_detector:
        trust_detector(opts.detector)
    opts.specs = registry.parse_metrics(opts.metrics, opts.detector)
    slurm.adopt_step()
    _check_processes(opts.gpus)
    opts.run_on = distributed.join(choose_device(opts.device), Options.rank_timeout)
    try:
        opts.log = _print_to_stderr if opts.verbose and distributed.rank() == 0 else None
        opts.cache = FeatureCache(enabled=not opts.no_cache, log=opts.log)
        work = _save if opts.save_features else _measure_networks if opts.network else _compare
        with distributed.busy("metrics"):  # which may take long; but no rank waits for one that is gone
            work(opts)
    except BaseException as error:
        distributed.leave(error, code=USER_ERROR if isinstance(error, UserError) else 1)
        raise
    distributed.leave()


def _check_choice(opts: EasyDict) -> None:
    """Raises UserError unless the options name one thing to do."""
    sides = [name for name in ("real", "fake") if opts[name]]
    if opts.network and sides:
        raise UserError(f"--network measures a network by its data set and --{sides[0]} names the sides of a comparison; give one or the other")
    if opts.mirror is not None and sides:
        raise UserError(f"--mirror={int(opts.mirror)} changes the data set of --network; the images of --{sides[0]} are taken as they are")
    if opts.save_features and len(sides) != 1:
        raise UserError("--save-features writes the features of one side; give either --real or --fake with it")
    if not opts.network and not opts.fake and not opts.save_features:
        raise UserError("nothing to measure: give --network, or --real and --fake; `calc_metrics.py --help` shows all options")


def _check_processes(gpus: int) -> None:
    """Raises UserError if --gpus asks for several processes and torchrun or srun has started another number."""
    found = distributed.announced_world_size()
    if gpus not in (1, found):
        raise UserError(f"--gpus={gpus} needs that many processes, found {found}; start it by `torchrun --nproc-per-node={gpus} calc_metrics.py ...`")


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say(opts: EasyDict, text: str) -> None:
    if opts.log is not None:
        opts.log(text)


# Networks against their data sets.


def _measure_networks(opts: EasyDict) -> None:
    """Measures every network that --network names; of a run directory or pattern, those that have their lines already are passed over."""
    registry.check_detectors(opts.specs)
    paths = broadcast_object(find_networks(opts.network) if distributed.rank() == 0 else None)
    real_side = functools.lru_cache(maxsize=1)(functools.partial(_training_data, opts))  # snapshots of a run share features of real images
    resuming = not download.is_url(opts.network) and not os.path.isfile(opts.network)  # a single network was meant to be measured
    failed = []
    for index, path in enumerate(paths):
        if len(paths) > 1:
            _say(opts, f"{path} ({index + 1} of {len(paths)})")
        try:
            _measure_network(opts, path, real_side, resuming=resuming)
        except UserError as error:
            if len(paths) == 1:
                raise
            failed.append(path)
            print(f"Warning: {path} is passed over: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(paths)} networks could not be measured, the first of them {failed[0]}; the reasons stand above")


def _training_data(opts: EasyDict, kwargs: tuple) -> DataSide:
    return DataSide(lambda **overrides: data_to_compare(**{**dict(kwargs), **overrides}), cache=opts.cache)


def _measure_network(opts: EasyDict, path: str, real_side: Callable[[tuple], DataSide], resuming: bool) -> None:
    """Measures one network, prints what comes out, and keeps it where the network lies in a run directory."""

    def open_sides() -> tuple[DataSide, GeneratorSide]:
        G, kwargs = load_generator_and_data(path, opts.run_on, opts.data, opts.mirror)
        real = real_side(tuple(kwargs.items()))
        return real, generator_side(opts, G, real.dataset(), given=ImageFolderDataset(**kwargs))

    real, fake = succeed_together(open_sides)
    run_dir = pathlib.Path(path).parent
    in_run = not download.is_url(path) and (run_dir / OPTIONS_FILE).is_file()
    names = opts.metrics
    if resuming and in_run:
        names = _still_to_do(opts, real, fake, path)
        if len(names) < len(opts.specs):
            _say(opts, f"{len(opts.specs) - len(names)} of {len(opts.specs)} metrics are in its metric-*.jsonl by the same protocol and are skipped")
    _publish(_lines(opts, names, real, fake), path, run_dir if in_run else None)


def _still_to_do(opts: EasyDict, real: Side, fake: Side, path: str) -> list[str]:
    """The metrics that a run directory has no line for, of this snapshot and by this protocol."""
    folder, name = os.path.split(path)
    plans = registry.planned_protocols(opts.metrics, real=real, fake=fake, device=opts.run_on, detector=opts.detector, metric_seed=opts.metric_seed)

    def look() -> list[str]:
        if distributed.rank() != 0:
            return []
        return [spec.protocol.name for spec in opts.specs if not report.is_measured(folder, spec.name, name, plans[spec.name])]

    return broadcast_object(succeed_together(look))


def _lines(opts: EasyDict, names: list[str], real: Side | None, fake: Side) -> list[dict]:
    """Measures, with what the options say about how."""
    how = {"device": opts.run_on, "detector": opts.detector, "metric_seed": opts.metric_seed, "batch_detector": opts.batch}
    how["progress"] = opts.log is not None
    return registry.compare(names, real=real, fake=fake, **how)


def _publish(lines: list[dict], network: str | None, run_dir: pathlib.Path | None, sides: dict[str, str] | None = None) -> None:
    """Prints the table and the JSON lines, and keeps the lines in a run directory where there is one."""
    if distributed.rank() != 0:
        return
    stamped = [report.stamp_line(line, network, run_dir, sides) for line in lines]
    if stamped:
        print(report.format_table(stamped))
    for line in stamped:
        print(json.dumps(line), flush=True)
        if run_dir is not None:
            report.write_line(line, run_dir)


def _follow_files(opts: EasyDict, sides: list[Side]) -> None:
    """Lets feature files choose the detector where --detector does not."""
    names = {side.file.detector for side in sides if isinstance(side, FileSide)}
    if opts.detector is None and len(names) == 1:
        (name,) = names
        has_images = any(not isinstance(side, FileSide) for side in sides)
        if has_images and name not in ("inception", "vgg16", "embedded"):
            raise UserError(f"the feature file was made by a detector {name} of its owner's; name it by --detector=PATH for the other side")
        opts.detector = name


def _compare(opts: EasyDict) -> None:
    """Compares --real and --fake and prints what comes out."""
    paths = {role: opts[role] for role in ("real", "fake") if opts[role]}
    needs_labels = any(spec.protocol.needs_classes for spec in opts.specs)
    sides = {role: open_side(opts, path, role, needs_labels) for role, path in paths.items()}
    _follow_files(opts, list(sides.values()))
    lines = _lines(opts, opts.metrics, sides.get("real"), sides["fake"])
    _publish(lines, opts.fake if sides["fake"].G is not None else None, None, paths)


def _save(opts: EasyDict) -> None:
    """Writes a feature file of --real or --fake."""
    role = "real" if opts.real else "fake"
    detectors = list(dict.fromkeys(spec.detector for spec in opts.specs if spec.detector is not None))
    if len(detectors) != 1:
        raise UserError(f"--save-features needs one detector, found {', '.join(detectors) or 'none'}; give --detector or metrics of one")
    path = pathlib.Path(opts.save_features)
    check_feature_path(path)
    side = open_side(opts, opts[role], role, needs_labels=True)
    if isinstance(side, FileSide):
        raise UserError(f"--{role}={opts[role]} is a feature file already; name the images")
    detector = get_detector(detectors[0], opts.run_on)
    request = side.request(detector, Rows, side.available() or opts.samples, sampled=False)
    tensors = side.collect({request: detector}, PassOptions(opts.batch, opts.run_on, workers=3, progress=opts.log is not None))
    if distributed.rank() == 0:
        labels = side.labels(request)
        facts = {"detector": detector_name(detectors[0]), "digest": detector.digest, "resize": detector.resize, "source": request.source}
        file = FeatureFile(path, tensors[request]["rows"], labels if labels.shape[1] else None, **facts, image_size=side.image_size())
        save_features(file)
        print(f"{path}: {len(file.rows):,} features of {file.rows.shape[1]} dimensions by {detector.name} of {opts[role]}")


# What was measured, to look at.


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", help="Common beginning of the files", metavar="PATH", default="metrics", show_default=True)
@click.option("--title", help="Heading of the pictures", default="", metavar="TEXT")
@click.option("--names", help="Names of the lines, in order of first runs  [default: what tells them apart]", metavar="a,b", type=CommaList())
@click.option("--signals", help="Statistics of stats.jsonl to draw as well, as Loss/G/grad_norm", metavar="a,b", type=CommaList(), default="")
@click.option("--figures", help="Draw these alone, by name or its end, as recall  [default: all that were measured]", metavar="a,b", type=CommaList())
def plot(runs: tuple[str, ...], out: str, title: str, names: list[str] | None, signals: list[str], figures: list[str] | None) -> None:
    """Draws what metric-*.jsonl of run directories say, over training: curves, and precision against recall and coverage; prints them as tables.

    Runs that differ by seed and length only are one line with a band. Figures of different protocols are refused.
    """
    from experiments.report.signals import with_signals
    from metrics import trajectories  # here, because it loads matplotlib, which measuring does without

    stem = beginning_of_names(out, "--out")
    found = trajectories.load_runs([pathlib.Path(run) for run in runs])
    if figures:
        found = with_figures(found, figures)
    for path in trajectories.plot(with_signals(found, signals), stem, title, names or ()):
        print(path)
    print("\n" + trajectories.markdown_tables(found, names or ()))


@main.command()
@click.option("--real", help="Real images: folder or zip", metavar="PATH", required=True)
@click.option("--fake", help="Images to look at: network, folder or zip", metavar="PATH", required=True)
@click.option("--data", help="Data set of a conditional network's labels  [default: its own]", metavar="PATH")
@click.option("--out", help="Common beginning of the files", metavar="PATH", default="look", show_default=True)
@click.option("--detector", help="inception, vgg16, embedded or a TorchScript file", default="vgg16", show_default=True, metavar="NAME|PATH")
@click.option("--trust-detector", help="Run the file of --detector, now and later: TorchScript is a program", is_flag=True)
@click.option("--samples", help="Images of either side at most  [default: 50,000 real ones, and as many of --fake]", type=click.IntRange(min=2))
@click.option("--count", help="Pairs of images on a sheet", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--nearest-k", help="Neighbours that set a radius", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--device", help="Where to compute", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--metric-seed", help="Seed of latents and labels", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--batch", help="Images per detector call", type=click.IntRange(min=1), default=64, show_default=True)
def show(**options: Any) -> None:
    """Writes sheets of images: reals that are not covered, fakes off the manifold, and the nearest real image of each fake."""
    from metrics.show import make_sheets  # here, because measuring does without

    stem = beginning_of_names(options["out"], "--out")
    opts = EasyDict(options, run_on=choose_device(options["device"]), cache=FeatureCache())
    if opts.trust_detector:
        trust_detector(opts.detector)
    detector = get_detector(opts.detector, opts.run_on)
    sides = {role: open_side(opts, opts[role], role) for role in ("real", "fake")}
    for role, side in sides.items():
        if isinstance(side, FileSide):
            raise UserError(f"{side.name} holds features, but there are images to be shown; name the images by --{role}")
    check_sizes([sides["fake"], sides["real"]])
    # The real images are those of a coverage of as many, so that features which it left in the cache serve again.
    counts = {"real": min(opts.samples or MAX_SHOWN, sides["real"].available() or MAX_SHOWN)}
    counts["fake"] = min(opts.samples or counts["real"], sides["fake"].available() or MAX_SHOWN)
    requests = {role: side.request(detector, Rows, counts[role], sampled=True) for role, side in sides.items()}
    how = PassOptions(opts.batch, opts.run_on, workers=3)
    features = [side.collect({requests[role]: detector}, how)[requests[role]]["rows"] for role, side in sides.items()]
    images = [Images(side, requests[role]) for role, side in sides.items()]
    numbers = requests["real"].indices(), requests["fake"].indices()
    made_by = {"numbers": numbers, "fake_name": pathlib.PurePath(opts.fake).name, "device": opts.run_on}
    for path in make_sheets(*images, *features, k=opts.nearest_k, out=stem, count=opts.count, **made_by):
        print(path)


if __name__ == "__main__":
    run_command(main)
