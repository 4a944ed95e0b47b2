"""The benchmark of the native ops prints one line whose figures follow from its times."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from bench import ops
from dnnlib import UserError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def allocator(monkeypatch):
    """The process keeps the allocator it has."""
    monkeypatch.setattr(ops, "keep_freed_memory", lambda: True)


def run(*options):
    result = CliRunner().invoke(ops.main, ["--size", "2", "16", "8", "8", "--repeats=1", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_one_json_line_whose_figures_follow_from_its_times():
    output = run("--dtypes=float32,bfloat16", "--megabytes=0.1", "--json")
    assert output.count("\n") == 1
    line = json.loads(output)
    assert (line["bench"], line["device"], line["size"], line["kept_memory"]) == ("ops", "cpu", [2, 16, 8, 8], True)
    assert len(line["ops"]) == (8 + 10) * 2 == len({(op["op"], op["dtype"], op["layout"]) for op in line["ops"]})
    for op in line["ops"]:
        for what in ("forward", "step"):
            assert op[f"{what}_speedup"] == pytest.approx(op[f"{what}_reference_ms"] / op[f"{what}_native_ms"])
            assert op[f"{what}_native_ms"] > 0
        assert op["bandwidth_share"] > 0


def test_the_bandwidth_can_be_left_out_and_the_table_names_every_op():
    table = run("--dtypes=float64", "--megabytes=0", "--fresh-memory")
    assert "bandwidth_share" not in table
    assert all(name in table for name in ops.cases(CPU, "channels_last"))


@pytest.mark.parametrize("layout", ops.LAYOUTS)
def test_contestants_compute_the_same(layout):
    for name, op in ops.cases(CPU, layout).items():
        inputs = ops.operands([2, 16, 8, 8], torch.float64, layout, CPU)
        native, reference = (ops.Contestant(policy, op, inputs) for policy in ("native", "reference"))
        torch.testing.assert_close(native.forward(), reference.forward(), msg=name)
        reference.dy = native.dy
        for ours, theirs in zip(native.step(), reference.step()):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, msg=name)


def test_large_tensors_are_as_large_as_asked():
    assert ops.large([64, 64, 32, 32], 256, torch.float32) == [977, 64, 32, 32]
    assert ops.large([64, 64, 32, 32], 0.001, torch.float32) == [1, 64, 32, 32]


def test_unknown_number_formats_are_refused():
    result = CliRunner().invoke(ops.main, ["--dtypes=float32,float16"])
    assert isinstance(result.exception, UserError) and "float16" in str(result.exception)
