"""The check of a GPU machine: one sentence without a GPU; with one, every figure is written down, and a failure is not hidden."""

import importlib
import json

import pytest
import torch
from click.testing import CliRunner

from bench import gpu_check
from dnnlib import UserError


def test_without_a_gpu_it_is_a_user_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="gpu-check needs a CUDA device"):
        gpu_check.main.main(args=[], standalone_mode=False)


@pytest.mark.parametrize("broken", [None, "bench.ops", "bench.no_such", "pytest"])
def test_all_figures_are_written_and_failures_told(tmp_path, monkeypatch, broken):
    really = gpu_check.run_program
    commands = [("bench.ops", "--json"), ("bench.train_speed", "--json")]
    if broken == "bench.no_such":
        commands.insert(0, ("bench.no_such", "--json"))

    def run_program(command):
        if command[0] == "bench.no_such":
            return really(command)
        if command[0] == broken:
            return 1, "FAILED tests/test_x.py::test_y\n1 failed, 2 passed in 3s\n", "Traceback\nError: out of luck\n"
        return 0, "3 passed in 3s\n" if command[0] == "pytest" else 'some words\n{"x": 1}\n{"x": 2}\n', ""

    monkeypatch.setattr(gpu_check, "run_program", run_program)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "describe_machine", lambda: {"gpu": "Fast GPU"})
    monkeypatch.setattr(gpu_check, "build_ops", lambda: {"cpu": {"seconds": 1.0}, "cuda": {"seconds": 2.0}})
    monkeypatch.setattr(gpu_check, "BENCHMARKS", tuple(commands))
    result = CliRunner().invoke(gpu_check.main, [f"--out={tmp_path / 'gpu.json'}"], standalone_mode=False)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert result.return_value == (0 if broken is None else 1)
    assert written["machine"]["gpu"] == "Fast GPU"
    assert [b["command"] for b in written["benchmarks"]] == [" ".join(command) for command in commands]
    assert written["benchmarks"][-1]["figures"] == [{"x": 1}, {"x": 2}]
    if broken == "bench.ops":
        assert written["benchmarks"][0]["error"] == "Error: out of luck"
    if broken == "bench.no_such":
        assert "No module named bench.no_such" in written["benchmarks"][0]["error"]
    if broken == "pytest":
        assert written["tests"] == {"good": False, "summary": "1 failed, 2 passed in 3s", "failed": ["tests/test_x.py::test_y"]}


def test_every_command_of_a_benchmark_is_understood():
    for module, *arguments in gpu_check.BENCHMARKS:
        command = importlib.import_module(module).main
        assert command.make_context(module, list(arguments)) is not None
