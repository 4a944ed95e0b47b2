"""The augmentation pipe equals the golden numbers, differentiates twice, and treats every image on its own, at every size and channel count."""

import json
import math
import pathlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from torch_utils.band_matrix import band_matrix, fold_reflection
from training import augment_geometry as geometry
from training.augment import AUGPIPE_PRESETS, AugmentPipe
from training.augment_color import ColorOps, augment_color
from training.augment_corruption import CorruptionOps, _band_gains, filter_bands
from training.augment_draws import Draws

GOLDEN = np.load(pathlib.Path(__file__).parent / "data" / "augment.npz")
CONFIG = json.loads(str(GOLDEN["config"]))
PIPES = {**AUGPIPE_PRESETS, "bgcfc": {**AUGPIPE_PRESETS["bgcf"], "cutout": 1}}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["dense", "filtered"])
def resampling(request, monkeypatch):
    """Runs a test with both ways of resampling the axes."""
    size = 1024 if request.param == "dense" else 0
    monkeypatch.setattr(geometry, "DENSE_MAX_SIZE", {"reference": size, "native": size})


def near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(expected.abs().max().item(), 1e-8)


def transforms(batch, width, height, ops=None):
    """Random transforms, all operations open."""
    ops = ops or geometry.GeometryOps(**AUGPIPE_PRESETS["bg"])
    return geometry.sample_transform(ops, Draws(batch, torch.ones([])), width, height)


# Golden numbers.


@pytest.mark.parametrize("case", range(len(CONFIG)))
def test_equals_golden(case, resampling):
    x, y, dy, dx = (torch.from_numpy(GOLDEN[f"case{case:02d}.{key}"]) for key in ("x", "y", "dy", "dx"))
    pipe = AugmentPipe(**PIPES[CONFIG[case]["pipe"]])
    output = pipe(x.requires_grad_(), debug_percentile=CONFIG[case]["percentile"])
    near(output.detach(), y, 1e-4)
    near(torch.autograd.grad(output, x, dy)[0], dx, 1e-3)


def test_buffers_equal_golden():
    state = AugmentPipe().state_dict()
    assert list(state) == ["p", "Hz_geom", "Hz_fbank"]
    assert state["p"].item() == 1
    near(state["Hz_geom"], torch.from_numpy(GOLDEN["Hz_geom"]), 1e-6)
    near(state["Hz_fbank"], torch.from_numpy(GOLDEN["Hz_fbank"]), 1e-6)


def test_presets_name_all_operations_once():
    assert list(AUGPIPE_PRESETS) == ["blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"]
    parts = [name for part in ("blit", "geom", "color", "filter", "noise", "cutout") for name in AUGPIPE_PRESETS[part]]
    assert len(set(parts)) == len(parts) and list(AUGPIPE_PRESETS["bgcfnc"]) == parts
    assert all(value == 1 for preset in AUGPIPE_PRESETS.values() for value in preset.values())


# Properties of the whole pipe.


@pytest.mark.parametrize("preset", ["bgcfnc", "blit", "color"])
def test_strength_0_changes_nothing(preset):
    pipe = AugmentPipe(**AUGPIPE_PRESETS[preset])
    pipe.p.zero_()
    images = torch.randn([3, 3, 16, 16])
    near(pipe(images), images, 1e-5)


def test_without_operations_nothing_is_drawn():
    state = torch.get_rng_state()
    images = torch.randn([2, 3, 8, 8], generator=torch.Generator().manual_seed(0))
    assert torch.equal(AugmentPipe()(images), images)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_numbers_come_from_the_global_generator():
    pipe, images = AugmentPipe(**AUGPIPE_PRESETS["bgcfnc"]), torch.randn([4, 3, 8, 8])
    state = torch.get_rng_state()
    first, second = pipe(images), pipe(images)
    torch.set_rng_state(state)
    assert torch.equal(pipe(images), first) and not torch.equal(first, second)


def test_a_percentile_draws_nothing():
    pipe, images = AugmentPipe(**AUGPIPE_PRESETS["bgcfnc"]), torch.randn([4, 3, 8, 8])
    state = torch.get_rng_state()
    assert torch.equal(pipe(images, debug_percentile=0.3), pipe(images, debug_percentile=0.3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gradients(channels, resampling):
    pipe = AugmentPipe(**PIPES["bgcfc"])
    images = torch.randn([1, channels, 4, 4], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: pipe(x, debug_percentile=0.3), images, fast_mode=True)
    assert gradgradcheck(lambda x: pipe(x, debug_percentile=0.3).square(), images, fast_mode=True)


@pytest.mark.parametrize("height, width", [(4, 4), (8, 8), (16, 16), (4, 16), (1, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_small_images_of_any_channel_count(channels, height, width, resampling):
    pipe = AugmentPipe(**AUGPIPE_PRESETS["bgcfnc"])
    images = torch.randn([5, channels, height, width], requires_grad=True)
    output = pipe(images)
    (gradient,) = torch.autograd.grad(output.square().sum(), images, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), images)
    assert output.shape == images.shape
    assert output.isfinite().all() and second.isfinite().all() and second.abs().max() > 0


def test_nothing_is_read_back_from_a_device(resampling):
    """Meta tensors have no values, so reading one would fail; other than CPU tensors they take the path of a GPU."""
    pipe = AugmentPipe(**AUGPIPE_PRESETS["bgcfnc"]).to("meta")
    assert pipe(torch.empty([2, 3, 16, 16], device="meta")).shape == (2, 3, 16, 16)


def test_memory_format_does_not_matter():
    pipe, images = AugmentPipe(**AUGPIPE_PRESETS["bgcf"]), torch.randn([3, 3, 16, 16])
    near(pipe(images.contiguous(memory_format=torch.channels_last), debug_percentile=0.3), pipe(images, debug_percentile=0.3), 1e-6)


def test_wrong_settings_and_images_are_refused():
    with pytest.raises(TypeError, match="xflop"):
        AugmentPipe(xflop=1)
    with pytest.raises(ValueError, match="bands"):
        AugmentPipe(imgfilter=1, imgfilter_bands=[1, 1])
    for shape in ([2, 5, 8, 8], [3, 8, 8]):
        with pytest.raises(ValueError, match=r"\[N, 1\.\.4, H, W\]"):
            AugmentPipe()(torch.zeros(shape))


# Geometry.


@pytest.mark.parametrize("width, height", [(32, 32), (6, 12), (40, 7), (3, 2)])
@pytest.mark.parametrize("strong", [False, True])
def test_dense_resampling_equals_filtering(width, height, strong, monkeypatch):
    images = torch.randn([6, 2, height, width])
    ops = geometry.GeometryOps(**AUGPIPE_PRESETS["bg"], scale_std=1.5, xfrac_std=0.5) if strong else None
    transform = transforms(6, width, height, ops)
    results = []
    for size in (1024, 0):
        monkeypatch.setattr(geometry, "DENSE_MAX_SIZE", {"reference": size, "native": size})
        results.append(geometry.warp(images, *transform, AugmentPipe().Hz_geom))
    near(results[0], results[1], 2e-5)


def test_touched_range_changes_no_number(resampling, monkeypatch):
    images, transform, taps = torch.randn([8, 3, 12, 12]), transforms(8, 12, 12), AugmentPipe().Hz_geom
    narrow = geometry.warp(images, *transform, taps)
    whole = geometry._Axis(12, 0, 2 * (3 * 12 - 2))
    monkeypatch.setattr(geometry, "_touched_ranges", lambda *args: [whole, whole])
    near(narrow, geometry.warp(images, *transform, taps), 2e-5)


def test_an_image_does_not_feel_the_others_of_its_batch(resampling):
    images, (linear, shift), taps = torch.randn([8, 3, 12, 12]), transforms(8, 12, 12), AugmentPipe().Hz_geom
    together = geometry.warp(images, linear, shift, taps)
    alone = torch.cat([geometry.warp(images[i : i + 1], linear[i : i + 1], shift[i : i + 1], taps) for i in range(8)])
    near(together, alone, 2e-5)


def test_identity_and_whole_pixel_shifts_are_exact(resampling):
    images, taps = torch.randn([1, 3, 16, 16]), AugmentPipe().Hz_geom
    eye = torch.eye(2)[None]
    near(geometry.warp(images, eye, torch.zeros([1, 2, 1]), taps), images, 1e-5)
    shifted = geometry.warp(images, eye, torch.tensor([[[3.0], [-2.0]]]), taps)
    near(shifted, F.pad(images, [0, 3, 2, 0], mode="reflect")[:, :, :-2, 3:], 1e-5)


def test_a_smooth_image_turns_with_the_coordinates(resampling):
    """A wave of long wavelength, warped, is the wave at the transformed positions: directions and centre are right, not only sizes."""
    position = torch.arange(24.0) - 11.5
    y, x = torch.meshgrid(position, position, indexing="ij")
    wave = lambda x, y: torch.sin(0.25 * x) + torch.cos(0.2 * y + 0.3)  # noqa: E731
    linear, shift = torch.tensor([[[0.8, -0.3], [0.2, 0.7]]]), torch.tensor([[[1.25], [-0.6]]])
    warped = geometry.warp(wave(x, y)[None, None], linear, shift, AugmentPipe().Hz_geom)[0, 0]
    expected = wave(0.8 * x - 0.3 * y + 1.25, 0.2 * x + 0.7 * y - 0.6)
    assert (warped - expected)[4:-4, 4:-4].abs().max() < 0.05


def test_constant_images_stay_constant(resampling):
    images = torch.full([16, 3, 16, 16], 0.7)
    near(geometry.warp(images, *transforms(16, 16, 16), AugmentPipe().Hz_geom), images, 0.02)


def sampled(op, p=0.3, batch=20_000, **strengths):
    ops = geometry.GeometryOps(**{op: 1, **strengths})
    return geometry.sample_transform(ops, Draws(batch, torch.tensor(p)), 32, 16)


@pytest.mark.parametrize("op, share", [("xflip", 0.15), ("rotate90", 0.225), ("scale", 0.3), ("rotate", 0.3), ("aniso", 0.3)])
def test_linear_operations_happen_as_often_as_asked(op, share):
    linear, shift = sampled(op)
    changed = (linear - torch.eye(2)).abs().amax(dim=(1, 2)) > 1e-6
    assert changed.float().mean().item() == pytest.approx(share, abs=0.02)
    assert shift.abs().max() == 0
    determinant = torch.linalg.det(linear)
    if op != "scale":
        torch.testing.assert_close(determinant, torch.where(changed, -1.0, 1.0) if op == "xflip" else torch.ones_like(determinant))
    else:
        assert determinant.log2().std().item() == pytest.approx(2 * 0.2 * math.sqrt(0.3), rel=0.05)


def test_shifts_happen_as_often_and_as_far_as_asked():
    linear, whole = sampled("xint")
    assert torch.equal(linear, torch.eye(2).expand_as(linear))
    assert torch.equal(whole, whole.round())
    assert whole.abs().amax(dim=(0, 2)).tolist() == [4, 2]  # an eighth of 32 and of 16
    fractional = sampled("xfrac")[1]
    moved = (fractional != 0).all(dim=1)[:, 0]
    assert moved.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert fractional[moved].std(dim=0)[:, 0].tolist() == pytest.approx([4, 2], rel=0.05)


# Colour.


def recolor(images, percentile=None, **ops):
    return augment_color(images, ColorOps(**ops), Draws(images.shape[0], torch.ones([]), percentile))


def test_grey_images_are_treated_as_grey_rgb():
    grey = torch.randn([4, 1, 5, 5])
    ops = AUGPIPE_PRESETS["color"]
    near(recolor(grey, 0.8, **ops), recolor(grey.expand(-1, 3, -1, -1), 0.8, **ops).mean(dim=1, keepdim=True), 1e-6)


@pytest.mark.parametrize("channels", [2, 4])
def test_opacity_keeps_its_values(channels):
    images = torch.randn([4, channels, 5, 5])
    output = recolor(images, 0.8, **AUGPIPE_PRESETS["color"])
    assert torch.equal(output[:, -1], images[:, -1])
    assert torch.equal(output[:, :-1], recolor(images[:, :-1], 0.8, **AUGPIPE_PRESETS["color"]))


def test_hue_saturation_and_lumaflip_act_about_the_grey_axis():
    images = torch.randn([64, 3, 4, 4])
    mean = images.mean(dim=1)
    turned, saturated, flipped = recolor(images, hue=1), recolor(images, saturation=1), recolor(images, 0.8, lumaflip=1)
    near(turned.mean(dim=1), mean, 1e-5)
    near(turned.square().sum(dim=1), images.square().sum(dim=1), 1e-5)
    near(saturated.mean(dim=1), mean, 1e-5)
    near(flipped, images - 2 * mean[:, None], 1e-5)
    assert (turned - images).abs().max() > 0.1 and (saturated - images).abs().max() > 0.1


def test_a_third_of_a_turn_of_the_hue_permutes_the_channels():
    images = torch.randn([2, 3, 4, 4])
    turned = recolor(images, (1 + 2 / 3) / 2, hue=1)  # the percentile of +120 degrees
    near(turned, images.roll(1, dims=1), 1e-5)


def test_brightness_and_contrast_have_their_strengths():
    images = torch.ones([20_000, 3, 1, 1])
    assert recolor(images, brightness=1).sub(1).std().item() == pytest.approx(0.2, rel=0.05)
    assert recolor(images, contrast=1).log2().std().item() == pytest.approx(0.5, rel=0.05)


# Image filter, noise, cutout.


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 21, 22, 32])
def test_image_filter_equals_a_padded_convolution(size):
    """Numpy's reflection goes on beyond the image's far end, as often as needed; at 22 pixels and more it is the usual reflection padding."""
    bank, images = AugmentPipe().Hz_fbank, torch.randn([3, 2, size, size])
    output = filter_bands(images, CorruptionOps(imgfilter=1), Draws(3, torch.ones([]), 0.8), bank)
    gain = 2 ** torch.erfinv(torch.tensor(0.6)).item()
    powers = np.array([10, 1, 1, 1]) / 13
    gains = gain / np.prod(np.sqrt(1 + powers * (gain**2 - 1)))
    taps = torch.full([4], gains, dtype=torch.float32) @ bank
    padded = torch.from_numpy(np.pad(images.numpy(), [(0, 0), (0, 0), (21, 21), (21, 21)], mode="reflect"))
    if size >= 22:
        assert torch.equal(padded, F.pad(images, [21] * 4, mode="reflect"))
    kernel = torch.outer(taps, taps).expand(2, 1, -1, -1)
    near(output, F.conv2d(padded, kernel, groups=2), 1e-5)


def test_image_filter_keeps_the_expected_power_of_each_gate():
    """With only one band open, ten parts of the power below and one in each other band add up to what they were."""
    pipe = AugmentPipe(imgfilter=1, imgfilter_bands=[0, 0, 1, 0])
    gains = _band_gains(pipe.corruption, Draws(100, torch.ones([])))
    power = (gains.square() * torch.tensor([10, 1, 1, 1]) / 13).sum(dim=1)
    near(power, torch.ones(100), 1e-5)
    assert (gains[:, 2] / gains[:, 0]).log2().std() > 0.5 and torch.equal(gains[:, 0], gains[:, 3])


@pytest.mark.parametrize("size, margin", [(1, 3), (2, 7), (5, 4), (5, 11), (30, 4)])
def test_folding_equals_padding(size, margin):
    matrix, image = torch.randn([3, size + 2 * margin]), torch.randn([size])
    padded = torch.from_numpy(np.pad(image.numpy(), margin, mode="reflect" if size > 1 else "edge"))
    near(fold_reflection(matrix, size) @ image, matrix @ padded, 1e-5)


def test_band_matrix_is_zero_beyond_the_taps():
    index = torch.tensor([[-1, 0, 1], [1, 2, -3]])
    assert band_matrix(torch.tensor([5.0, 7.0]), index).tolist() == [[0, 5, 7], [7, 0, 0]]


def test_noise_is_white_with_half_normal_strength():
    noise = AugmentPipe(noise=1)(torch.zeros([4000, 1, 8, 8]))
    assert noise.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.05)
    strength = noise.square().mean(dim=(1, 2, 3)).sqrt()
    assert strength.mean().item() == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.05)


def test_cutout_is_a_square_of_zeros():
    images = torch.ones([500, 3, 16, 16])
    output = AugmentPipe(cutout=1)(images)
    rows, columns = (output == 0).any(dim=3).sum(dim=2), (output == 0).any(dim=2).sum(dim=2)
    assert torch.equal((output == 0).sum(dim=(2, 3)), rows * columns)
    assert rows.max() == 8 and columns.max() == 8 and rows.min() >= 3
    centered = AugmentPipe(cutout=1)(images[:1], debug_percentile=0.5)
    assert torch.equal(centered[0, 0] == 0, F.pad(torch.ones([8, 8]), [4] * 4) == 1)
