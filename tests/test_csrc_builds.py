"""The sources of the native ops compile for GPUs of every generation; on the CPU sanitizers find no fault in memory or between threads."""

import pathlib
import re
import shutil
import subprocess

import csrc_calls
import pytest

HERE = pathlib.Path(__file__).parent
CPU_OPS = ("errors.cpp", "upfirdn2d.cpp", "bias_act.cpp", "modulation.cpp")
ARCHITECTURES = (80, 90, 120)
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_sources_compile(tmp_path, architecture):
    """As far as the GPU's assembly language, without optimisation, which takes seconds."""
    for source in sorted(csrc_calls.CSRC.glob("*.cu")):
        target = tmp_path / f"{source.stem}.ptx"
        flags = ("-std=c++17", "-ptx", f"-arch=compute_{architecture}", "-Werror", "all-warnings", "-Xcicc", "-O1")
        result = run(NVCC, *flags, source, "-o", target)
        assert result.returncode == 0, result.stderr
        assert f".target sm_{architecture}" in target.read_text()


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_keep_all_in_registers(tmp_path, architecture):
    """Those for the common filters, and the passes around a modulated convolution in the formats that are trained in."""
    library = tmp_path / "libcuda.so"
    flags = ("-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xcompiler", "-fPIC", "-Xptxas", "-v", "-cudart", "static", "-shared")
    result = run(NVCC, *flags, *sorted(csrc_calls.CSRC.glob("*.cu")), "-o", library)
    assert result.returncode == 0, result.stderr
    stores = dict(re.findall(r"Function properties for (\w+)\s+\d+ bytes stack frame, (\d+) bytes spill stores", result.stderr))
    kernels = {name: stores for name, stores in stores.items() if re.search("patch_kernel|tile_kernel|ModulationTilesI[^d]", name)}
    assert library.is_file() and len(kernels) >= 24 + 48 and not [name for name, count in kernels.items() if count != "0"]


@pytest.fixture
def program(tmp_path):
    """Compiles the ops, with some header exchanged, and the program that runs them; returns how to start it."""

    def build(*flags, threads=None):
        sources = tmp_path / "csrc"
        shutil.copytree(csrc_calls.CSRC, sources)
        if threads is not None:
            shutil.copy(threads, sources / "threads.h")
        command = ("g++", "-std=c++17", "-g", "-O1", "-march=native", "-fno-math-errno", "-D_GLIBCXX_ASSERTIONS", *flags, f"-I{sources}")
        result = run(*command, *[sources / name for name in CPU_OPS], HERE / "csrc_memory.cpp", "-o", tmp_path / "program")
        assert result.returncode == 0, result.stderr
        return tmp_path / "program"

    return build


@needs_compiler
@pytest.mark.slow
def test_no_byte_beyond_the_operands_is_touched(program):
    result = run(program("-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr[-3000:]


@needs_compiler
@pytest.mark.slow
def test_threads_do_not_meet(program):
    result = run(program("-pthread", "-fsanitize=thread", threads=HERE / "csrc_std_threads.h"))
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr[-3000:]
