"""Trains one method under many seeds side by side: alternating steps of D and of G with P (paper, Algorithm 1), on stacked weights.

A seed fixes the initial weights, the real samples and the latents, whatever the method, so that methods can be compared seed by seed; and
a model's training does not depend on what else is in its stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.func import vmap

from dnnlib import UserError
from experiments.toy.methods import Method, Settings
from experiments.toy.models import Stack, apply_stack, frozen, initial_stack, value_and_slope
from pairing.adaptive import adapt_weight
from pairing.losses import binary_pairing, infonce, mode_seeking, random_derangement
from training import objectives

STREAMS = ("G", "D", "P", "data", "permutation")
CHUNK = 50  # steps whose samples are drawn at once
CONTROL_INTERVAL = 4  # steps between adjustments of an adaptive weight


class Distribution(Protocol):
    """What training needs of a target distribution."""

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """n points [n, 2]."""
        ...


def stream(seed: int, name: str) -> torch.Generator:
    """The random generator of one purpose under one seed."""
    return torch.Generator().manual_seed(seed * len(STREAMS) + STREAMS.index(name))


@dataclasses.dataclass
class Trained:
    """What a stack has become.

    Attributes:
        seeds: of the models, in stack order.
        G, D: weights.
        P: weights of the sample tower and of the latent tower; None without pairing.
        history: step, and per recorded quantity one value per model: {"step": [T], name: [T, M]}.
        snapshots: the generators at the steps that were asked for.
    """

    seeds: list[int]
    G: Stack
    D: Stack
    P: tuple[Stack, Stack] | None
    history: dict[str, torch.Tensor]
    snapshots: dict[int, Stack]


class Trainer:
    """One stack of models in training.

    Args:
        method: terms of the losses.
        settings: their weights and the optimiser's.
        distribution: target.
        seeds: one per model.
    """

    def __init__(self, method: Method, settings: Settings, distribution: Distribution, seeds: Sequence[int]):
        if settings.batch % (2 * method.pack):
            raise UserError(f"batch is {settings.batch}; {method.name} needs a multiple of {2 * method.pack}")
        self.method, self.settings, self.distribution, self.seeds = method, settings, distribution, list(seeds)
        z_dim, embed_dim = settings.z_dim, settings.embed_dim
        self.G = initial_stack(z_dim, 2, [stream(seed, "G") for seed in seeds])
        self.D = initial_stack(2 * method.pack, 1, [stream(seed, "D") for seed in seeds])
        self.P: tuple[Stack, Stack] | None = None
        if method.pairing:
            generators = [stream(seed, "P") for seed in seeds]
            self.P = initial_stack(2, embed_dim, generators), initial_stack(z_dim, embed_dim, generators)
            self.pairing_weight = torch.full([len(seeds)], settings.pairing_weight)
            self.accuracies: list[torch.Tensor] = []
        self.permutations = [stream(seed, "permutation") for seed in seeds]
        self.G_params = self.G + (self.P[0] + self.P[1] if self.P else [])
        # Adam is elementwise, so on stacked weights it takes every model's own steps.
        betas = (settings.beta1, settings.beta2)
        self.G_opt = torch.optim.Adam(self.G_params, lr=settings.lr, betas=betas, fused=True)
        self.D_opt = torch.optim.Adam(self.D, lr=settings.lr, betas=betas, fused=True)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Endless (real samples [M, N, 2], latents for D's step and for G's step [M, N, z_dim]), each model's from its own seed."""
        generators = [stream(seed, "data") for seed in self.seeds]
        n, z_dim = self.settings.batch, self.settings.z_dim
        while True:
            real = torch.stack([self.distribution.sample(CHUNK * n, g).view(CHUNK, n, 2) for g in generators], dim=1)
            z = torch.stack([torch.randn([CHUNK, 2, n, z_dim], generator=g) for g in generators], dim=2)
            for step in range(CHUNK):
                yield real[step], z[step, 0], z[step, 1]

    def step(self, real: torch.Tensor, z_d: torch.Tensor, z_g: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step of D and one of G with P. Returns the losses [M] by name."""
        losses = self.d_losses(real, apply_stack(frozen(self.G), z_d))
        _descend(self.D_opt, self.D, losses)
        g_losses = self.g_losses(real, apply_stack(self.G, z_g), z_g)
        shown = {name: value.detach() for name, value in g_losses.items()}
        accuracy = g_losses.pop("accuracy", None)
        _descend(self.G_opt, self.G_params, g_losses)
        if self.method.adaptive:
            self._steer(accuracy)
        return {**{name: value.detach() for name, value in losses.items()}, **shown}

    def d_losses(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms of the discriminators' loss, each [M] (paper, equation 4)."""
        method, settings = self.method, self.settings
        real_logits, real_slope = self._judge(self.D, real, method.r1)
        fake_logits, fake_slope = self._judge(self.D, fake, method.r2)
        if method.relativistic:
            adversarial = objectives.relativistic_loss(real_logits, fake_logits)
        else:
            adversarial = objectives.discriminator_real_loss(real_logits) + objectives.discriminator_fake_loss(fake_logits)
        losses = {"D": adversarial.mean(dim=(1, 2))}
        for name, slope in (("R1", real_slope), ("R2", fake_slope)):
            if slope is not None:
                losses[name] = settings.r1_gamma / 2 * slope.square().sum(dim=2).mean(dim=1)
        return losses

    def g_losses(self, real: torch.Tensor, fake: torch.Tensor, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms of the loss of G and P, each [M] (paper, equation 3), and the identification "accuracy" [M] with pairing."""
        method, settings = self.method, self.settings
        judge = frozen(self.D)
        fake_logits, _ = self._judge(judge, fake, False)
        if method.relativistic:
            adversarial = objectives.relativistic_loss(fake_logits, self._judge(judge, real, False)[0])
        else:
            adversarial = objectives.generator_loss(fake_logits)
        losses = {"G": adversarial.mean(dim=(1, 2))}
        if self.P is not None:
            pairing, losses["accuracy"] = self._pairing_loss(fake, z)
            losses["pairing"] = self.pairing_weight * pairing
        if method.mode_seeking:
            half = settings.batch // 2
            losses["mode seeking"] = settings.ms_weight * vmap(mode_seeking)(fake[:, :half], fake[:, half:], z[:, :half], z[:, half:])
        return losses

    def _judge(self, D: Stack, x: torch.Tensor, with_slope: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        packed = x.reshape(len(x), -1, 2 * self.method.pack)
        return value_and_slope(D, packed) if with_slope else (apply_stack(D, packed), None)

    def _pairing_loss(self, fake: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        e_x, e_z = (F.normalize(apply_stack(tower, rows), dim=2) for tower, rows in zip(self.P, (fake, z)))
        if self.method.pairing == "infonce":
            return infonce(e_x, e_z, self.settings.tau)
        permutation = torch.stack([random_derangement(self.settings.batch, generator=g) for g in self.permutations])
        return binary_pairing(e_x, e_z, self.settings.tau, permutation)

    def _steer(self, accuracy: torch.Tensor) -> None:
        self.accuracies.append(accuracy)
        if len(self.accuracies) == CONTROL_INTERVAL:
            settings = self.settings
            mean = torch.stack(self.accuracies).mean(dim=0)
            nimg = settings.batch * CONTROL_INTERVAL
            self.pairing_weight = adapt_weight(self.pairing_weight, settings.pairing_weight, mean, settings.pairing_target, nimg)
            self.accuracies = []


def _descend(optimizer: torch.optim.Optimizer, params: Stack, losses: dict[str, torch.Tensor]) -> None:
    gradients = torch.autograd.grad(sum(losses.values()).sum(), params)
    for param, gradient in zip(params, gradients):
        param.grad = gradient
    optimizer.step()


def train(
    method: Method, settings: Settings, distribution: Distribution, seeds: Sequence[int], snapshots: Sequence[int] = (), record_every: int = 100
) -> Trained:
    """Trains one model per seed.

    Args:
        snapshots: steps at which the generators are kept; 0 is the initial state.
        record_every: steps between records of the losses.

    Raises:
        UserError: a model's weights became infinite or NaN; it names the seeds.
    """
    n = len(seeds)
    # Matrix libraries compute a batch of one by another kernel, which rounds differently; as one of two equal models, a lone model is trained
    # as it would be in any stack.
    trainer = Trainer(method, settings, distribution, seeds if n > 1 else [*seeds, *seeds])
    kept: dict[int, Stack] = {}
    steps, records = [], []
    batches = trainer.batches()
    for step in range(settings.steps + 1):
        if step in snapshots:
            kept[step] = [tensor.detach()[:n].clone() for tensor in trainer.G]
        if step == settings.steps:
            break
        losses = trainer.step(*next(batches))
        if (step + 1) % record_every == 0:
            if trainer.P is not None:
                losses["pairing weight"] = trainer.pairing_weight
            steps.append(step + 1)
            records.append(losses)
    _check_finite(trainer)
    history = {name: torch.stack([record[name][:n] for record in records]) for name in (records[0] if records else {})}
    G, D, *P = ([tensor.detach()[:n] for tensor in stack] for stack in (trainer.G, trainer.D, *(trainer.P or ())))
    return Trained(list(seeds), G, D, tuple(P) or None, {"step": torch.tensor(steps), **history}, kept)


def _check_finite(trainer: Trainer) -> None:
    finite = torch.stack([tensor.detach().isfinite().flatten(1).all(dim=1) for tensor in trainer.G_params + trainer.D]).all(dim=0)
    lost = list(dict.fromkeys(str(seed) for seed, good in zip(trainer.seeds, finite.tolist()) if not good))
    if lost:
        raise UserError(f"{trainer.method.name} diverged to infinite weights under seed {', '.join(lost)}; lower lr or the penalties' weights")
