"""export.py: the plain form equals the network, files hold it for any batch, and mistakes are one sentence with nothing written."""

import copy
import errno
import os
import pathlib
import sys

import pytest
import torch
from click.testing import CliRunner
from test_generate import GOLDEN, make_generator

import export
from dnnlib import UserError
from torch_utils.checkpoint import save_networks
from torch_utils.ops import backend
from training.networks import Generator, load_network, network_record
from training.plain_generator import PlainGenerator, PlainUnconditionalGenerator


@pytest.fixture(autouse=True)
def policy(monkeypatch):
    """The command chooses reference ops for its process; here others follow."""
    monkeypatch.setattr(backend, "_policy", "reference")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Snapshots: unconditional, with 3 classes, without G_ema, and without a mean of w."""
    folder = tmp_path_factory.mktemp("networks")
    for name, c_dim, key in (("plain", 0, "G_ema"), ("classes", 3, "G_ema"), ("no_ema", 0, "G")):
        save_networks(folder / f"{name}.safetensors", {key: network_record(make_generator(c_dim))}, {})
    record = network_record(make_generator())
    kwargs = copy.deepcopy(record.kwargs)
    kwargs["mapping_kwargs"]["w_avg_beta"] = None
    save_networks(folder / "no_mean.safetensors", {"G_ema": network_record(Generator(**kwargs))}, {})
    return folder


def run(networks, name, dest, kind="torchscript"):
    return CliRunner().invoke(export.main, [f"--network={networks / name}.safetensors", f"--format={kind}", f"--dest={dest}"], catch_exceptions=False)


def varied(**synthesis_kwargs):
    """A random generator of another make, nothing of it at its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        synthesis = {"channel_base": 128, "channel_max": 8} | synthesis_kwargs
        G = Generator(5, 0, 7, 16, 2, mapping_kwargs={"num_layers": 3, "layer_features": 6}, synthesis_kwargs=synthesis).eval().requires_grad_(False)
        for tensor in [*G.parameters(), G.mapping.w_avg]:
            tensor.add_(torch.randn(tensor.shape) * 0.5)
    return G


@pytest.mark.parametrize(
    "synthesis_kwargs",
    [
        {},
        {"architecture": "orig"},
        {"architecture": "resnet", "conv_clamp": 0.7},
        {"use_noise": False, "activation": "swish"},
        {"conv_clamp": 0.5, "activation": "relu"},
        {"resample_filter": [1, 2, 1]},
        {"resample_filter": [1], "architecture": "resnet"},
        {"resample_filter": [1, 1]},
        {"resample_filter": [1, 2, 3, 4, 5, 6]},
        {"resample_filter": [1, 2, 3, 4, 5, 6, 7, 9]},
    ],
)
def test_the_plain_form_gives_the_images_of_the_network(synthesis_kwargs):
    G = varied(**synthesis_kwargs)
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    network = PlainUnconditionalGenerator(G).eval()
    for psi in (1, 0.6, 0):
        expected = G(z, torch.zeros(3, 0), truncation_psi=psi, noise_mode="const")
        found = network(z, torch.tensor(float(psi)))
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max())), synthesis_kwargs
    assert expected.std() > 1e-3


def test_the_plain_form_of_a_network_of_stylegan2():
    G = load_network(GOLDEN).G_ema
    inputs = export.example(G, 4, 0.7)
    before = copy.deepcopy(G.state_dict())
    found = PlainGenerator(G)(**inputs)
    expected = G(inputs["z"], inputs["c"], truncation_psi=0.7, noise_mode="const")
    assert torch.allclose(found, expected, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_torchscript(networks, tmp_path, name):
    result = run(networks, name, tmp_path / "net.pt")
    assert result.exit_code == 0 and "differ from the network's by" in result.output, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]
    network = torch.jit.load(str(tmp_path / "net.pt"))
    G = make_generator(c_dim=3 if name == "classes" else 0)
    for count, psi in ((1, 1.0), (7, 0.3)):
        inputs = export.example(G, count, psi)
        expected = G(inputs["z"], inputs.get("c", torch.zeros(count, 0)), truncation_psi=psi, noise_mode="const")
        assert torch.allclose(network(*inputs.values()), expected, atol=1e-4)
    kinds = {node.kind() for node in network.inlined_graph.nodes()}
    assert "aten::_convolution" in kinds and {kind.split("::")[0] for kind in kinds} == {"aten", "prim"} and "prim::PythonOp" not in kinds


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_onnx(networks, tmp_path, name):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    result = run(networks, name, tmp_path / "net.onnx", "onnx")
    assert result.exit_code == 0 and "differ from the network's by" in result.output, result.output
    session = onnxruntime.InferenceSession((tmp_path / "net.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == (["z", "c", "truncation"] if name == "classes" else ["z", "truncation"])
    G = make_generator(c_dim=3 if name == "classes" else 0)
    assert export.largest_difference(G, export.read_onnx(tmp_path / "net.onnx")) < 1e-4


def test_a_file_whose_images_differ_is_not_written(networks, tmp_path, monkeypatch):
    read = export.read_torchscript
    monkeypatch.setattr(export, "read_torchscript", lambda path: lambda inputs: read(path)(inputs) + 0.01)
    with pytest.raises(UserError, match=r"by 0\.01 .* nothing was written"):
        run(networks, "plain", tmp_path / "net.pt")
    assert list(tmp_path.iterdir()) == []
    G = make_generator()
    assert export.largest_difference(G, lambda inputs: torch.zeros(1)) == float("inf")
    assert export.largest_difference(G, lambda inputs: G(inputs["z"], None, inputs["truncation"].item(), noise_mode="const")) == 0


def test_a_full_disk_is_told_and_leaves_nothing_behind(networks, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)  # torch, writing by itself, would end the process
    with pytest.raises(UserError, match="No space left on device"):
        run(networks, "plain", tmp_path / "net.pt")
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages(networks, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.read_onnx(tmp_path / "none.onnx") is None
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install onnx onnxruntime"):
        run(networks, "plain", tmp_path / "net.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "message"), [("no_ema", "G_ema"), ("no_mean", "mean of w"), ("missing", "missing")])
def test_networks_that_cannot_be_exported(networks, tmp_path, name, message):
    with pytest.raises(UserError) as error:
        run(networks, name, tmp_path / "out" / "net.pt")
    assert message in str(error.value) and "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_wrong_destinations(networks, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        run(networks, "plain", tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be written to"):
        run(networks, "plain", tmp_path / "file" / "net.pt")
    assert CliRunner().invoke(export.main, ["--network=x", "--format=tf", "--dest=y"]).exit_code == 2
