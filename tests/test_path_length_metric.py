"""Perceptual path length: generators with known geometry, what the distance network sees, what is drawn and from where, several ranks, errors."""

import math
import pathlib

import numpy as np
import pytest
import torch

from dnnlib import UserError
from metrics.detectors import get_detector, trust_detector
from metrics.features import GeneratorSource
from metrics.perceptual_path_length import PATH_LENGTHS, great_circle, perceptual_path_length
from torch_utils.distributed import leave
from training.networks import Generator

CPU = torch.device("cpu")
Z_DIM = 16
SCALE = 0.1  # of images against latents
PIXEL = 127.5 * SCALE  # of pixels, 0..255, against latents
ROUNDING = 2e-3  # A step of 1e-4 leaves three or four digits of a float32.


class Flat(torch.nn.Module):
    """A mapping that does nothing and images that are a rotation of the latents: lengths in images are lengths of latents, times SCALE."""

    def __init__(self, resolution=8, channels=3, c_dim=0):
        super().__init__()
        self.z_dim, self.c_dim, self.img_resolution, self.img_channels = Z_DIM, c_dim, resolution, channels
        rng = np.random.default_rng(0)
        rotation = np.linalg.qr(rng.standard_normal((channels * resolution**2, Z_DIM)))[0].T
        self.weight = torch.nn.Parameter(torch.from_numpy(SCALE * rotation).float())

    def mapping(self, z, c, truncation_psi=1):
        return (z * truncation_psi).unsqueeze(1)

    def synthesis(self, ws, noise_mode="random"):
        assert noise_mode == "const"
        return (ws[:, 0] @ self.weight).reshape(len(ws), self.img_channels, self.img_resolution, self.img_resolution)


class Painted(Flat):
    """Images that are one number of the latent times a pattern [C, R, R]."""

    def __init__(self, pattern):
        super().__init__(resolution=pattern.shape[-1], channels=len(pattern))
        self.pattern = torch.from_numpy(np.float32(pattern))

    def synthesis(self, ws, noise_mode="random"):
        return ws[:, 0, 0, None, None, None] * self.pattern


class Labels:
    """A data set of which only the labels are asked."""

    def __init__(self, classes=3, count=10):
        self.label_dim, self.count = classes, count

    def __len__(self):
        return self.count

    def get_labels(self, indices):
        return np.eye(self.label_dim, dtype=np.float32)[indices % self.label_dim]


def pixels(images):
    """The distance network that compares pixels."""
    return images.flatten(1)


def length(G, dataset=None, distance=pixels, num_samples=200, **options):
    return perceptual_path_length(G, dataset, "cpu", distance=distance, num_samples=num_samples, **options)


def drawn_pairs(num_samples, G=None, dataset=None, seed=0):
    """The latents [num_samples, z_dim] at both ends of the paths: of each 128 drawn, the first 64 and the last 64."""
    z, _ = GeneratorSource(G or Flat(), dataset, CPU, seed=seed).inputs(0, 128 * math.ceil(num_samples / 64))
    blocks = z.double().reshape(-1, 2, 64, Z_DIM)
    return tuple(blocks[:, side].reshape(-1, Z_DIM)[:num_samples] for side in (0, 1))


def trimmed(values):
    """Mean without the values outside the 1st and 99th percentile, by counting."""
    ordered, last = np.sort(np.asarray(values)), len(values) - 1
    return ordered[math.floor(0.01 * last) : math.ceil(0.99 * last) + 1].mean()


# Geometry.


@pytest.mark.parametrize("sampling", ["end", "full"])
@pytest.mark.parametrize("num_samples", [1, 64, 130, 500])
def test_on_flat_images_a_line_in_w_has_the_length_of_its_latents(sampling, num_samples):
    z0, z1 = drawn_pairs(num_samples)
    expected = trimmed(PIXEL**2 * (z1 - z0).square().sum(dim=1))
    assert length(Flat(), num_samples=num_samples, sampling=sampling) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("sampling", ["end", "full"])
def test_on_flat_images_a_great_circle_in_z_has_the_length_of_its_arc(sampling):
    z0, z1 = drawn_pairs(500)
    angles = torch.nn.functional.cosine_similarity(z0, z1).acos()
    expected = trimmed(PIXEL**2 * Z_DIM * angles.square())
    assert length(Flat(), num_samples=500, space="z", sampling=sampling) == pytest.approx(expected, rel=ROUNDING)


def test_the_length_grows_with_the_square_of_the_images_and_not_with_the_step():
    G, large = Flat(), Flat()
    large.weight.data *= 3
    assert length(large) == pytest.approx(9 * length(G), rel=ROUNDING)
    assert length(G, epsilon=1e-2) == pytest.approx(length(G), rel=ROUNDING)
    assert length(G, truncation_psi=0.5) == pytest.approx(length(G) / 4, rel=ROUNDING)


def test_great_circles_run_from_end_to_end_at_constant_speed():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=rng, dtype=torch.float64) for _ in range(2))
    at = [great_circle(a, b, torch.full((5,), t / 8)) for t in range(9)]
    for end, points in ((a, at[0]), (b, at[-1])):
        torch.testing.assert_close(points, math.sqrt(7) * end / end.norm(dim=1, keepdim=True))
    steps = torch.stack([(after - before).norm(dim=1) for before, after in zip(at, at[1:])])
    torch.testing.assert_close(steps, steps[:1].expand(8, -1))
    assert all(torch.allclose(points.norm(dim=1), torch.tensor(7.0).sqrt().double()) for points in at)


@pytest.mark.parametrize(("sampling", "low", "high"), [("end", 0, 0), ("full", 0.4, 0.6)])
def test_steps_start_at_one_end_or_anywhere_between(sampling, low, high):
    class Watched(Flat):
        starts = []

        def synthesis(self, ws, noise_mode="random"):
            self.starts.append(ws[: len(ws) // 2, 0])
            return super().synthesis(ws, noise_mode)

    length(Watched(), sampling=sampling, num_samples=130, batch=30)
    z0, z1 = (z.float() for z in drawn_pairs(130))
    t = ((torch.cat(Watched.starts) - z0) * (z1 - z0)).sum(dim=1) / (z1 - z0).square().sum(dim=1)
    assert t.min() >= -1e-6 and t.max() < 1 + 1e-6
    assert low <= t.mean() <= high


def test_constant_images_have_no_length():
    assert length(Painted(np.zeros((3, 8, 8)))) == 0


# What the distance network sees.


def seen(G, **options):
    """Images that the distance network got."""
    images = []

    def watch(batch):
        images.append(batch)
        return batch.flatten(1)

    length(G, distance=watch, num_samples=4, **options)
    return torch.cat(images)


def test_pixels_run_from_0_to_255_and_are_not_clipped():
    G = Painted(np.ones((3, 8, 8)))
    images = seen(G)
    z0, _ = drawn_pairs(4)
    torch.testing.assert_close(images[::4, 0, 0, 0], (z0[::2, 0] * 127.5 + 127.5).float())
    assert images.dtype == torch.float32 and images.shape == (8, 3, 8, 8)
    assert images.max() > 255 or images.min() < 0


def test_grey_is_repeated_and_alpha_laid_over_black():
    grey = seen(Painted(np.ones((1, 8, 8))))
    assert grey.shape == (8, 3, 8, 8) and torch.equal(grey[:, :1].expand(-1, 3, -1, -1), grey)
    rgba = Painted(np.stack([np.full((8, 8), value) for value in (1, 2, 3, 0)]))  # alpha is 0.5 everywhere
    x = drawn_pairs(4)[0][::2, :1] * torch.tensor([1, 2, 3])
    torch.testing.assert_close(seen(rgba)[::4, :, 0, 0], ((x * 127.5 + 127.5) / 2).float())


@pytest.mark.parametrize("edge", ["inside", "top", "bottom", "left", "right"])
def test_crop_keeps_rows_3_to_7_and_columns_2_to_6_of_8(edge):
    pattern = np.ones((1, 32, 32))
    pattern[:, 12:28, 8:24] = 0
    border = {"inside": None, "top": (12, 15), "bottom": (27, 15), "left": (20, 8), "right": (20, 23)}[edge]
    if border:
        pattern[0][border] = 1
    G = Painted(pattern)
    assert (length(G, crop=True) > 0) == (edge != "inside")
    assert length(G, crop=False) > 0
    assert seen(G, crop=True).shape[2:] == (16, 16)


@pytest.mark.parametrize(("resolution", "crop", "expected"), [(256, False, 256), (512, False, 256), (512, True, 128)])
def test_images_above_256_are_averaged_down(resolution, crop, expected):
    checkerboard = np.indices((resolution, resolution)).sum(axis=0)[None] % 2 - 0.5
    images = seen(Painted(checkerboard), crop=crop)
    assert images.shape[2:] == (expected, expected)
    assert (images == 127.5).all() == (resolution > 256)


def test_only_images_of_known_channels_are_compared():
    with pytest.raises(UserError, match=r"grey or RGB images, .* got 5 channels"):
        length(Painted(np.ones((5, 8, 8))))


# What is drawn, and what is left alone.


def small_generator(seed=0, c_dim=0, low_precision=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        synthesis = {"channel_base": 64, "channel_max": 8, "num_fp16_res": 4 if low_precision else 0, "low_precision": "bfloat16"}
        G = Generator(Z_DIM, c_dim, 8, 16, 3, mapping_kwargs={"num_layers": 2}, synthesis_kwargs=synthesis)
        for name, strength in G.named_parameters():
            if name.endswith("noise_strength"):
                strength.data.fill_(0.5)
    return G


@pytest.mark.parametrize("name", PATH_LENGTHS)
def test_training_state_is_left_alone(name):
    G = small_generator(c_dim=3, low_precision=True).train()
    G.mapping.eval()
    before = {key: value.clone() for key, value in G.state_dict().items()}
    modes = [part.training for part in G.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert length(G, Labels(), num_samples=5, **PATH_LENGTHS[name]) > 0
    assert all(torch.equal(value, before[key]) for key, value in G.state_dict().items())
    assert [part.training for part in G.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in G.parameters())
    assert G.synthesis.b16.low_precision == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()


def test_half_precision_generators_are_measured_in_full_precision():
    G, plain = small_generator(low_precision=True), small_generator()
    assert G.synthesis.b16.low_precision is not None
    assert length(G, num_samples=20) == length(plain, num_samples=20)


def test_both_ends_share_a_noise_that_changes_between_blocks_and_replaces_the_stored_one():
    class Noisy(Flat):
        noises = []

        def __init__(self):
            super().__init__()
            self.register_buffer("noise_const", torch.full((8, 8), 1000.0))

        def synthesis(self, ws, noise_mode="random"):
            self.noises.append(self.noise_const.clone())
            return super().synthesis(ws, noise_mode) + self.noise_const

    G = Noisy()
    assert length(G, num_samples=130) == pytest.approx(length(Flat(), num_samples=130), rel=ROUNDING)
    assert len(Noisy.noises) == 65  # batches of two pairs, the last of a block among them
    different = {noise.sum().item() for noise in Noisy.noises}
    assert len(different) == 3 and all(noise.abs().max() < 6 for noise in Noisy.noises)
    assert (G.noise_const == 1000).all()


def test_both_ends_share_a_label_of_the_data_set():
    class Watched(Flat):
        labels = []

        def mapping(self, z, c, truncation_psi=1):
            self.labels.append(c)
            return super().mapping(z, c, truncation_psi)

    length(Watched(c_dim=3), Labels(), num_samples=100, batch=64)
    for first, second in (labels.chunk(2) for labels in Watched.labels):
        assert torch.equal(first, second) and (first.sum(dim=1) == 1).all()
    drawn = torch.cat(Watched.labels).sum(dim=0)
    assert (drawn > 30).all()
    with pytest.raises(UserError, match="labels of length 3, the labels of the data set have length 2"):
        length(Flat(c_dim=3), Labels(classes=2))


def test_the_seed_and_nothing_else_decides():
    G = small_generator()
    first = length(G, num_samples=70)
    torch.rand(1)
    assert length(G, num_samples=70) == first
    assert length(G, num_samples=70, batch=33) == pytest.approx(first, rel=ROUNDING)
    assert length(G, num_samples=70, seed=1) != pytest.approx(first, rel=1e-2)


def test_progress_counts_every_pair_once():
    done = []
    length(Flat(), num_samples=130, advance=done.append)
    assert done == [64, 64, 2]


def _rank_main(rank, store, output):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    pathlib.Path(output, f"rank{rank}").write_text(repr(length(small_generator(), num_samples=140)))
    leave()  # together: a rank that goes while another still talks to it may abort


def test_two_ranks_give_the_value_of_one(tmp_path):
    torch.multiprocessing.spawn(_rank_main, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks: convolutions round by the number of threads, and a step of 1e-4 magnifies it
    try:
        expected = repr(length(small_generator(), num_samples=140))
    finally:
        torch.set_num_threads(threads)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == [expected] * 2


# Names, networks and errors.


def test_names_pin_the_variants():
    table = {name: (options["space"], options["sampling"], options["crop"]) for name, options in PATH_LENGTHS.items()}
    assert table == {
        "ppl2_wend": ("w", "end", False),
        "ppl_zfull": ("z", "full", True),
        "ppl_wfull": ("w", "full", True),
        "ppl_zend": ("z", "end", True),
        "ppl_wend": ("w", "end", True),
    }


class Lpips(torch.nn.Module):
    def forward(self, images: torch.Tensor, resize_images: bool = True, return_lpips: bool = False) -> torch.Tensor:
        assert return_lpips and not resize_images
        return torch.nn.functional.avg_pool2d(images, 8).flatten(1)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")

    def save(module):
        path = folder / f"{type(module).__name__.lower()}.pt"
        torch.jit.script(module).save(str(path))
        trust_detector(str(path), remember=False)
        return str(path)

    return save


def test_a_torchscript_file_gives_the_distance(script):
    distance = get_detector(script(Lpips()), CPU, "lpips")
    G = Painted(np.ones((3, 16, 16)))
    assert length(G, distance=distance) == pytest.approx(length(G) / 64, rel=5e-3)


def test_images_too_small_for_the_network_are_refused(script):
    distance = get_detector(script(Lpips()), CPU, "lpips")
    with pytest.raises(UserError, match=r"detector lpips fails on torch.float32 images of shape \[\d+, 3, 4, 4\]"):
        length(Painted(np.ones((3, 8, 8))), distance=distance, crop=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "y"}, "space of a path length is z or w, found 'y'"),
        ({"sampling": "middle"}, "sampling of a path length is full or end, found 'middle'"),
        ({"num_samples": 0}, "at least one pair.* found num_samples=0"),
        ({"batch": 0}, "found num_samples=200, batch=0"),
        ({"epsilon": 0.0}, "a step between 0 and 1, found .*epsilon=0.0"),
        ({"distance": lambda images: images}, r"a matrix with one row per image, found shape \[4, 3, 8, 8\] for 4 images"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        length(Flat(), **options)


def test_crop_needs_eight_pixels():
    with pytest.raises(UserError, match="at least 8x8 pixels, the generator makes 4x4"):
        length(Flat(resolution=4), crop=True)


def test_lengths_that_are_not_finite_are_refused():
    G = Flat()
    G.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite for 70 of 70 pairs"):
        length(G, num_samples=70)
