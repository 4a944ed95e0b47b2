"""The phases of a training step: which networks each trains, with which optimiser, how often, and one run of it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from pairing.term import FullBatch
from torch_utils import training_stats
from torch_utils.distributed import exchange_gradients
from training.loss import StyleGAN2Loss

G_REG_INTERVAL = 4
D_REG_INTERVAL = 16


@dataclasses.dataclass
class Phase:
    """One phase: every `interval` batches, `gain` times its mean loss moves `modules`."""

    name: str
    modules: list[nn.Module]
    optimizer: torch.optim.Optimizer
    interval: int
    gain: float


def lazy_adam(
    groups: Sequence[dict], interval: int, betas: Sequence[float], eps: float, device: torch.device, capturable: bool = False
) -> torch.optim.Adam:
    """Adam for main steps with one more step of regularisation after every `interval` of them (StyleGAN2, appendix B).

    With k = interval, rates are lr * k / (k + 1) and betas beta ** (k / (k + 1)), so that the additional step does not move the weights more. All
    groups are scaled, also those that the regularisation does not touch.

    Args:
        groups: parameter groups, each with its 'params' and 'lr'.
        capturable: for CUDA graphs. The rates never change in a run, so they may be numbers of the graph.
    """
    ratio = interval / (interval + 1)
    groups = [dict(group, lr=group["lr"] * ratio) for group in groups]
    fused = device.type in ("cpu", "cuda")
    betas = tuple(float(beta) ** ratio for beta in betas)
    return torch.optim.Adam(groups, betas=betas, eps=eps, fused=fused, capturable=capturable)


def build_phases(
    G: nn.Module,
    D: nn.Module,
    P: nn.Module | None,
    G_opt: dict,
    D_opt: dict,
    P_opt: dict | None,
    loss: StyleGAN2Loss,
    device: torch.device,
    capturable: bool = False,
) -> list[Phase]:
    """Gmain, Greg, Dmain, Dreg in that order, leaving out those whose weight is 0.

    P moves with G in one optimiser step (paper, equation 3), at its own learning rate.

    Args:
        G_opt, D_opt: lr, betas, eps of Adam; P_opt: lr.
        capturable: the phases will become CUDA graphs.
    """
    generator_groups = [{"params": list(G.parameters()), "lr": G_opt["lr"]}]
    if P is not None:
        generator_groups.append({"params": list(P.parameters()), "lr": P_opt["lr"]})
    discriminator_groups = [{"params": list(D.parameters()), "lr": D_opt["lr"]}]
    G_adam = lazy_adam(generator_groups, G_REG_INTERVAL, G_opt["betas"], G_opt["eps"], device, capturable)
    D_adam = lazy_adam(discriminator_groups, D_REG_INTERVAL, D_opt["betas"], D_opt["eps"], device, capturable)
    phases = [Phase("Gmain", [G] if P is None else [G, P], G_adam, 1, 1)]
    if loss.pl_weight > 0:
        phases.append(Phase("Greg", [G], G_adam, G_REG_INTERVAL, G_REG_INTERVAL))
    phases.append(Phase("Dmain", [D], D_adam, 1, 1))
    if loss.r1_gamma > 0 or loss.r2_gamma > 0:
        phases.append(Phase("Dreg", [D], D_adam, D_REG_INTERVAL, D_REG_INTERVAL))
    return phases


@contextlib.contextmanager
def trainable(*modules: nn.Module) -> Iterator[None]:
    """Within: the modules' parameters take gradients. After: they do not, so no other phase reaches them."""
    for module in modules:
        module.requires_grad_(True)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(False)


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def run_phase(phase: Phase, loss: StyleGAN2Loss, batch: Batch, batch_gpu: int) -> torch.Tensor:
    """Accumulates the phase's gradients over rounds of `batch_gpu` images, averages them over ranks, and steps.

    Rounds deal out the batch in turn, as ranks do. A minibatch-std group is made of images a whole number of groups apart, so each round
    sees groups that the whole batch has, too, and pairing chooses among the latents of the whole batch: neither rounds nor ranks change what a
    step does. (But for what sees one round of one rank: mode seeking, binary pairing, and of rounds the mean of path lengths.)

    Args:
        batch: real images [N, C, H, W], their labels, latents and labels of generated images, all with N rows.

    Returns:
        How many gradient values were not finite, a scalar tensor.
    """
    rounds = -(-len(batch[0]) // batch_gpu)
    with trainable(*phase.modules):
        phase.optimizer.zero_grad(set_to_none=True)
        for index in range(rounds):
            rows = slice(index, None, rounds)
            full = FullBatch(z=batch[2], c=batch[3], real_c=batch[1], rows=rows)
            part = [t[rows] for t in batch]
            loss.accumulate_gradients(phase.name, *part, sync=index == rounds - 1, gain=phase.gain / rounds, full=full)
        bad = exchange_gradients(p for module in phase.modules for p in module.parameters())
    phase.optimizer.step()
    return bad


@contextlib.contextmanager
def timed(name: str, device: torch.device, pending: list) -> Iterator[None]:
    """Times what happens within: at once on the CPU, by events that `report_times` reads later on CUDA."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(torch.cuda.current_stream(device))
        yield
        end.record(torch.cuda.current_stream(device))
        pending.append((name, start, end))
    else:
        start_time = time.perf_counter()
        yield
        training_stats.report(f"Timing/{name}", (time.perf_counter() - start_time) * 1e3)


def report_times(pending: list) -> None:
    """Reports the events of `timed`, in milliseconds, once the device is past them."""
    for name, start, end in pending:
        end.synchronize()
        training_stats.report(f"Timing/{name}", start.elapsed_time(end))
    pending.clear()
