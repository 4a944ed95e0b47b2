"""The training loop: sets a run up, steps it, and at ticks writes pictures, snapshots, metrics and states.

What a step is lives in training.state and training.phases, what it minimises in training.loss.
"""

from __future__ import annotations

import contextlib
import pathlib

import torch

from dnnlib import EasyDict, UserError
from dnnlib.log import Logger
from metrics.features import succeed_together
from metrics.registry import compute_metrics, parse_metrics
from metrics.report import stamp_line, write_line
from torch_utils import checkpoint
from torch_utils.distributed import broadcast_object, busy, gather_objects, rank, stepped
from torch_utils.ops import backend
from training import alarm
from training.config import leading_figure
from training.data_loader import StreamingLoader, open_loader, readers_explained
from training.dataset import ImageFolderDataset, data_to_compare
from training.disk import DiskWatch, predict_sizes
from training.history import STATS_FILE
from training.image_store import FolderStore
from training.memory import memory_explained
from training.pictures import GridPictures
from training.progress import Progress
from training.run_files import LOG_FILE, RunDir
from training.run_lines import NO_LINES, mark_lines, restore_lines
from training.state import TrainingState, without_class
from training.stopping import Abandoned, Stopping
from training.transfer import initialize_networks

MAX_BAD_STEPS = 50  # steps in a row with gradients that are not finite, after which a run is given up


def set_backends(args: EasyDict) -> None:
    """Makes this process compute as the configuration says: which ops, and cuDNN's and TF32's switches.

    Raises:
        UserError: the run was recorded with native ops, and there are none here.
    """
    # What `config.resolve` found out is recorded, so a continued run asks for just that. Runs of before there were native ops say "auto".
    backend.set_policy("reference" if args.get("ops", "auto") == "auto" else args.ops)
    backend.implementation(args.device)  # built or refused now, not in the middle of a step
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
        self.metrics = {parse_metrics([name], args.detector)[0].name: name for name in args.metrics}  # as results call them: as asked for
        set_backends(args)
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
        sizes = predict_sizes(self.state.trained_networks(), self.dataset.image_shape[1:], self.dataset.num_channels, len(self.dataset))
        self.disk = DiskWatch(self.run, args, sizes)
        if isinstance(self.dataset.store, FolderStore) and isinstance(self.loader, StreamingLoader):
            self.say("Reading the data set once, to know it again in a later part of this run.")
        with busy("reading the data set"):
            self.data_digest = broadcast_object(self.dataset.fingerprint() if rank() == 0 else None)
        self.pictures = GridPictures(self.dataset, self.state.G.z_dim, args.random_seed)
        self.progress = Progress(self.run, args.total_kimg)
        self.stopping = Stopping()

    def check_same_place(self) -> None:
        """Raises UserError if the ranks stand at different places: each has looked for a state itself, and one may have failed to read the last."""
        positions = gather_objects((self.state.cur_nimg, self.state.batch_idx))
        places = [f"{cur_nimg / 1e3:.1f} kimg (step {batch_idx})" for cur_nimg, batch_idx in positions]
        for number, position in enumerate(positions):
            if position != positions[0]:
                found = f"rank {number} would go on at {places[number]}, rank 0 at {places[0]}"
                raise UserError(f"{self.run.path}: {found}; start again when all machines can read the same files there")

    def restore_files(self, saved: dict | None) -> None:
        """Puts the files of the run folder back to where the state was written, or to the beginning without one."""
        if self.is_writer:
            self.run.sweep()
            lost = restore_lines(self.run.path, saved["lines"] if saved else NO_LINES, self.state.snapshot_nimg // 1000)
            if lost:
                self.say(f"Warning: {self.run / STATS_FILE} has lost {lost:,} bytes since the state was written; their lines are missing.")
        self.say(f"Continuing at {self.state.cur_nimg / 1e3:.1f} kimg." if saved else "No training state yet: starting afresh.")

    def load(self, saved: dict) -> None:
        """Takes over a state of the run folder, and leaves its files as they are.

        Raises:
            UserError: the state is not of a run with these options and this data.
        """
        if saved.get("data", self.data_digest) != self.data_digest:
            found = f"{self.dataset.path} does not hold the images and labels that {self.run.path} was trained on so far"
            raise UserError(f"{found}; restore that data set, or say with --data where it is")
        try:
            self.state.load_state_dict(saved["training"])
            self.loader.load_state_dict(saved["loader"])
            self.progress.load_state_dict(saved["progress"][rank()])
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.run.path}: its training state does not fit its options ({reason}); restore both from one copy") from error

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
        sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in state.trained_networks().items()}
        self.say(f"Training images: {len(dataset):,} of {dataset.image_shape}, label size {dataset.label_dim}")
        self.say("Parameters:      " + ", ".join(f"{name} {count:,}" for name, count in sizes.items()))
        self.say(f"Device:          {self.device}, batch {args.batch_size}, {args.batch_gpu} at a time, {args.num_gpus} process(es)")
        if state.P is not None:
            self.say(f"Pairing:         weight {args.loss_kwargs.pairing_weight:g}, {_pairing_task(args)}")
        self.say(f"Run folder:      {self.run.path}")
        if dataset.labels_in_file and not dataset.has_labels:
            self.say("Note: the data set has labels; --cond=1 would train on them.")

    # Maintenance at ticks.

    def check_ranks_agree(self) -> None:
        """Raises RuntimeError if the ranks' weights have drifted apart, which averaged gradients rule out on sound machines."""
        if self.num_ranks == 1:
            return
        for name, module in {**self.state.trained_networks(), "G_ema": self.state.G_ema}.items():
            parameters = {key: value.detach().cpu() for key, value in module.named_parameters()}
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

    def save_state(self, path: pathlib.Path) -> None:
        """Writes the training state of this moment. No rank returns before it is whole."""
        training, progress = self.state.state_dict(), gather_objects(self.progress.state_dict())
        if self.is_writer:
            saved = {"training": training, "loader": self.loader.state_dict(), "progress": progress, "data": self.data_digest}
            checkpoint.save_state(path, {**saved, "lines": mark_lines(self.run.path)})
        broadcast_object(None)

    def save_snapshot(self) -> None:
        """Writes everything of a snapshot but its metrics, which `finish_snapshot` computes, in a continued run too if they are missing."""
        state, kimg = self.state, self.state.cur_nimg // 1000
        state.share_averages()
        if self.is_writer:
            fakes = self.run / f"fakes{kimg:06d}.png"
            self.pictures.save_fakes(state.G_ema, self.device, fakes)
            self.progress.picture("fakes", fakes, state)
        self.check_ranks_agree()
        self.save_networks()
        state.snapshot_nimg = state.cur_nimg
        self.save_state(self.run.state(kimg))
        if self.is_writer:
            self.run.interrupted_state.unlink(missing_ok=True)

    def mend_snapshot(self) -> None:
        """Writes the snapshot of this moment again if it is not whole: all that it holds is in the state."""
        if self.is_writer:
            try:
                checkpoint.read_networks(self.run.snapshot(self.state.cur_nimg // 1000))
            except UserError as error:
                self.say(f"Warning: {error}; writing it again.")
                self.save_networks()

    def finish_snapshot(self) -> None:
        """Measures the snapshot of this moment as far as that is not done, and tidies up. Raises Abandoned if a signal comes before that is done."""
        snapshot = self.run.snapshot(self.state.cur_nimg // 1000)
        missing = broadcast_object(self.run.unmeasured(self.state.cur_nimg // 1000, self.metrics))
        if missing:
            with self.stopping.abandonable():
                lines = self.evaluate([self.metrics[name] for name in missing])
            for line in lines if self.is_writer else []:
                write_line(stamp_line(line, snapshot, self.run.path), self.run.path)
                for key, value in line["results"].items():
                    self.progress.metric(key, value, self.state)
                    print(f"{key} {value:.4f}  ({line['total_time_str']})", flush=True)
        self.watch()
        if self.is_writer:
            self.run.prune(self.args.keep_snapshots, self.leading_metric)
            self.run.mark_best(self.leading_metric)
            self.say_space()

    def evaluate(self, names: list[str]) -> list[dict]:
        """The result lines of metrics of G_ema. One that fails is a warning: training is worth more than a figure.

        Raises:
            UserError: one of several ranks fails where the others do not; the state of this snapshot is written.
        """
        args = self.args

        def make_dataset(**overrides):
            return data_to_compare(**{**without_class(args.training_set_kwargs), **overrides}, store=self.dataset.store)

        def warn(name: str, error: Exception) -> None:
            self.say(f"Warning: the metric {name} failed: {error}")

        try:
            succeed_together(self.dataset.check_unchanged)
            return compute_metrics(
                names,
                G=self.state.G_ema,
                dataset=self.dataset,
                make_dataset=make_dataset,
                device=self.device,
                detector=args.detector,
                metric_seed=args.metric_seed,
                on_failure=warn,
            )
        except Exception as error:  # whatever goes wrong in a detector that the user brought, too
            if self.stopping.requested:  # another rank has left
                raise Abandoned(self.stopping.requested) from error
            if self.num_ranks > 1 and not isinstance(error, UserError):  # which all ranks meet alike; else they may wait for this one
                raise UserError(f"measuring {', '.join(names)} failed on rank {rank()}: {error}") from error
            warn(", ".join(names), error)
            return []

    def watch(self) -> None:
        """Tells of alarms that began or ended with this evaluation."""
        for line in alarm.watch(self.run, self.args, self.state.cur_nimg // 1000) if self.is_writer else []:
            self.say(line)

    def check_finite(self) -> None:
        """Warns of gradients that were not finite since the last tick.

        Raises:
            UserError: the last `MAX_BAD_STEPS` steps all had some, or weights are not finite; names the last good snapshot.
        """
        state, now = self.state, int(self.state.nonfinite)
        if now == state.told_nonfinite:
            return
        self.say(f"Warning: {now - state.told_nonfinite:,} gradient values of this tick were not finite; they were set to 0 or +-1e5.")
        broken = [name for module in state.trained_networks().values() for name, p in module.named_parameters() if not torch.isfinite(p).all()]
        streak = int(state.bad_streak)
        if broken or streak >= MAX_BAD_STEPS:
            what = f"weights are not finite ({broken[0]})" if broken else f"gradients were not finite for {streak} steps in a row"
            good = self.run.snapshots()
            raise UserError(f"training diverged: {what}; the last good snapshot is {self.run.snapshot(good[-1]) if good else 'none'}")

    def end_tick(self, at_snapshot: bool) -> None:
        """Tells of a tick and, at snapshots, writes and measures one."""
        self.progress.tick(self.state)
        self.check_finite()
        self.state.told_nonfinite = int(self.state.nonfinite)
        self.state.cur_tick += 1
        if at_snapshot:
            with busy("a snapshot"):
                self.save_snapshot()
                self.finish_snapshot()
        self.progress.next_tick()

    def loop(self) -> int:
        """Trains until total_kimg, from wherever the state stands; returns 0, or the signal that asked for an end before."""
        args, state = self.args, self.state
        with self.progress.boards(state):
            if state.cur_nimg == 0:
                self.progress.begin()
            if state.snapshot_nimg == state.cur_nimg:
                with busy("a snapshot"):
                    self.mend_snapshot()
                    self.finish_snapshot()
                self.progress.next_tick()
            done = state.cur_nimg >= args.total_kimg * 1000
            while not done:
                state.step(*next(self.loader))
                stepped(f"{state.cur_nimg / 1e3:.1f} kimg")
                self.progress.live(state)
                done = state.cur_nimg >= args.total_kimg * 1000
                at_tick = done or state.cur_tick == 0 or state.cur_nimg >= self.progress.tick_nimg + args.kimg_per_tick * 1000
                at_snapshot = at_tick and (done or state.cur_tick % args.network_snapshot_ticks == 0)
                if at_tick:
                    self.end_tick(at_snapshot)
                if stop := self.stopping.agreed():
                    if not at_snapshot:
                        self.check_finite()
                        with busy("a state"):
                            self.save_state(self.run.interrupted_state)
                    return stop
        return 0


def _pairing_task(args: EasyDict) -> str:
    """What the pairing network has to tell, in words."""
    kwargs = args.loss_kwargs
    if kwargs.pairing_mode == "binary":
        return "a latent is either that of an image or another"
    latents = args.batch_size // (1 if kwargs.pairing_gather else args.num_gpus) + kwargs.get("pairing_extra", 0)
    return f"the latent of an image is one of {latents:,}"


def training_loop(args: EasyDict, device: torch.device, num_ranks: int, continued: bool = False) -> int:
    """Runs a training from its configuration, or goes on with it.

    Args:
        args: configuration with `run_dir`, the folder to make or, if continued, to go on in.
        device: of this rank.
        num_ranks: processes that train together.
        continued: the folder is there; look for a state in it first.

    Returns:
        0, or the number of the signal after which all ranks have ended together, with a state of that moment.

    Raises:
        Abandoned: a signal has ended this rank while it measured a snapshot, whose state is there.
        UserError: bad data, a foreign network or state, before anything is written where it can be known before; no memory, no room on the disk.
    """
    trainer = Trainer(args, device, num_ranks)
    saved = trainer.run.last_state() if continued else None
    transferred = initialize_networks(trainer.state, args.get("resume_pkl")) if saved is None else []
    if not continued:
        trainer.disk.check_start()
    if trainer.is_writer and not continued:
        RunDir.create(args)
    broadcast_object(None)  # the folder is there before anyone looks into it
    with contextlib.ExitStack() as stack:
        if trainer.is_writer:
            stack.enter_context(trainer.run.hold())
            stack.enter_context(Logger(trainer.run / LOG_FILE))
            trainer.run.set_options(args)
        stack.enter_context(trainer.stopping)
        trainer.describe()
        for line in transferred:
            trainer.say(line)
        if saved is not None:
            trainer.load(saved)
        trainer.check_same_place()  # before files are put back to one of the places; also with a rank that has not seen that there is a run
        if continued:
            trainer.restore_files(saved)
        trainer.say_space()
        if trainer.is_writer and trainer.state.cur_nimg == 0:
            trainer.pictures.save_reals(trainer.run / "reals.png")
            trainer.pictures.save_fakes(trainer.state.G_ema, device, trainer.run / "fakes_init.png")
        abandoned = None
        try:
            with memory_explained(args, device), readers_explained():
                stop = trainer.loop()
        except Abandoned as error:
            abandoned, stop = error, error.number
        trainer.say(f"Stopped at {trainer.state.cur_nimg / 1e3:.1f} kimg, to go on with --continue-run={args.run_dir}" if stop else "Done.")
        trainer.loader.close()
    if abandoned is not None:
        raise abandoned
    return stop
