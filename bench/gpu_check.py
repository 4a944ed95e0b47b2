"""Everything that only a GPU can show, in one go: native ops, the tests marked `gpu`, the benchmarks of ops, training and generation, into one file.

    python -m bench.gpu_check        (make gpu-check)

A benchmark that fails or is missing does not stop the others; the file then holds what it said, and the command ends with exit code 1.
"""

from __future__ import annotations

import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import torch

from dnnlib import UserError, atomic_write_text
from dnnlib.cli import run_command
from torch_utils import toolchain
from torch_utils.ops import native
from torch_utils.toolchain import BuildError

ROOT = pathlib.Path(__file__).parent.parent
RESULT = ROOT / "docs" / "benchmarks-gpu.json"
TIME_LIMIT = 1800  # seconds for one program; a benchmark takes minutes
TRAINING = ("bench.train_speed", "--device=cuda", "--json")
BENCHMARKS: tuple[tuple[str, ...], ...] = (
    ("bench.ops", "--device=cuda", "--json"),
    (*TRAINING, "--cfg=cifar", "--batch=64", "--precision=auto", "--pairing-weight=0.05"),
    (*TRAINING, "--cfg=cifar", "--batch=64", "--precision=auto", "--aug=ada", "--p=0.3"),
    (*TRAINING, "--cfg=cifar", "--batch=64", "--precision=fp32"),
    (*TRAINING, "--cfg=cifar-small", "--precision=auto"),
    (*TRAINING, "--cfg=paper256", "--batch=64", "--resolution=256", "--precision=auto"),
    ("bench.generate", "--device=cuda", "--json"),
)


def describe_machine() -> dict[str, Any]:
    """What the figures depend on: the GPUs, and the versions of what runs on them."""
    driver = toolchain.driver_version()
    try:
        nvcc = toolchain.find_nvcc().version()
    except BuildError:
        nvcc = None
    return {
        "gpu": torch.cuda.get_device_name(0),
        "gpus": torch.cuda.device_count(),
        "architectures": toolchain.architectures_at_hand(),
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "driver_cuda": None if driver is None else f"{driver[0]}.{driver[1]}",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": nvcc,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def build_ops() -> dict[str, Any]:
    """Builds or loads the native ops of both kinds; seconds, or what was wrong."""
    outcome: dict[str, Any] = {}
    for kind in ("cpu", "cuda"):
        start = time.perf_counter()
        try:
            native.load(kind)
            outcome[kind] = {"seconds": round(time.perf_counter() - start, 2)}
        except BuildError as error:
            outcome[kind] = {"error": str(error)}
    return outcome


def run_program(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python -m ...`; stopped at the time limit with exit code 124."""
    try:
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return 124, "", f"stopped after {TIME_LIMIT} s"
    return done.returncode, done.stdout, done.stderr


def run_tests() -> dict[str, Any]:
    """Runs the tests marked `gpu`, the long ones too; pytest's last line, and the names of those that failed."""
    code, out, err = run_program(["pytest", "-m", "gpu", "-q", "-rf", "--tb=short"])
    lines = out.strip().splitlines() or err.strip().splitlines() or [""]
    failed = [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    if code:
        print(out + err, file=sys.stderr)
    return {"good": code == 0, "summary": lines[-1], "failed": failed}


def run_benchmark(command: Sequence[str]) -> dict[str, Any]:
    """The JSON lines of one benchmark, or the last line of what it said."""
    code, out, err = run_program(command)
    if code:
        return {"command": " ".join(command), "error": (err.strip().splitlines() or [f"exit code {code}"])[-1]}
    return {"command": " ".join(command), "figures": [json.loads(line) for line in out.splitlines() if line.startswith("{")]}


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=pathlib.Path), default=RESULT, help="JSON file  [default: docs/benchmarks-gpu.json]")
def main(out: pathlib.Path) -> int:
    """Build the CUDA ops, run the tests marked gpu and the benchmarks of ops, training and generation, and write the figures down."""
    if not torch.cuda.is_available():
        raise UserError("gpu-check needs a CUDA device that torch can use, and there is none; python -m torch_utils.doctor says what is missing")
    result: dict[str, Any] = {"machine": describe_machine(), "ops": build_ops()}
    _tell(f"{result['machine']['gpu']}: ops {result['ops']}", result, out)
    result["tests"] = run_tests()
    result["benchmarks"] = []
    _tell(f"tests: {result['tests']['summary']}", result, out)
    for command in BENCHMARKS:
        result["benchmarks"].append(run_benchmark(command))
        _tell(json.dumps(result["benchmarks"][-1]), result, out)
    failed = [b["command"] for b in result["benchmarks"] if "error" in b]
    good = result["tests"]["good"] and not failed and not any("error" in outcome for outcome in result["ops"].values())
    print(f"{out}: {'all well' if good else 'some of it failed'}")
    return 0 if good else 1


def _tell(line: str, result: dict[str, Any], out: pathlib.Path) -> None:
    """Prints a line and writes down all so far: the next program may take longer than the machine is there."""
    print(line, flush=True)
    atomic_write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
