"""What is measured of trained generators in the plane: fidelity and diversity, modes, and how many latents share a sample.

One protocol for all: 10,000 real and 10,000 generated samples with k = 3, drawn from evaluation streams that no training uses and that are the
same for all models, so a model's figures do not depend on its stack.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from dnnlib import UserError
from experiments.toy.distributions import Target
from experiments.toy.methods import Settings
from experiments.toy.models import Stack, apply_stack, frozen, initial_stack
from metrics.collision import collision_within, typical_radius
from metrics.prdc import compute_prdc
from pairing.losses import infonce

NUM_SAMPLES = 10_000
NEAREST_K = 3
NUM_COLLISION = 2000  # latents whose pairs are compared
PROBE_STEPS, PROBE_BATCH, PROBE_LR = 2000, 64, 1e-3
PROBE_BATCHES_HELD_OUT = 64
CHUNK = 2000  # latents that pass through a stack at once
RESOLUTION = 1e-5  # ratio of singular values below which float32 does not tell the orientation

STREAMS = ("real", "latents", "probe", "probe latents", "held-out latents")
FIRST_STREAM = 1 << 31  # training streams count from 0, and torch's CPU generator reads the lower 32 bits of a seed

MEASURES = {
    "precision": "share of samples inside a real point's ball, k = 3 (higher is better)",
    "recall": "share of real points inside a sample's ball, k = 3 (higher is better)",
    "density": "real balls that a sample lies in, over k (1 for the target itself; higher is denser)",
    "coverage": "share of real balls that hold a sample, k = 3 (higher is better; 0.875 for the target itself)",
    "modes": "modes with at least one high-quality sample (higher is better)",
    "thinnest mode": "high-quality samples of the mode that has fewest, over an equal share (higher is better; for 10,000 samples of the target "
    "itself about 0.96 with 5 modes, 0.95 with 8, 0.89 with 25 and 0.88 on the 36 arcs of a ring)",
    "high quality": "share of samples on the target's support, within three standard deviations (higher is better)",
    "reverse KL": "KL(samples per mode || equal shares) in nats (lower is better; log of the number of modes when all are in one)",
    "collision": "share of far latent pairs whose samples are near (lower is better; 0.0003 for samples unrelated to their latents, 1 for one point)",
    "stretch": "median over latents of the generator's larger singular value, data units per latent unit (no best value)",
    "squeeze": "median over latents of the generator's smaller singular value (higher is less many-to-one; 0 on a curve or a point)",
    "folded": "share of latents where the generator reverses the orientation that most have (lower is better; 0 without folds)",
    "identification": "top-1 share of samples whose latent a fresh probe finds among 64 (higher is better; chance 0.016)",
}


def measure(G: Stack, distribution: Target, settings: Settings, seed: int = 0, num: int = NUM_SAMPLES) -> list[dict[str, float]]:
    """Every figure of `MEASURES` for each generator of a stack.

    Args:
        G: generators from two latent dimensions to the plane.
        distribution: what they should have learned.
        settings: tau and embed_dim of the probe.
        seed: of the evaluation streams.
        num: samples of each kind.

    Returns:
        One dictionary per model, in stack order, its keys those of `MEASURES` in their order.

    Raises:
        UserError: latents that are not two-dimensional, generators that give NaN or infinity, or too few samples.
    """
    if G[0].shape[1] != 2:
        raise UserError(f"z_dim is {G[0].shape[1]}; whether a map to the plane folds can be measured for z_dim 2 only")
    G = frozen(G)
    real = distribution.sample(num, stream(seed, "real"))
    z = torch.randn([num, 2], generator=stream(seed, "latents"))
    samples, jacobians = samples_and_jacobians(G, z)
    radius = typical_radius(real, NEAREST_K)
    identified = identification(G, settings, seed).tolist()
    rows = []
    for x, jacobian, accuracy in zip(samples, jacobians, identified):
        rows.append(
            {
                **compute_prdc(real, x, NEAREST_K),
                **mode_figures(x, distribution),
                "collision": collision_within(z[:NUM_COLLISION], x[:NUM_COLLISION], radius),
                **expansion(jacobian),
                "identification": accuracy,
            }
        )
    return rows


def stream(seed: int, name: str) -> torch.Generator:
    """The random generator of one purpose of the evaluation; apart from all of training's."""
    return torch.Generator().manual_seed(FIRST_STREAM + seed * len(STREAMS) + STREAMS.index(name))


def mode_figures(x: torch.Tensor, distribution: Target) -> dict[str, float]:
    """Modes captured, high-quality share and reverse KL of samples [N, 2] (PacGAN, section 4.1), and how thin the thinnest mode is.

    As there, a sample is of high quality within three standard deviations of a mode, a mode is captured by one such sample, and the reverse KL
    compares how samples, each given to its nearest mode, are spread over the modes. PacGAN takes 2,500 samples; here all N count, so a rare
    mode is found a little more easily. The real shares are the exact, equal ones. The modes of a ring are its arcs.
    """
    nearest, good = distribution.nearest_mode(x), distribution.on_support(x)
    num_modes = len(distribution.modes)
    shares = torch.bincount(nearest, minlength=num_modes).double() / len(x)
    captured = torch.bincount(nearest[good], minlength=num_modes)
    return {
        "modes": float(torch.count_nonzero(captured)),
        "thinnest mode": float(captured.min()) * num_modes / len(x),
        "high quality": float(good.double().mean()),
        "reverse KL": float(torch.special.xlogy(shares, shares * num_modes).sum()),
    }


def samples_and_jacobians(G: Stack, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every generator's samples [M, N, 2] of the latents z [N, 2] and its Jacobians dx / dz [M, N, 2, 2] (row: coordinate of x)."""
    samples, jacobians = [], []
    for chunk in z.split(CHUNK):
        own = chunk.expand(len(G[0]), -1, -1).clone().requires_grad_()
        x = apply_stack(G, own)
        rows = [torch.autograd.grad(x[..., axis].sum(), own, retain_graph=True)[0] for axis in range(2)]
        samples.append(x.detach())
        jacobians.append(torch.stack(rows, dim=2))
    return torch.cat(samples, dim=1), torch.cat(jacobians, dim=1)


def singular_values(jacobian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values of 2 x 2 matrices [..., 2, 2] in float64: the larger, and the smaller with the sign of the determinant."""
    (a, b), (c, d) = (row.unbind(dim=-1) for row in jacobian.double().unbind(dim=-2))
    # A plane map is a rotation with scaling plus a reflection with scaling; the singular values are the sum and difference of the two scales.
    rotation, reflection = torch.hypot(a + d, c - b) / 2, torch.hypot(a - d, b + c) / 2
    return rotation + reflection, rotation - reflection


def expansion(jacobian: torch.Tensor) -> dict[str, float]:
    """Local expansion of one generator from its Jacobians [N, 2, 2]: the medians of both singular values, and the folded share.

    "folded" is the share of latents whose determinant has the less frequent of the two signs: a continuous map changes the sign across a fold
    only, and near a fold two latents give one sample. Where the matrix is singular to float32 the sign is unknown and counts for neither side;
    such latents show in "squeeze".
    """
    larger, smaller = singular_values(jacobian)
    known = smaller.abs() > RESOLUTION * larger
    sides = [float((known & (smaller * side > 0)).double().mean()) for side in (1, -1)]
    return {"stretch": float(larger.median()), "squeeze": float(smaller.abs().median()), "folded": min(sides)}


def identification(G: Stack, settings: Settings, seed: int = 0) -> torch.Tensor:
    """Top-1 latent identification [M] of a fresh probe per generator, averaged over 64 held-out batches of 64.

    The probe is a pairing network as in training: two towers, InfoNCE at settings.tau, settings.embed_dim dimensions. It learns for 2,000 steps
    of 64 fresh latents on the frozen generator, with Adam at 1e-3 and its default betas. Unlike training's own accuracy, it exists for every
    method and asks what the samples tell, not what the generator was taught to tell this one network.
    """
    probe_seeds = [stream(seed, "probe") for _ in G[0]]
    towers = initial_stack(2, settings.embed_dim, probe_seeds), initial_stack(G[0].shape[1], settings.embed_dim, probe_seeds)
    params = towers[0] + towers[1]
    optimizer = torch.optim.Adam(params, lr=PROBE_LR, fused=True)
    for x, z in _batches(G, PROBE_STEPS, stream(seed, "probe latents")):
        loss, _ = _identify(towers, x, z, settings.tau)
        for param, gradient in zip(params, torch.autograd.grad(loss.sum(), params)):
            param.grad = gradient
        optimizer.step()
    held_out = _batches(G, PROBE_BATCHES_HELD_OUT, stream(seed, "held-out latents"))
    with torch.no_grad():
        return torch.stack([_identify(towers, x, z, settings.tau)[1] for x, z in held_out]).double().mean(dim=0)


def _identify(towers: tuple[Stack, Stack], x: torch.Tensor, z: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE and top-1 accuracy, [M] each, of samples and latents [M, N, 2]."""
    e_x, e_z = (F.normalize(apply_stack(tower, rows), dim=2) for tower, rows in zip(towers, (x, z)))
    return infonce(e_x, e_z, tau)


def _batches(G: Stack, count: int, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of samples and their latents [M, PROBE_BATCH, 2]; the latents are the same for all models."""
    at_once = CHUNK // PROBE_BATCH
    for first in range(0, count, at_once):
        batches = min(at_once, count - first)
        z = torch.randn([batches * PROBE_BATCH, G[0].shape[1]], generator=generator).expand(len(G[0]), -1, -1)
        with torch.no_grad():
            x = apply_stack(G, z)
        yield from zip(x.split(PROBE_BATCH, dim=1), z.split(PROBE_BATCH, dim=1))
