"""The moving average of G: its half-life in images whatever the batch, its ramp-up, and what it does to parameters and to buffers."""

import pytest
import torch
from torch import nn

from training.ema import ema_beta, update_ema


def module(value):
    """A module of parameters and buffers, numbers and counts, that are all `value`."""
    norm = nn.BatchNorm1d(3).double()
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            tensor.fill_(value)
    return norm


@pytest.mark.parametrize("batch_size", [10, 32, 640])
def test_after_ema_kimg_half_of_the_start_is_left(batch_size):
    average, G = module(0), module(8)
    for nimg in range(0, 640, batch_size):
        update_ema(average, G, ema_beta(batch_size, nimg, ema_kimg=0.64, rampup=None))
    torch.testing.assert_close(average.weight.detach(), torch.full_like(average.weight, 4))


def test_a_young_average_has_a_share_of_its_age_as_half_life():
    assert ema_beta(32, 0, ema_kimg=10, rampup=0.05) == 0  # the first step forgets the start
    assert ema_beta(50, 1000, ema_kimg=10, rampup=0.05) == pytest.approx(0.5)
    assert ema_beta(50, 2000, ema_kimg=10, rampup=0.05) == pytest.approx(0.5**0.5)
    assert ema_beta(50, 1000, ema_kimg=10, rampup=0.1) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("nimg", [200_000, 10**9])
def test_an_old_average_has_ema_kimg_as_half_life(nimg):
    assert ema_beta(10_000, nimg, ema_kimg=10, rampup=0.05) == ema_beta(10_000, nimg, ema_kimg=10, rampup=None) == 0.5


def test_parameters_move_by_the_rest_of_beta_and_buffers_are_copied():
    average, G = module(2), module(6)
    update_ema(average, G, beta=0.75)
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 3), msg=name)
    for name, buffer in average.named_buffers():
        assert torch.equal(buffer, torch.full_like(buffer, 6)), name
    assert all(torch.equal(tensor, torch.full_like(tensor, 6)) for tensor in G.state_dict().values())


def test_what_the_weights_do_later_does_not_move_the_average():
    average, G = module(0), module(8)
    update_ema(average, G, beta=0)
    with torch.no_grad():
        for tensor in G.state_dict().values():
            tensor.add_(1)
    assert all(torch.equal(tensor, torch.full_like(tensor, 8)) for tensor in average.state_dict().values())
