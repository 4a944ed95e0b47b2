"""style_mixing.py: the files StyleGAN2 users know, layers from where they are asked, and mistakes found before work."""

import pytest
import torch
from click.testing import CliRunner
from test_generate import difference, make_generator, pixels

import style_mixing
from dnnlib import UserError
from torch_utils.checkpoint import save_networks
from training.networks import load_network, network_record
from training.sampling import Renderer, mix_styles, one_hot, seed_latents


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Snapshots: unconditional, with 3 classes, and without G_ema."""
    folder = tmp_path_factory.mktemp("networks")
    for name, c_dim, key in (("plain", 0, "G_ema"), ("classes", 3, "G_ema"), ("no_ema", 0, "G")):
        save_networks(folder / f"{name}.safetensors", {key: network_record(make_generator(c_dim))}, {})
    return folder


def run(networks, name, outdir, *args):
    arguments = [f"--network={networks / name}.safetensors", f"--outdir={outdir}", "--device=cpu", *args]
    return CliRunner().invoke(style_mixing.main, arguments, catch_exceptions=False)


def test_every_layer_comes_from_one_of_the_two():
    a, b = torch.zeros(5, 3), torch.ones(5, 3)
    assert mix_styles(a, b, [0, 3])[:, 0].tolist() == [1, 0, 0, 1, 0] and a.sum() == 0
    assert torch.equal(mix_styles(a, b, range(5)), b) and torch.equal(mix_styles(a, b, []), a)


def test_files_and_table(networks, tmp_path):
    arguments = ["--rows=1,2", "--cols=2,5,6", "--styles=1-2", "--class=1", "--trunc=0.7"]
    result = run(networks, "classes", tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    rows, cols = [1, 2], [2, 5, 6]
    names = {f"{row}-{col}.png" for row in rows for col in cols} | {f"{seed}-{seed}.png" for seed in (1, 2, 5, 6)} | {"grid.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    G = load_network(networks / "classes.safetensors").G_ema
    renderer = Renderer(G, torch.device("cpu"), truncation_psi=0.7)
    for seed in (1, 2, 5, 6):
        assert difference(pixels(tmp_path / f"{seed}-{seed}.png"), next(renderer.render_seeds([seed], [1]))) <= 1
    ws = renderer.map(seed_latents([1, 5], 8), one_hot([1, 1], 3))
    ws[0, 1:3] = ws[1, 1:3]
    assert difference(pixels(tmp_path / "1-5.png"), next(renderer.render(ws[:1], [0]))) <= 1
    assert difference(pixels(tmp_path / "1-5.png"), pixels(tmp_path / "1-1.png")) > 5
    table, size = pixels(tmp_path / "grid.png"), G.img_resolution
    assert table.shape == (3, 3 * size, 4 * size) and not table[:, :size, :size].any()

    def cell(row, column):
        return table[:, row * size : (row + 1) * size, column * size : (column + 1) * size]

    assert all(torch.equal(cell(0, 1 + index), pixels(tmp_path / f"{col}-{col}.png")) for index, col in enumerate(cols))
    for index, row in enumerate(rows, start=1):
        assert torch.equal(cell(index, 0), pixels(tmp_path / f"{row}-{row}.png"))
        assert all(torch.equal(cell(index, 1 + at), pixels(tmp_path / f"{row}-{col}.png")) for at, col in enumerate(cols))


def test_all_layers_give_the_column_and_none_are_named_that_do_not_exist(networks, tmp_path):
    # The default, 0 to 6, is every one of this network's six layers.
    result = run(networks, "plain", tmp_path, "--rows=1", "--cols=2")
    assert result.exit_code == 0 and "layers 0-5 of 6" in result.output
    assert difference(pixels(tmp_path / "1-2.png"), pixels(tmp_path / "2-2.png")) == 0


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ("plain", ["--styles=0-6"], "layers 0 to 5"),
        ("classes", [], "--class=0 to --class=2"),
        ("classes", ["--class=3"], "0 to 2"),
        ("no_ema", [], "G_ema"),
        ("missing", [], "missing"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(networks, tmp_path, network, arguments, message):
    with pytest.raises(UserError) as error:
        run(networks, network, tmp_path / "out", "--rows=1", "--cols=2", *arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--rows=x", "--cols=1"], ["--rows=1"], ["--rows=1", "--cols=1", "--styles=3-1"]])
def test_malformed_lists(networks, tmp_path, arguments):
    result = run(networks, "plain", tmp_path / "out", *arguments)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()


def test_seeds_beyond_the_last_are_told_by_their_option(networks, tmp_path):
    result = run(networks, "plain", tmp_path / "out", "--rows=0-4294967296", "--cols=1")
    assert result.exit_code == 2 and "'--rows'" in result.output and "10,000,000" in result.output
    result = run(networks, "plain", tmp_path / "out", "--rows=1", "--cols=4294967296")
    assert result.exit_code == 2 and "'--cols': '4294967296' goes beyond 4294967295" in result.output
