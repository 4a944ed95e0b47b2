"""The embedded detector: its shipped weights, its input conversion, its features, and the script that trained it."""

import contextlib
import dataclasses
import os
import pathlib
import re

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from dnnlib import UserError
from metrics.detectors import embedded, train_embedded
from metrics.detectors.embedded import FEATURE_DIM, NUM_CLASSES, WEIGHTS_PATH, ConvUnit, EmbeddedDetector, load_embedded
from metrics.detectors.images import to_rgb_uint8

CARD = WEIGHTS_PATH.with_name("MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def detector() -> EmbeddedDetector:
    return load_embedded("cpu")


def random_images(count: int, channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def untouched_global_generator():
    """Fails unless the next numbers of the global generator are the same before and after the block."""
    # The state itself cannot be compared: it holds bytes that were never written.
    with torch.random.fork_rng(devices=[]):
        expected = torch.rand(8)
    yield
    assert torch.equal(torch.rand(8), expected)


def card_number(label: str) -> float:
    """The number of the card's table row `| label | number ... |`."""
    return float(re.search(rf"\| {re.escape(label)} \| ([\d.]+)", CARD)[1])


# Input conversion.


def test_rgb_passes_through_and_grey_is_repeated():
    rgb, grey = random_images(3), random_images(3, channels=1)
    assert torch.equal(to_rgb_uint8(rgb), rgb)
    assert torch.equal(to_rgb_uint8(grey), torch.cat([grey, grey, grey], dim=1))


def test_alpha_is_composited_over_black_with_exact_rounding():
    color, alpha = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    rgba = torch.stack([color, color.flip(0), color.flip(1), alpha])[None].to(torch.uint8)
    exact = (rgba[:, :3].double() * rgba[:, 3:].double() / 255).round()
    result = to_rgb_uint8(rgba)
    assert result.dtype == torch.uint8
    assert torch.equal(result.double(), exact)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 5, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 0, 8, dtype=torch.uint8),
    ],
)
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(UserError, match="detector takes"):
        to_rgb_uint8(images)


# Shipped weights.


def test_weights_are_small_and_are_those_of_the_card():
    assert WEIGHTS_PATH.stat().st_size < 4_000_000
    assert re.search(r"\b[0-9a-f]{64}\b", CARD)[0] == embedded.weights_digest()


def test_metadata_agrees_with_the_card_and_with_the_defaults_of_the_script():
    meta = embedded.read_meta()
    assert meta["classes"] == sorted(meta["classes"]) and len(meta["classes"]) == NUM_CLASSES
    assert meta["recipe"] == dataclasses.asdict(train_embedded.Recipe())
    assert meta["test_accuracy"] == pytest.approx(card_number("test accuracy, %") / 100, abs=1e-9)
    assert meta["test_accuracy"] >= 0.88


def test_loading_draws_nothing_from_the_global_generator():
    with untouched_global_generator():
        load_embedded()


def test_loaded_detector_is_frozen_float32_in_eval_mode(detector):
    assert not detector.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in detector.parameters())


def damaged_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Weights files that are wrong in one way each."""
    whole = WEIGHTS_PATH.read_bytes()
    contents = {"torn": whole[: len(whole) // 2], "empty": b"", "foreign": b"no tensors here" * 100}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    tensors = {name: value.clone() for name, value in EmbeddedDetector().state_dict().items()}
    header = {embedded.META_KEY: "{}"}
    embedded.safetensors.torch.save_file(tensors, folder / "other_kind", metadata={"another": "{}"})
    embedded.safetensors.torch.save_file(tensors, folder / "not_json", metadata={embedded.META_KEY: "{"})
    embedded.safetensors.torch.save_file({**tensors, "head.bias": torch.zeros(7)}, folder / "misshapen", metadata=header)
    embedded.safetensors.torch.save_file({**tensors, "head.bias": torch.full((10,), torch.nan)}, folder / "not_finite", metadata=header)
    del tensors["head.bias"]
    embedded.safetensors.torch.save_file(tensors, folder / "incomplete", metadata=header)
    return sorted(folder.iterdir()) + [folder / "absent"]


def test_damaged_or_foreign_weights_raise_a_user_error_that_names_the_file(tmp_path):
    paths = damaged_files(tmp_path)
    assert len(paths) == 9
    for path in paths:
        with pytest.raises(UserError, match=path.name):
            load_embedded(path=path)


# Features.


def test_features_and_probabilities_have_the_promised_form(detector):
    images = random_images(5)
    features, probabilities = detector(images), detector.probabilities(images)
    assert features.shape == (5, FEATURE_DIM) and features.dtype == torch.float32
    assert probabilities.shape == (5, NUM_CLASSES) and probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(5), atol=1e-6)
    assert bool((probabilities >= 0).all())
    assert torch.equal(detector(images), features)


def test_no_images_give_no_features(detector):
    assert detector(random_images(0)).shape == (0, FEATURE_DIM)


def test_features_do_not_depend_on_the_batch(detector):
    images = random_images(17)
    whole = detector(images)
    single = torch.cat([detector(images[i : i + 1]) for i in range(17)])
    chunked = torch.cat([detector(part) for part in images.split(5)])
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    scale = float(whole.abs().max())
    for other in (single, chunked, detector(images[order])[order.argsort()]):
        assert float((other - whole).abs().max()) < 1e-5 * scale


def test_features_are_float32_under_autocast_too(detector):
    images = random_images(4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = detector(images)
    assert torch.equal(inside, detector(images))


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (64, 48)])
def test_grey_and_opaque_images_equal_their_rgb_form(detector, size):
    grey, rgb = random_images(3, 1, *size), random_images(3, 3, *size)
    opaque = torch.cat([rgb, torch.full_like(rgb[:, :1], 255)], dim=1)
    assert torch.equal(detector(grey), detector(grey.repeat(1, 3, 1, 1)))
    assert torch.equal(detector(opaque), detector(rgb))


def test_the_size_of_a_flat_image_does_not_matter(detector):
    flat = random_images(6, 3, 1, 1).expand(-1, -1, 32, 32)
    large = flat[:, :, :1, :1].expand(-1, -1, 80, 96)
    assert torch.allclose(detector(large), detector(flat), rtol=1e-4, atol=1e-4)


def test_reduction_filters_before_it_samples(detector):
    # One-pixel stripes at twice the size average to grey; a reduction without a filter would keep black or white.
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    x = embedded.prepare(stripes)[:, :, :, 2:-2] * embedded.PIXEL_SCALE + embedded.PIXEL_CENTER
    assert float((x - 0.5).abs().max()) < 0.02


def test_folding_equals_the_normalized_network():
    generator = torch.Generator().manual_seed(3)
    network = EmbeddedDetector(norm=True).eval()
    for unit in network.modules():
        if isinstance(unit, ConvUnit):
            unit.norm.weight.data.normal_(generator=generator)  # half of the scales are negative, which pooling must survive
            unit.norm.bias.data.normal_(generator=generator)
            unit.norm.running_mean.normal_(generator=generator)
            unit.norm.running_var.uniform_(0.5, 2.0, generator=generator)
    images = random_images(4)
    assert torch.allclose(network.folded()(images), network(images), rtol=1e-4, atol=1e-5)


# The training script.


def write_tiny_set(folder: pathlib.Path, train_count: int = 8, test_count: int = 2) -> pathlib.Path:
    """Ten classes of noisy flat colors as PNG."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train_count), ("test", test_count)):
        for label in range(NUM_CLASSES):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 40, (32, 32, 3)) + 20 * label
                PIL.Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index:04d}.png")
    return folder


def train_tiny(data: pathlib.Path, out: pathlib.Path, *options: str) -> str:
    args = [f"--data={data}", f"--out={out}", "--epochs=2", "--batch=16", "--lr=0.05", "--threads=1", *options]
    result = CliRunner().invoke(train_embedded.main, args, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_training_script_writes_weights_that_load_and_repeats_by_seed(tmp_path):
    data = write_tiny_set(tmp_path / "data")
    threads = torch.get_num_threads()
    try:
        with untouched_global_generator():
            output = train_tiny(data, tmp_path / "a.safetensors")
        train_tiny(data, tmp_path / "b.safetensors")
        train_tiny(data, tmp_path / "c.safetensors", "--seed=1")
    finally:
        torch.set_num_threads(threads)
    assert output.count("test accuracy") == 3 and embedded.weights_digest(tmp_path / "a.safetensors") in output
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    meta = embedded.read_meta(tmp_path / "a.safetensors")
    assert meta["classes"] == [f"class{label}" for label in range(NUM_CLASSES)]
    assert meta["recipe"]["epochs"] == 2 and meta["data"]["train_images"] == 80 and 0 <= meta["test_accuracy"] <= 1
    assert load_embedded(path=tmp_path / "a.safetensors")(random_images(2)).shape == (2, FEATURE_DIM)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.safetensors", "data"]


def test_a_step_lowers_the_loss_on_its_own_batch():
    recipe = train_embedded.Recipe(precision="fp32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EmbeddedDetector(norm=True).train()
    optimizer = train_embedded.build_optimizer(network, recipe)
    x, labels = embedded.prepare(random_images(20)), torch.arange(20) % NUM_CLASSES
    losses = [train_embedded.train_step(network, optimizer, x, labels, 0.02, recipe) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]


def test_augmented_images_are_crops_or_mirrored_crops():
    recipe = train_embedded.Recipe()
    images = random_images(6).permute(0, 2, 3, 1).contiguous()
    plain = train_embedded.Augmenter(images, recipe, torch.Generator().manual_seed(0))
    indices = torch.tensor([5, 2, 2, 0])
    padded = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    for row, index in zip(plain.batch(indices), indices, strict=True):
        crops = [torch.from_numpy(padded[index])[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        crops = torch.stack(crops + [crop.flip(1) for crop in crops]).permute(0, 3, 1, 2)
        assert int((embedded.prepare(crops) == row).all(dim=(1, 2, 3)).sum()) == 1


def test_first_convolution_whitens_patches_and_the_others_pass_their_input_on():
    generator = np.random.default_rng(0)
    smooth = generator.normal(size=(60, 34, 34, 3)).cumsum(axis=1).cumsum(axis=2)
    images = torch.from_numpy((smooth * 8 + 120).clip(0, 255).astype(np.uint8)[:, 1:33, 1:33].copy())
    network = EmbeddedDetector(norm=True)
    train_embedded.initialize(network, images)
    x = embedded.prepare(images[::10].permute(0, 3, 1, 2))
    response = torch.nn.functional.conv2d(x, network.stem.weight).transpose(0, 1).flatten(1).double()
    half = len(response) // 2
    assert torch.allclose(response[:half], -response[half:])
    moment = response[:half] @ response[:half].t() / response.shape[1]
    outside = moment - torch.diag(moment.diagonal())
    assert float(outside.abs().max()) < 1e-3
    assert float(moment.diagonal().max()) <= 1 and float(moment[-1, -1]) > 0.99
    assert not network.stem.weight.requires_grad
    unit = network.trunk[1]
    z = torch.rand(1, unit.conv.in_channels, 8, 8)
    assert torch.equal(unit.conv(z)[:, : unit.conv.in_channels], z)


def test_learning_rate_rises_to_its_peak_once_and_ends_near_zero():
    recipe = train_embedded.Recipe()
    rates = [train_embedded.learning_rate(step, 100, recipe) for step in range(100)]
    peak = int(np.argmax(rates))
    assert max(rates) == pytest.approx(recipe.lr)
    assert peak == pytest.approx(recipe.warmup * 100, abs=1)
    assert all(np.diff(rates[: peak + 1]) > 0) and all(np.diff(rates[peak:]) < 0)
    assert 0 < rates[-1] < 0.02 * recipe.lr


def break_missing(data: pathlib.Path) -> None:
    for path in (data / "train" / "class3").iterdir():
        path.unlink()


def break_folder(data: pathlib.Path) -> None:
    (data / "test" / "class0").rename(data / "elsewhere")


def break_size(data: pathlib.Path) -> None:
    PIL.Image.new("RGB", (31, 32)).save(data / "train" / "class1" / "0003.png")


def break_bytes(data: pathlib.Path) -> None:
    (data / "test" / "class9" / "0001.png").write_bytes(b"not a picture")


def break_names(data: pathlib.Path) -> None:
    (data / "test" / "class0").rename(data / "test" / "another")


@pytest.mark.parametrize(
    ("damage", "named"),
    [(break_missing, "class3"), (break_folder, "test"), (break_size, "31x32"), (break_bytes, "0001.png"), (break_names, "class folders")],
)
def test_bad_data_is_one_sentence_and_leaves_no_file(tmp_path, damage, named):
    data = write_tiny_set(tmp_path / "data", train_count=4, test_count=2)
    damage(data)
    with pytest.raises(UserError, match=named):
        train_embedded.run(data, tmp_path / "out.safetensors", train_embedded.Recipe(threads=torch.get_num_threads()))
    assert not list(tmp_path.glob("*out*"))


def test_output_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    for out in (tmp_path / "absent" / "out.safetensors", tmp_path):
        with pytest.raises(UserError, match="--out"):
            train_embedded.run(tmp_path / "no_data", out, train_embedded.Recipe())


# Accuracy, where the data is at hand.


@pytest.mark.slow
@pytest.mark.skipif(
    "PAIRING_GAN_CIFAR" not in os.environ, reason="PAIRING_GAN_CIFAR does not name the folder of the JPEG CIFAR-10 (train/ and test/)"
)
def test_accuracy_on_the_test_split_is_that_of_the_card(detector):
    split = train_embedded.load_split(pathlib.Path(os.environ["PAIRING_GAN_CIFAR"]) / "test")
    assert split.digest == embedded.read_meta()["data"]["test_sha256"]
    # Another processor may round the last bit otherwise and tip an image on the boundary of two classes; two in 10,000 is room for that.
    assert train_embedded.accuracy(detector, split) == pytest.approx(card_number("test accuracy, %") / 100, abs=2e-4)
