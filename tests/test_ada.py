"""The ADA controller: p follows the sign of the discriminator's overfitting, stays in [0, 1], and moves only when it is due."""

import pytest
import torch

from training.ada import ADA_KIMG, ADA_TARGET, AdaController, adjust_strength

DEFAULTS = {"target": ADA_TARGET, "interval": 4, "ada_kimg": ADA_KIMG}


def controller(start=0.5, **settings):
    return AdaController(torch.tensor(start), **DEFAULTS | settings)


def test_rises_when_the_discriminator_overfits_and_falls_otherwise():
    for logits, direction in ((torch.tensor([1.0, 2.0, 3.0]), 1), (torch.tensor([1.0, -2.0, 3.0]), -1), (-torch.ones(3), -1)):
        ada = controller()
        ada.record(logits)
        assert ada.update(4, 64)
        # 64 images times 4 batches, of the 500,000 it takes from 0 to 1.
        assert ada.p.item() == pytest.approx(0.5 + direction * 256 / 500_000, abs=1e-7)


def test_goes_from_0_to_1_in_ada_kimg():
    ada, batches = controller(start=0.0, ada_kimg=100), 0
    while ada.p < 1:
        batches += 1
        ada.record(torch.ones(64))
        ada.update(batches, 64)
    assert batches * 64 == pytest.approx(100_000, rel=0.01)


@pytest.mark.parametrize("start, sign, end", [(0.9999, 1.0, 1.0), (0.0001, -1.0, 0.0), (1.0, 1.0, 1.0), (0.0, -1.0, 0.0)])
def test_is_clamped_on_both_sides(start, sign, end):
    ada = controller(start=start)
    ada.record(torch.full([8], sign))
    ada.update(8, 512)
    assert ada.p.item() == end


def test_p_stays_between_the_intervals_while_signs_are_collected():
    ada = controller(interval=4)
    for batch in (1, 2, 3):
        ada.record(torch.ones(10))
        assert not ada.update(batch, 64)
        assert ada.p.item() == 0.5
    ada.record(-torch.ones(10))
    # The mean over the four batches is 0.5 and under the target, although three of the four lie over it.
    assert ada.update(4, 64)
    assert ada.p < 0.5


def test_starts_to_collect_anew_after_an_adjustment():
    ada = controller()
    ada.record(torch.ones(1000))
    ada.update(4, 64)
    raised = ada.p.item()
    ada.record(-torch.ones(1))
    ada.update(8, 64)
    assert ada.p.item() < raised


def test_p_stays_without_signs_and_at_the_target():
    ada = controller()
    assert ada.update(4, 64)
    assert ada.p.item() == 0.5
    ada.record(torch.full([5], float("nan")))
    ada.update(8, 64)
    assert ada.p.item() == 0.5
    assert adjust_strength(torch.tensor(0.5), torch.tensor(0.25), 0.25, 256, 500).item() == 0.5


def test_a_logit_that_is_not_a_number_does_not_count():
    ada = controller(target=0.9)
    ada.record(torch.tensor([1.0, float("nan"), float("inf")]))
    ada.update(4, 64)
    assert ada.p > 0.5


def test_recording_any_chunks_is_recording_the_whole():
    logits = torch.randn([60, 1], generator=torch.Generator().manual_seed(1))
    whole, chunks = controller(), controller()
    whole.record(logits)
    for chunk in logits.split(7):
        chunks.record(chunk)
    assert torch.equal(whole.signs, chunks.signs)
    assert whole.signs.tolist() == [logits.sign().sum().item(), 60]


def test_ranks_adjust_alike_by_their_common_mean():
    ranks = [controller(), controller()]
    ranks[0].record(torch.ones(10))
    ranks[1].record(-torch.ones(2))
    common = ranks[0].signs + ranks[1].signs
    for rank in ranks:
        rank.update(4, 64, all_reduce=lambda signs: common)
    # The common mean 8/12 lies over the target, though that of the second rank does not.
    assert ranks[0].p == ranks[1].p > 0.5


def test_state_resumes_in_the_middle_of_an_interval():
    p = torch.tensor(0.3)
    ada = AdaController(p, **DEFAULTS)
    ada.record(torch.ones(5))
    state = ada.state_dict()
    ada.record(-torch.ones(5))
    other_p = torch.tensor(0.0)
    resumed = AdaController(other_p, **DEFAULTS)
    resumed.load_state_dict(state)
    resumed.record(-torch.ones(5))
    ada.update(4, 64)
    resumed.update(4, 64)
    assert other_p.item() == p.item() < 0.3
    assert state["p"].item() == pytest.approx(0.3) and state["signs"].tolist() == [5, 5]


def test_logits_keep_their_graph_and_p_gets_none():
    logits = torch.ones(4, requires_grad=True)
    ada = controller()
    ada.record(logits * 2)
    ada.update(4, 64)
    assert not ada.p.requires_grad and not ada.signs.requires_grad


@pytest.mark.parametrize("settings", [{"target": 1.5}, {"target": -0.1}, {"interval": 0}, {"ada_kimg": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        controller(**settings)
