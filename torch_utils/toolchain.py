"""What the native ops are built with: the C++ compiler, nvcc, ninja, the processor at hand, and the command lines made of them.

Nothing is built here, and nothing is started unless a function says so: a warm start only looks files up.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math: infinities and NaN must come out as they do of torch, and linking with it changes the rounding mode of the whole process.
CPU_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fvisibility=hidden")
CUDA_FLAGS = ("-std=c++17", "-O3", "--compiler-options=-fPIC,-fvisibility=hidden", "-cudart=static")
NVCC_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")  # what nvcc itself reads
GET_COMPILER = "install a C++ compiler (on Debian and Ubuntu: apt install g++), or name one in the environment variable CXX"
GET_NVCC = "install the CUDA toolkit, whose nvcc must be on the PATH or in the folder that CUDA_HOME names"
GET_NINJA = "install it with: pip install ninja"


class BuildError(Exception):
    """Native ops cannot be had: one sentence that says what failed and what to install. The reference ops do without them."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """A program, perhaps behind launchers such as ccache, and the arguments that always go with it."""

    command: tuple[str, ...]

    @property
    def path(self) -> str:
        """Where the program is, or the first launcher."""
        return self.command[0]

    @property
    def program(self) -> str:
        """Where the program itself is: the last word before the arguments."""
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), self.command))
        return shutil.which(words[-1]) or self.path

    def identity(self) -> str:
        """Changes whenever the program does (an update, another module load); nothing is started for it."""
        path = os.path.realpath(self.program)
        status = os.stat(path)
        return f"{' '.join(self.command)} {path} {status.st_size} {status.st_mtime_ns}"

    def version(self) -> str:
        """What the program says of itself, in one line (starts it); "" where it says nothing."""
        try:
            done = subprocess.run([*self.command, "--version"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        lines = done.stdout.strip().splitlines()
        # nvcc begins with its name and copyright; the line that counts has the release.
        return next((line for line in lines if "release" in line), lines[0] if lines else "").strip()


def find_compiler() -> Tool:
    """The C++ compiler: $CXX (which may carry arguments), or else the first of `COMPILERS` on the PATH.

    Raises:
        BuildError: there is none.
    """
    if named := os.environ.get("CXX", "").strip():
        program, *arguments = shlex.split(named)
        if (path := shutil.which(program)) is None:
            raise BuildError(f"the compiler {program!r} that CXX names is not there; correct or unset CXX")
        return Tool((path, *arguments))
    for name in COMPILERS:
        if path := shutil.which(name):
            return Tool((path,))
    raise BuildError(f"there is no C++ compiler (looked for {', '.join(COMPILERS)}); {GET_COMPILER}")


def find_nvcc() -> Tool:
    """nvcc: of $CUDA_HOME or $CUDA_PATH, or else on the PATH or in /usr/local/cuda.

    Raises:
        BuildError: there is none. A CUDA runtime alone, such as torch brings along, has no compiler.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            if path := shutil.which("nvcc", path=os.path.join(home, "bin")):
                return Tool((path,))
            raise BuildError(f"{variable} is {home}, which has no bin/nvcc; {GET_NVCC}")
    if path := shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin"):
        return Tool((path,))
    raise BuildError(f"there is no nvcc; {GET_NVCC}")


def find_ninja() -> Tool:
    """ninja: of the pip package, which this project requires, or else on the PATH.

    Raises:
        BuildError: there is none.
    """
    folders = [os.path.dirname(sys.executable)]
    try:
        import ninja

        folders.insert(0, ninja.BIN_DIR)
    except (ImportError, AttributeError):  # not installed, or a namesake
        pass
    for folder in folders:
        if path := shutil.which("ninja", path=folder):
            return Tool((path,))
    if path := shutil.which("ninja"):
        return Tool((path,))
    raise BuildError(f"there is no ninja, which runs the build; {GET_NINJA}")


@functools.cache
def processor() -> str:
    """What tells this processor's instruction set from another's: code made for one may not run on the other."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as handle:
            lines = handle.read(1 << 15).splitlines()  # the first processor; the others are alike, and there may be hundreds
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "CPU part", "Features")
    found = {}
    for name, _, value in (line.partition(":") for line in lines):
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return f"{platform.machine()} {found}"


def known_architectures(nvcc: Tool) -> list[int]:
    """The GPU architectures that an nvcc can make code for, as 10 * major + minor, in order (starts nvcc)."""
    try:
        done = subprocess.run([*nvcc.command, "--list-gpu-arch"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return sorted({int(number) for number in re.findall(r"compute_(\d+)\b", done.stdout)})


def architecture_flags(wanted: Sequence[int], known: Sequence[int]) -> list[str]:
    """nvcc's -gencode flags for GPUs of the architectures `wanted`, such as 90, given those it knows.

    A GPU newer than nvcc gets the code of its nearest predecessor, and that in portable form (PTX), which the driver translates.

    Raises:
        BuildError: a GPU is older than everything this nvcc knows.
    """
    flags = []
    for number in sorted(set(wanted)):
        best = max((k for k in known if k <= number), default=None)
        if best is None:
            oldest = f"only from sm_{known[0]} on" if known else "for nothing that it could name"
            raise BuildError(f"this GPU is of architecture sm_{number}, and nvcc makes code {oldest}; install the CUDA toolkit of an earlier version")
        code = f"sm_{best}" if best == number else f"[sm_{best},compute_{best}]"
        flags.append(f"-gencode=arch=compute_{best},code={code}")
    return list(dict.fromkeys(flags))


def compile_command(kind: str, architectures: Sequence[int] = ()) -> list[str]:
    """The command that both compiles and links sources of `kind` (`cpu`, `cuda`), without files; may start nvcc to ask what it knows.

    Raises:
        BuildError: a tool is missing, or a GPU is too old for nvcc.
    """
    if os.name != "posix":
        raise BuildError(f"native ops are built on Linux and macOS, not on {platform.system()}; the reference ops run everywhere")
    if kind == "cpu":
        return [*find_compiler().command, *CPU_FLAGS]
    nvcc = find_nvcc()
    host = ["-ccbin", find_compiler().program] if os.environ.get("CXX") else []
    return [*nvcc.command, *host, *CUDA_FLAGS, *architecture_flags(architectures, known_architectures(nvcc))]


def tool_identity(kind: str) -> str:
    """What of the tools decides about a library of `kind`; nothing is started.

    Raises:
        BuildError: a tool is missing.
    """
    if kind == "cpu":
        return f"{find_compiler().identity()} {CPU_FLAGS} {processor()}"
    host = find_compiler().identity() if os.environ.get("CXX") else ""
    own = [os.environ.get(name, "") for name in NVCC_VARIABLES]
    return f"{find_nvcc().identity()} {host} {CUDA_FLAGS} {own} {platform.machine()}"


def first_error(output: str) -> str:
    """The first line of a failed build that says what was wrong, or the first line at all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = re.compile(r"\berror\b|\bfatal\b|cannot find|undefined reference|not found|no space left|killed", re.IGNORECASE)
    # ninja shows its progress, and under "FAILED:" the command before what the command said.
    own = re.compile(r"\[\d+/\d+\]|FAILED:|ninja:")
    said = [line for before, line in zip(["", *lines], lines) if not own.match(line) and not before.startswith("FAILED:")]
    return next((line for line in said if telling.search(line)), (said or lines or ["it said nothing"])[0])[:300]


def architectures_at_hand() -> list[int]:
    """The architectures of the GPUs that this process sees, as 10 * major + minor; none without CUDA."""
    if not torch.cuda.is_available():
        return []
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return sorted(10 * major + minor for major, minor in capabilities)


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the GPU driver runs, as (major, minor); None without a driver."""
    version = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or version.value == 0 else (version.value // 1000, version.value % 1000 // 10)


def library_suffix() -> str:
    """How shared libraries end on this system."""
    return ".dylib" if sys.platform == "darwin" else ".so"


def release(version: str) -> tuple[int, int] | None:
    """(13, 0) from nvcc's "... release 13.0, V13.0.88"; None where there is nothing like it."""
    match = re.search(r"release (\d+)\.(\d+)", version)
    return None if match is None else (int(match[1]), int(match[2]))
