"""Generation speed: images per second in batches, one at a time, and with the reference ops. One JSON line per configuration.

    python -m bench.generate --cfg=cifar --device=cpu --json

What is timed is what generate.py does from seeds to images on the host, without files. All ways are run in turn in one process, so a change
of the machine's speed meets all of them, and the best run of each counts.
"""

from __future__ import annotations

import dataclasses
import json
import time

import click
import torch

from bench.train_speed import RandomImages
from dnnlib import EasyDict
from dnnlib.cli import run_command
from torch_utils.ops import backend
from training import config
from training.options import PRECISIONS, Options
from training.presets import PRESETS
from training.sampling import Renderer, default_batch
from training.state import build_networks


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to make the same images: how many at a time, with which ops, how many seeds to time."""

    batch: int
    ops: str
    images: int


def build_generator(cfg: str, resolution: int, precision: str, device: torch.device) -> torch.nn.Module:
    """A generator of random weights, as the preset makes it."""
    options = Options(cfg=cfg, data="random", precision=precision)
    info = config.DataInfo("random", 256, resolution, 3, 0, False)
    args = config.resolve(options, set(), info, device)
    return build_networks(args, RandomImages(resolution, 3, 0))["G"].eval().requires_grad_(False).to(device)


def images_per_second(G: torch.nn.Module, device: torch.device, way: Way) -> float:
    """Images per second, from seeds to bytes on the host."""
    backend.set_policy(way.ops)
    renderer = Renderer(G, device, way.batch)
    start = time.perf_counter()
    made = sum(1 for _ in renderer.render_seeds(range(way.images), [None] * way.images))
    return made / (time.perf_counter() - start)


def compare_ways(G: torch.nn.Module, device: torch.device, ways: dict[str, Way], repeats: int) -> dict[str, float]:
    """The best rate of each way; the first run of each is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            rates[name].append(images_per_second(G, device, way))
    return {name: max(values[1:]) for name, values in rates.items()}


def measure(cfg: str, resolution: int, precision: str, device: torch.device, batch: int | None, images: int | None, repeats: int) -> EasyDict:
    """The benchmark's figures."""
    G = build_generator(cfg, resolution, precision, device)
    batch = batch or default_batch((resolution, resolution), device)
    images = images or 2 * batch
    few = max(images // batch, 8)  # one at a time, a few tell the rate
    ways = {
        "batched": Way(batch, "auto", images),
        "one_at_a_time": Way(1, "auto", few),
        "reference_ops": Way(batch, "reference", images),
        "plain": Way(1, "reference", few),
    }
    rates = compare_ways(G, device, ways, repeats)
    return EasyDict(
        bench="generate",
        cfg=cfg,
        resolution=resolution,
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        precision=precision,
        batch=batch,
        images_per_sec=rates["batched"],
        images_per_sec_by_way=rates,
        speedup_over_one_at_a_time=rates["batched"] / rates["one_at_a_time"],
        speedup_over_reference_ops=rates["batched"] / rates["reference_ops"],
        speedup_over_plain=rates["batched"] / rates["plain"],
    )


@click.command()
@click.option("--cfg", type=click.Choice(list(PRESETS)), default="cifar", show_default=True, help="preset")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True, help="as train.py")
@click.option("--resolution", type=int, default=32, show_default=True, help="image size")
@click.option("--batch", type=click.IntRange(min=1), default=None, help="images at a time  [default: that of generate.py]")
@click.option("--images", type=click.IntRange(min=1), default=None, help="images of a run  [default: two batches]")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="runs of each way; the best counts")
@click.option("--json", "as_json", is_flag=True, help="one JSON line instead of a table")
def main(cfg, device, precision, resolution, batch, images, repeats, as_json) -> None:
    """Measure the speed of generation: in batches, one at a time, and with the reference ops (plain: both)."""
    figures = measure(cfg, resolution, precision, config.choose_device(device), batch, images, repeats)
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:28s} {value}")


if __name__ == "__main__":
    run_command(main)
