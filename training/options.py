"""Every option of train.py: name, type, default, range and help, each written once. Command line, docs/options.md and checks are made from here."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import click

from dnnlib.cli import MAX_SEED, CommaList
from pairing.adaptive import MAX_FACTOR
from pairing.negatives import INDEPENDENT
from pairing.network import EMBED_DIM
from pairing.term import PAIRING_MODES, PAIRING_SPACES
from torch_utils.ops.backend import POLICIES
from training.augment import AUGPIPE_PRESETS
from training.graphs import POLICIES as GRAPH_POLICIES
from training.objectives import OBJECTIVES
from training.presets import PRESETS

CDN = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/"
RESUME_SOURCES = {
    "ffhq256": CDN + "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512": CDN + "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024": CDN + "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": CDN + "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256": CDN + "lsundog-res256-paper256-kimg100000-noaug.pkl",
}
PRECISIONS = ("auto", "fp32", "tf32", "fp16", "bf16")
DEVICES = ("auto", "cpu", "cuda", "mps")


def _option(default: Any, kind: Any, help: str, group: str, shown: str | None = None, **extra) -> Any:
    """A field of `Options`; `shown` is what tables print where the default is worked out from other options, `extra` goes to click
    (but `short`, a one-letter name, and `flag`, an option without a value)."""
    return dataclasses.field(default=default, metadata=dict(kind=kind, help=help, group=group, shown=shown, extra=extra))


_general = functools.partial(_option, group="General")
_data = functools.partial(_option, group="Data")
_base = functools.partial(_option, group="Base configuration")
_augment = functools.partial(_option, group="Augmentation")
_pairing = functools.partial(_option, group="Pairing and objective")
_transfer = functools.partial(_option, group="Transfer and resuming")
_speed = functools.partial(_option, group="Speed")


class Number(click.FloatRange):
    """A range of numbers without nan, which compares as neither inside nor outside of any, and without infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


COUNT, WEIGHT, SHARE, POSITIVE = click.IntRange(min=1), Number(min=0), Number(min=0, max=1), Number(min=0, min_open=True)


@dataclasses.dataclass
class Options:
    """What the user typed, or the defaults. None means: worked out from the rest (the preset, the data, the device)."""

    outdir: str | None = _general(None, str, "folder for numbered run folders, or, called 00000-NAME, the run folder itself", shown="required")
    gpus: int = _general(1, COUNT, "processes on this machine, one GPU each")
    snap: int = _general(50, COUNT, "ticks between snapshots (networks, state, images, metrics)")
    metrics: list = _general(("fid50k_full",), CommaList(), "metrics at each snapshot, comma list or none")
    seed: int = _general(0, click.IntRange(min=0, max=MAX_SEED), "random seed")
    dry_run: bool = _general(False, None, "print the whole configuration and exit", flag=True, short="-n")
    tick: int = _general(4, COUNT, "kimg per tick")
    keep: int = _general(0, click.IntRange(min=0), "snapshots to keep besides the best, at least the last two; 0: all")
    best: str | None = _general(None, str, "metric that tells the best snapshot, or a figure such as prdc50k3_coverage", shown="the first metric")
    detector: str | None = _general(None, str, "detector of all metrics: inception, vgg16, embedded or a TorchScript file", shown="each metric's own")
    trust_detector: bool = _general(False, None, "run the file of --detector, now and later: TorchScript is a program", flag=True)
    metric_seed: int = _general(0, click.IntRange(min=0, max=MAX_SEED), "random seed of the metrics")
    rank_timeout: float = _general(
        40.0, WEIGHT, "seconds without progress after which a run with a stuck rank ends, half of that for a silent one; 0: wait for ever"
    )
    wandb: str | None = _general(None, str, "project of Weights & Biases to report to, too (package wandb); none: no longer", shown="-")

    data: str | None = _data(None, str, "training images: folder or zip made by dataset_tool.py", shown="required")
    cond: bool = _data(False, bool, "train on the labels of the data set")
    subset: int | None = _data(None, COUNT, "train on so many images only", shown="all", metavar="INT")
    mirror: bool = _data(False, bool, "add mirrored images")
    workers: int = _data(3, COUNT, "processes that read images when the set does not fit the device")

    cfg: str = _base("auto", click.Choice(list(PRESETS)), "preset")
    gamma: float | None = _base(None, WEIGHT, "R1 weight", shown="preset")
    kimg: int | None = _base(None, COUNT, "length of the training in thousand real images", shown="preset")
    batch: int | None = _base(None, COUNT, "images per step, all GPUs together", shown="preset")
    batch_gpu: int | None = _base(None, COUNT, "images per GPU at a time; the rest of the batch is accumulated", shown="preset")

    aug: str = _augment("ada", click.Choice(["noaug", "ada", "fixed"]), "augmentation mode")
    p: float | None = _augment(None, SHARE, "augmentation probability for --aug=fixed", shown="-")
    target: float | None = _augment(None, SHARE, "ADA target", shown="0.6")
    augpipe: str | None = _augment(None, click.Choice(list(AUGPIPE_PRESETS)), "augmentation pipeline", shown="bgc")

    pairing_weight: float = _pairing(0.0, WEIGHT, "weight of the pairing loss (lambda), 0.05 in the paper; 0: plain StyleGAN2-ADA, bit for bit")
    pairing_tau: float = _pairing(0.1, POSITIVE, "temperature of the pairing loss")
    pairing_mode: str = _pairing("infonce", click.Choice(PAIRING_MODES), "identify the latent among all of the batch, or judge single pairs")
    pairing_space: str = _pairing("z", click.Choice(PAIRING_SPACES), "latents to identify")
    pairing_dim: int = _pairing(EMBED_DIM, COUNT, "length of the pairing embeddings")
    pairing_width: int = _pairing(1, COUNT, "width of both towers of the pairing network, in multiples of its default")
    pairing_view: int | None = _pairing(None, COUNT, "edge of the images as P sees them, averaged down: a power of two from 8 on", shown="the data's")
    pairing_features: bool = _pairing(False, bool, "the pairing network sees the discriminator's features of an image instead of its pixels")
    pairing_lr: float | None = _pairing(
        None, POSITIVE, "learning rate of the pairing network, times 4/5 as G's (lazy regularisation)", shown="that of G"
    )
    pairing_gather: bool = _pairing(True, bool, "use the latents of all GPUs as negatives, not those of one alone")
    pairing_shuffle: bool = _pairing(False, bool, "control: the pairing network sees the latents in another order")
    pairing_extra: int = _pairing(0, click.IntRange(min=0), "negatives to draw besides the latents of the batch")
    pairing_near: float | None = _pairing(
        None,
        Number(min=0, max=1, min_open=True),
        f"distance of these from the latents of the batch, {INDEPENDENT:g}: independent",
        shown=f"{INDEPENDENT:g}",
    )
    pairing_warmup: int | None = _pairing(None, COUNT, "kimg over which the pairing weight rises from 0", shown="none")
    pairing_target: float | None = _pairing(
        None, SHARE, f"steer the pairing weight, between 0 and {MAX_FACTOR:g} times its value, to this identification accuracy", shown="fixed weight"
    )
    ms_weight: float = _pairing(0.0, WEIGHT, "weight of the mode-seeking loss (MS-GAN baseline)")
    objective: str = _pairing("logistic", click.Choice(OBJECTIVES), "adversarial objective")
    r2_gamma: float = _pairing(0.0, WEIGHT, "R2 weight: gradient penalty on generated images")

    resume: str = _transfer("noresume", str, f"network to start from: {', '.join(RESUME_SOURCES)}, a file or a URL")
    freezed: int = _transfer(0, click.IntRange(min=0), "Freeze-D: layers of D to keep, from the image side")
    continue_run: str | None = _transfer(None, str, "run folder to continue exactly where its last state stands", shown="-", metavar="DIR")

    device: str = _speed("auto", click.Choice(DEVICES), "auto takes CUDA, then MPS, then the CPU")
    precision: str = _speed("auto", click.Choice(PRECISIONS), "fp16/bf16: the four highest resolutions; auto: fp16 on CUDA, bf16 on CPUs made for it")
    fp32: bool = _speed(False, bool, "same as --precision=fp32")
    nhwc: bool = _speed(False, bool, "channels_last memory in low-precision blocks")
    nobench: bool = _speed(False, bool, "no cuDNN benchmarking")
    allow_tf32: bool = _speed(False, bool, "TF32 in float32 matrix products and convolutions")
    compile: bool = _speed(False, bool, "torch.compile for the main phases")
    ops: str = _speed("auto", click.Choice(POLICIES), "implementation of the ops")
    graphs: str = _speed("auto", click.Choice(GRAPH_POLICIES), "CUDA graphs; auto: on CUDA with one process and without --compile")


def flag_name(name: str) -> str:
    """A field of `Options` as it is typed, --option."""
    return "--" + name.replace("_", "-")


def add_options(command: click.Command) -> click.Command:
    """Adds every option to a click command. Its value is None unless the user typed one, so that what was typed can be told."""
    for field in dataclasses.fields(Options):
        extra, names = dict(field.metadata["extra"]), [flag_name(field.name)]
        if short := extra.pop("short", None):
            names.insert(0, short)
        is_flag = extra.pop("flag", False)
        kind = {} if is_flag else {"type": field.metadata["kind"]}
        help_text = "  ".join(filter(None, (field.metadata["help"], _default_note(field))))
        command.params.append(click.Option([*names, field.name], default=None, is_flag=is_flag, help=help_text, **kind, **extra))
    return command


def _default_note(field: dataclasses.Field) -> str:
    """What --help says of the default: that there is none and one must be given, what it is, or nothing where it goes without saying."""
    shown = shown_default(field)
    return {"required": "[required]", "-": ""}.get(shown, "" if field.metadata["extra"].get("flag") else f"[default: {shown}]")


class GroupedCommand(click.Command):
    """A command whose --help lists the options of `add_options` under the headings of the table."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a section for each group; --help itself is a general option."""
        groups = {field.name: field.metadata["group"] for field in dataclasses.fields(Options)}
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(groups.get(param.name, "General"), []).append(record)
        for group, records in sections.items():
            with formatter.section(group):
                formatter.write_dl(records)


def shown_default(field: dataclasses.Field) -> str:
    """The default as tables print it."""
    if field.metadata["shown"]:
        return field.metadata["shown"]
    value = field.default
    if isinstance(value, (list, tuple)):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _values(field: dataclasses.Field) -> str:
    kind = field.metadata["kind"]
    if isinstance(kind, click.Choice):
        return ", ".join(map(str, kind.choices))
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        low = f"{'>' if kind.min_open else '>='} {kind.min}" if kind.min is not None else ""
        return f"{'above ' if kind.min_open else ''}{kind.min} to {kind.max}" if kind.max is not None else low
    return {bool: "true, false", None: "flag"}.get(kind, "list" if isinstance(kind, CommaList) else "text")


def option_table() -> str:
    """Every option as a Markdown table, grouped, for docs/options.md."""
    lines = ["| Option | Values | Default | Meaning |", "|---|---|---|---|"]
    group = None
    for field in dataclasses.fields(Options):
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines.append(f"| **{group}** | | | |")
        values = [f"`{flag_name(field.name)}`", _values(field), shown_default(field), field.metadata["help"]]
        lines.append("| " + " | ".join(v.replace("|", "\\|") for v in values) + " |")
    return "\n".join(lines)
