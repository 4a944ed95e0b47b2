"""The doctor names every tool, says what is missing and what to install, and ends with 0 only where native ops run."""

import pytest
import torch
from click.testing import CliRunner

from torch_utils import custom_ops, doctor, toolchain
from torch_utils.ops import native
from torch_utils.toolchain import BuildError, Tool

SUBJECTS = ["python", "torch", "compiler", "ninja", "nvcc", "CUDA driver", "GPUs", "cache folder", "cpu ops", "cuda ops"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty cache, no GPU, and tools that are only names."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(toolchain, "architectures_at_hand", list)
    monkeypatch.setattr(toolchain, "driver_version", lambda: None)
    for find, name in (("find_compiler", "c++"), ("find_ninja", "ninja"), ("find_nvcc", "nvcc")):
        monkeypatch.setattr(toolchain, find, lambda name=name: Tool((f"/tools/{name}",)))
    monkeypatch.setattr(Tool, "version", lambda tool: f"{tool.path} release 13.0, V13")
    monkeypatch.setattr(native, "load", lambda kind, build=True: None)
    return monkeypatch


def run(*arguments):
    result = CliRunner().invoke(doctor.main, arguments, standalone_mode=False)
    assert result.exception is None
    *lines, empty, verdict = result.output.splitlines()
    assert empty == ""
    return {line[2:20].strip(): (line[0] == "!", line[21:]) for line in lines}, verdict, result.return_value


def fail(error):
    def function(*args, **kwargs):
        raise error

    return function


def test_everything_is_named_and_all_is_well(place):
    found, verdict, code = run()
    assert list(found) == SUBJECTS and code == 0
    assert verdict == "Native ops run on the CPU." and not any(bad for bad, _ in found.values())
    assert "/tools/c++" in found["compiler"][1] and "writable" in found["cache folder"][1]


def test_what_is_missing_is_named_with_what_to_install(place):
    place.setattr(toolchain, "find_compiler", fail(BuildError("there is no compiler; install one")))
    place.setattr(native, "load", fail(BuildError("there is no compiler; install one")))
    found, verdict, code = run()
    assert code == 1 and found["compiler"] == (True, "there is no compiler; install one")
    assert found["cpu ops"][0] and verdict.startswith("The reference ops stand in for cpu ops")


def test_what_is_not_built_is_built_only_when_asked(place):
    asked = []

    def load(kind, build=True):
        asked.append((kind, build))
        if not build:
            raise custom_ops.NotBuilt("not yet")

    place.setattr(native, "load", load)
    _, verdict, code = run()
    assert code == 1 and verdict.endswith("python -m torch_utils.doctor --build") and asked == [("cpu", False)]
    assert run("--build")[2] == 0 and asked[1:] == [("cpu", True)]


def test_a_missing_nvcc_matters_with_a_gpu_only(place):
    place.setattr(toolchain, "find_nvcc", fail(BuildError("there is no nvcc")))
    found, _, code = run()
    assert code == 0 and found["nvcc"] == (False, "there is no nvcc")
    gpu(place)
    place.setattr(native, "load", lambda kind, build=True: fail(BuildError("there is no nvcc"))() if kind == "cuda" else None)
    found, verdict, code = run()
    assert code == 1 and found["nvcc"][0] and "stand in for cuda ops," in verdict


def gpu(place, architecture=90, driver=(13, 0), made_for="12.8"):
    place.setattr(toolchain, "architectures_at_hand", lambda: [architecture])
    place.setattr(toolchain, "driver_version", lambda: driver)
    place.setattr(toolchain, "known_architectures", lambda nvcc: [75, 80, 90])
    place.setattr(torch.cuda, "device_count", lambda: 1)
    place.setattr(torch.cuda, "get_device_name", lambda index: "Fast GPU")
    place.setattr(torch.version, "cuda", made_for)


def test_a_gpu_with_all_it_needs(place):
    gpu(place)
    found, verdict, code = run()
    assert code == 0 and verdict == "Native ops run on the CPU and on the GPU."
    assert "Fast GPU (sm_90)" in found["GPUs"][1] and "fits" in found["nvcc for the GPUs"][1]


@pytest.mark.parametrize(
    ("options", "subject", "finding"),
    [
        ({"architecture": 61}, "nvcc for the GPUs", "sm_61, and nvcc makes code only from sm_75 on"),
        ({"driver": (12, 4)}, "nvcc for the GPUs", "CUDA 13.0 makes code that the driver does not run"),
        ({"driver": (12, 4), "made_for": "13.0"}, "CUDA driver", "too old for this torch"),
    ],
)
def test_versions_that_do_not_go_together_are_found(place, options, subject, finding):
    gpu(place, **options)
    bad, text = run()[0][subject]
    assert bad and finding in text


def test_a_cache_that_cannot_be_written_is_no_obstacle(place, tmp_path):
    (tmp_path / "cache").write_text("a file")
    found, _, code = run()
    assert code == 0 and "cannot make the cache folder" in found["cache folder"][1]
