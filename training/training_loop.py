"""The training loop: sets a run up, steps it, and at ticks writes pictures, snapshots, metrics and states.

What a step is lives in training.state and training.phases, what it minimises in training.loss.
"""

from __future__ import annotations

import contextlib
import time

import torch

from dnnlib import EasyDict, UserError
from dnnlib.log import Logger
from metrics.registry import compute_metrics
from metrics.report import stamp_line, write_line
from torch_utils import checkpoint
from torch_utils.distributed import broadcast_object, busy, gather_objects, rank, stepped
from torch_utils.ops import backend
from training import alarm
from training.config import leading_figure
from training.data_loader import open_loader
from training.dataset import ImageFolderDataset
from training.disk import DiskWatch, predict_sizes
from training.pictures import GridPictures
from training.progress import Progress
from training.run_files import RunDir
from training.state import TrainingState, without_class
from training.transfer import begin

MAX_BAD_STEPS = 50  # steps on end with gradients that are not finite, after which a run is given up


def _set_backends(args: EasyDict) -> None:
    # What `config.resolve` found out is recorded, so a continued run asks for just that. Runs of before there were native ops say "auto".
    backend.set_policy("reference" if args.get("ops", "auto") == "auto" else args.ops)
    backend.used(args.device)  # built or refused now, not in the middle of a step
    torch.backends.cudnn.benchmark = args.get("cudnn_benchmark", True)
    torch.backends.cuda.matmul.allow_tf32 = args.get("allow_tf32", False)
    torch.backends.cudnn.allow_tf32 = args.get("allow_tf32", False)


class Trainer:
    """One run on one rank. Making it reads data and writes nothing, so that bad input leaves no run folder behind.

    Args:
        args: configuration as made by `training.config.resolve`, with `run_dir`.
        device: of this rank.
        num_ranks: processes of the run.
    """

    def __init__(self, args: EasyDict, device: torch.device, num_ranks: int):
        self.args, self.device, self.run = args, device, RunDir(args.run_dir)
        self.num_ranks, self.is_writer = num_ranks, rank() == 0
        self.leading_metric = leading_figure(args)
        _set_backends(args)
        self.dataset = ImageFolderDataset(**without_class(args.training_set_kwargs))
        self.state = TrainingState(args, self.dataset, device)
        self.loader = open_loader(
            self.dataset,
            args.batch_size // num_ranks,
            device,
            seed=args.random_seed,
            rank=rank(),
            num_replicas=num_ranks,
            workers=args.data_loader_kwargs.num_workers,
        )
        networks = {name: module for name, module in (("G", self.state.G), ("D", self.state.D), ("P", self.state.P)) if module is not None}
        sizes = predict_sizes(networks, self.dataset.resolution, self.dataset.num_channels, len(self.dataset))
        self.disk = DiskWatch(self.run, args, sizes)
        self.pictures = GridPictures(self.dataset, self.state.G.z_dim, args.random_seed)

    def restore(self, saved: dict | None) -> float:
        """Goes on from a state of the run folder, or afresh in it without one; returns the seconds that the run took before.

        Raises:
            UserError: the state is not of a run with these options.
        """
        try:
            if saved is not None:
                self.state.load_state_dict(saved["training"])
                self.loader.load_state_dict(saved["loader"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"--continue-run={self.run.path}: the training state does not fit the options of the run: {reason}") from error
        if self.is_writer:
            self.run.sweep()
            self.run.cut_lines({} if saved is None else saved["line_sizes"])
        if saved is None:
            self.say("No training state yet: starting afresh.")
            return 0.0
        self.say(f"Continuing at {self.state.cur_nimg / 1e3:.1f} kimg.")
        return saved["seconds"]

    def say(self, text: str) -> None:
        """Prints on rank 0."""
        if self.is_writer:
            print(text, flush=True)

    def say_space(self) -> None:
        """Warns if the rest of the run does not fit the disk."""
        for line in self.disk.look(self.state.cur_nimg) if self.is_writer else []:
            self.say(line)

    def describe(self) -> None:
        """Prints what will be trained."""
        args, dataset, state = self.args, self.dataset, self.state
        sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in (("G", state.G), ("D", state.D), ("P", state.P)) if m is not None}
        self.say(f"Training images: {len(dataset):,} of {dataset.image_shape}, label size {dataset.label_dim}")
        self.say("Parameters:      " + ", ".join(f"{name} {count:,}" for name, count in sizes.items()))
        self.say(f"Device:          {self.device}, batch {args.batch_size}, {args.batch_gpu} at a time, {args.num_gpus} process(es)")
        self.say(f"Run folder:      {self.run.path}")
        if dataset.labels_in_file and not dataset.has_labels:
            self.say("Note: the data set has labels; --cond=1 would train on them.")

    # Maintenance at ticks.

    def check_ranks_agree(self) -> None:
        """Raises RuntimeError if the ranks' weights have drifted apart, which averaged gradients rule out on sound machines."""
        networks = {"G": self.state.G, "D": self.state.D, "G_ema": self.state.G_ema, "P": self.state.P}
        for name, module in networks.items() if self.num_ranks > 1 else ():
            parameters = {key: value.detach().cpu() for key, value in module.named_parameters()} if module is not None else {}
            digests = gather_objects(checkpoint.tensors_digest(parameters))
            if len(set(digests)) > 1:
                raise RuntimeError(f"the ranks hold different weights of {name} at {self.state.cur_nimg / 1e3:.1f} kimg; a device or link is faulty")

    def save_networks(self) -> None:
        """Writes the snapshot of this moment."""
        args, kimg = self.args, self.state.cur_nimg // 1000
        meta = {"training_set_kwargs": args.training_set_kwargs, "cur_nimg": self.state.cur_nimg}
        if "augment_kwargs" in args:
            meta["augment_pipe"] = {"kwargs": without_class(args.augment_kwargs), "p": float(self.state.augment_pipe.p)}
        if self.is_writer:
            checkpoint.save_networks(self.run.snapshot(kimg), self.state.network_records(), meta)

    def save_state(self, seconds: float) -> None:
        """Writes the training state of this moment and tidies up behind it."""
        training = self.state.state_dict()
        if self.is_writer:
            saved = {"training": training, "loader": self.loader.state_dict(), "line_sizes": self.run.line_sizes(), "seconds": seconds}
            checkpoint.save_state(self.run.state(self.state.cur_nimg // 1000), saved)
            self.run.prune(self.args.keep_snapshots, self.leading_metric)
            self.run.mark_best(self.leading_metric)
            self.say_space()

    def evaluate(self, progress: Progress) -> None:
        """Runs the metrics on G_ema. One that fails is a warning: training is worth more than a figure."""
        args = self.args
        if not args.metrics:
            return

        def make_dataset(**overrides):
            return ImageFolderDataset(**{**without_class(args.training_set_kwargs), **overrides})

        def warn(name: str, error: Exception) -> None:
            self.say(f"Warning: the metric {name} failed: {error}")

        try:
            lines = compute_metrics(
                args.metrics,
                G=self.state.G_ema,
                dataset=self.dataset,
                make_dataset=make_dataset,
                device=self.device,
                detector=args.detector,
                metric_seed=args.metric_seed,
                on_failure=warn,
            )
        except Exception as error:  # whatever goes wrong in a detector that the user brought, too
            warn(", ".join(args.metrics), error)
            return
        for line in lines if self.is_writer else []:
            write_line(stamp_line(line, self.run.snapshot(self.state.cur_nimg // 1000), self.run.path), self.run.path)
            for key, value in line["results"].items():
                progress.metric(key, value, self.state)
                print(f"{key} {value:.4f}  ({line['total_time_str']})", flush=True)

    def watch(self) -> None:
        """Tells of alarms that began or ended with this evaluation."""
        for line in alarm.watch(self.run, self.args, self.state.cur_nimg // 1000) if self.is_writer else []:
            self.say(line)

    def check_finite(self, before: int) -> int:
        """Warns of gradients that were not finite since the count was `before`; returns the count now.

        Raises:
            UserError: the last `MAX_BAD_STEPS` steps all had some, or weights are not finite; names the last good snapshot.
        """
        now, streak = int(self.state.nonfinite), int(self.state.bad_streak)
        if now == before:
            return now
        self.say(f"Warning: {now - before:,} gradient values of this tick were not finite; they were set to 0 or +-1e5.")
        parameters = [*self.state.G.named_parameters(), *self.state.D.named_parameters()]
        broken = [name for name, p in parameters if not torch.isfinite(p).all()]
        if broken or streak >= MAX_BAD_STEPS:
            what = f"weights are not finite ({broken[0]})" if broken else f"gradients were not finite for {streak} steps on end"
            good = self.run.snapshots()
            raise UserError(f"training diverged: {what}; the last good snapshot is {self.run.snapshot(good[-1]) if good else 'none'}")
        return now

    def loop(self, seconds_before: float) -> None:
        """Trains until total_kimg, from wherever the state stands."""
        args, state = self.args, self.state
        progress = Progress(self.run, args.total_kimg, seconds_before)
        progress.open_boards(state)
        tick_nimg = state.cur_nimg
        nonfinite = int(state.nonfinite)
        done = state.cur_nimg >= args.total_kimg * 1000
        while not done:
            state.step(*next(self.loader))
            stepped(f"{state.cur_nimg / 1e3:.1f} kimg")
            progress.live(state)
            done = state.cur_nimg >= args.total_kimg * 1000
            if not done and state.cur_tick != 0 and state.cur_nimg < tick_nimg + args.kimg_per_tick * 1000:
                continue
            progress.tick(state, state.cur_nimg - tick_nimg)
            tick_end, tick_nimg = time.time(), state.cur_nimg
            nonfinite = self.check_finite(nonfinite)
            at_snapshot = done or state.cur_tick % args.network_snapshot_ticks == 0
            state.cur_tick += 1
            if at_snapshot:
                with busy("a snapshot"):
                    state.share_averages()
                    if self.is_writer:
                        fakes = self.run / f"fakes{state.cur_nimg // 1000:06d}.png"
                        self.pictures.save_fakes(state.G_ema, self.device, fakes)
                        progress.picture("fakes", fakes, state)
                    self.check_ranks_agree()
                    self.save_networks()
                    self.evaluate(progress)
                    self.watch()
                    self.save_state(progress.seconds())
            progress.next_tick(tick_end)
        progress.close()


def training_loop(args: EasyDict, device: torch.device, num_ranks: int, continued: bool = False) -> None:
    """Runs a training from its configuration, or goes on with it.

    Args:
        args: configuration with `run_dir`, the folder to make or, if continued, to go on in.
        device: of this rank.
        num_ranks: processes that train together.
        continued: the folder is there; look for a state in it first.

    Raises:
        UserError: bad data, a foreign network or state; before anything is written where it can be known before.
    """
    trainer = Trainer(args, device, num_ranks)
    saved = trainer.run.last_state() if continued else None
    transferred = begin(trainer.state, args.get("resume_pkl")) if saved is None else []
    if not continued:
        trainer.disk.check_start()
    if trainer.is_writer and not continued:
        RunDir.create(args)
    broadcast_object(None)  # the folder is there before anyone looks into it
    with Logger(trainer.run / "log.txt") if trainer.is_writer else contextlib.nullcontext():
        trainer.describe()
        for line in transferred:
            trainer.say(line)
        seconds = trainer.restore(saved) if continued else 0.0
        trainer.say_space()
        if trainer.is_writer and trainer.state.cur_nimg == 0:
            trainer.pictures.save_reals(trainer.run / "reals.png")
            trainer.pictures.save_fakes(trainer.state.G_ema, device, trainer.run / "fakes_init.png")
        trainer.loop(seconds)
        trainer.say("Done.")
        trainer.loader.close()
