"""Command: a trained generator as ONNX or TorchScript, for programs that know nothing of this project; its images are compared with the network's."""

from __future__ import annotations

import importlib.util
import io
import os
import pathlib
import warnings

import click
import torch

from dnnlib import UserError, atomic_path
from dnnlib.cli import run_command
from torch_utils.layers import float32_copy
from torch_utils.ops import backend
from training.generator_cli import load_generator, writable_folder
from training.networks import Generator
from training.plain_generator import PlainGenerator, PlainUnconditionalGenerator
from training.sampling import one_hot, seed_latents

FORMATS = ("onnx", "torchscript")
OPSET = 17  # of ONNX: known to every runtime since 2022, and more than these networks need
TOLERANCE = 2e-3  # between images of -1 to 1: a quarter of one of 256 levels
BATCHES = (2, 1, 5)  # the first is traced, the others show that any will do
TRUNCATIONS = (1.0, 0.7, 0.0)


@click.command()
@click.option("--network", help="Network: a snapshot (.safetensors) or a StyleGAN2-ADA .pkl, as file or URL", metavar="FILE|URL", required=True)
@click.option("--format", "kind", help="What to write", type=click.Choice(FORMATS), required=True)
@click.option("--dest", help="File to write", metavar="FILE", required=True)
def main(network: str, kind: str, dest: str) -> None:
    """Exports G_ema: z [N, z_dim], c [N, c_dim] (networks with labels only) and truncation (a number) to images [N, channels, R, R] in -1..1.

    Noise inputs are the network's constant ones, numbers are float32, and N is free. ONNX is compared through onnxruntime where it is installed.

    \b
    python export.py --network=NET --format=onnx --dest=net.onnx
    python export.py --network=NET --format=torchscript --dest=net.pt
    """
    G = float32_copy(load_generator(network))
    if not hasattr(G.mapping, "w_avg"):
        raise UserError(f"--network={network} keeps no mean of w, which truncation in the exported file needs; train it with w_avg_beta")
    path = pathlib.Path(dest)
    if os.path.isdir(path):
        raise UserError(f"--dest={dest} is a folder; give the file to write, such as {path / 'network'}.{'onnx' if kind == 'onnx' else 'pt'}")
    if kind == "onnx":
        _check_onnx()
    writable_folder(path.parent, "--dest")
    backend.set_policy("reference")
    with atomic_path(path) as temporary:
        (write_onnx if kind == "onnx" else write_torchscript)(G, temporary)
        run = (read_onnx if kind == "onnx" else read_torchscript)(temporary)
        worst = largest_difference(G, run) if run is not None else None
        if worst is not None and not worst <= TOLERANCE:
            raise UserError(f"the images of {dest} differ from the network's by {worst:.3g} of -1..1, which is too much; nothing was written")
    _report(G, path, worst)


def _report(G: Generator, path: pathlib.Path, worst: float | None) -> None:
    """Says what was written and how exact it is."""
    size = path.stat().st_size / 2**20
    found = (
        "were not compared, since onnxruntime is not installed: `pip install onnxruntime`"
        if worst is None
        else f"differ from the network's by {worst:.1e} at most"
    )
    inputs = [f"{name} [N, {value.shape[1]}]" if value.ndim else f"{name} (a number)" for name, value in example(G, 1, 1.0).items()]
    print(f"wrote {path} ({size:.1f} MiB): {', '.join(inputs)} -> images [N, {G.img_channels}, {G.img_size[0]}, {G.img_size[1]}]")
    print(f"its images {found}")


def _check_onnx() -> None:
    """Raises UserError where torch's ONNX exporter cannot work."""
    if importlib.util.find_spec("onnx") is None:
        raise UserError("--format=onnx needs the package onnx: `pip install onnx onnxruntime`, or choose --format=torchscript")


def plain(G: Generator) -> PlainGenerator:
    """The network in the form that is exported."""
    return (PlainGenerator if G.c_dim > 0 else PlainUnconditionalGenerator)(G).eval().requires_grad_(False)


def example(G: Generator, count: int, truncation: float) -> dict[str, torch.Tensor]:
    """Inputs by name: latents of the seeds from 0 on, classes in turn, truncation."""
    inputs = {"z": seed_latents(range(count), G.z_dim)}
    if G.c_dim > 0:
        inputs["c"] = one_hot([index % G.c_dim for index in range(count)], G.c_dim)
    return inputs | {"truncation": torch.tensor(truncation)}


def write_torchscript(G: Generator, path: pathlib.Path) -> None:
    """Writes a TorchScript file: torch.jit.load(path)(z, c, truncation), or (z, truncation) without labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is frozen, not gone
        traced = torch.jit.trace(plain(G), tuple(example(G, BATCHES[0], 0.7).values()), check_trace=False)
        buffer = io.BytesIO()  # written to the disk by torch itself, a full one would end the process
        torch.jit.save(traced, buffer)
    path.write_bytes(buffer.getbuffer())


def write_onnx(G: Generator, path: pathlib.Path) -> None:
    """Writes an ONNX file with inputs z, c (with labels), truncation and output images."""
    inputs = example(G, BATCHES[0], 0.7)
    batched = {name: {0: "N"} for name in [*inputs, "images"] if name != "truncation"}
    with warnings.catch_warnings():
        # The exporter through TorchScript: the other one needs one package more and gains nothing for a network without control flow.
        warnings.simplefilter("ignore", DeprecationWarning)
        names = {"input_names": list(inputs), "output_names": ["images"], "dynamic_axes": batched}
        torch.onnx.export(plain(G), tuple(inputs.values()), str(path), dynamo=False, opset_version=OPSET, verbose=False, **names)


def read_torchscript(path: pathlib.Path):
    """The file as a function of inputs by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = torch.jit.load(str(path))
    return lambda inputs: network(*inputs.values())


def read_onnx(path: pathlib.Path):
    """The file as a function of inputs by name, run by onnxruntime; None where that is not installed."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(["images"], {name: value.numpy() for name, value in inputs.items()})[0])


@torch.no_grad()
def largest_difference(G: Generator, run) -> float:
    """The largest difference between images of the network and of a function of inputs by name, over several batches and truncations."""
    worst = 0.0
    for count in BATCHES:
        for truncation in TRUNCATIONS:
            inputs = example(G, count, truncation)
            c = inputs.get("c", torch.zeros(count, 0))
            expected = G(inputs["z"], c, truncation_psi=truncation, noise_mode="const")
            found = run(inputs)
            if found.shape != expected.shape:
                return float("inf")
            worst = max(worst, float((found - expected).abs().max()))
    return worst


if __name__ == "__main__":
    run_command(main)
