"""From options to the configuration of a run: presets filled in, combinations checked; and what differs between two configurations.

The configuration is an `EasyDict` of plain values with StyleGAN2-ADA's keys in its order; it is what training_options.json holds. A few of these
are for readers of that file alone: every `class_name`, `image_snapshot_ticks`, `pin_memory` and `prefetch_factor` change nothing here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch

from dnnlib import EasyDict, UserError
from metrics.registry import parse_metrics
from metrics.runs import BOOKKEEPING, SEED
from metrics.screening import has_fast_bfloat16
from pairing.negatives import INDEPENDENT
from pairing.network import MIN_RESOLUTION, is_view
from torch_utils.allocator import keep_freed_memory
from torch_utils.distributed import launched
from torch_utils.image_size import SQUARE, size_of
from torch_utils.ops import backend
from training import graphs
from training.ada import ADA_KIMG, ADA_TARGET
from training.augment import AUGPIPE_PRESETS
from training.dataset import ImageFolderDataset
from training.networks.discriminator import count_freezable
from training.options import RESUME_SOURCES, Options, flag_name
from training.presets import PRESETS, Preset, for_data

FIGURES = ("_precision", "_recall", "_coverage", "_mean", "_worst")  # what metrics of several figures add to their names; each is better one way
# Where, how fast and with which records a run is made, and where its data lie: none of it changes what is trained. What the precision does is
# said by the networks' own options.
NOT_COMPARED = (BOOKKEEPING - {SEED}) | {"device", "ops", "graphs", "compile", "cudnn_benchmark", "path", "precision"}
# Options that say nothing without a pairing network.
PAIRING_DETAILS = {field.name for field in dataclasses.fields(Options) if field.name.startswith("pairing_")} - {"pairing_weight"}
# Options by the settings that they become, where those have other names and are no other option's, too.
OPTION_OF = {
    "P_kwargs": "pairing_weight",
    "P_opt_kwargs": "pairing_lr",
    "augment_kwargs": "aug",
    "augment_p": "p",
    "batch_size": "batch",
    "embed_dim": "pairing_dim",
    "freeze_layers": "freezed",
    "max_size": "subset",
    "num_gpus": "gpus",
    "r1_gamma": "gamma",
    "random_seed": "seed",
    "resume_pkl": "resume",
    "use_labels": "cond",
    "view": "pairing_view",
    "width": "pairing_width",
}
RESUMED_ADA_KIMG = 100  # a transferred D overfits sooner, so p may move faster


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What the configuration needs to know of a data set."""

    name: str
    length: int
    resolution: int
    num_channels: int
    label_dim: int
    labels_in_file: bool
    start_grid: tuple[int, int] = SQUARE

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return size_of(self.resolution, self.start_grid)

    @classmethod
    def of(cls, path: str, use_labels: bool) -> DataInfo:
        """Of a folder or zip. Raises UserError if it cannot be trained on."""
        with contextlib.closing(ImageFolderDataset(path, use_labels=use_labels)) as data:
            return cls(data.name, len(data), data.resolution, data.num_channels, data.label_dim, data.labels_in_file, data.start_grid)


def choose_device(name: str) -> torch.device:
    """The device of --device, with memory that this process keeps if it is the CPU. Raises UserError if this machine does not have it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"--device={name}: torch {torch.__version__} finds no such device here, use --device=auto or --device=cpu")
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def _check_combinations(o: Options, typed: set[str], data: DataInfo, device: torch.device) -> None:
    """Options that exclude or need one another."""
    if o.aug == "fixed" and o.p is None:
        raise UserError("--aug=fixed needs the probability, --p=0..1")
    if o.aug != "fixed" and o.p is not None:
        raise UserError(f"--p goes with --aug=fixed, found --aug={o.aug}")
    if o.aug != "ada" and o.target is not None:
        raise UserError(f"--target goes with --aug=ada, found --aug={o.aug}")
    if o.aug == "noaug" and o.augpipe is not None:
        raise UserError("--augpipe goes with --aug=ada or --aug=fixed, found --aug=noaug")
    if o.fp32 and o.precision not in ("auto", "fp32"):
        raise UserError(f"--fp32=true contradicts --precision={o.precision}; give one of them")
    if o.precision in ("fp16", "tf32") and device.type != "cuda":
        raise UserError(f"--precision={o.precision} needs CUDA, the device is {device.type}; use fp32 or bf16")
    if o.precision == "bf16" and device.type == "mps":
        raise UserError("--precision=bf16 is not supported on mps, use fp32")
    if o.objective == "relativistic" and o.aug == "ada":
        raise UserError("--objective=relativistic gives D's scores no zero, and --aug=ada goes by their signs; use --aug=fixed --p=P, or --aug=noaug")
    if o.subset is not None and o.subset > data.length:
        raise UserError(f"--subset={o.subset}: the data set has {data.length} images; give at most as many")
    if o.pairing_weight > 0 and data.resolution < MIN_RESOLUTION:
        found = f"{data.size[1]}x{data.size[0]}; leave it out, or convert the images to a larger size"
        raise UserError(f"--pairing-weight needs images of at least {MIN_RESOLUTION}x{MIN_RESOLUTION} pixels, the data set has {found}")
    if o.pairing_weight > 0 and o.pairing_view is not None and not is_view(o.pairing_view, data.resolution):
        allowed = f"a power of two from {MIN_RESOLUTION} to the {data.resolution} pixels of the data set"
        if data.start_grid != SQUARE:
            allowed = f"a power of two from {MIN_RESOLUTION} to {data.resolution}, which stands for the full size of this data set"
        raise UserError(f"--pairing-view={o.pairing_view} is not {allowed}")
    if "pairing_weight" not in typed and typed & PAIRING_DETAILS:  # a typed weight of 0 is the baseline of a sweep
        given = ", ".join(flag_name(name) for name in sorted(typed & PAIRING_DETAILS))
        raise UserError(f"{given} without --pairing-weight: the weight is 0, so there is no pairing network; give a weight, such as 0.05")
    if o.pairing_features and o.pairing_view is not None:
        raise UserError(f"--pairing-features=1 shows the pairing network D's features, and --pairing-view={o.pairing_view} images; give one")
    if o.pairing_extra and o.pairing_mode != "infonce":
        raise UserError(f"--pairing-extra={o.pairing_extra} needs --pairing-mode=infonce; --pairing-mode={o.pairing_mode} has no extra negatives")
    if o.pairing_near is not None and not o.pairing_extra:
        raise UserError(f"--pairing-near={o.pairing_near:g} places the negatives of --pairing-extra, which is 0; give both")
    if o.pairing_warmup is not None and o.pairing_target is not None:
        raise UserError("--pairing-warmup and --pairing-target both move the pairing weight; give one")
    if not o.cond and (of_classes := [spec.name for spec in parse_metrics(o.metrics, o.detector) if spec.protocol.needs_classes]):
        raise UserError(f"--metrics={of_classes[0]} is a figure per class, and without --cond=1 there are none; give both, or another metric")


def _batch_arithmetic(o: Options, preset: Preset, gpus: int, pairing: bool) -> tuple[int, int, int]:
    """(batch, batch_gpu, mbstd group), checked before any work starts."""
    batch = o.batch or preset.batch
    per_gpu, rest = divmod(batch, gpus)
    if rest or per_gpu == 0:
        unit = gpus * min(preset.mbstd, max(per_gpu, 1))
        raise UserError(f"--batch={batch} does not divide by --gpus={gpus}; --batch={-(-batch // unit) * unit} would")
    if o.batch_gpu is not None:
        batch_gpu = o.batch_gpu
    else:
        batch_gpu = per_gpu if o.batch is not None else min(preset.batch // preset.ref_gpus, per_gpu)
    if per_gpu % batch_gpu:
        raise UserError(f"--batch-gpu={batch_gpu}: the {per_gpu} images of each GPU (--batch={batch}, --gpus={gpus}) do not divide by it")
    mbstd = min(preset.mbstd, batch_gpu)
    if batch_gpu % mbstd:
        what = "--batch-gpu" if o.batch_gpu is not None else f"--batch={batch} with --gpus={gpus}, --batch-gpu"
        fitting = -(-batch_gpu // mbstd) * mbstd
        raise UserError(f"{what}={batch_gpu} does not divide into the minibatch-std groups of {mbstd} of --cfg={o.cfg}; {fitting} would")
    if pairing and per_gpu < 2:
        raise UserError(f"--pairing-weight needs at least 2 images per GPU to tell latents apart, found --batch={batch} with --gpus={gpus}")
    if pairing and o.pairing_mode == "binary" and batch_gpu < 2:
        raise UserError(f"--pairing-mode=binary needs at least 2 images per GPU at a time, found --batch-gpu={batch_gpu}")
    if o.ms_weight > 0 and batch_gpu < 2:
        raise UserError(f"--ms-weight needs at least 2 images per GPU at a time, found --batch-gpu={batch_gpu}")
    return batch, batch_gpu, mbstd


def _precision(o: Options, device: torch.device) -> str:
    """--precision with `auto` worked out: fp16 on CUDA, as StyleGAN2-ADA; bf16 where the CPU multiplies in it; else fp32."""
    precision = "fp32" if o.fp32 else o.precision
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "fp16"
    return "bf16" if has_fast_bfloat16(device) else "fp32"


def _low_precision(precision: str) -> EasyDict:
    """num_fp16_res, conv_clamp and the low dtype of both networks. Weights are float32 whatever the blocks compute in."""
    if precision == "fp16":
        return EasyDict(num_fp16_res=4, conv_clamp=256)
    if precision == "bf16":  # with the range of float32 there is nothing to clamp
        return EasyDict(num_fp16_res=4, conv_clamp=None, low_precision="bfloat16")
    return EasyDict(num_fp16_res=0, conv_clamp=None)


def _check_freezing(o: Options, preset: Preset, data: DataInfo) -> None:
    most = count_freezable(data.resolution, preset.d_architecture)
    if o.freezed > most:
        found = f"{data.size[1]}x{data.size[0]} images and --cfg={o.cfg}"
        raise UserError(f"--freezed={o.freezed}: for {found} D has {most} layers that can be frozen; give at most as many")


def _networks(args: EasyDict, o: Options, preset: Preset, mbstd: int, precision: str) -> None:
    width = EasyDict(channel_base=int(preset.fmaps * 32768), channel_max=preset.channel_max, **_low_precision(precision))
    blocks = EasyDict(fp16_channels_last=True) if o.nhwc else EasyDict()
    args.G_kwargs = EasyDict(
        class_name="training.networks.Generator",
        z_dim=preset.z_dim,
        w_dim=preset.w_dim,
        mapping_kwargs=EasyDict(num_layers=preset.map_layers, **({} if preset.map_lr is None else {"lr_multiplier": preset.map_lr})),
        synthesis_kwargs=EasyDict(**width, **blocks),
    )
    freeze = EasyDict(freeze_layers=o.freezed) if o.freezed else EasyDict()
    args.D_kwargs = EasyDict(
        class_name="training.networks.Discriminator",
        block_kwargs=EasyDict(**freeze, **blocks),
        mapping_kwargs=EasyDict() if preset.d_map_layers is None else EasyDict(num_layers=preset.d_map_layers),
        epilogue_kwargs=EasyDict(mbstd_group_size=mbstd),
        **width,
    )
    if preset.d_architecture != "resnet":
        args.D_kwargs.architecture = preset.d_architecture
    optimizer = EasyDict(class_name="torch.optim.Adam", lr=preset.lrate, betas=[0.0, 0.99], eps=1e-8)
    args.G_opt_kwargs, args.D_opt_kwargs = EasyDict(optimizer), EasyDict(optimizer)


def _loss(args: EasyDict, o: Options, preset: Preset) -> None:
    args.loss_kwargs = EasyDict(class_name="training.loss.StyleGAN2Loss", r1_gamma=preset.gamma if o.gamma is None else o.gamma)
    if not preset.regularize_path:
        args.loss_kwargs.update(pl_weight=0, style_mixing_prob=0)
    if o.r2_gamma > 0:
        args.loss_kwargs.r2_gamma = o.r2_gamma
    if o.objective != "logistic":
        args.loss_kwargs.objective = o.objective
    if o.ms_weight > 0:
        args.loss_kwargs.ms_weight = o.ms_weight
    if o.pairing_weight > 0:
        args.loss_kwargs.update(
            pairing_weight=o.pairing_weight,
            pairing_tau=o.pairing_tau,
            pairing_mode=o.pairing_mode,
            pairing_space=o.pairing_space,
            pairing_gather=o.pairing_gather,
        )
        if o.pairing_shuffle:
            args.loss_kwargs.pairing_shuffle = True
        if o.pairing_features:
            args.loss_kwargs.pairing_features = True
        if o.pairing_extra:
            args.loss_kwargs.update(pairing_extra=o.pairing_extra, pairing_near=INDEPENDENT if o.pairing_near is None else o.pairing_near)
        args.P_kwargs = EasyDict(class_name="pairing.network.PairingNetwork", embed_dim=o.pairing_dim)
        if o.pairing_width != 1:
            args.P_kwargs.width = o.pairing_width
        if o.pairing_view is not None:
            args.P_kwargs.view = o.pairing_view
        args.P_opt_kwargs = EasyDict(lr=o.pairing_lr or preset.lrate)
        if o.pairing_target is not None:
            args.pairing_target = o.pairing_target
        if o.pairing_warmup is not None:
            args.pairing_warmup = o.pairing_warmup


def _augmentation(args: EasyDict, o: Options, preset: Preset) -> None:
    if o.aug == "ada":
        args.ada_target = ADA_TARGET if o.target is None else o.target
    if o.aug == "fixed":
        args.augment_p = o.p
    if o.aug != "noaug":
        args.augment_kwargs = EasyDict(class_name="training.augment.AugmentPipe", **AUGPIPE_PRESETS[o.augpipe or "bgc"])
    if preset.ada_kimg != ADA_KIMG:
        args.ada_kimg = preset.ada_kimg
    if o.resume != "noresume":
        args.resume_pkl = RESUME_SOURCES.get(o.resume, o.resume)
        args.ada_kimg = RESUMED_ADA_KIMG
        args.ema_rampup = None  # the transferred average is worth keeping from the first step on


def _settle_ops(o: Options, device: torch.device) -> str:
    backend.set_policy(o.ops)
    trains = o.gpus == 1 or launched()  # or else this process starts the ranks, and would keep memory of their first GPU
    return backend.implementation(device.type, try_out=trains)


def resolve(options: Options, typed: set[str], data: DataInfo, device: torch.device, ops: str | None = None) -> EasyDict:
    """The configuration of a run, without its folder.

    Args:
        options: values of the command line, defaults filled in.
        typed: names of the options that the user gave.
        data: of the training set as found (before --subset and --mirror).
        device: where the run will be.
        ops: `native` or `reference`; None: what --ops comes to here, which is then the policy of this process and may build the native ops.

    Raises:
        UserError: options that contradict one another or the data, or a batch that does not divide.
    """
    o = options
    _check_combinations(o, typed, data, device)
    preset = for_data(PRESETS[o.cfg], math.isqrt(math.prod(data.size)), o.gpus)
    _check_freezing(o, preset, data)
    batch, batch_gpu, mbstd = _batch_arithmetic(o, preset, o.gpus, pairing=o.pairing_weight > 0)
    args = EasyDict(num_gpus=o.gpus, image_snapshot_ticks=o.snap, network_snapshot_ticks=o.snap, metrics=list(o.metrics), random_seed=o.seed)
    subset = o.subset is not None and o.subset < data.length
    args.training_set_kwargs = EasyDict(
        class_name="training.dataset.ImageFolderDataset",
        path=o.data,
        use_labels=o.cond,
        max_size=o.subset if subset else data.length,
        xflip=o.mirror,
        resolution=data.resolution if data.start_grid == SQUARE else list(data.size),
    )
    if subset:
        args.training_set_kwargs.random_seed = o.seed
    args.data_loader_kwargs = EasyDict(pin_memory=device.type == "cuda", num_workers=o.workers, prefetch_factor=2)
    precision = _precision(o, device)
    _networks(args, o, preset, mbstd, precision)
    _loss(args, o, preset)
    if data.start_grid != SQUARE:
        for kwargs in (args.G_kwargs.synthesis_kwargs, args.D_kwargs, *([args.P_kwargs] if "P_kwargs" in args else [])):
            kwargs.start_grid = list(data.start_grid)
    args.update(total_kimg=o.kimg or preset.kimg, batch_size=batch, batch_gpu=batch_gpu, ema_kimg=preset.ema_kimg, ema_rampup=preset.ema_ramp)
    _augmentation(args, o, preset)
    if o.nobench:
        args.cudnn_benchmark = False
    if o.allow_tf32 or precision == "tf32":
        args.allow_tf32 = True
    args.update(device=device.type, ops=_settle_ops(o, device) if ops is None else ops)
    args.update(graphs=graphs.choose(o.graphs, device, o.gpus, o.compile), compile=o.compile)
    args.update(precision=precision, kimg_per_tick=o.tick, keep_snapshots=o.keep)
    if o.best is not None:
        args.best_metric = o.best
    report_to(args, o.wandb)
    args.update(detector=o.detector, metric_seed=o.metric_seed)
    leading_figure(args)
    return args


def leading_figure(args: EasyDict) -> str | None:
    """The metric or figure that tells which snapshot is the best, under the name of its detector; None without metrics.

    Raises:
        UserError: --best is no metric of --metrics, and no figure of one.
    """
    specs, wanted = parse_metrics(args.metrics, args.detector), args.get("best_metric")
    if wanted is None:
        return specs[0].name if specs else None
    rest = next((figure for figure in FIGURES if wanted.endswith(figure)), "")
    for name, figure in ((wanted, ""), (wanted.removesuffix(rest), rest)):
        for spec in specs:
            if name in (spec.name, spec.protocol.name):
                return spec.name + figure
    raise UserError(f"--best={wanted} is neither one of --metrics={','.join(args.metrics) or 'none'} nor a figure of one, such as prdc50k3_coverage")


def report_to(args: EasyDict, project: str | None) -> None:
    """Puts the project of Weights & Biases that --wandb names into a configuration, or takes it out where it names none."""
    args.pop("wandb", None)
    if project not in (None, "", "none"):
        args.wandb = project


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], leave_out: Set[str] = NOT_COMPARED) -> Iterator[tuple[str, Any, Any]]:
    """What differs between two configurations, in alphabetical order: (dotted name, value found, value wanted), None for what is absent.

    Args:
        leave_out: names that do not count, at any depth.
    """
    for key in sorted((found.keys() | wanted.keys()) - leave_out):
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from ((f"{key}.{name}", a, b) for name, a, b in differences(old, new, leave_out))
        elif old != new:
            yield key, old, new


def option_of(setting: str) -> str | None:
    """The option of train.py that a dotted setting comes from, as "--pairing-weight"; None where it is not one option's."""
    last = setting.rpartition(".")[2]
    name = "mirror" if setting == "training_set_kwargs.xflip" else OPTION_OF.get(last, last)
    return flag_name(name) if name in {field.name for field in dataclasses.fields(Options)} else None
