"""Pairing asks which latent of the whole batch made an image, however few images fit at a time."""

import math

import pytest
import torch
from test_loss import batch, flat, small

from pairing.term import FullBatch
from torch_utils import training_stats
from training.phases import trainable


def accumulate(rounds, samples=8, **options):
    """(gradients of G, gradients of P, mean pairing loss) of a batch in so many rounds, dealt out in turn."""
    real, real_c, z, c = batch(samples)
    G, _, P, loss = small(pairing_weight=1, **options)
    seen = []
    with pytest.MonkeyPatch.context() as patch, trainable(G, P):
        patch.setattr(training_stats, "report", lambda name, value: seen.append(value.detach()) if name == "Loss/pairing/loss" else None)
        for index in range(rounds):
            rows = slice(index, None, rounds)
            full = FullBatch(z=z, c=c, real_c=real_c, rows=rows)
            loss.accumulate_gradients("Gmain", real[rows], real_c[rows], z[rows], c[rows], gain=1 / rounds, full=full)
    return flat(G), flat(P), float(sum(seen)) / rounds


@pytest.mark.parametrize(
    "options", [{}, {"pairing_space": "w"}, {"pairing_shuffle": True}, {"pairing_space": "w", "objective": "relativistic"}]
)
def test_rounds_give_the_pairing_gradients_of_one_big_batch(options):
    for one, other in zip(accumulate(1, **options), accumulate(4, **options)):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_a_round_of_a_single_image_has_the_whole_batch_to_choose_from():
    *_, loss = accumulate(8, pairing_tau=1e6)  # at which nothing can be known
    assert loss == pytest.approx(math.log(8))


def test_a_round_by_itself_is_a_batch_of_its_own():
    real, real_c, z, c = batch(8)
    G, _, P, loss = small(pairing_weight=1)
    with trainable(G, P):
        loss.accumulate_gradients("Gmain", real, real_c, z, c)
    torch.testing.assert_close(flat(P), accumulate(1)[1])
