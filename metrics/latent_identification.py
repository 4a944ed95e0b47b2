"""Latent identification: can a fresh network tell which latent made an image? Where many latents make one image, nobody can.

A pairing network that the generator has never met is trained on the frozen generator and asked about latents that it has not seen. The
accuracy of the pairing network of a training run is no such test: generator and network may have agreed on a code that nobody else can read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from dnnlib import UserError
from metrics.features import GeneratorSource, evaluating, full_precision, made_size
from pairing.losses import infonce
from pairing.network import MIN_RESOLUTION, PairingNetwork
from torch_utils.distributed import rank, world_size
from torch_utils.image_size import SIZES, start_of
from torch_utils.pixels import from_uint8

TAU = 0.1
LEARNING_RATE, BETAS = 0.002, (0.0, 0.99)  # as the pairing network of a training run learns


def latent_identification(
    G: Any,
    dataset: Any,
    device: torch.device | str,
    *,
    seed: int = 0,
    steps: int = 2000,
    batch: int = 64,
    held_out: int = 160,
    generator_batch: int | None = None,
    truncation_psi: float = 1.0,
    advance: Callable[[int], None] | None = None,
) -> float:
    """Top-1 accuracy of a fresh probe at finding, among the latents of a batch, the one that made an image.

    The probe is a pairing network of the default size, trained with equation (1) of the paper on images with eight bits per channel, as they
    would be saved; what cannot be seen in a file does not count. Under torch.distributed every rank calls this function, makes its share of the
    images, trains the same probe and gets the same value.

    Args:
        G: generator on `device`: z_dim, c_dim, img_resolution, img_channels and G(z, c, truncation_psi=, noise_mode="const") -> [-1, 1].
        dataset: labels are those of its items, drawn uniformly; only asked where c_dim > 0.
        device: of generator and probe.
        seed: of latents, labels and the probe's first weights.
        steps: batches that the probe is trained on, all of new images.
        batch: latents to choose from, and images of a training step; a guess has an accuracy of 1 / batch.
        held_out: batches that it is tested on.
        generator_batch: images per call of G; default `batch`.
        truncation_psi: 1 is no truncation.
        advance: told the number of images done, after each batch.

    Returns:
        Share in 0..1 of the held-out images.

    Raises:
        UserError: images of a size that the probe does not take, labels that do not fit, or images that are not finite.
    """
    device = torch.device(device)
    if steps < 0 or held_out < 1 or batch < 2:
        raise UserError(f"identification needs steps >= 0, held_out >= 1 and batch >= 2, found {steps}, {held_out} and {batch}")
    source = GeneratorSource(G, dataset, device, seed=seed, batch=generator_batch or batch, truncation_psi=truncation_psi)
    probe = _fresh_probe(G, seed).to(device)
    optimizer = torch.optim.Adam(probe.parameters(), lr=LEARNING_RATE, betas=BETAS, eps=1e-8)
    correct = torch.zeros([], device=device)
    image_shape = (G.img_channels, *made_size(G))
    with evaluating(G), full_precision():
        for step, (images, z) in enumerate(_examples(source, steps + held_out, batch, image_shape)):
            with torch.set_grad_enabled(step < steps):
                loss, accuracy = infonce(*probe(images, z), TAU)
            if step < steps:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            else:
                correct += accuracy
            if advance is not None:
                advance(batch)
    return _outcome(source, correct / held_out, (steps + held_out) * batch)


def _fresh_probe(G: Any, seed: int) -> PairingNetwork:
    """A pairing network in its first state, a function of `seed`."""
    height, width = made_size(G)
    start = start_of(height, width)
    if start is None or start[0] < MIN_RESOLUTION:
        found = f"the generator makes {width}x{height}"
        raise UserError(f"identification needs images of at least {MIN_RESOLUTION}x{MIN_RESOLUTION} pixels, {SIZES}; {found}")
    # Layers draw from the global generator: lend them another state of it. Only the CPU's is touched, the network is made there.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return PairingNetwork(G.z_dim, start[0], G.img_channels, start_grid=start[1])


def _examples(source: GeneratorSource, count: int, batch: int, image_shape: tuple[int, int, int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields `count` batches of images float32 [batch, *image_shape], -1..1, and their latents [batch, z_dim], made by the ranks in turn."""
    own_rank, ranks = rank(), world_size()
    spans = [(number * batch, (number + 1) * batch) for number in range(count)]
    made = source.batches(spans[own_rank::ranks])
    for number, span in enumerate(spans):
        sender = number % ranks
        if sender == 0:  # a new round: every rank makes its batch
            with torch.no_grad():
                own = next(made, None)
        images = own.contiguous() if sender == own_rank else torch.empty(batch, *image_shape, dtype=torch.uint8, device=source.device)
        if ranks > 1:
            dist.broadcast(images, src=sender)
        z, _ = source.inputs(*span)
        yield from_uint8(images), z.to(source.device)


def _outcome(source: GeneratorSource, accuracy: torch.Tensor, total: int) -> float:
    """The accuracy that rank 0 found, on every rank, provided that all images were finite."""
    found = torch.stack([accuracy.to(torch.float32), torch.as_tensor(source.bad_images, device=accuracy.device).to(torch.float32)])
    if world_size() > 1:
        found[0] *= rank() == 0
        dist.all_reduce(found)
    accuracy, bad_images = found.tolist()
    if bad_images:
        raise UserError(f"the generator makes NaN or infinity in {int(bad_images):,} of {total:,} images; a figure of them would mean nothing")
    return accuracy
