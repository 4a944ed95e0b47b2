"""generate.py: the files StyleGAN2 users know, the same images however they are batched, and mistakes found before work."""

import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import generate
from dnnlib import UserError
from torch_utils.checkpoint import save_networks
from training.images import make_sheet, to_uint8
from training.networks import Generator, load_network, network_record
from training.sampling import Renderer, one_hot, plan_sheet, seed_latents, walk_latents, walk_ws

GOLDEN = pathlib.Path(__file__).parent / "data" / "sg2_network.pkl"
SMALL = {"img_resolution": 16, "mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": {"channel_base": 128, "channel_max": 8}}


def make_generator(c_dim=0, img_channels=3, seed=0):
    """A small random generator whose noise strengths and mean w are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        G = Generator(z_dim=8, c_dim=c_dim, w_dim=8, img_channels=img_channels, **SMALL).eval().requires_grad_(False)
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)
        G.mapping.w_avg.normal_()
    return G


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Snapshots: unconditional, with 3 classes, and without G_ema."""
    folder = tmp_path_factory.mktemp("networks")
    paths = {}
    for name, c_dim, key in (("plain", 0, "G_ema"), ("classes", 3, "G_ema"), ("no_ema", 0, "G")):
        paths[name] = folder / f"{name}.safetensors"
        save_networks(paths[name], {key: network_record(make_generator(c_dim))}, {})
    return paths


def run(*args):
    return CliRunner().invoke(generate.main, [*map(str, args), "--device=cpu"], catch_exceptions=False)


def pixels(path):
    with PIL.Image.open(path) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def difference(a, b):
    return int((a.int() - b.int()).abs().max())


def test_golden_network_gives_the_known_images(tmp_path):
    assert run(f"--network={GOLDEN}", "--seeds=0,7-8", "--class=2", "--trunc=0.5", f"--outdir={tmp_path}").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed0000.png", "seed0007.png", "seed0008.png"]
    G = load_network(GOLDEN).G_ema
    c = torch.eye(6)[2:3]
    for seed in (0, 7, 8):
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, 48)).float()
        with torch.no_grad():
            expected = to_uint8(G(z, c, truncation_psi=0.5, noise_mode="const"))[0]
        assert difference(pixels(tmp_path / f"seed{seed:04d}.png"), expected) <= 1


@pytest.mark.parametrize("noise_mode", ["const", "none", "random"])
def test_images_do_not_depend_on_the_batch(networks, tmp_path, noise_mode):
    outputs = {}
    for batch in (1, 3, 16):
        outdir = tmp_path / str(batch)
        result = run(f"--network={networks['plain']}", "--seeds=3-9", f"--noise-mode={noise_mode}", f"--batch={batch}", f"--outdir={outdir}")
        assert result.exit_code == 0, result.output
        outputs[batch] = torch.stack([pixels(outdir / f"seed{seed:04d}.png") for seed in range(3, 10)])
    # Matrix products of other sizes may round the last bit differently, which may tip a byte.
    assert difference(outputs[1], outputs[3]) <= 1 and difference(outputs[1], outputs[16]) <= 1
    assert difference(outputs[1][0], outputs[1][1]) > 10


def test_noise_modes_and_truncation_matter(networks):
    G, device = load_network(networks["plain"]).G_ema, torch.device("cpu")
    before = torch.get_rng_state()
    looks = [{}, {"noise_mode": "none"}, {"noise_mode": "random"}, {"truncation_psi": 0.5}, {"truncation_psi": 0}]
    pictures = [torch.stack(list(Renderer(G, device, **look).render_seeds([1, 2], [None, None]))) for look in looks]
    for index, picture in enumerate(pictures):
        assert all(difference(picture, other) > 2 for other in pictures[:index])
    assert difference(pictures[4][0], pictures[4][1]) == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_projected_w(networks, tmp_path):
    G = load_network(networks["classes"]).G_ema
    ws = Renderer(G, torch.device("cpu")).map(seed_latents([4, 5], 8), one_hot([1, 2], 3))
    np.savez(tmp_path / "w.npz", w=ws.numpy())
    outdir = tmp_path / "out"
    assert run(f"--network={networks['classes']}", f"--projected-w={tmp_path / 'w.npz'}", f"--outdir={outdir}").exit_code == 0
    assert sorted(path.name for path in outdir.iterdir()) == ["proj00.png", "proj01.png"]
    expected = list(Renderer(G, torch.device("cpu")).render_seeds([4, 5], [1, 2]))
    assert all(difference(pixels(outdir / f"proj{index:02d}.png"), image) <= 1 for index, image in enumerate(expected))


@pytest.mark.parametrize(
    ("arguments", "grid", "cells"),
    [
        (["--grid=2x3", "--seeds=0-1"], (2, 3), [(s, c) for c in range(3) for s in (0, 1)]),
        (["--grid", "--seeds=4,9"], (2, 3), [(s, c) for c in range(3) for s in (4, 9)]),
        (["--grid=2x4"], (2, 4), [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 0), (3, 0)]),
        (["--grid=2x2", "--class=1"], (2, 2), [(s, 1) for s in range(4)]),
        (["--grid=auto", "--class=1", "--seeds=5-7"], (2, 2), [(s, 1) for s in (5, 6, 7)]),
    ],
)
def test_sheets(networks, tmp_path, arguments, grid, cells):
    assert run(f"--network={networks['classes']}", f"--outdir={tmp_path}", *arguments).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    G = load_network(networks["classes"]).G_ema
    singles = [next(Renderer(G, torch.device("cpu")).render_seeds([seed], [label])) for seed, label in cells]
    assert difference(pixels(tmp_path / "grid.png"), make_sheet(torch.stack(singles), grid)) <= 1


def test_sheet_plans():
    automatic = plan_sheet(None, None, None, 0, (256, 256))
    assert automatic.grid == (30, 16) and automatic.seeds == list(range(480)) and automatic.classes == [None] * 480
    rows = plan_sheet(None, None, None, 10, (32, 32))
    assert rows.grid == (32, 10) and rows.seeds[:33] == [*range(32), 0] and rows.classes[::32] == list(range(10))
    for seeds in ([1], [1, 2, 3]):
        with pytest.raises(UserError, match="needs 2 seeds"):
            plan_sheet((2, 3), seeds, None, 3, (32, 32))
    with pytest.raises(UserError, match="needs 6 seeds"):
        plan_sheet((2, 3), [1], None, 0, (32, 32))


def test_walks_pass_their_seeds_and_close():
    z = seed_latents([1, 2, 3], 64)
    walk = walk_latents(z, 10)
    assert walk.shape == (30, 64) and torch.allclose(walk[::10], z, atol=1e-5)
    steps = (walk - walk.roll(-1, 0)).norm(dim=1)
    assert steps.max() < 0.3 * z.norm(dim=1).max()
    # Half way on a sphere the latent is as long as its neighbours, which a straight line is not.
    assert torch.allclose(walk[5].norm(), (z[0].norm() + z[1].norm()) / 2, rtol=1e-4)
    assert torch.allclose(walk_latents(torch.stack([z[0], 2 * z[0]]), 4)[2], 1.5 * z[0], atol=1e-5)
    ws = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    straight = walk_ws(ws, 4)
    assert straight.shape == (12, 2, 5) and torch.equal(straight[::4], ws)
    assert torch.allclose(straight[2], (ws[0] + ws[1]) / 2) and torch.allclose(straight[10], (ws[2] + ws[0]) / 2)


def test_one_way_walks_are_loops_without_the_way_back():
    z, ws = seed_latents([1, 2, 3], 8), torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    for points, walk in ((z, walk_latents), (ws, walk_ws)):
        way = walk(points, 4, loop=False)
        assert len(way) == 9 and torch.equal(way[:8], walk(points, 4)[:8]) and torch.equal(way[8], points[2])


@pytest.mark.parametrize("space", ["z", "w"])
def test_walk_command(networks, tmp_path, space):
    arguments = ["--seeds=1,5", "--frames=3", "--fps=10", f"--walk-space={space}", "--walk=sub/walk.gif", "--class=1"]
    assert run(f"--network={networks['classes']}", f"--outdir={tmp_path}", *arguments).exit_code == 0
    with PIL.Image.open(tmp_path / "sub" / "walk.gif") as picture:
        assert picture.n_frames == 6 and picture.size == (256, 256)
        picture.seek(3)
        frame = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[:, ::16, ::16]
    G = load_network(networks["classes"]).G_ema
    expected = next(Renderer(G, torch.device("cpu")).render_seeds([5], [1]))
    # A palette of 256 colours holds all pixels of a 16x16 image.
    assert difference(frame, expected) <= 1


def test_walk_as_a_folder_of_frames(networks, tmp_path):
    arguments = ["--seeds=1,5", "--frames=3", "--loop=false", "--walk-space=w", "--walk=frames/"]
    assert run(f"--network={networks['plain']}", f"--outdir={tmp_path}", *arguments).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"frame{index:05d}.png" for index in range(4)]
    G = load_network(networks["plain"]).G_ema
    for frame, seed in ((0, 1), (3, 5)):
        expected = next(Renderer(G, torch.device("cpu")).render_seeds([seed], [None]))
        assert difference(pixels(tmp_path / "frames" / f"frame{frame:05d}.png"), expected) <= 1


def test_frames_of_a_longer_walk_do_not_stay_behind_those_of_a_shorter_one(networks, tmp_path):
    command = [f"--network={networks['plain']}", f"--outdir={tmp_path}", "--seeds=1,5", "--loop=false", "--walk=frames/"]
    assert run(*command, "--frames=3").exit_code == 0
    assert run(*command, "--frames=3").exit_code == 0  # the same again, and longer ones, write over what is there
    with pytest.raises(UserError, match=r"has 3 frames, but frame00003\.png of a longer walk lies there"):
        run(*command, "--frames=2")


def test_a_class_has_no_effect_on_a_network_without_labels_and_that_is_said(networks, tmp_path):
    command = [f"--network={networks['plain']}", "--seeds=1"]
    assert "note: --class=4 has no effect" in run(*command, "--class=4", f"--outdir={tmp_path / 'a'}").output
    assert "note" not in run(*command, f"--outdir={tmp_path / 'b'}").output
    assert difference(pixels(tmp_path / "a" / "seed0001.png"), pixels(tmp_path / "b" / "seed0001.png")) == 0


def test_seeds_are_checked():
    assert seed_latents([2**32 - 1], 3).shape == (1, 3) and seed_latents([], 3).shape == (0, 3)
    assert torch.equal(seed_latents([1, 2], 5)[1:], seed_latents([2], 5))
    with pytest.raises(UserError, match="4294967296"):
        seed_latents([2**32], 3)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        ("plain", ["--seeds=1", "--trunc=nan"], "--trunc=nan is no finite number"),
        ("plain", ["--seeds=1-2", "--walk=x.gif", "--fps=60"], "a GIF shows 50 at most"),
        ("classes", ["--seeds=0-2", "--grid=2x6"], "one per column for each round of the classes"),
        ("classes", ["--seeds=1"], "--class=0 to --class=2"),
        ("classes", ["--seeds=1", "--class=3"], "0 to 2"),
        ("classes", ["--seeds=1,2", "--walk=x.gif"], "--class is missing"),
        ("no_ema", ["--seeds=1"], "G_ema"),
        ("plain", [], "--seeds is missing"),
        ("plain", ["--seeds=1", "--walk=x.gif"], "two --seeds"),
        ("plain", ["--seeds=1-2", "--walk=x.avi"], "--walk=x.avi: an animation ends in .gif or .mp4"),
        ("plain", ["--seeds=1-2", "--walk=../x.gif"], "--walk=../x.gif leads out of --outdir"),
        ("plain", ["--seeds=1-2", "--walk=/x.gif"], "--walk=/x.gif leads out of --outdir"),
        ("plain", ["--seeds=1-2", "--walk=x.gif", "--grid"], "exclude"),
        ("plain", ["--seeds=1-2", "--grid=2x3"], "needs 6 seeds"),
        ("plain", ["--projected-w=none.npz"], "none.npz"),
        ("missing", ["--seeds=1"], "missing"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(networks, tmp_path, network, arguments, message):
    path = networks.get(network, tmp_path / "missing.safetensors")
    with pytest.raises(UserError) as error:
        run(f"--network={path}", f"--outdir={tmp_path / 'out'}", *arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seeds", ["x", "5-3", "-1", "1,,2", "", "4294967296"])
def test_malformed_seeds_and_grids(networks, tmp_path, seeds):
    result = run(f"--network={networks['plain']}", f"--seeds={seeds}", f"--outdir={tmp_path}")
    assert result.exit_code == 2 and "--seeds" in result.output
    assert run(f"--network={networks['plain']}", "--grid=0x3", f"--outdir={tmp_path}").exit_code == 2


def test_options_without_effect_are_told(networks, tmp_path):
    G = load_network(networks["plain"]).G_ema
    np.savez(tmp_path / "w.npz", w=np.zeros([1, G.num_ws, 8]))
    network, out = f"--network={networks['plain']}", f"--outdir={tmp_path / 'out'}"
    said = run(network, out, f"--projected-w={tmp_path / 'w.npz'}", "--seeds=1", "--trunc=1", "--frames=30", "--noise-mode=none").output
    assert [line.split()[1] for line in said.splitlines() if line.startswith("note:")] == ["--seeds", "--trunc", "--frames"]
    assert "note: --fps has no effect without an animated --walk" in run(network, out, "--seeds=1", "--fps=10").output
    assert "note: --fps" in run(network, out, "--seeds=1,2", "--walk=frames/", "--frames=1", "--fps=10").output
    assert "note" not in run(network, out, "--seeds=1,2", "--walk=a.gif", "--frames=1", "--fps=10").output


def test_images_that_are_no_numbers_are_refused(networks, tmp_path):
    G = load_network(networks["plain"]).G_ema
    with torch.no_grad():
        G.synthesis.b8.conv0.weight[0, 0] = np.nan
    save_networks(tmp_path / "lost.safetensors", {"G_ema": network_record(G)}, {})
    for arguments in (["--seeds=1"], ["--seeds=1-3", "--grid"], ["--seeds=1", "--noise-mode=random"]):
        with pytest.raises(UserError, match="NaN or infinity"):
            run(f"--network={tmp_path / 'lost.safetensors'}", f"--outdir={tmp_path / 'out'}", *arguments)
    assert not list((tmp_path / "out").iterdir())


def test_wrong_projections(networks, tmp_path):
    G = load_network(networks["plain"]).G_ema
    path = tmp_path / "w.npz"
    shapes = [1, G.num_ws + 1, 8], [1, G.num_ws, 9], [G.num_ws, 8], [0, G.num_ws, 8]
    wrong = [{"w": np.zeros(shape)} for shape in shapes] + [{"v": np.zeros(3)}, {"w": np.array([{}])}]
    wrong += [{"w": np.full([1, G.num_ws, 8], value)} for value in (np.nan, -np.inf, 1e300)]
    for content in wrong:
        np.savez(path, **content)
        with pytest.raises(UserError, match=r"w\.npz"):
            run(f"--network={networks['plain']}", f"--projected-w={path}", f"--outdir={tmp_path / 'out'}")
    for data in (b"PK\x03\x04", b"", b"hello"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"w\.npz"):
            run(f"--network={networks['plain']}", f"--projected-w={path}", f"--outdir={tmp_path / 'out'}")


def test_unwritable_folder(networks, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file"):
        run(f"--network={networks['plain']}", "--seeds=1", f"--outdir={tmp_path / 'file'}")


def test_damaged_network_is_one_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(GOLDEN.read_bytes()[:5000])
    command = [sys.executable, "generate.py", f"--network={tmp_path / 'bad.pkl'}", "--seeds=1", f"--outdir={tmp_path / 'out'}"]
    result = subprocess.run(command, cwd=GOLDEN.parent.parent.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "bad.pkl" in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pkl"]
