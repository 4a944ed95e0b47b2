"""What native ops need, what of it is here, and whether they run:

    python -m torch_utils.doctor [--build]
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Sequence

import click
import torch

from dnnlib import UserError
from dnnlib.cli import run_command
from dnnlib.download import cache_dir
from torch_utils import custom_ops, toolchain
from torch_utils.ops import native
from torch_utils.toolchain import BuildError, Tool


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found out about one thing.

    Attributes:
        subject: its name.
        finding: one line.
        good: whether native ops can do with it; None where that does not matter.
    """

    subject: str
    finding: str
    good: bool | None = None


def describe_tool(subject: str, find: Callable[[], Tool], needed: bool = True) -> Diagnosis:
    """Where a program is and what version, or what to install."""
    try:
        tool = find()
    except BuildError as error:
        return Diagnosis(subject, str(error), False if needed else None)
    version = tool.version()
    return Diagnosis(subject, f"{' '.join(tool.command)} ({version})" if version else f"{' '.join(tool.command)} does not start", bool(version))


def describe_cuda() -> list[Diagnosis]:
    """The GPUs, and whether driver, torch and nvcc go together; without a GPU that torch can use nothing of it matters."""
    driver, architectures = toolchain.driver_version(), toolchain.architectures_at_hand()
    built_for = torch.version.cuda
    if driver is None:
        found = [Diagnosis("CUDA driver", "none")]
    elif built_for is not None and int(built_for.split(".")[0]) > driver[0]:
        text = f"runs CUDA up to {driver[0]}.{driver[1]}, too old for this torch, which is made for CUDA {built_for}; update it"
        found = [Diagnosis("CUDA driver", text, False)]
    else:
        found = [Diagnosis("CUDA driver", f"runs CUDA up to {driver[0]}.{driver[1]}")]
    if not architectures:
        reason = "this torch is made without CUDA" if built_for is None else "torch sees none"
        return [*found, Diagnosis("GPUs", f"none ({reason})")]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    text = ", ".join(f"sm_{number}" for number in architectures)
    return [*found, Diagnosis("GPUs", f"{', '.join(names)} ({text})", True), *describe_nvcc_match(driver, architectures)]


def describe_nvcc_match(driver: tuple[int, int] | None, architectures: Sequence[int]) -> list[Diagnosis]:
    """Whether nvcc makes code that these GPUs and their driver run; nothing where there is no nvcc."""
    try:
        nvcc = toolchain.find_nvcc()
        known = toolchain.known_architectures(nvcc)
        toolchain.architecture_flags(architectures, known)
    except BuildError as error:
        return [Diagnosis("nvcc for the GPUs", str(error), False)]
    release = toolchain.release(nvcc.version())
    if driver is not None and release is not None and release[0] > driver[0]:
        text = f"CUDA {release[0]}.{release[1]} makes code that the driver does not run; update the driver, or install CUDA {driver[0]}"
        return [Diagnosis("nvcc for the GPUs", text, False)]
    return [Diagnosis("nvcc for the GPUs", f"fits, it makes code for {', '.join(f'sm_{number}' for number in known)}", True)]


def describe_cache() -> Diagnosis:
    """The folder that libraries are kept in, tried by writing into it."""
    try:
        folder = cache_dir("ops")
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, UserError) as error:
        return Diagnosis("cache folder", f"{error}; a temporary folder stands in for it")
    return Diagnosis("cache folder", f"{folder} (writable)", True)


def describe_library(kind: str, build: bool) -> Diagnosis:
    """Whether the ops for a kind of device are built and run."""
    subject = f"{kind} ops"
    if kind == "cuda" and not toolchain.architectures_at_hand():
        return Diagnosis(subject, "not needed without a GPU")
    start = time.perf_counter()
    try:
        native.load(kind, build)
    except custom_ops.NotBuilt:
        return Diagnosis(subject, "not built yet; the first run will do it, or this command with --build", False)
    except BuildError as error:
        return Diagnosis(subject, str(error), False)
    return Diagnosis(subject, f"run ({'ready' if build else 'loaded'} in {time.perf_counter() - start:.2f} s)", True)


def examine(build: bool = False) -> list[Diagnosis]:
    """Everything, the libraries last. With `build`, those that are missing are built."""
    cuda = bool(toolchain.architectures_at_hand())
    return [
        Diagnosis("python", f"{platform.python_version()} ({pathlib.Path(sys.executable)})"),
        Diagnosis("torch", f"{torch.__version__}, made for CUDA {torch.version.cuda or '(none)'}"),
        describe_tool("compiler", toolchain.find_compiler),
        describe_tool("ninja", toolchain.find_ninja),
        describe_tool("nvcc", toolchain.find_nvcc, needed=cuda),
        *describe_cuda(),
        describe_cache(),
        *(describe_library(kind, build) for kind in ("cpu", "cuda")),
    ]


def verdict(diagnoses: Sequence[Diagnosis]) -> tuple[bool, str]:
    """Whether native ops run wherever they are needed, and that in one line."""
    by_subject = {d.subject: d for d in diagnoses}
    cpu, cuda = by_subject["cpu ops"], by_subject["cuda ops"]
    lacking = [d.subject for d in (cpu, cuda) if d.good is False]
    if not lacking:
        return True, f"Native ops run on the CPU{' and on the GPU' if cuda.good else ''}."
    if all("not built yet" in by_subject[subject].finding for subject in lacking):
        return False, f"What {' and '.join(lacking)} need may be here, but they are not built: python -m torch_utils.doctor --build"
    return False, f"The reference ops stand in for {' and '.join(lacking)}, which is slower; the lines marked with ! say why."


@click.command()
@click.option("--build", is_flag=True, help="Build what is missing now, instead of in the first run.")
def main(build: bool) -> int:
    """Says what native ops need, what of it is here, and whether they run; exit code 0 if they run on every device at hand, else 1."""
    diagnoses = examine(build)
    for d in diagnoses:
        print(f"{'!' if d.good is False else ' '} {d.subject:<18} {d.finding}")
    good, line = verdict(diagnoses)
    print(f"\n{line}")
    return 0 if good else 1


if __name__ == "__main__":
    run_command(main)
