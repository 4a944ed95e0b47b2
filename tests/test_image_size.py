"""Images that are not square with a power of two as edge: which sizes there are, what networks make of them, and every tool on such a run."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from image_sets import convert, pngs, write_folder
from tiny_runs import CPU, write_data
from tiny_runs import train as tiny_run

import export
import generate
import projector
import style_mixing
from dnnlib import UserError
from experiments.report import run_pictures
from metrics.detectors.embedded import load_embedded
from metrics.latent_identification import latent_identification
from metrics.perceptual_path_length import perceptual_path_length
from metrics.sides import DataSide, GeneratorSide
from pairing.network import PairingNetwork
from torch_utils.image_size import SQUARE, check_start, nearest_size, size_of, start_of, written_size
from training import config
from training.augment import AUGPIPE_PRESETS, AugmentPipe
from training.networks import Discriminator, Generator, build_network, load_network, network_record
from training.options import Options
from training.perceptual import PerceptualDistance, embedded_maps
from training.transfer import OTHER_GRID, copy_matching

SHORT = dict(batch=252, kimg=1)  # 4 steps
NARROW = dict(channel_base=64, channel_max=8)


# ---------------------------------------------------------------- sizes


def test_squares_with_a_power_of_two_start_at_4x4():
    for step in range(9):
        assert start_of(4 << step, 4 << step) == (4 << step, SQUARE)


def test_sizes_are_starting_grids_doubled():
    for start in [(4, 4), (6, 4), (4, 64), (7, 5), (5, 11)]:
        for step in range(6):
            assert start_of(*size_of(4 << step, start)) == (4 << step, start)


@pytest.mark.parametrize(("height", "width"), [(3, 8), (0, 0), (9, 9), (16, 17), (4, 65), (1080, 1920), (1024, 16384)])
def test_no_network_makes_these(height, width):
    assert start_of(height, width) is None


def test_the_nearest_size_fits_into_the_image():
    random = np.random.RandomState(0)
    for height, width in random.randint(4, 2000, size=[500, 2]).tolist():
        near = nearest_size(height, width)
        assert start_of(*near) is not None and near[0] <= height and near[1] <= width
        capped = 64 << min(near).bit_length() - 3
        assert all(found > 0.79 * side or found == capped for found, side in zip(near, (height, width)))
    assert nearest_size(1, 1) == (4, 4) and nearest_size(256, 192) == (256, 192)


@pytest.mark.parametrize("grid", [(3, 8), (8, 8), (4, 65), (4,), (4.0, 4), "44"])
def test_grids_that_are_none(grid):
    with pytest.raises(ValueError, match="start_grid"):
        check_start(grid)


def test_written_sizes():
    assert written_size(32) == (32, 32) and written_size([16, 24]) == (16, 24)
    assert [written_size(value) for value in (None, [1], [1, 2, 3], ["a", 1], [0, 4], {}, True and [True, 2])] == [None] * 7


# ---------------------------------------------------------------- networks


def generator(start, architecture="skip", seed=0):
    torch.manual_seed(seed)
    return Generator(8, 3, 8, 16, 3, synthesis_kwargs=dict(NARROW, architecture=architecture, start_grid=list(start))).eval()


def turned(state, start):
    """Weights of the network that sees the world with its axes exchanged."""
    result = {}
    for name, value in state.items():
        if name == "b4.fc.weight":
            result[name] = value.unflatten(1, (-1, *start)).transpose(2, 3).flatten(1)
        elif value.ndim >= 3 or name.endswith(("noise_const", "resample_filter")):
            result[name] = value.transpose(-1, -2).contiguous()
        else:
            result[name] = value
    return result


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_exchanging_the_axes_of_generator_and_images(architecture):
    wide, tall = generator((4, 6), architecture), generator((6, 4), architecture)
    with torch.no_grad():
        for name, value in wide.named_parameters():
            if name.endswith("noise_strength"):
                value.fill_(0.5)
    tall.load_state_dict(turned(wide.state_dict(), (4, 6)))
    z, c = torch.randn(3, 8), torch.eye(3)
    images = wide(z, c, noise_mode="const")
    assert images.shape == (3, 3, 16, 24) and wide.img_size == (16, 24)
    torch.testing.assert_close(tall(z, c, noise_mode="const"), images.transpose(2, 3), atol=1e-5, rtol=1e-5)
    assert wide(z, c, noise_mode="random").shape == images.shape


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_exchanging_the_axes_of_discriminator_and_images(architecture):
    wide, tall = (Discriminator(3, 16, 3, architecture=architecture, **NARROW, start_grid=start).eval() for start in ((4, 6), (6, 4)))
    tall.load_state_dict(turned(wide.state_dict(), (4, 6)))
    images, c = torch.randn(4, 3, 16, 24), torch.eye(3)[[0, 1, 2, 0]]
    torch.testing.assert_close(tall(images.transpose(2, 3), c), wide(images, c), atol=1e-5, rtol=1e-5)
    assert wide.features(images).shape == (4, wide.feature_channels, 4, 6)
    with pytest.raises(ValueError, match=r"images are \[N, 3, 16, 24\]"):
        wide(images.transpose(2, 3), c)


def test_weights_but_those_that_see_places_are_those_of_a_square():
    square, wide = generator((4, 4)).state_dict(), generator((4, 6)).state_dict()
    assert list(square) == list(wide)
    assert {name.split(".")[-1] for name in square if square[name].shape != wide[name].shape} == {"const", "noise_const"}
    square, wide = (Discriminator(0, 16, 3, **NARROW, start_grid=start).state_dict() for start in (SQUARE, (4, 6)))
    assert [name for name in square if square[name].shape != wide[name].shape] == ["b4.fc.weight"]


def test_a_file_cannot_ask_for_images_of_any_length():
    """A long starting grid is of a few kilobytes, and what it is doubled to is not."""
    narrow = dict(channel_base=1024, channel_max=1, start_grid=[4, 64], use_noise=False)
    record = network_record(Generator(1, 0, 1, 1024, 1, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=narrow))
    with pytest.raises(UserError, match="16384x1024, where 8192 pixels are the most"):
        build_network(record)


def test_arguments_of_squares_stay_as_they_were():
    for network in (Discriminator(0, 16, 3, **NARROW, start_grid=[4, 4]), PairingNetwork(8, 16, 3, start_grid=(4, 4))):
        assert "start_grid" not in network.init_kwargs
    assert Discriminator(0, 16, 3, **NARROW, start_grid=(4, 6)).init_kwargs["start_grid"] == [4, 6]


@pytest.mark.parametrize("view", [None, 8])
def test_the_pairing_network_sees_the_whole_image(view):
    torch.manual_seed(0)
    P = PairingNetwork(8, 16, 3, embed_dim=16, view=view, start_grid=(4, 6))
    images = torch.randn(2, 3, 16, 24)
    embedded = P.embed_image(images)
    assert embedded.shape == (2, 16)
    images[:, :, :, -1] += 5  # the last column
    assert (P.embed_image(images) - embedded).abs().max() > 1e-3
    assert PairingNetwork(8, 16, 3, feature_channels=5, start_grid=(4, 6)).embed_image(torch.randn(2, 5, 4, 6)).shape == (2, 128)


def test_augmentation_takes_any_shape():
    pipe = AugmentPipe(**AUGPIPE_PRESETS["bgcfnc"])
    images = torch.randn(4, 3, 16, 24, requires_grad=True)
    augmented = pipe(images)
    augmented.square().sum().backward()
    assert augmented.shape == images.shape and images.grad.abs().sum() > 0


# ---------------------------------------------------------------- configuration


def resolved(start, resolution=128, **typed):
    info = config.DataInfo("pics", 1000, resolution, 3, 10, True, start)
    return config.resolve(Options(data="pics.zip", outdir="unused", metrics=[], **typed), set(typed), info, CPU, ops="reference")


def test_options_of_a_run_name_the_size():
    args = resolved((6, 8), pairing_weight=0.05)
    assert args.training_set_kwargs.resolution == [192, 256]
    assert args.G_kwargs.synthesis_kwargs.start_grid == args.D_kwargs.start_grid == args.P_kwargs.start_grid == [6, 8]
    plain = json.dumps(resolved((4, 4), pairing_weight=0.05))
    assert "start_grid" not in plain and '"resolution": 128' in plain


def test_auto_goes_by_the_number_of_pixels():
    assert resolved((4, 16)).loss_kwargs.r1_gamma == resolved((4, 4), resolution=256).loss_kwargs.r1_gamma
    assert resolved((4, 16)).batch_size == resolved((4, 4), resolution=256).batch_size


# ---------------------------------------------------------------- a run, and every tool on it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    data = write_data(folder / "wide.zip", count=30, size=(12, 8))
    tiny_run(data, folder / "run", pairing_weight=0.05, aug="ada", **SHORT)
    return folder


@pytest.fixture
def network(folder):
    return folder / "run" / "network-snapshot-000001.safetensors"


def invoke(command, *arguments):
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def size(path):
    with PIL.Image.open(path) as image:
        return image.size


def test_what_a_run_leaves(folder, network):
    found = load_network(network)
    assert found.G_ema.img_size == found.D.img_size == (8, 12) and found.P.start_grid == (4, 6)
    columns, rows = 32, 32
    assert size(folder / "run" / "reals.png") == size(folder / "run" / "fakes000001.png") == (12 * columns, 8 * rows)
    block = run_pictures.read_block(folder / "run" / "reals.png", {"training_set_kwargs.resolution": [8, 12]})
    assert block.image.size == (12 * block.columns, 8 * block.rows)


def test_images_sheets_and_mixing(network, tmp_path):
    invoke(generate.main, f"--network={network}", "--seeds=1,2", f"--outdir={tmp_path}", "--class=0")
    assert size(tmp_path / "seed0001.png") == (12, 8)
    invoke(generate.main, f"--network={network}", "--seeds=1-4", "--grid", "--class=0", f"--outdir={tmp_path}")
    assert size(tmp_path / "grid.png") == (24, 16)
    invoke(style_mixing.main, f"--network={network}", "--rows=1", "--cols=2", "--styles=0-1", "--class=0", f"--outdir={tmp_path / 'mixed'}")
    assert size(tmp_path / "mixed" / "1-2.png") == (12, 8)


def test_projection(network, tmp_path):
    PIL.Image.new("RGB", (50, 20), "red").save(tmp_path / "target.png")
    options = ["--num-steps=2", "--distance=embedded", "--save-video=false", "--class=0", "--device=cpu"]
    said = invoke(projector.main, f"--network={network}", f"--target={tmp_path / 'target.png'}", f"--outdir={tmp_path}", *options)
    assert "its middle 30x20 is resampled to the network's 12x8" in said and size(tmp_path / "proj.png") == (12, 8)


def test_measures_look_at_the_whole_image(network, folder):
    G, data = load_network(network).G_ema, config.ImageFolderDataset(folder / "wide.zip", use_labels=True)
    assert GeneratorSide(G, data, CPU).image_size() == DataSide(lambda **options: data).image_size() == (12, 8)
    sizes = []

    def distance(images):
        sizes.append(tuple(images.shape[2:]))
        return images.flatten(1)

    assert perceptual_path_length(G, data, CPU, distance=distance, num_samples=2, batch=2) > 0
    perceptual_path_length(G, data, CPU, distance=distance, num_samples=2, batch=2, crop=True)
    assert set(sizes) == {(8, 12), (4, 6)}
    assert 0 <= latent_identification(G, data, CPU, steps=2, held_out=2, batch=4) <= 1


def test_export(network, tmp_path):
    said = invoke(export.main, f"--network={network}", "--format=torchscript", f"--dest={tmp_path / 'G.pt'}")
    assert "images [N, 3, 8, 12]" in said


def test_a_network_of_one_shape_continues_one_of_another(network, folder, tmp_path):
    square = write_data(tmp_path / "square.zip", count=30, size=8)
    tiny_run(square, tmp_path / "run", **SHORT, resume=str(network))
    assert load_network(tmp_path / "run" / "network-snapshot-000001.safetensors").G.img_size == (8, 8)


def test_weights_of_places_are_not_taken_from_another_grid():
    """4x6 and 6x4 have as many places."""
    wide, tall = (Discriminator(0, 16, 3, **NARROW, start_grid=start) for start in ((4, 6), (6, 4)))
    before = tall.b4.fc.weight.detach().clone()
    copied = copy_matching(wide, tall, "D")
    assert [(misfit.name, misfit.why) for misfit in copied.misfits] == [("b4.fc.weight", OTHER_GRID)]
    assert torch.equal(tall.b4.fc.weight, before) and torch.equal(tall.b4.conv.weight, wide.b4.conv.weight)
    wide, tall = (PairingNetwork(8, 16, 3, start_grid=start) for start in ((4, 6), (6, 4)))
    assert [misfit.name for misfit in copy_matching(wide, tall, "P").misfits] == ["image_head.0.weight"]


@pytest.mark.parametrize("resolution", [[8, 12], [192, 320], [320, 192], [160, 160], [448, 640]])
def test_an_archived_sheet_has_the_rows_of_the_run(tmp_path, resolution):
    height, width = resolution
    PIL.Image.new("RGB", (8 * width, 6 * height)).save(tmp_path / "fakes000001.png")
    options = {"training_set_kwargs.resolution": resolution}
    block = run_pictures.read_block(tmp_path / "fakes000001.png", options)
    block.image.save(tmp_path / f"fakes000001{run_pictures.ARCHIVED}")
    again = run_pictures.read_block(tmp_path / f"fakes000001{run_pictures.ARCHIVED}", options)
    assert (again.rows, again.columns) == (block.rows, block.columns) and min(block.rows, block.columns) > 0


@pytest.mark.parametrize("size", [(12, 8), (40, 70), (300, 520)])
def test_perceptual_distances_do_not_prefer_a_direction(size):
    seen = []
    distance = PerceptualDistance("shapes", lambda images: seen.append(tuple(images.shape[2:])) or images.flatten(1))
    for shape in (size, size[::-1]):
        distance.look(torch.zeros(1, 3, *shape))
    assert seen[0] == seen[1][::-1] and min(seen[0]) == min(*size, 256)
    network, images = load_embedded(CPU), torch.rand(1, 3, *size) * 255
    assert embedded_maps(network, images).shape == embedded_maps(network, images.transpose(2, 3)).shape


def test_conversion(tmp_path):
    source = write_folder(tmp_path / "photos", pngs(3, size=(60, 40)))
    path = convert(source, tmp_path / "out.zip", "--transform=center-crop", "--width=24", "--height=16")
    with pytest.raises(UserError, match="24x16 pixels, but 16x16"):
        config.ImageFolderDataset(path, resolution=16)
