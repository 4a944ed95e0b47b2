"""Training speed per phase, against the machine's convolution rate. One JSON line per configuration.

    python -m bench.train_speed --cfg=cifar-small --device=cpu --precision=fp32 --json

`conv_peak_fraction` is the useful arithmetic of StyleGAN2-ADA's training step, divided by the time it took and by the rate
of a float32 convolution measured in the same process (bench.conv_rate), once before and once after, since machines drift: the mean of both
counts. A step is what the training loop does to one batch, with the lazy phases counted at their share; fetching the batch is left out.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import sys
import time

import click
import numpy as np
import torch

from bench.conv_rate import conv_rate, synchronize
from dnnlib import EasyDict, UserError
from dnnlib.cli import run_command
from training import config
from training.ema import ema_beta, update_ema
from training.graphs import WARM_UP
from training.options import PRECISIONS, Options
from training.phases import Phase
from training.presets import PRESETS
from training.state import TrainingState
from training.training_loop import set_backends

# The public algorithm's count at 32x32: 40.2 for the G phase, 56.2 for the D phase, and a 16th of R1. cifar-small has an eighth of the width.
USEFUL_GFLOP = {"cifar": 99.0, "cifar-small": 99.0 / 64}
CLASSES = 10
PAIRING_ROUNDS = 6  # times --repeats: how often the generator phase is run with and without pairing
IMAGES = 256


class RandomImages:
    """As much of a data set as the training state asks for: random bytes with random labels."""

    def __init__(self, resolution: int, channels: int, label_dim: int):
        self.resolution, self.num_channels, self.label_dim = resolution, channels, label_dim

    def __len__(self) -> int:
        return IMAGES

    @property
    def classes(self) -> np.ndarray | None:
        """The class of every image, int64; None without labels."""
        return np.arange(IMAGES) % self.label_dim if self.label_dim else None

    def get_labels(self, indices: np.ndarray) -> np.ndarray:
        """One-hot labels, float32 [len(indices), label_dim]."""
        return np.eye(max(self.label_dim, 1), dtype=np.float32)[np.asarray(indices) % max(self.label_dim, 1)][:, : self.label_dim]


def build_state(options: Options, resolution: int, cond: bool, device: torch.device) -> TrainingState:
    """A training state of random weights for random images, in a process that computes as a training does."""
    label_dim = CLASSES if cond else 0
    info = config.DataInfo("random", IMAGES, resolution, 3, label_dim, cond)
    typed = {"pairing_weight"} if options.pairing_weight else set()
    args = config.resolve(options, typed, info, device)
    set_backends(args)
    return TrainingState(args, RandomImages(resolution, 3, label_dim), device)


class Runner:
    """Runs single phases of a training state on one batch of random images."""

    def __init__(self, state: TrainingState):
        args, device = state.args, state.device
        size = [args.batch_size, state.D.img_channels, state.D.img_resolution, state.D.img_resolution]
        self.state, self.real = state, torch.randn(size, device=device)
        self.labels = state.labels[torch.arange(args.batch_size, device=device) % IMAGES]

    def phase(self, phase: Phase) -> float:
        """Seconds of one run of a phase."""
        state = self.state
        z, c = state.draw(len(self.real))
        return self._timed(lambda: state.run_phase(phase, (self.real, self.labels, z, c)))

    def average(self) -> float:
        """Seconds of one update of the moving average."""
        args, state = self.state.args, self.state
        return self._timed(lambda: update_ema(state.G_ema, state.G, ema_beta(args.batch_size, 0, args.ema_kimg, args.ema_rampup)))

    def _timed(self, function) -> float:
        synchronize(self.state.device)
        start = time.perf_counter()
        function()
        synchronize(self.state.device)
        return time.perf_counter() - start


def phase_times(state: TrainingState, repeats: int) -> dict[str, list[float]]:
    """Seconds of each phase, and of the moving average, in turn; the first run of each is not counted, nor are those before a graph is there."""
    runner, uncounted = Runner(state), 1 if state.graphs is None else WARM_UP + 1
    times: dict[str, list[float]] = {phase.name: [] for phase in state.phases} | {"ema": []}
    for _ in range(uncounted + repeats):
        for phase in state.phases:
            times[phase.name].append(runner.phase(phase))
        times["ema"].append(runner.average())
    return {name: values[uncounted:] for name, values in times.items()}


def step_seconds(state: TrainingState, times: dict[str, list[float]]) -> float:
    """Seconds of an average step: medians, lazy phases at their share."""
    intervals = {phase.name: phase.interval for phase in state.phases}
    return sum(statistics.median(values) / intervals.get(name, 1) for name, values in times.items())


def measure(options: Options, resolution: int, cond: bool, device: torch.device, repeats: int) -> EasyDict:
    """The benchmark's figures; with a pairing weight also the cost of pairing."""
    state = build_state(options, resolution, cond, device)
    phase_times(state, 1)
    peak = peak_memory_gb(device)  # before the yardstick, which may need more
    rate_before = conv_rate(device)
    times = phase_times(state, repeats)
    rate = statistics.mean([rate_before, conv_rate(device)])
    step = step_seconds(state, times)
    batch = state.args.batch_size
    useful = USEFUL_GFLOP.get(options.cfg) if resolution == 32 else None
    figures = EasyDict(
        bench="train_speed",
        cfg=options.cfg,
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        precision=state.args.precision,
        ops=state.args.ops,
        graphs=state.args.graphs,
        aug=options.aug,
        p=options.p,
        batch=batch,
        sec_per_kimg=step / batch * 1000,
        phase_seconds={name: statistics.median(values) for name, values in times.items()},
        images_per_sec=batch / step,
        conv_gflops=rate / 1e9,
        useful_gflop_per_image=useful,
        conv_peak_fraction=None if useful is None else useful * 1e9 * batch / step / rate,
        peak_memory_gb=peak,
    )
    if options.pairing_weight > 0:
        plain = build_state(dataclasses.replace(options, pairing_weight=0.0), resolution, cond, device)
        plain_step = step_seconds(plain, phase_times(plain, repeats))
        figures.pairing_cost = pairing_cost(state, plain, plain_step, PAIRING_ROUNDS * repeats)
    return figures


def pairing_cost(paired: TrainingState, plain: TrainingState, plain_step: float, repeats: int) -> float:
    """What pairing adds to a step, as a share of a step without it.

    Only the generator phase differs: it is run with and without in turn, so that a change of the machine's speed meets both, and the
    median difference counts.
    """
    runners = Runner(paired), Runner(plain)
    pairs = [tuple(runner.phase(runner.state.phases[0]) for runner in runners) for _ in range(repeats + 1)]
    return statistics.median(a - b for a, b in pairs[1:]) / plain_step


def peak_memory_gb(device: torch.device) -> float:
    """The most memory used so far: of the process, or of the GPU, with what CUDA graphs hold; of Apple's GPUs what the driver holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


@click.command()
@click.option("--cfg", type=click.Choice(list(PRESETS)), default="cifar-small", show_default=True, help="preset")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="as train.py")
@click.option("--batch", type=click.IntRange(min=1), default=None, help="images per step  [default: preset]")
@click.option("--aug", type=click.Choice(["noaug", "ada"]), default="noaug", show_default=True, help="ada: with the probability held at --p")
@click.option("--p", type=click.FloatRange(0, 1), default=None, help="augmentation probability, with --aug=ada")
@click.option("--pairing-weight", type=click.FloatRange(min=0), default=0.0, show_default=True, help="also prints the cost of pairing")
@click.option("--cond", type=bool, default=True, show_default=True, help="with ten labels")
@click.option("--resolution", type=int, default=32, show_default=True, help="image size")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="runs of each phase; the median counts")
@click.option("--json", "as_json", is_flag=True, help="one JSON line instead of a table")
def main(cfg, device, precision, batch, aug, p, pairing_weight, cond, resolution, repeats, as_json) -> None:
    """Measure the training speed of a preset."""
    if (aug == "ada") != (p is not None):
        raise UserError("--aug=ada and --p go together: the probability is held at --p")
    fixed = {"aug": "fixed", "p": p} if aug == "ada" else {"aug": "noaug"}
    options = Options(cfg=cfg, data="random", cond=cond, precision=precision, batch=batch, pairing_weight=pairing_weight, **fixed)
    figures = measure(options, resolution, cond, config.choose_device(device), repeats)
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24s} {value}")


if __name__ == "__main__":
    run_command(main)
