"""The command calc_metrics.py: a network file and a data set in, a table, JSON lines and metric-*.jsonl out; mistakes end in one sentence."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import calc_metrics
from dnnlib import UserError
from torch_utils.checkpoint import save_networks
from training.networks import Generator, network_record

COUNT, CLASSES, RESOLUTION = 24, 2, 8


class Detector(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.to(torch.float32), 4).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run directory with a tiny conditional network, the data set it was trained on, and a detector."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for index in range(COUNT):
            with archive.open(f"{index:03d}.png", "w") as handle:
                Image.fromarray(rng.integers(0, 256, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8)).save(handle, "png")
        labels = [[f"{index:03d}.png", index % CLASSES] for index in range(COUNT)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    torch.jit.script(Detector()).save(str(folder / "pool.pt"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        G = Generator(8, CLASSES, 8, RESOLUTION, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs={"channel_base": 64, "channel_max": 8})
    meta = {"training_set_kwargs": {"path": str(folder / "data.zip"), "use_labels": True, "max_size": 10, "xflip": True, "random_seed": 1}}
    save_networks(folder / "network-snapshot-000004.safetensors", {"G_ema": network_record(G)}, meta)
    save_networks(folder / "no-data.safetensors", {"G_ema": network_record(G)}, {})
    (folder / "training_options.json").write_text("{}")
    return folder


@pytest.fixture
def call(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments, network="network-snapshot-000004.safetensors"):
        command = [f"--network={folder / network}", f"--detector={folder / 'pool.pt'}", "--device=cpu", "--verbose=0", *arguments]
        result = CliRunner().invoke(calc_metrics.main, command)
        if isinstance(result.exception, UserError):
            raise result.exception
        return result

    return run


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_figures_are_printed_and_kept_beside_the_network(call, folder):
    result = call("--metrics=coverage,prdc10k5,density50k3")
    assert result.exit_code == 0, result.output
    lines = json_lines(result.stdout)
    assert [line["metric"] for line in lines] == ["coverage_pool", "prdc10k5_pool", "density50k3_pool"]
    assert "coverage_pool" in result.stdout.splitlines()[1]
    for line in lines:
        kept = (folder / f"metric-{line['metric']}.jsonl").read_text().splitlines()
        assert json.loads(kept[-1]) == line
        assert line["snapshot_pkl"] == "network-snapshot-000004.safetensors"
        # The whole set, unflipped, whatever part of it the training took.
        assert (line["protocol"]["n_real"], line["protocol"]["n_fake"], line["protocol"]["xflip"]) == (COUNT, COUNT, False)
        assert all(np.isfinite(value) for value in line["results"].values())


def test_the_same_command_gives_the_same_figures(call):
    first, again, other = (json_lines(call("--metrics=prdc10k5", f"--metric-seed={seed}", "--batch=5").stdout)[0] for seed in (1, 1, 2))
    assert first["results"] == again["results"]
    assert (first["protocol"]["seed"], other["protocol"]["seed"]) == (1, 2)


def test_nothing_is_written_beside_a_network_outside_of_a_run(call, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    network = tmp_path / "elsewhere" / "network.safetensors"
    network.write_bytes((folder / "network-snapshot-000004.safetensors").read_bytes())
    (line,) = json_lines(call("--metrics=coverage", "--no-cache", network=network).stdout)
    assert line["snapshot_pkl"] == str(network)
    assert list(network.parent.iterdir()) == [network]


def test_other_data_can_be_named(call, folder):
    (line,) = json_lines(call("--metrics=coverage", f"--data={folder / 'data.zip'}", network="no-data.safetensors").stdout)
    assert line["protocol"]["n_real"] == COUNT


def test_mirror_replaces_what_the_training_did():
    meta = {"training_set_kwargs": {"path": "a", "xflip": False, "class_name": "x"}}
    kwargs = calc_metrics._dataset_kwargs(meta, Generator(4, 0, 4, 8, 3), None, mirror=True)
    assert kwargs == {"path": "a", "xflip": True, "use_labels": False}


@pytest.mark.parametrize(
    ("arguments", "network", "message"),
    [
        (["--metrics=fid"], None, "'fid' is no known metric; known are"),
        (["--detector=nonsense"], None, "--detector=nonsense is neither"),
        (["--gpus=2"], None, "--gpus=2 needs that many processes, found 1; start it by `torchrun --nproc-per-node=2"),
        (["--metrics=coverage"], "no-data.safetensors", "--data is missing"),
        (["--metrics=coverage", "--data=absent.zip"], None, "absent.zip"),
        (["--metrics=coverage"], "absent.safetensors", "absent.safetensors"),
        (["--metrics=coverage"], "data.zip", "data.zip"),
    ],
)
def test_mistakes_are_told(call, arguments, network, message):
    with pytest.raises(UserError, match=message):
        call(*arguments, **({"network": network} if network else {}))


def test_a_mistake_ends_the_command_with_code_2():
    command = [sys.executable, calc_metrics.__file__, "--network=absent.safetensors", "--metrics=nonsense"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: --metrics: 'nonsense' is no known metric") and result.stderr.count("\n") == 1
