"""What the options become in a run: strengths, targets and weights of its parts, and what a step gives to its phases."""

import pytest
import torch
from image_sets import pngs, write_zip
from tiny_runs import CPU, tiny_args

from training.dataset import ImageFolderDataset
from training.state import TrainingState, without_class

SHARES = [40, 15, 5]  # images of each class


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A zip whose classes are not equally frequent. The path as text."""
    files = pngs(sum(SHARES), size=(8, 8))
    classes = [label for label, count in enumerate(SHARES) for _ in range(count)]
    return str(write_zip(tmp_path_factory.mktemp("data") / "pics.zip", files, [list(pair) for pair in zip(files, classes)]))


def state_of(data, **typed):
    args = tiny_args(data, "unused", precision="fp32", **{"batch": 8, **typed})
    return TrainingState(args, ImageFolderDataset(**without_class(args.training_set_kwargs)), CPU)


def stepping(state, monkeypatch, steps=1, images=None):
    """What the phases of some steps are given, as (step, name, batch); nothing is trained."""
    given = []
    monkeypatch.setattr(state, "run_phase", lambda phase, batch: given.append((state.batch_idx, phase.name, batch)))
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8) if images is None else images
    for _ in range(steps):
        state.step(images, torch.eye(3)[torch.arange(len(images)) % 3])
    return given


# What is built.


def test_a_fixed_augmentation_has_its_strength_and_keeps_it(data, monkeypatch):
    state = state_of(data, aug="fixed", p=0.3)
    assert state.ada is None and state.loss.augment_pipe is state.augment_pipe and state.loss.on_real_logits is None
    stepping(state, monkeypatch, steps=4)
    assert state.augment_pipe.p == torch.tensor(0.3)


def test_without_augmentation_there_is_none(data):
    state = state_of(data, aug="noaug")
    assert state.augment_pipe is None and state.loss.augment_pipe is None and state.ada is None


@pytest.mark.parametrize(("typed", "target", "kimg"), [({}, 0.6, 500), ({"target": 0.45}, 0.45, 500), ({"cfg": "demo"}, 0.6, 100)])
def test_ada_has_its_target_and_pace_and_starts_from_nothing(data, typed, target, kimg):
    state = state_of(data, **typed)
    assert (state.ada.target, state.ada.ada_kimg, state.augment_pipe.p) == (target, kimg, 0)


def test_ada_hears_of_reals_and_moves_the_strength_that_is_used(data, monkeypatch):
    state = state_of(data)
    state.loss.on_real_logits(torch.ones(5))
    stepping(state, monkeypatch, steps=4)
    assert state.loss.augment_pipe.p.item() == pytest.approx(4 * 8 / 500_000)


def test_the_pairing_weight_is_the_one_that_was_asked_for(data, monkeypatch):
    state = state_of(data, pairing_weight=0.5)
    stepping(state, monkeypatch, steps=4)
    assert state.loss.pairing.weight == 0.5 and state.loss.pairing.on_accuracy is None


def test_a_warm_up_starts_from_no_weight_and_rises_image_by_image(data, monkeypatch):
    state = state_of(data, pairing_weight=0.5, pairing_warmup=2)
    assert state.loss.pairing.weight == 0
    stepping(state, monkeypatch, steps=3)
    assert state.loss.pairing.weight.item() == pytest.approx(0.5 * 3 * 8 / 2000)


@pytest.mark.parametrize(("accuracy", "direction"), [(0.85, 1), (0.95, -1)])
def test_an_adaptive_weight_starts_from_the_one_asked_for_and_hears_of_accuracies(data, monkeypatch, accuracy, direction):
    state = state_of(data, pairing_weight=0.5, pairing_target=0.9)
    assert state.loss.pairing.weight == 0.5
    state.loss.pairing.on_accuracy(torch.tensor(accuracy))
    stepping(state, monkeypatch, steps=4)
    assert state.loss.pairing.weight.item() == pytest.approx(0.5 * (1 + direction * 4 * 8 / 100_000), rel=1e-6)


# What a step gives to its phases.


def test_pixels_go_from_minus_one_to_one_and_labels_as_they_are(data, monkeypatch):
    images = torch.tensor([0, 51, 204, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8)
    for _, name, (real, labels, z, c) in stepping(state_of(data), monkeypatch, images=images):
        expected = torch.tensor([-1, -0.6, 0.6, 1])[:, None, None, None].expand(4, 3, 8, 8)
        torch.testing.assert_close(real, expected, msg=name)
        assert torch.equal(labels, torch.eye(3)[torch.arange(4) % 3])
        assert z.shape == (4, 8) and c.shape == (4, 3)


def test_phases_run_at_their_intervals_each_on_latents_of_its_own(data, monkeypatch):
    given = stepping(state_of(data), monkeypatch, steps=17)
    steps = {name: [step for step, ran, _ in given if ran == name] for _, name, _ in given}
    assert steps == {"Gmain": [*range(17)], "Greg": [0, 4, 8, 12, 16], "Dmain": [*range(17)], "Dreg": [0, 16]}
    assert len({tuple(batch[2].flatten().tolist()) for _, _, batch in given}) == len(given)


def test_labels_are_drawn_as_often_as_the_data_have_them(data):
    z, c = state_of(data).draw(6000)
    assert set(c.unique().tolist()) == {0, 1} and (c.sum(dim=1) == 1).all()
    # A count scatters by at most 40 of 6000; draws are seeded, so this is four deviations once and for all.
    for count, share in zip(c.sum(dim=0).tolist(), SHARES):
        assert count == pytest.approx(6000 * share / sum(SHARES), abs=160)
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02  # four deviations of 48,000 numbers


def test_labels_of_a_subset_are_drawn_as_often_as_it_has_them(data):
    state = state_of(data, subset=6)
    kept = ImageFolderDataset(**without_class(state.args.training_set_kwargs)).classes
    _, c = state.draw(6000)
    for label, count in enumerate(c.sum(dim=0).tolist()):
        assert count == pytest.approx(1000 * int((kept == label).sum()), abs=160)


def test_networks_without_labels_get_empty_ones(data):
    z, c = state_of(data, cond=False).draw(7)
    assert z.shape == (7, 8) and c.shape == (7, 0)


def test_the_average_follows_after_each_step_by_the_age_before_it(data, monkeypatch):
    state = state_of(data)
    state.args.update(ema_kimg=0.04, ema_rampup=3)
    const = state.G.synthesis.b4.const

    def train(phase, batch):
        if phase.name == "Gmain":
            const.data += 1

    monkeypatch.setattr(state, "run_phase", train)
    average = const.detach().clone()
    for half_life in (0, 24, 40, 40):  # three times the images so far, 40 at most
        state.step(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.eye(3)[torch.arange(8) % 3])
        beta = 0.5 ** (8 / half_life) if half_life else 0.0
        average = beta * average + (1 - beta) * const.detach()
        torch.testing.assert_close(state.G_ema.synthesis.b4.const.detach(), average)
    assert state.cur_nimg == 32 and state.batch_idx == 4
