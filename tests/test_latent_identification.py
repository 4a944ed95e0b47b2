"""Latent identification: generators that keep, lose or hide their latents, what is drawn and left alone, several ranks, errors."""

import pathlib

import numpy as np
import pytest
import torch
from metric_parts import one_thread

from dnnlib import UserError
from metrics.features import GeneratorSource
from metrics.latent_identification import latent_identification
from torch_utils.distributed import leave

Z_DIM = 16
BATCH = 8
CHANCE = 1 / BATCH


class Keeper(torch.nn.Module):
    """Images from which latents can be read off: each number fills its own 2x2 pixels of an 8x8 image."""

    def __init__(self, c_dim=0, resolution=8):
        super().__init__()
        self.z_dim, self.c_dim, self.img_resolution, self.img_channels = Z_DIM, c_dim, resolution, 1
        self.strength = torch.nn.Parameter(torch.tensor(0.4))
        self.drop = torch.nn.Dropout(0.5)
        self.calls, self.labels = [], []

    def forward(self, z, c, truncation_psi=1, noise_mode="random"):
        assert noise_mode == "const"
        self.calls.append(z)
        self.labels.append(c)
        grid = self.code(z * truncation_psi).reshape(len(z), 1, 4, 4)
        return self.drop(self.strength * torch.nn.functional.interpolate(grid, size=self.img_resolution))

    def code(self, z):
        return z


class Collapsed(Keeper):
    def code(self, z):
        return torch.ones_like(z)


class TwoToOne(Keeper):
    """Latents and their negatives make one image, and so do many others: only the sign of a product is left."""

    def code(self, z):
        return (z[:, :1] * z[:, 1:2]).sign().expand(-1, Z_DIM)


class Hider(Keeper):
    """Latents are in the images, but so faintly that eight bits lose them."""

    def code(self, z):
        return 0.3 + z * 1e-4


class Labels:
    """A data set of which only the labels are asked."""

    label_dim = 3

    def __len__(self):
        return 10

    def get_labels(self, indices):
        return np.eye(3, dtype=np.float32)[indices % 3]


def identify(G, dataset=None, steps=150, batch=BATCH, held_out=20, **options):
    return latent_identification(G, dataset, "cpu", steps=steps, batch=batch, held_out=held_out, **options)


# What it measures.


def test_latents_that_images_keep_are_found():
    untrained, trained = identify(Keeper(), steps=0), identify(Keeper())
    assert untrained < 0.3 < 0.9 < trained <= 1


def test_a_collapsed_generator_is_at_chance_exactly():
    assert identify(Collapsed(), steps=5) == CHANCE


def test_what_the_eye_cannot_see_does_not_count():
    assert identify(Hider(), steps=20) == CHANCE


def test_many_to_one_generators_lie_between():
    # Half of a batch shares an image: at best one of each half is found.
    assert CHANCE < identify(TwoToOne()) < 0.4


def test_accuracy_counts_the_held_out_images_only():
    G = Keeper()
    accuracy = identify(G, steps=3, held_out=5)
    assert (accuracy * 5 * BATCH).is_integer()
    assert sum(map(len, G.calls)) == 8 * BATCH
    latents = torch.cat(G.calls)
    assert len(latents.unique(dim=0)) == len(latents)


# What is drawn, and what is left alone.


def test_training_state_is_left_alone():
    G = Keeper(c_dim=3).train()
    before = G.strength.detach().clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():  # as inside a training loop's tick
        identify(G, Labels(), steps=3, held_out=2)
    assert G.training and G.drop.training
    assert torch.equal(G.strength, before) and G.strength.grad is None and G.strength.requires_grad
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert not any(z.requires_grad for z in G.calls)


def test_the_seed_and_nothing_else_decides():
    first = identify(Keeper(), steps=30)
    torch.rand(1)
    assert identify(Keeper(), steps=30) == first
    assert identify(Keeper(), steps=30, generator_batch=3) == first
    assert identify(Keeper(), steps=30, seed=1) != first


def test_labels_are_those_of_the_data_set():
    G = Keeper(c_dim=3)
    identify(G, Labels(), steps=2, held_out=2)
    labels = torch.cat(G.labels)
    assert labels.shape == (4 * BATCH, 3) and (labels.sum(dim=1) == 1).all() and (labels.sum(dim=0) > 0).all()
    assert torch.equal(labels, GeneratorSource(G, Labels(), torch.device("cpu")).inputs(0, 4 * BATCH)[1])


def test_progress_counts_every_image_once():
    done = []
    identify(Keeper(), steps=2, held_out=1, advance=done.append)
    assert done == [BATCH] * 3


def _rank_main(rank, store, output):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    G = Keeper()
    accuracy = identify(G, steps=20, held_out=5)
    pathlib.Path(output, f"rank{rank}").write_text(f"{accuracy!r} {sum(map(len, G.calls))}")
    try:
        G.strength.data.fill_(float("nan"))
        identify(G, steps=1, held_out=2)
    except UserError as error:
        pathlib.Path(output, f"error{rank}").write_text(str(error))
    leave()  # together: a rank that goes while another still talks to it may abort


def test_two_ranks_share_the_images_and_give_the_value_of_one(tmp_path):
    torch.multiprocessing.spawn(_rank_main, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    found = [(tmp_path / f"rank{rank}").read_text().split() for rank in range(2)]
    with one_thread():
        expected = repr(identify(Keeper(), steps=20, held_out=5))
    assert found == [[expected, str(13 * BATCH)], [expected, str(12 * BATCH)]]
    assert "24 of 24 images" in (tmp_path / "error0").read_text() == (tmp_path / "error1").read_text()


# Errors.


@pytest.mark.parametrize("resolution", [4, 13])
def test_resolutions_that_the_probe_cannot_take_are_refused(resolution):
    with pytest.raises(UserError, match=f"at least 8x8 pixels, .*; the generator makes {resolution}x{resolution}"):
        identify(Keeper(resolution=resolution))


@pytest.mark.parametrize("options", [{"steps": -1}, {"held_out": 0}, {"batch": 1}])
def test_bad_arguments_are_named(options):
    with pytest.raises(UserError, match="steps >= 0, held_out >= 1 and batch >= 2, found"):
        identify(Keeper(), **options)


def test_images_that_are_not_finite_are_refused():
    G = Keeper()
    G.strength.data.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinity in 40 of 40 images"):
        identify(G, steps=3, held_out=2)
