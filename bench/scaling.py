"""Scale-out, measured on this machine's CPU: what the exchange between two ranks adds to a step. One JSON line.

    python -m bench.scaling --cfg=cifar-small --json

Two processes of one thread each train the same preset, in turn each alone (the same contention for the machine, and no messages) and
together through gloo. Beside the whole steps, the gradients' message and the latents' message are timed on their own. docs/scaling.md makes
expected times for more ranks from figures like these.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bench.train_speed import Runner, build_state, phase_times, step_seconds
from dnnlib import EasyDict
from dnnlib.cli import run_command
from pairing.negatives import LatentGather
from torch_utils.distributed import leave, sum_over_ranks_
from training.options import Options
from training.presets import PRESETS
from training.state import TrainingState

RANKS = 2
CPU = torch.device("cpu")


def expected_step(compute: float, megabytes: float, messages: float, ranks: int, bandwidth: float, latency: float = 5e-6) -> float:
    """Seconds of a step of `ranks` GPUs: compute, then ring all-reduces with nothing overlapped (the formula of docs/scaling.md).

    Args:
        compute: seconds of a step of one GPU at its share of the batch.
        megabytes, messages: gradients exchanged in a step, 10^6 bytes, and in how many messages.
        bandwidth: of the slowest link of the ring, per direction, 10^9 bytes per second.
        latency: seconds from one GPU to the next.
    """
    transfer = 2 * (ranks - 1) / ranks * megabytes * 1e-3 / bandwidth
    return compute + transfer + messages * 2 * (ranks - 1) * latency


def gradient_sizes(state: TrainingState) -> dict[str, int]:
    """Numbers in the gradient message of each phase."""
    return {phase.name: sum(p.numel() for module in phase.modules for p in module.parameters()) for phase in state.phases}


def sizes_per_step(sizes: dict[str, int], state: TrainingState) -> float:
    """Numbers that an average step exchanges, lazy phases at their share."""
    return sum(sizes[phase.name] / phase.interval for phase in state.phases)


def seconds_of(function: Callable[[], None], repeats: int) -> float:
    """Median seconds of one call; all ranks begin each together."""
    times = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure_rank(rank: int, group: str, options: Options, resolution: int, repeats: int) -> EasyDict:
    """This rank's figures. Groups are joined at the URLs `group`0, `group`1, ... and left again, the last one only by the caller."""
    state = build_state(options, resolution, True, CPU)
    alone, together = [], []
    for number in range(repeats):
        leave()
        alone.append(step_seconds(state, phase_times(state, 1)))
        dist.init_process_group("gloo", init_method=f"{group}{number}", rank=rank, world_size=RANKS)
        together.append(step_seconds(state, phase_times(state, 1)))
    sizes = gradient_sizes(state)
    exchange = {name: seconds_of(lambda n=size: sum_over_ranks_(torch.zeros(n)), repeats) for name, size in sizes.items()}
    figures = EasyDict(
        compute_sec=statistics.median(alone),
        step_sec=statistics.median(together),
        step_over_compute=statistics.median(b / a for a, b in zip(alone, together)),
        gradient_floats=sizes,
        gradient_mb_per_step=4e-6 * sizes_per_step(sizes, state),
        exchange_sec=exchange,
        exchange_sec_per_step=sizes_per_step(exchange, state),
    )
    if options.pairing_weight > 0:
        rows = torch.randn(state.args.batch_gpu, options.pairing_dim)
        figures.gather_sec = seconds_of(lambda: LatentGather(rows).finish(), repeats)
        figures.gather_cost_in_step_sec = gather_cost(state, repeats)
    return figures


def gather_cost(state: TrainingState, repeats: int) -> float:
    """What the latents' messages add to the generator's phase: the median difference between runs with and without them, in turn."""
    runner, phase, differences = Runner(state), state.phases[0], []
    for _ in range(repeats + 1):
        times = []
        for state.loss.pairing.gather in (True, False):
            dist.barrier()
            times.append(runner.phase(phase))
        differences.append(times[0] - times[1])
    state.loss.pairing.gather = True
    return statistics.median(differences[1:])


def _rank(rank: int, options: Options, resolution: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    figures = measure_rank(rank, f"file://{folder}/group", options, resolution, repeats)
    if rank == 0:
        with open(f"{folder}/figures.json", "w", encoding="utf-8") as handle:
            json.dump(figures, handle)
    leave()


def measure(options: Options, resolution: int, repeats: int) -> EasyDict:
    """The benchmark's figures, those of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(options, resolution, repeats, folder), nprocs=RANKS)
        with open(f"{folder}/figures.json", encoding="utf-8") as handle:
            figures = EasyDict(json.load(handle))
    batch = options.batch or PRESETS[options.cfg].batch
    return EasyDict(bench="scaling", cfg=options.cfg, ranks=RANKS, batch_per_rank=batch, torch=torch.__version__, **figures)


@click.command()
@click.option("--cfg", type=click.Choice([name for name in PRESETS if PRESETS[name].batch]), default="cifar-small", show_default=True, help="preset")
@click.option("--batch", type=click.IntRange(min=2), default=None, help="images per step and rank  [default: preset]")
@click.option("--resolution", type=int, default=32, show_default=True, help="image size")
@click.option("--pairing-weight", type=click.FloatRange(min=0), default=0.05, show_default=True, help="0: without the latents' message")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="runs of each part; the median counts")
@click.option("--json", "as_json", is_flag=True, help="one JSON line instead of a table")
def main(cfg, batch, resolution, pairing_weight, repeats, as_json) -> None:
    """Measure compute, gradient exchange and gathering of negatives on two ranks of one CPU thread each."""
    options = Options(cfg=cfg, data="random", cond=True, precision="fp32", batch=batch, aug="noaug", pairing_weight=pairing_weight)
    figures = measure(options, resolution, repeats)
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:26s} {value}")


if __name__ == "__main__":
    run_command(main)
