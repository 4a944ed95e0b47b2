"""Speed and memory of precision, recall, density and coverage, and of the Fréchet distance, against the public code. One JSON line.

    python -m bench.knn --n=10000 --dim=4096 --json
    python -m bench.knn --n=50000 --dim=4096 --skip-prdc --json

All in one process, in turn, so that a change of the machine's speed meets all; medians of `--repeats` count. The features are standard normal
in every dimension, the hardest there are for bounds on distances, because all distances are nearly equal. `matmul_fraction` is the
arithmetic of the three sets of products (one of all cross pairs, two of one triangle) over the time that all of `compute_prdc` took, as a share
of the rate of large float32 matrix products. Memory is what the process grew by, at its peak, over what it held with the features in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import statistics
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import psutil
import torch

from bench.conv_rate import synchronize
from dnnlib import UserError
from dnnlib.cli import run_command
from metrics.frechet_inception_distance import frechet_distance
from metrics.prdc import prdc_of_balls
from metrics.screening import has_fast_bfloat16

MATMUL_SIZE = 4096
POLL = 0.002  # seconds between looks at the memory in use
EXACT = 1e-12  # relative; our figures and prdc's are the same counts, divided in another order


class PeakMemory:
    """Context that finds the most memory the process, or the GPU, used within it beyond what it held before, in bytes: `peak`."""

    def __init__(self, device: torch.device):
        self.device, self.peak = device, 0

    def __enter__(self) -> PeakMemory:
        give_back_memory()
        self._before = self._used()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self._stop.set()
            self._thread.join()

    def _used(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else psutil.Process().memory_info().rss

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(POLL):
            self.peak = max(self.peak, process.memory_info().rss - self._before)


def give_back_memory() -> None:
    """Makes the C library return what it holds back from the system, so that no one is helped by what another has freed. Linux only."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def timed(function: Callable[[], Any], device: torch.device) -> tuple[Any, float, float]:
    """What a function returns, the seconds it took and the GB it used."""
    with PeakMemory(device) as memory:
        synchronize(device)
        start = time.perf_counter()
        result = function()
        synchronize(device)
        seconds = time.perf_counter() - start
    return result, seconds, memory.peak / 1e9


def matmul_rate(device: torch.device, size: int = MATMUL_SIZE) -> float:
    """FLOP/s of a float32 product of square matrices on all cores; a multiplication and an addition count as two."""
    a, b = torch.randn([2, size, size], device=device)
    product = torch.mm(a, b)
    _, seconds, _ = timed(lambda: torch.mm(a, b, out=product), device)
    return 2 * size**3 / seconds


def import_prdc() -> types.ModuleType:
    """The public prdc package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import prdc
    except ImportError as error:
        raise UserError("the public prdc package is not installed; install it with `pip install prdc`, or give --skip-prdc") from error
    return prdc


def contestants(real: torch.Tensor, fake: torch.Tensor, k: int, with_prdc: bool) -> dict[str, Callable[[], dict[str, float]]]:
    """What is timed: ours in float32, in low precision where it is fast, and the public package."""

    def ours(screening: str) -> Callable[[], dict[str, float]]:
        return lambda: prdc_of_balls(real, fake, [(k, False)], screening=screening)[0]

    found = {"float32": ours("float32")}
    if has_fast_bfloat16(real.device):
        found["bfloat16"] = ours("bfloat16")
    if with_prdc:
        package, arrays = import_prdc(), (real.cpu().numpy(), fake.cpu().numpy())
        found["prdc"] = lambda: silently(lambda: package.compute_prdc(*arrays, k))
    return found


def silently(function: Callable[[], Any]) -> Any:
    """Calls a function that prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function()


def useful_flop(n: int, m: int, dim: int) -> int:
    """Arithmetic of the products: all cross pairs once, each pair within a set once."""
    return 2 * dim * (n * m + n * (n - 1) // 2 + m * (m - 1) // 2)


def measure_neighbours(n: int, dim: int, k: int, repeats: int, with_prdc: bool, device: torch.device) -> dict:
    """Times, memory and ratios of `compute_prdc`."""
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn([n, dim], generator=generator).to(device) for _ in range(2))
    runs = contestants(real, fake, k, with_prdc)
    # What is allocated once for good, in the libraries, is no one's.
    for run in contestants(real[:64], fake[:64], k, with_prdc).values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory: dict[str, float] = {}
    results, rates = {}, []
    for _ in range(repeats):
        for name, run in runs.items():
            rates.append(matmul_rate(device))
            results[name], taken, used = timed(run, device)
            seconds[name].append(taken)
            memory[name] = max(used, memory.get(name, 0.0))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rate = statistics.median(rates)
    line = {"matmul_gflops": rate / 1e9, "seconds": medians, "memory_gb": memory, "features_gb": 2 * real.nbytes / 1e9}
    line["matmul_fraction"] = useful_flop(n, n, dim) / medians["float32"] / rate
    line["equal_counts"] = all(agree(figures, results["float32"]) for figures in results.values())
    if with_prdc:
        line["speedup"] = {name: medians["prdc"] / value for name, value in medians.items() if name != "prdc"}
    return line | {"figures": results["float32"]}


def agree(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether two results are the same counts."""
    return a.keys() == b.keys() and all(abs(float(a[name]) - b[name]) <= EXACT * abs(b[name]) for name in b)


def measure_frechet(dim: int) -> dict:
    """Times of the Fréchet distance between two covariances of full rank, and of the textbook formula with scipy's sqrtm."""
    import scipy.linalg

    rng = np.random.default_rng(0)
    moments = []
    for _ in range(2):
        rows = rng.standard_normal((2 * dim, dim)) @ np.diag(rng.uniform(0.1, 1, dim))
        moments += [rows.mean(axis=0), np.cov(rows, rowvar=False, bias=True)]

    def textbook() -> float:
        mu_a, sigma_a, mu_b, sigma_b = moments
        return float(((mu_a - mu_b) ** 2).sum() + np.trace(sigma_a + sigma_b - 2 * scipy.linalg.sqrtm(sigma_a @ sigma_b).real))

    ours, seconds, _ = timed(lambda: frechet_distance(*moments), torch.device("cpu"))
    theirs, scipy_seconds, _ = timed(textbook, torch.device("cpu"))
    return {
        "dim": dim,
        "seconds": seconds,
        "scipy_seconds": scipy_seconds,
        "speedup": scipy_seconds / seconds,
        "relative_difference": abs(ours - theirs) / theirs,
    }


@click.command()
@click.option("--n", help="points in each set", type=click.IntRange(min=2), default=10_000, show_default=True)
@click.option("--dim", help="dimensions of the features", type=click.IntRange(min=1), default=4096, show_default=True)
@click.option("--k", help="nearest neighbours", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--repeats", help="runs of each, of which the median counts", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--device", help="cpu or cuda", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--skip-prdc", help="do not run the public prdc package", is_flag=True)
@click.option("--fid-dim", help="dimensions of the Fréchet distance; 0 leaves it out", type=click.IntRange(min=0), default=2048, show_default=True)
@click.option("--json", "as_json", help="print one JSON line instead of a table", is_flag=True)
def main(n: int, dim: int, k: int, repeats: int, device: str, skip_prdc: bool, fid_dim: int, as_json: bool) -> None:
    """Seconds and memory of precision, recall, density and coverage."""
    if n <= k:
        raise UserError(f"--n={n} points are too few for --k={k} neighbours; at least {k + 1} are needed")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda needs a CUDA device and none is here; use --device=cpu")
    line = {"bench": "knn", "n": n, "dim": dim, "k": k, "repeats": repeats, "device": device, "threads": torch.get_num_threads()}
    line |= {"torch": torch.__version__} | measure_neighbours(n, dim, k, repeats, not skip_prdc, torch.device(device))
    if fid_dim:
        line["fid"] = measure_frechet(fid_dim)
    if as_json:
        print(json.dumps(line))
        return
    for name, value in line.items():
        print(f"{name:16s} {value}")


if __name__ == "__main__":
    run_command(main)
