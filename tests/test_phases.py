"""The phases of a step: who is moved, how often, with which gain and at which rate; and how a run of one deals out its batch."""

import types

import pytest
import torch
from torch import nn

from training.phases import build_phases, run_phase

CPU = torch.device("cpu")
G_OPT, D_OPT, P_OPT = dict(lr=0.002, betas=[0.5, 0.99], eps=1e-8), dict(lr=0.004, betas=[0.0, 0.9], eps=1e-6), dict(lr=0.0003)
EVERY_TERM = types.SimpleNamespace(pl_weight=2, r1_gamma=10, r2_gamma=0)


def networks():
    return tuple(nn.Linear(size, 2).requires_grad_(False) for size in (3, 4, 5))


def built(*modules, loss=EVERY_TERM):
    G, D, *P = modules
    return build_phases(G, D, P[0] if P else None, G_OPT, D_OPT, P_OPT if P else None, loss, CPU)


class Recorder:
    """A loss whose gradient is `gain` for every trainable weight, and which notes what it is called with."""

    def __init__(self, modules):
        self.modules, self.calls = modules, []

    def accumulate_gradients(self, phase, *part, sync, gain, full):
        assert all(torch.equal(of_all[full.rows], own) for of_all, own in zip((full.real_c, full.z, full.c), part[1:]))
        trained = [module for module in self.modules if all(p.requires_grad for p in module.parameters())]
        self.calls.append((phase, [t[:, 0].tolist() for t in part], sync, gain, trained))
        (sum(p.sum() for module in trained for p in module.parameters()) * gain).backward()


def test_every_phase_has_its_networks_interval_and_gain():
    G, D, P = networks()
    table = [(phase.name, phase.modules, phase.interval, phase.gain) for phase in built(G, D, P)]
    assert table == [("Gmain", [G, P], 1, 1), ("Greg", [G], 4, 4), ("Dmain", [D], 1, 1), ("Dreg", [D], 16, 16)]
    assert [phase.modules for phase in built(G, D)] == [[G], [G], [D], [D]]


def test_rates_allow_for_the_lazy_steps_between_the_main_ones():
    G, D, P = networks()
    Gmain, Greg, Dmain, Dreg = (phase.optimizer for phase in built(G, D, P))
    assert Gmain is Greg and Dmain is Dreg  # one set of moments
    lazy = [(Gmain, G, 4 / 5, G_OPT, G_OPT["lr"]), (Gmain, P, 4 / 5, G_OPT, P_OPT["lr"]), (Dmain, D, 16 / 17, D_OPT, D_OPT["lr"])]
    for optimizer, module, ratio, settings, lr in lazy:
        (group,) = (group for group in optimizer.param_groups if group["params"][0] is next(module.parameters()))
        assert len(group["params"]) == len(list(module.parameters()))
        assert group["lr"] == pytest.approx(lr * ratio, rel=1e-12) and group["eps"] == settings["eps"]
        assert group["betas"] == pytest.approx([beta**ratio for beta in settings["betas"]], rel=1e-12)
    assert len(Gmain.param_groups) == 2 and len(Dmain.param_groups) == 1


def test_one_step_moves_both_networks_of_a_phase_each_at_its_own_rate():
    modules = networks()
    before = [module.weight.clone() for module in modules]
    phase = built(*modules)[0]
    run_phase(phase, Recorder(modules), (torch.zeros(4, 1),) * 4, batch_gpu=4)
    moved = [old - module.weight for old, module in zip(before, modules)]
    # Adam's first step is its rate, whatever the gradient. A weight near 1 is known to a ten-millionth, a rate of 0.0003 to a thousandth.
    for found, expected in zip(moved, (0.002 * 4 / 5, 0, 0.0003 * 4 / 5)):
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-3, atol=0)
    assert all(not p.requires_grad for module in modules for p in module.parameters())


@pytest.mark.parametrize("index", range(4))
def test_rounds_deal_out_the_batch_in_turn_and_share_the_gain(index):
    modules = networks()
    phase, loss = built(*modules)[index], Recorder(modules)
    rows = torch.arange(6.0)[:, None]
    bad = run_phase(phase, loss, (rows, rows + 10, rows + 20, rows + 30), batch_gpu=2)
    dealt = [[[start + shift, start + 3 + shift] for shift in (0, 10, 20, 30)] for start in range(3)]
    assert loss.calls == [(phase.name, dealt[turn], turn == 2, phase.gain / 3, phase.modules) for turn in range(3)]
    torch.testing.assert_close(phase.modules[0].weight.grad, torch.full_like(phase.modules[0].weight, phase.gain))
    assert bad == 0
