"""Speed of the native ops against the plain PyTorch ones, and their share of the copy bandwidth. One JSON line.

    python -m bench.ops --json
    python -m bench.ops --device=cuda --dtypes=float32,bfloat16 --json

Both run in one process, in turn, through `upfirdn2d`, `bias_act`, `modulate` and `epilogue` as the networks call them; medians of `--repeats`
count. `forward` is the op, `step` forward and backward through autograd with the gradient of every input. `bandwidth_share` sets the bytes that
the native op has to read and write once (its operands and results), on a tensor of `--megabytes`, against the bytes per second of a copy as
large. On the CPU the process keeps the memory that it frees, as training does, unless `--fresh-memory` is given: the reference then waits for
its many pages.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import torch

from bench.conv_rate import synchronize
from dnnlib import UserError
from dnnlib.cli import run_command
from torch_utils.allocator import keep_freed_memory
from torch_utils.ops import backend
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.modulation import epilogue, modulate, small_dtype
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upsample2d

Op = Callable[..., torch.Tensor]

SIZE = (64, 64, 32, 32)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHORT, LONG = (1, 3, 3, 1), (1, 11, 55, 165, 330, 462, 462, 330, 165, 55, 11, 1)  # 4x4 taps, and 12 taps along each axis


def cases(device: torch.device, layout: str) -> dict[str, Op]:
    """What is measured: functions of the `operands`. On a CPU, modulation is native in channels_last only."""
    found: dict[str, Op] = {}
    for taps, f in (("4x4", setup_filter(SHORT, device=device)), ("12", setup_filter(LONG, device=device))):
        found[f"upfirdn2d up 2, {taps}"] = lambda x, *_, f=f: upsample2d(x, f)
        found[f"upfirdn2d down 2, {taps}"] = lambda x, *_, f=f: downsample2d(x, f)
        found[f"upfirdn2d filter, {taps}"] = lambda x, *_, f=f: filter2d(x, f)
    found["bias_act lrelu"] = lambda x, b, *_: bias_act(x, b, act="lrelu")
    found["bias_act lrelu, clamped"] = lambda x, b, *_: bias_act(x, b, act="lrelu", clamp=1.0)
    if device.type == "cpu" and layout != "channels_last":
        return found
    found["modulate"] = lambda x, b, styles, noise: modulate(x, styles)
    found["epilogue lrelu, clamped"] = lambda x, b, styles, noise: epilogue(x, styles, noise, b, act="lrelu", clamp=1.0)
    return found


def operands(size: Sequence[int], dtype: torch.dtype, layout: str, device: torch.device) -> tuple[torch.Tensor, ...]:
    """A random image, a bias, styles [N, C] and noise [N, 1, H, W], which all require gradients."""
    n, c, h, w = size
    x = torch.randn([n, c, h, w], device=device).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    b = torch.randn([c], device=device).to(dtype)
    styles, noise = (torch.randn(shape, device=device).to(small_dtype(x)) for shape in ([n, c], [n, 1, h, w]))
    return tuple(t.requires_grad_() for t in (x, b, styles, noise))


class Contestant:
    """An op under one policy on its operands."""

    def __init__(self, policy: str, op: Op, inputs: Sequence[torch.Tensor]):
        self.policy, self.op, self.inputs = policy, op, inputs
        with torch.no_grad():
            self.dy = torch.randn_like(self.forward())

    def forward(self) -> torch.Tensor:
        """The op; recorded by autograd where that is on."""
        backend.set_policy(self.policy)
        return self.op(*self.inputs)

    def step(self) -> tuple[torch.Tensor | None, ...]:
        """Forward and backward."""
        return torch.autograd.grad(self.forward(), self.inputs, self.dy, allow_unused=True)

    def seconds(self, what: str) -> float:
        """Of one run of `forward` or `step`."""
        device = self.dy.device
        synchronize(device)
        start = time.perf_counter()
        with torch.set_grad_enabled(what == "step"):
            result = getattr(self, what)()
        synchronize(device)
        taken = time.perf_counter() - start
        del result  # giving memory back is not part of it
        return taken


def race(op: Op, inputs: Sequence[torch.Tensor], repeats: int) -> dict[str, float]:
    """Milliseconds of both implementations and how many times faster the native one is; a first run of each is not counted."""
    runs = [Contestant(policy, op, inputs) for policy in ("native", "reference")]
    line: dict[str, float] = {}
    for what in ("forward", "step"):
        taken: dict[str, list[float]] = {run.policy: [] for run in runs}
        for run in runs * (1 + repeats):
            taken[run.policy].append(run.seconds(what))
        medians = {policy: statistics.median(values[1:]) for policy, values in taken.items()}
        line |= {f"{what}_{policy}_ms": 1e3 * value for policy, value in medians.items()}
        line[f"{what}_speedup"] = medians["reference"] / medians["native"]
    return line


def bandwidth_share(op: Op, inputs: Sequence[torch.Tensor], repeats: int) -> float:
    """Time of a copy that moves as many bytes, over the time of the native op."""
    run, x = Contestant("native", op, inputs), inputs[0]
    elements = (x.nbytes + run.dy.nbytes) // (2 * x.element_size())
    source, target = (torch.ones(elements, dtype=x.dtype, device=x.device) for _ in range(2))
    ours, copies = [], []
    for _ in range(1 + repeats):
        ours.append(run.seconds("forward"))
        synchronize(x.device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(x.device)
        copies.append(time.perf_counter() - start)
    return statistics.median(copies[1:]) / statistics.median(ours[1:])


def large(size: Sequence[int], megabytes: float, dtype: torch.dtype) -> list[int]:
    """The size with so many samples that a tensor has about `megabytes`."""
    sample = torch.Size(size[1:]).numel() * dtype.itemsize
    return [max(round(megabytes * 1e6 / sample), 1), *size[1:]]


def measure(device: torch.device, dtypes: Sequence[str], size: Sequence[int], megabytes: float, repeats: int) -> Iterator[dict[str, Any]]:
    """One line per op, dtype and layout."""
    rows = [(*case, layout) for layout in LAYOUTS for case in cases(device, layout).items()]
    for (name, op, layout), dtype in itertools.product(rows, dtypes):
        line: dict[str, Any] = {"op": name, "dtype": dtype, "layout": layout}
        line |= race(op, operands(size, DTYPES[dtype], layout, device), repeats)
        if megabytes:
            line["bandwidth_share"] = bandwidth_share(op, operands(large(size, megabytes, DTYPES[dtype]), DTYPES[dtype], layout, device), repeats)
        yield line


def parse_dtypes(text: str | None, device: torch.device) -> list[str]:
    """Names separated by commas; None: those that training uses on the device.

    Raises:
        UserError: a name is unknown, or the device has no such native op.
    """
    if text is None:
        return ["float32", "bfloat16"] if device.type == "cpu" else ["float32", "float16", "bfloat16"]
    names = [name.strip() for name in text.split(",")]
    known = [name for name, dtype in DTYPES.items() if dtype in backend.DTYPES[device.type]]
    for name in names:
        if name not in known:
            raise UserError(f"--dtypes={text}: there is no native op for {name!r} on {device.type}, choose from {','.join(known)}")
    return names


@click.command()
@click.option("--device", help="cpu or cuda", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--dtypes", help="separated by commas  [default: what training uses on the device]", metavar="A,B,..")
@click.option("--size", help="samples, channels, height and width", type=click.IntRange(min=1), nargs=4, default=SIZE, show_default=True)
@click.option("--megabytes", help="of the tensor for the bandwidth; 0 leaves it out", type=click.FloatRange(min=0), default=256, show_default=True)
@click.option("--repeats", help="runs of each, of which the median counts", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--fresh-memory", help="let tensors on the CPU get their memory from the system each time, as torch does by itself", is_flag=True)
@click.option("--json", "as_json", help="print one JSON line instead of a table", is_flag=True)
def main(device: str, dtypes: str | None, size: tuple[int, ...], megabytes: float, repeats: int, fresh_memory: bool, as_json: bool) -> None:
    """Milliseconds of the native ops and of the plain PyTorch ones."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda needs a CUDA device and none is here; use --device=cpu")
    on = torch.device(device)
    names = parse_dtypes(dtypes, on)
    backend.set_policy("native")
    backend.implementation(device)  # builds them, or says why that cannot be
    kept = not fresh_memory and keep_freed_memory()
    line = {"bench": "ops", "device": device, "device_name": torch.cuda.get_device_name(on) if device == "cuda" else None}
    line |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "size": list(size), "megabytes": megabytes, "repeats": repeats}
    line["kept_memory"] = kept
    line["ops"] = []
    for figures in measure(on, names, size, megabytes, repeats):
        line["ops"].append(figures)
        if not as_json:
            print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{value:26s}" for key, value in figures.items()), flush=True)
    if as_json:
        print(json.dumps(line))


if __name__ == "__main__":
    run_command(main)
