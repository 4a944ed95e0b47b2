"""The explorer: what collides, what it shows, and which runs it takes."""

import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import urllib.request

import pytest
import torch
from explore_parts import CLASSES, LATENTS, REAL, SECONDS, ask, picture, ready, serving, status, write_run
from image_sets import pngs, write_zip
from test_generate import difference, make_generator

from dnnlib import UserError
from dnnlib.cli import run_command
from experiments.explore import main
from experiments.explore.command import find_network, make_server
from experiments.explore.latents import find_collisions, plane
from experiments.explore.model import View
from metrics.collision import collision_within
from torch_utils.checkpoint import save_networks
from training.networks import network_record
from training.sampling import Renderer

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("explore") / "00003-run")


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as server:
        yield server


# The arithmetic.


@pytest.mark.parametrize("radius", [0.5, 2.0, 4.0])
def test_shares_of_latents_add_up_to_the_metric(radius):
    random = torch.Generator().manual_seed(0)
    z, features = torch.randn(80, 16, generator=random), torch.randn(80, 5, generator=random)
    found = find_collisions(z, features, radius)
    assert found.share == collision_within(z, features, radius)
    distances = torch.cdist(z.double(), z.double())
    rows, columns = torch.triu_indices(80, 80, offset=1)
    far = (distances > distances[rows, columns].median()).sum(dim=1)
    assert float((found.per_latent * far).sum() / far.sum()) == pytest.approx(found.share, abs=1e-3)
    # The partner is the far latent with the nearest image, by exhaustion.
    for seed in range(0, 80, 7):
        others = [i for i in range(80) if distances[seed, i] > distances[rows, columns].median()]
        assert int(found.partner[seed]) == min(others, key=lambda i, seed=seed: float((features[i] - features[seed]).norm()))


def test_collapse_is_seen_and_its_absence_too():
    z = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert find_collisions(z, torch.zeros(50, 4), 1.0).per_latent.tolist() == [1] * 50
    assert find_collisions(z, 100 * z, 1.0).per_latent.tolist() == [0] * 50
    half = torch.cat([torch.zeros(25, 4), 100 * torch.randn(25, 4)])
    shares = find_collisions(z, half, 1.0).per_latent
    assert shares[:25].min() > 0.2 and shares[25:].max() == 0


def test_the_plane_shows_where_points_spread():
    random = torch.Generator().manual_seed(0)
    points = torch.randn(200, 6, generator=random) * torch.tensor([1, 1, 30, 1, 10, 1])
    seen = plane(points)
    assert seen.shape == (200, 2) and seen[:, 0].std(correction=0) == pytest.approx(1, abs=1e-4)
    assert abs(float(torch.corrcoef(torch.stack([seen[:, 0], points[:, 2]]))[0, 1])) > 0.99
    assert abs(float(torch.corrcoef(torch.stack([seen[:, 1], points[:, 4]]))[0, 1])) > 0.99
    order = torch.randperm(200, generator=random)
    assert torch.allclose(plane(points[order] + 5), seen[order], atol=1e-3)
    assert plane(torch.ones(4, 1)).tolist() == [[0, 0]] * 4
    with pytest.raises(UserError, match="NaN"):
        plane(torch.full([3, 2], float("nan")))


# What it shows.


def test_images_are_those_of_the_network(server):
    G = make_generator(CLASSES)
    for query, seed, label, trunc in (("seed=5&class=1", 5, 1, 1), ("seed=7&class=2&trunc=0.5", 7, 2, 0.5), ("", 0, 0, 1)):
        expected = next(Renderer(G, torch.device("cpu"), truncation_psi=trunc).render_seeds([seed], [label]))
        assert difference(picture(server, f"/image.png?{query}".rstrip("?")), expected) <= 1
    for space in ("z", "w"):
        ends = [picture(server, f"/image.png?seed=5&to=9&space={space}&t={t}") for t in (0, 0.5, 1)]
        assert difference(ends[0], picture(server, "/image.png?seed=5")) <= 1
        assert difference(ends[2], picture(server, "/image.png?seed=9")) <= 1
        assert difference(ends[1], ends[0]) > 5 and difference(ends[1], ends[2]) > 5
    assert difference(picture(server, "/image.png?seed=5&to=5&t=0.5"), picture(server, "/image.png?seed=5")) <= 1


def test_nearest_real_images(server):
    found = ready(server, "/nearest.json?seed=5&class=1")
    distances = [real["distance"] for real in found["real"]]
    assert len(distances) == 8 and distances == sorted(distances) and 0 <= found["covered_by"] <= REAL
    assert all(real["label"] == real["index"] % CLASSES for real in found["real"])
    explorer = server.pages.explorer
    # By exhaustion, over the images themselves.
    features = explorer.detector(explorer.render(View(5, label=1))[None])[0]
    real = torch.cat([explorer.detector(torch.from_numpy(explorer.dataset[index][0])[None]) for index in range(REAL)])
    assert int((real - features).norm(dim=1).argmin()) == found["real"][0]["index"]
    image = picture(server, f"/real.png?index={found['real'][0]['index']}")
    assert torch.equal(image, torch.from_numpy(explorer.dataset[found["real"][0]["index"]][0]))


def test_the_map_of_a_run(server):
    found = ready(server, "/map.json?class=1&trunc=0.8")
    assert found["state"] == "ready" and len(found["shares"]) == len(found["partners"]) == LATENTS
    assert {name: len(points) for name, points in found["layouts"].items()} == {"z": LATENTS, "w": LATENTS, "images": LATENTS}
    assert 0 <= found["collision"] <= 1 and 0 <= found["among_real"] <= 1
    assert ready(server, "/map.json?class=1&trunc=0.8") == found != ready(server, "/map.json?class=2&trunc=0.8")
    assert all(0 <= seed < LATENTS for pair in found["worst"] for seed in pair["seeds"])


def test_every_map_that_is_asked_for_is_made_in_the_end(server):
    targets = [f"/map.json?class={label}&trunc={trunc}" for trunc in (0.21, 0.22) for label in range(CLASSES)]
    for target in targets:  # each but the first has to wait, and the next one is asked for meanwhile
        assert ask(server, target)["state"] in ("working", "ready")
    assert all(ready(server, target)["state"] == "ready" for target in targets)


def test_a_collapsed_network_shows(folder):
    with serving(folder / "collapsed.safetensors") as server:
        found = ready(server, "/map.json")
        assert found["collision"] == 1 and set(found["shares"]) == {1} and found["among_real"] < 0.9
        assert ask(server, "/about.json")["classes"] == 0
        assert status(server, "/map.json?class=0")[0] == 400  # it has no classes


def test_work_that_fails_is_told_and_ends_nothing(server, monkeypatch):
    explorer = server.pages.explorer
    ready(server, "/map.json?class=0")

    def fail(label, trunc):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(explorer, "_survey", fail)
    assert ready(server, "/map.json?class=0&trunc=0.31")["state"] == "failed"
    monkeypatch.undo()
    assert ready(server, "/map.json?class=0&trunc=0.32")["state"] == "ready"


# Starting it.


def test_which_network(folder, tmp_path):
    assert find_network(str(folder), None).name == "network-snapshot-000008.safetensors"
    assert find_network(str(folder), 0).name == "network-snapshot-000000.safetensors"
    assert find_network(str(folder / "collapsed.safetensors"), None).name == "collapsed.safetensors"
    for run, snapshot, message in ((folder, 4, "0, 8"), (tmp_path, None, "network-snapshot"), (folder / "collapsed.safetensors", 0, "not a folder")):
        with pytest.raises(UserError, match=message):
            find_network(str(run), snapshot)


def test_wrong_starts(folder, tmp_path, server):
    small = write_zip(tmp_path / "small.zip", pngs(5, size=(8, 8)))
    save_networks(tmp_path / "nowhere.safetensors", {"G_ema": network_record(make_generator())}, {"training_set_kwargs": {"path": "gone.zip"}})
    for run, data, port, message in (
        (folder, small, 0, "16x16 pixels, but .* holds 8x8"),
        (folder, tmp_path / "gone.zip", 0, r"gone\.zip"),
        (tmp_path / "nowhere.safetensors", None, 0, "--data"),
        (folder, None, server.server_port, "another port"),
    ):
        with pytest.raises(UserError, match=message) as error:
            make_server(str(run), data and str(data), None, LATENTS, REAL, port, "cpu")
        assert "\n" not in str(error.value)


def test_the_command_serves_until_it_is_interrupted(folder, tmp_path):
    command = [sys.executable, "-m", "experiments.explore", str(folder), "--port=0", "--device=cpu", f"--latents={LATENTS}"]
    environment = os.environ | {"DNNLIB_CACHE_DIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Under a shell's background job SIGINT is ignored, and a program that is started there ignores it, too.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=heed, **pipes) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        while "serving" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        url = line.split()[1]
        with urllib.request.urlopen(f"{url}about.json", timeout=SECONDS) as answer:
            assert json.loads(answer.read())["latents"] == LATENTS
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0 and process.stdout.read() == "ended\n"


def test_a_wrong_run_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_command(main, [str(tmp_path)])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
