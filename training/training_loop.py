"""The training loop: sets a run up, steps it, and at ticks writes pictures, snapshots, metrics and states.

What a step is lives in training.state and training.phases, what it minimises in training.loss.
"""

from __future__ import annotations

import contextlib
import time

import torch

from dnnlib import EasyDict, UserError
from dnnlib.download import fetch
from dnnlib.log import Logger
from metrics.registry import compute_metrics
from metrics.report import stamp_line, write_line
from torch_utils import checkpoint
from torch_utils.distributed import rank
from torch_utils.ops import backend
from training.data_loader import open_loader
from training.dataset import ImageFolderDataset
from training.networks import load_network
from training.pictures import GridPictures
from training.progress import Progress
from training.run_files import RunDir
from training.state import TrainingState, copy_matching, without_class


def _set_backends(args: EasyDict) -> None:
    backend.set_policy(args.get("ops", "auto"))
    torch.backends.cudnn.benchmark = args.get("cudnn_benchmark", True)
    torch.backends.cuda.matmul.allow_tf32 = args.get("allow_tf32", False)
    torch.backends.cudnn.allow_tf32 = args.get("allow_tf32", False)


def transfer(state: TrainingState, source: str) -> None:
    """Starts from the networks of a file or URL (--resume): copies what fits and says what does not.

    Raises:
        UserError: the source cannot be read or has nothing that fits.
    """
    networks = load_network(fetch(source))
    for name in ("G", "D", "G_ema"):
        if name not in networks:
            raise UserError(f"--resume={source}: the file holds no network {name!r}")
        target = getattr(state, name)
        copied, left = copy_matching(networks[name], target)
        if not copied:
            raise UserError(f"--resume={source}: no tensor of its {name} fits this configuration")
        print(f"Resumed {name}: {len(copied)} tensors" + (f", left at their start: {', '.join(left)}" if left else ""))


class Trainer:
    """One run on one rank.

    Args:
        args: configuration as made by `training.config.resolve`, with `run_dir`.
        device: of this rank.
        num_ranks: processes of the run.
    """

    def __init__(self, args: EasyDict, device: torch.device, num_ranks: int):
        self.args, self.device, self.run = args, device, RunDir(args.run_dir)
        self.is_writer = rank() == 0
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
        self.pictures = GridPictures(self.dataset, self.state.G.z_dim, args.random_seed)

    def restore(self) -> float:
        """Goes on from the last state of the run folder, if there is one; returns the seconds that the run took before."""
        saved = self.run.last_state()
        if saved is None:
            self.say("No training state yet: starting afresh.")
            if self.is_writer:
                self.run.cut_lines({})
            return 0.0
        self.state.load_state_dict(saved["training"])
        self.loader.load_state_dict(saved["loader"])
        if self.is_writer:
            self.run.cut_lines(saved["line_sizes"])
        self.say(f"Continuing at {self.state.cur_nimg / 1e3:.1f} kimg.")
        return saved["seconds"]

    def say(self, text: str) -> None:
        """Prints on rank 0."""
        if self.is_writer:
            print(text, flush=True)

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
            self.run.prune(self.args.keep_snapshots, next(iter(self.args.metrics), None))

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
        except (UserError, OSError, RuntimeError, ValueError) as error:
            warn(", ".join(args.metrics), error)
            return
        for line in lines if self.is_writer else []:
            write_line(stamp_line(line, self.run.snapshot(self.state.cur_nimg // 1000), self.run.path), self.run.path)
            for key, value in line["results"].items():
                progress.metric(key, value, self.state)
                print(f"{key} {value:.4f}  ({line['total_time_str']})", flush=True)

    def check_finite(self, before: int) -> int:
        """Stops a run whose gradients have gone bad: more than one value in a tick is not finite in every one of its steps.

        Raises:
            UserError: naming the last good snapshot.
        """
        now = int(self.state.nonfinite)
        if now == before:
            return now
        self.say(f"Warning: {now - before:,} gradient values of this tick were not finite; they were set to 0 or +-1e5.")
        broken = [name for name, p in self.state.G.named_parameters() if not torch.isfinite(p).all()]
        broken += [name for name, p in self.state.D.named_parameters() if not torch.isfinite(p).all()]
        if broken:
            good = self.run.snapshots()
            last = self.run.snapshot(good[-1]) if good else "none"
            raise UserError(f"training diverged: weights are not finite ({broken[0]}); the last good snapshot is {last}")
        return now

    def loop(self, seconds_before: float) -> None:
        """Trains until total_kimg, from wherever the state stands."""
        args, state = self.args, self.state
        progress = Progress(self.run, args.total_kimg, seconds_before)
        progress.open_board()
        tick_nimg = state.cur_nimg
        nonfinite = 0
        done = state.cur_nimg >= args.total_kimg * 1000
        while not done:
            state.step(*next(self.loader))
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
                if self.is_writer:
                    self.pictures.save_fakes(state.G_ema, self.device, self.run / f"fakes{state.cur_nimg // 1000:06d}.png")
                self.save_networks()
                self.evaluate(progress)
                self.save_state(progress.seconds())
            progress.next_tick(tick_end)
        progress.close()


def training_loop(args: EasyDict, device: torch.device, num_ranks: int, continued: bool = False) -> None:
    """Runs a training from its configuration, or goes on with it.

    Args:
        args: configuration with `run_dir`, an existing folder with its options.
        device: of this rank.
        num_ranks: processes that train together.
        continued: look for a state in the folder first.

    Raises:
        UserError: bad data or a foreign state; before training starts where it can be known before.
    """
    log = Logger(RunDir(args.run_dir) / "log.txt") if rank() == 0 else contextlib.nullcontext()
    with log:
        trainer = Trainer(args, device, num_ranks)
        trainer.describe()
        seconds = trainer.restore() if continued else 0.0
        if trainer.state.cur_nimg == 0:
            if "resume_pkl" in args:
                transfer(trainer.state, args.resume_pkl)
            if trainer.is_writer:
                trainer.pictures.save_reals(trainer.run / "reals.png")
                trainer.pictures.save_fakes(trainer.state.G_ema, device, trainer.run / "fakes_init.png")
        trainer.loop(seconds)
        trainer.say("Done.")
        trainer.loader.close()
