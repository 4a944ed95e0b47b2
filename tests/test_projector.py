"""Projection: what it finds, what it leaves alone, the published schedule and noise penalty, the files, and mistakes found before work."""

import copy
import pathlib
from types import SimpleNamespace

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from metric_parts import Perceptual
from test_generate import difference, make_generator, pixels

import generate
import projector
from dnnlib import UserError
from metrics.detectors import embedded, trust_detector
from metrics.features import full_precision
from torch_utils.checkpoint import save_networks
from torch_utils.layers import float32_copy
from training.images import save_png
from training.networks import network_record
from training.perceptual import PerceptualDistance, embedded_maps, perceptual_distance
from training.projection import Settings, noise_penalty, project, schedule, w_statistics
from training.sampling import Renderer

CPU = torch.device("cpu")
PIXELS = PerceptualDistance("pixels", lambda images: images.flatten(1) / 255)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Snapshots (unconditional, with 3 classes), a picture of the first one and one of another size."""
    folder = tmp_path_factory.mktemp("networks")
    for name, c_dim in (("plain", 0), ("classes", 3)):
        save_networks(folder / f"{name}.safetensors", {"G_ema": network_record(make_generator(c_dim))}, {})
    save_png(next(Renderer(make_generator(), CPU).render_seeds([3], [None])), folder / "target.png")
    gradient = np.mgrid[0:40, 0:60].astype(np.uint8).transpose(1, 2, 0)
    PIL.Image.fromarray(np.dstack([gradient, gradient[:, :, :1]])).save(folder / "wide.png")
    return folder


def run(networks, *args, name="plain"):
    arguments = [f"--network={networks / name}.safetensors", "--device=cpu", *map(str, args)]
    return CliRunner().invoke(projector.main, arguments, catch_exceptions=False)


def target_of(G, seed=3):
    return next(Renderer(G, CPU).render_seeds([seed], [None])).float() / 127.5 - 1


def error_of(G, w, target):
    images = G.synthesis(w.reshape(1, 1, -1).repeat(1, G.num_ws, 1), noise_mode="const")
    return float((images[0] - target).square().mean())


def test_the_image_comes_nearer_and_nothing_else_changes():
    G = make_generator()
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.zero_()
    before, state = copy.deepcopy(G.state_dict()), torch.get_rng_state()
    target = target_of(G)
    found = project(G, target, PIXELS, settings=Settings(num_steps=150, mean_samples=500))
    start = error_of(G, w_statistics(G, None, 500)[0], target)
    assert error_of(G, found.steps[-1], target) < 0.1 * start
    assert found.distances[-1] < 0.1 * found.distances[0] and found.steps.shape == (150, 8)
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not any(buffer.requires_grad for buffer in G.buffers())


def test_the_same_seed_gives_the_same_w():
    G = make_generator()
    results = [project(G, target_of(G), PIXELS, settings=Settings(num_steps=8, seed=seed, mean_samples=50)).steps for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_the_search_starts_at_the_mean_of_the_class():
    G = make_generator(c_dim=3)
    means = [w_statistics(G, torch.eye(3)[index], 300)[0] for index in (0, 1)]
    assert not torch.allclose(means[0], means[1], atol=0.05)
    for index, mean in enumerate(means):
        found = project(G, torch.zeros(3, 16, 16), PIXELS, torch.eye(3)[index], Settings(num_steps=1, mean_samples=300))
        assert torch.allclose(found.steps[0], mean.flatten(), atol=1e-6)  # the learning rate of the first step is zero


def test_mean_and_spread_are_those_of_w():
    G = make_generator()
    z = torch.from_numpy(np.random.RandomState(123).randn(2500, 8)).float()
    w = G.mapping(z, torch.zeros(2500, 0))[:, 0].double()
    mean, spread = w_statistics(G, None, 2500)
    assert torch.allclose(mean.flatten().double(), w.mean(dim=0), atol=1e-6)
    assert spread == pytest.approx(float((w - w.mean(dim=0)).norm(dim=1).square().mean().sqrt()), rel=1e-6)


def test_the_published_schedule():
    settings = Settings()
    rates, scales = zip(*(schedule(step / 1000, settings) for step in range(1001)))
    assert rates[0] == 0 and rates[25] == pytest.approx(0.05) and rates[50:750] == pytest.approx([0.1] * 700)
    assert rates[875] == pytest.approx(0.05) and rates[1000] == pytest.approx(0)
    assert scales[0] == 0.05 and scales[375] == pytest.approx(0.05 / 4) and scales[750:] == (0,) * 251


def test_noise_is_punished_for_looking_like_its_neighbours():
    white = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(white[None, None], 3, 1, 1)[0, 0]
    smooth = (smooth - smooth.mean()) / smooth.std()
    assert noise_penalty([white]) < 0.1 < 0.5 < noise_penalty([smooth])
    # A checkerboard is the opposite of its neighbours in both directions.
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert noise_penalty([1.0 - 2.0 * ((rows + columns) % 2)]) == 2 and noise_penalty([]) == 0
    # Blocks of 2x2 pixels: neighbours are equal as often as opposite, until averages of 2x2, doubled, make them a checkerboard of +-2.
    blocks = (1.0 - 2.0 * ((rows + columns) % 2)).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert noise_penalty([blocks]) == 2 * 2**4
    assert noise_penalty([white, smooth]) == pytest.approx(float(noise_penalty([white]) + noise_penalty([smooth])))


@pytest.mark.parametrize("size", [8, 32, 64, 100])
def test_embedded_distance_has_gradients_and_knows_equal_from_different(size):
    network = embedded.load_embedded()
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255
    images.requires_grad_(True)
    seen = embedded_maps(network, images)
    assert PerceptualDistance.between(seen, seen).tolist() == [0, 0]
    distance = PerceptualDistance.between(seen[:1], seen[1:]).sum()
    near = PerceptualDistance.between(embedded_maps(network, images + 1), seen).max()
    assert 0 < 10 * near < distance
    (gradient,) = torch.autograd.grad(distance, images)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.5


def test_lpips_of_a_file(tmp_path):
    path = tmp_path / "copy.pt"
    torch.jit.script(Perceptual()).save(str(path))
    trust_detector(str(path), remember=False)
    distance = perceptual_distance(str(path), CPU)
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(distance.look(images).sum(), images)
    assert distance.name == "lpips of copy" and (gradient != 0).all()
    assert torch.allclose(distance.look(torch.full([1, 1, 8, 8], -1.0)), torch.zeros(1, 12), atol=1e-5)
    assert distance.look(torch.zeros(1, 3, 512, 512)).shape == (1, 3 * 64 * 64)  # seen at 256x256
    with pytest.raises(UserError, match="channels"):
        distance.look(torch.zeros(1, 5, 8, 8))


def test_auto_takes_lpips_where_it_is_to_be_had_and_says_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr("training.perceptual.check_detector", asked.append)
    monkeypatch.setattr("training.perceptual.get_detector", lambda spec, _, need: asked.append((spec, need)) or SimpleNamespace(run=torch.flatten))
    said = []
    assert perceptual_distance("auto", CPU, said.append).name == "lpips"
    assert asked == ["vgg16", ("vgg16", "lpips")] and said == []


def test_auto_says_what_it_came_to(monkeypatch):
    def refuse(spec):
        raise UserError("detector 'vgg16' is not available: no connection; --detector=embedded needs no download")

    monkeypatch.setattr("training.perceptual.check_detector", refuse)
    said = []
    assert perceptual_distance("auto", CPU, said.append).name == "embedded"
    assert len(said) == 1 and "no connection" in said[0] and "--detector" not in said[0]


def test_float32_copy_computes_in_float32():
    G = make_generator()
    kwargs = copy.deepcopy(G.init_kwargs)
    kwargs["synthesis_kwargs"] |= {"num_fp16_res": 2, "low_precision": "bfloat16", "conv_clamp": 256}
    low = type(G)(**kwargs).eval()
    low.load_state_dict(G.state_dict())
    ws = torch.randn(2, G.num_ws, 8, generator=torch.Generator().manual_seed(0))
    exact = G.synthesis(ws, noise_mode="const")
    assert torch.equal(float32_copy(low).synthesis(ws, noise_mode="const"), exact)
    assert not torch.allclose(low.synthesis(ws, noise_mode="const"), exact, atol=1e-4)
    assert low.synthesis.b16.low_precision == torch.bfloat16


@pytest.mark.parametrize(("name", "extra"), [("plain", []), ("classes", ["--class=1"])])
def test_files(networks, tmp_path, name, extra):
    arguments = [f"--target={networks / 'target.png'}", "--num-steps=3", "--distance=embedded", f"--outdir={tmp_path}", *extra]
    result = run(networks, *arguments, "--save-video=true", name=name)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"target.png", "proj.png", "projected_w.npz", "proj.mp4"}
    assert torch.equal(pixels(tmp_path / "target.png"), pixels(networks / "target.png"))
    with np.load(tmp_path / "projected_w.npz") as archive:
        w = archive["w"]
    assert w.shape == (1, 6, 8) and w.dtype == np.float32 and (w == w[:, :1]).all()
    arguments = [f"--network={networks / name}.safetensors", f"--projected-w={tmp_path / 'projected_w.npz'}", f"--outdir={tmp_path / 'again'}"]
    assert CliRunner().invoke(generate.main, [*arguments, "--device=cpu"], catch_exceptions=False).exit_code == 0
    assert difference(pixels(tmp_path / "again" / "proj00.png"), pixels(tmp_path / "proj.png")) == 0


def test_a_picture_of_another_size_is_cropped_and_resampled_and_that_is_said(networks, tmp_path):
    arguments = [f"--target={networks / 'wide.png'}", "--num-steps=1", "--distance=embedded", "--save-video=false", f"--outdir={tmp_path}"]
    result = run(networks, *arguments)
    assert "60x40 pixels; its middle 40x40" in result.output and not (tmp_path / "proj.mp4").exists()
    seen = pixels(tmp_path / "target.png").float()
    # The picture's second channel counts columns: the middle 40 of 60 begin at the tenth.
    assert seen.shape == (3, 16, 16) and seen[1].mean() == pytest.approx(29.5, abs=0.5) and seen[0].mean() == pytest.approx(19.5, abs=0.5)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("given", ["L", "P", "RGB", "RGBA", "1", "CMYK"])
def test_pictures_of_any_mode_for_networks_of_any_channels(tmp_path, capsys, channels, mode, given):
    G = make_generator(img_channels=channels)
    image = PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, [16, 16, 3], dtype=np.uint8)).convert(given)
    path = tmp_path / ("picture.tif" if given == "CMYK" else "picture.png")
    image.save(path)
    picture = projector.read_target(str(path), G)
    assert ("has transparency" in capsys.readouterr().out) == (given == "RGBA" and "A" not in mode)
    assert picture.shape == (channels, 16, 16) and picture.dtype == torch.uint8
    assert np.array_equal(picture.permute(1, 2, 0).numpy().squeeze(), np.array(image.convert(mode)))
    found = project(G, picture.float() / 127.5 - 1, perceptual_distance("embedded", CPU), settings=Settings(num_steps=1, mean_samples=10))
    assert found.distances.isfinite().all()


def test_a_photo_is_seen_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    image = PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, [16, 16, 3], dtype=np.uint8))
    image.save(tmp_path / "photo.png", exif=exif)
    picture = projector.read_target(str(tmp_path / "photo.png"), make_generator())
    assert np.array_equal(picture.permute(1, 2, 0).numpy(), np.rot90(np.array(image), -1))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("plain", ["--target=deep.png"], "8 bits"),
        ("plain", ["--target=nothing.png"], "nothing.png"),
        ("plain", [f"--target={__file__}"], "test_projector.py"),
        ("classes", ["--target=target.png"], "--class=0 to --class=2"),
        ("classes", ["--target=target.png", "--class=3"], "0 to 2"),
        ("plain", ["--target=target.png", "--distance=nothing.pt"], "--distance=nothing.pt"),
        ("plain", ["--target=torn.png"], "torn"),
        ("missing", ["--target=target.png"], "missing"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(networks, tmp_path, monkeypatch, name, arguments, message):
    monkeypatch.chdir(networks)
    PIL.Image.fromarray(np.full([16, 16], 60_000, dtype=np.uint16)).save("deep.png")
    pathlib.Path("torn.png").write_bytes(pathlib.Path("target.png").read_bytes()[:-60])
    with pytest.raises(UserError) as error:
        run(networks, *arguments, f"--outdir={tmp_path / 'out'}", name=name)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_video_without_its_package(networks, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    arguments = [f"--target={networks / 'target.png'}", "--num-steps=1", "--distance=embedded", f"--outdir={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"--save-video=true.*imageio-ffmpeg"):
        run(networks, *arguments, "--save-video=true")
    assert not (tmp_path / "out").exists()
    result = run(networks, *arguments)
    assert result.exit_code == 0 and "imageio-ffmpeg" in result.output and not (tmp_path / "out" / "proj.mp4").exists()


def test_wrong_shapes_and_broken_networks():
    G = make_generator()
    with pytest.raises(UserError, match=r"\[3, 16, 16\]"):
        project(G, torch.zeros(3, 8, 8), PIXELS)
    G.synthesis.b8.conv0.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="step 0"):
        project(G, torch.zeros(3, 16, 16), PIXELS, settings=Settings(num_steps=2, mean_samples=10))


@pytest.mark.gpu
def test_a_gpu_searches_alike():
    G = make_generator()
    settings = Settings(num_steps=20, mean_samples=200)
    target = target_of(G)
    with full_precision():
        cpu = project(G, target, PIXELS, settings=settings)
        gpu = project(copy.deepcopy(G).cuda(), target, PIXELS, settings=settings)
    assert torch.allclose(cpu.steps, gpu.steps, atol=1e-2)
