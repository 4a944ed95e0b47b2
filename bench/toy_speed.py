"""Speed of training small GANs side by side, against one at a time in plain PyTorch, in the same process. One JSON line.

    python -m bench.toy_speed --json

A model-step is one step of D and one of G with P, at the batch of the tables, for one model. One at a time means a loop of nn.Linear, autograd and
the default Adam for each model, with 1 and with all threads; the faster of the two counts. Side by side is the trainer of
`experiments.toy` in worker processes, one per core, ten models each, as `reproduce.py` runs it.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import statistics
import time

import click
import torch
import torch.nn.functional as F
from torch import nn

from dnnlib.cli import run_command
from experiments.toy.methods import METHODS, Method, Settings
from experiments.toy.models import SLOPE, WIDTH
from experiments.toy.runner import SEEDS_PER_JOB, environment
from experiments.toy.studies import STUDIES, Study
from experiments.toy.trainer import Trainer, stream
from pairing.losses import infonce
from torch_utils.allocator import MALLOC_VARIABLES
from training import objectives

NAMES = ("GAN", "GAN+R1", "GAN+Pairing", "GAN+Pairing+R1")  # the rows of Table 1
WARM_UP = 5


def plain_mlp(in_features: int, out_features: int) -> nn.Sequential:
    """Two hidden layers, as a user would write them."""
    hidden = [nn.Linear(in_features, WIDTH), nn.LeakyReLU(SLOPE), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, out_features))


class PlainTrainer:
    """One model by the book: the same losses on nn.Linear layers with autograd throughout. Logistic objective, R1 and pairing only."""

    def __init__(self, method: Method, settings: Settings):
        self.method, self.settings = method, settings
        self.G, self.D = plain_mlp(settings.z_dim, 2), plain_mlp(2, 1)
        self.e_x, self.e_z = plain_mlp(2, settings.embed_dim), plain_mlp(settings.z_dim, settings.embed_dim)
        self.make_optimizers()

    def make_optimizers(self) -> None:
        """Adam as it comes, for the networks as they are."""
        method, settings = self.method, self.settings
        params = list(self.G.parameters())
        if method.pairing:
            params += [*self.e_x.parameters(), *self.e_z.parameters()]
        betas = (settings.beta1, settings.beta2)
        self.G_opt = torch.optim.Adam(params, lr=settings.lr, betas=betas)
        self.D_opt = torch.optim.Adam(self.D.parameters(), lr=settings.lr, betas=betas)

    def step(self, real: torch.Tensor, z_d: torch.Tensor, z_g: torch.Tensor) -> None:
        """One step of D and one of G with P, on [N, 2] each."""
        settings = self.settings
        with torch.no_grad():
            fake = self.G(z_d)
        real = real.detach().requires_grad_(self.method.r1)
        real_logits = self.D(real)
        loss = (objectives.discriminator_real_loss(real_logits) + objectives.discriminator_fake_loss(self.D(fake))).mean()
        if self.method.r1:
            loss = loss + settings.r1_gamma / 2 * objectives.gradient_penalty(real_logits, real).mean()
        self.D_opt.zero_grad()
        loss.backward()
        self.D_opt.step()
        fake = self.G(z_g)
        self.D.requires_grad_(False)
        loss = objectives.generator_loss(self.D(fake)).mean()
        self.D.requires_grad_(True)
        if self.method.pairing:
            loss = loss + settings.pairing_weight * infonce(F.normalize(self.e_x(fake)), F.normalize(self.e_z(z_g)), settings.tau)[0]
        self.G_opt.zero_grad()
        loss.backward()
        self.G_opt.step()


def plain_rate(study: Study, method: Method, threads: int, steps: int) -> float:
    """Model-steps per second of one model at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        settings, generator = study.settings, stream(0, "data")
        trainer = PlainTrainer(method, settings)
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                start = time.perf_counter()
            real = study.distribution.sample(settings.batch, generator)
            trainer.step(real, *torch.randn([2, settings.batch, settings.z_dim], generator=generator))
        return steps / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)


def stacked_seconds(study: Study, method: Method, models: int, steps: int) -> float:
    """Seconds that one worker takes for `steps` steps of a stack."""
    trainer = Trainer(method, study.settings, study.distribution, range(models))
    batches = trainer.batches()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start = time.perf_counter()
        trainer.step(*next(batches))
    return time.perf_counter() - start


def stacked_rate(pool: concurrent.futures.Executor, study: Study, method: Method, workers: int, steps: int) -> float:
    """Model-steps per second of all workers together."""
    running = [pool.submit(stacked_seconds, study, method, SEEDS_PER_JOB, steps) for _ in range(workers)]
    return workers * SEEDS_PER_JOB * steps / max(job.result() for job in running)


def measure_speed(steps: int, repeats: int, workers: int) -> dict:
    """The benchmark's line: rates and ratios per method and over all, each the median of `repeats`."""
    study = STUDIES["vertical"]
    rates: dict[str, dict[str, list[float]]] = {name: {"one at a time": [], "side by side": []} for name in NAMES}
    with environment(MALLOC_VARIABLES):
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,))
        with pool:
            for _ in range(repeats):
                for name, found in rates.items():
                    method = METHODS[name]
                    found["one at a time"].append(max(plain_rate(study, method, threads, steps) for threads in {1, workers}))
                    found["side by side"].append(stacked_rate(pool, study, method, workers, steps))
    medians = {name: {way: statistics.median(values) for way, values in found.items()} for name, found in rates.items()}
    line = {"bench": "toy_speed", "workers": workers, "models": workers * SEEDS_PER_JOB, "batch": study.settings.batch, "steps": steps}
    line |= {"repeats": repeats, "torch": torch.__version__}
    line["model_steps_per_second"] = {name: {way: round(value, 1) for way, value in found.items()} for name, found in medians.items()}
    # A table takes each method equally often, so its speed is the harmonic mean.
    one, side = (statistics.harmonic_mean(found[way] for found in medians.values()) for way in ("one at a time", "side by side"))
    line |= {"one_at_a_time": round(one, 1), "side_by_side": round(side, 1), "speedup": round(side / one, 2)}
    return line


@click.command()
@click.option("--steps", help="steps per measurement", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--repeats", help="measurements, of which the median counts", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--workers", help="processes side by side  [default: one per core]", type=click.IntRange(min=1))
@click.option("--json", "as_json", help="print one JSON line instead of a table", is_flag=True)
def main(steps: int, repeats: int, workers: int | None, as_json: bool) -> None:
    """Model-steps per second, one at a time and side by side."""
    line = measure_speed(steps, repeats, workers or os.cpu_count() or 1)
    if as_json:
        print(json.dumps(line))
        return
    for name, found in line["model_steps_per_second"].items():
        print(f"{name:16s} " + "  ".join(f"{way} {value:7.1f}/s" for way, value in found.items()))
    print(f"all              one at a time {line['one_at_a_time']:7.1f}/s  side by side {line['side_by_side']:7.1f}/s  {line['speedup']:.2f}x")


if __name__ == "__main__":
    run_command(main)
