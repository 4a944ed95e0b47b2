"""The readability check: right answers on images made to be read, chance on noise, and mistakes found before work."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from image_sets import convert, pngs, write_zip

from dnnlib import UserError
from experiments import readability
from torch_utils.checkpoint import save_networks
from training.images import to_uint8
from training.networks import Generator, network_record
from training.sampling import one_hot, seed_latents

CLASSES, RESOLUTION = 3, 8


class Painter(torch.nn.Module):
    """A generator whose images of class i are those of class (i + shift), with a little of the latent in them."""

    z_dim, w_dim, num_ws, c_dim, img_channels, img_resolution = 4, 4, 1, CLASSES, 1, RESOLUTION

    def __init__(self, shift=0):
        super().__init__()
        self.shift = shift

    def mapping(self, z, c, truncation_psi=1):
        return torch.cat([z, c], dim=1)[:, None]

    def synthesis(self, ws, noise_mode):
        z, c = ws[:, 0].split([self.z_dim, CLASSES], dim=1)
        return torch.from_numpy(draw((c.argmax(dim=1).numpy() + self.shift) % CLASSES, z.numpy())).float() / 127.5 - 1


def draw(classes, variation):
    """uint8 images [N, 1, 8, 8]: a bright bar whose row is the class, the rest as bright as the first number of `variation` [N, D] says."""
    images = np.zeros([len(classes), 1, RESOLUTION, RESOLUTION], dtype=np.uint8)
    images += np.uint8(40 + 10 * np.clip(variation[:, :1, None, None], -3, 3))
    for image, index in zip(images, classes):
        image[0, 2 * index] = 250
    return images


@pytest.fixture(scope="module")
def bars():
    """60 real images of bars with their classes."""
    classes = np.arange(60) % CLASSES
    return draw(classes, np.random.RandomState(0).randn(60, 1)), classes


def measure(G, bars, samples=30):
    return readability.measure(G, *bars, samples, torch.device("cpu"))


def test_a_generator_that_draws_what_is_asked_is_read(bars):
    result = measure(Painter(), bars)
    assert result == readability.Readability(1.0, [1.0] * CLASSES, 30, 1.0)
    assert "100.0% of 30" in readability.describe(result)


def test_a_generator_that_draws_another_class_is_not(bars):
    assert measure(Painter(shift=1), bars).share == 0.0


def test_shares_are_those_of_the_classes_asked_for(bars):
    images, classes = bars
    classifier = readability.fit_classifier(images, classes)
    asked = np.array([0, 0, 1, 1, 2, 2])
    drawn = np.array([0, 0, 1, 2, 0, 0])
    share, per_class = readability.named_as_asked(classifier, draw(drawn, np.zeros([6, 1])), asked)
    assert share == pytest.approx(3 / 6)
    assert per_class == [1.0, 0.5, 0.0]


def test_accuracy_of_the_classifier_is_that_on_unseen_images():
    random = np.random.RandomState(0)
    images = random.randint(0, 256, size=[300, 1, 4, 4], dtype=np.uint8)
    classes = random.randint(0, 3, size=300)
    seen = (readability.fit_classifier(images, classes).predict(images.reshape(300, -1) / 255) == classes).mean()
    assert seen > 0.9  # it can learn noise by heart,
    assert readability.held_out_accuracy(images, classes) < 0.6  # which is no reading


def test_samples_take_the_classes_in_turn_and_do_not_depend_on_their_number():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kwargs = {"mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": {"channel_base": 64, "channel_max": 8}}
        G = Generator(8, CLASSES, 8, RESOLUTION, 1, **kwargs).eval().requires_grad_(False)
    images, asked = readability.conditional_samples(G, 7, torch.device("cpu"))
    assert asked.tolist() == [0, 1, 2, 0, 1, 2, 0]
    expected = to_uint8(G(seed_latents(range(7), 8), one_hot(asked.tolist(), CLASSES), noise_mode="const")).numpy()
    assert np.abs(images.astype(int) - expected).max() <= 1
    fewer, _ = readability.conditional_samples(G, 3, torch.device("cpu"))
    assert np.abs(images[:3].astype(int) - fewer).max() <= 1


def test_the_classifier_reads_the_real_digits(tmp_path):
    images, classes = readability.real_images(str(convert("digits", tmp_path / "digits.zip")))
    assert images.shape == (1797, 1, 32, 32) and np.bincount(classes).min() == 174
    assert readability.held_out_accuracy(images, classes) > 0.95


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 12, "at least two classes"),
        ([[0.5, 0.5]] * 12, "at least two classes"),
        ([0, 1] * 3 + [0] * 6, "class 1 has 3 images"),
        ([0] * 6 + [2] * 6, "class 1 has 0 images"),
        (None, "unlabelled"),
    ],
)
def test_sets_that_teach_no_classifier_are_refused(tmp_path, labels, message):
    files = pngs(12, mode="L", size=(RESOLUTION, RESOLUTION))
    path = write_zip(tmp_path / "set.zip", files, None if labels is None else list(map(list, zip(files, labels))))
    with pytest.raises(UserError, match=message):
        readability.real_images(str(path))


def test_a_set_of_other_images_is_refused(bars):
    images, classes = bars
    for other in ((images[:, :, :4, :4], classes), (images, classes % 2), (images.repeat(3, axis=1), classes)):
        with pytest.raises(UserError, match="--network makes 3 classes"):
            measure(Painter(), other)


@pytest.fixture
def folder(tmp_path):
    """A set of bars, and a network with classes and one without."""
    files = pngs(15, mode="L", size=(RESOLUTION, RESOLUTION))
    write_zip(tmp_path / "set.zip", files, [[name, index % CLASSES] for index, name in enumerate(files)])
    kwargs = {"mapping_kwargs": {"num_layers": 2}, "synthesis_kwargs": {"channel_base": 64, "channel_max": 8}}
    for name, c_dim in (("classes", CLASSES), ("plain", 0)):
        save_networks(tmp_path / f"{name}.safetensors", {"G_ema": network_record(Generator(8, c_dim, 8, RESOLUTION, 1, **kwargs))}, {})
    return tmp_path


def run(folder, network, *more):
    command = [f"--network={folder / network}.safetensors", f"--data={folder / 'set.zip'}", "--samples=6", "--device=cpu", *more]
    return CliRunner().invoke(readability.main, command)


def test_the_command_keeps_its_result_in_a_run_folder_only(folder):
    printed = run(folder, "classes")
    assert printed.exit_code == 0 and "of 6 generated images are named as asked" in printed.output
    assert not (folder / "readability.json").exists()
    (folder / "training_options.json").write_text("{}")
    assert run(folder, "classes").exit_code == 0
    kept = json.loads((folder / "readability.json").read_text())
    assert kept["samples"] == 6 and kept["network"] == "classes.safetensors" and 0 <= kept["share"] <= 1 and len(kept["per_class"]) == CLASSES


def test_the_command_refuses_networks_without_classes_and_too_few_samples(folder):
    assert "no conditional generator" in str(run(folder, "plain").exception)
    assert "--samples=2" in str(run(folder, "classes", "--samples=2").exception)
