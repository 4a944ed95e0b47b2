"""Perceptual path length (PPL; Karras et al. 2019, section 4.1, and 2020): how far images move, to an eye, for a small step in latent space.

Latents, labels, positions on the path and noise come from the metric's own seed, in blocks of pairs that the ranks share out, so the figure does
not depend on their number and the training state is left alone. Which variant a metric's name stands for is in PATH_LENGTHS.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dnnlib import UserError
from metrics.detectors.images import to_rgb_float
from metrics.features import LATENT_BLOCK, GeneratorSource, full_precision, made_size, succeed_together
from torch_utils.distributed import rank, world_size
from torch_utils.layers import float32_copy

PATH_LENGTHS: dict[str, dict[str, Any]] = {
    "ppl2_wend": {"space": "w", "sampling": "end", "crop": False},
    "ppl_zfull": {"space": "z", "sampling": "full", "crop": True},
    "ppl_wfull": {"space": "w", "sampling": "full", "crop": True},
    "ppl_zend": {"space": "z", "sampling": "end", "crop": True},
    "ppl_wend": {"space": "w", "sampling": "end", "crop": True},
}

LARGEST_EDGE = 256  # Larger images are averaged down to it, where the perceptual distance was calibrated.
# Ends the seeds of positions and noise, which have four words. Those of latents are filled up to as many with a 0, so the two never meet.
PATH_STREAM = (0, 1)


def perceptual_path_length(
    G: Any,
    dataset: Any,
    device: torch.device | str,
    *,
    distance: Callable[[torch.Tensor], torch.Tensor],
    num_samples: int = 50_000,
    epsilon: float = 1e-4,
    space: str = "w",
    sampling: str = "end",
    crop: bool = False,
    batch: int = 2,
    seed: int = 0,
    truncation_psi: float = 1.0,
    advance: Callable[[int], None] | None = None,
) -> float:
    """Mean of |f(image at t + epsilon) - f(image at t)|^2 / epsilon^2 over random pairs of latents, without the extreme hundredths.

    A copy of G makes both images with one label and one noise, in float32 whatever it was trained in. Values below the 1st or above the 99th
    percentile are left out; both percentiles are values of the sample (the next one outwards) and stay in. Under torch.distributed every rank
    calls this function and gets the same value.

    Args:
        G: generator on `device`: z_dim, c_dim, img_resolution, mapping(z, c, truncation_psi=), synthesis(ws, noise_mode=) -> about -1..1.
        dataset: labels are those of its items, drawn uniformly; only asked where c_dim > 0.
        device: of generator and distance network.
        distance: f, from float32 RGB images [N, 3, H, W], 0..255, to features [N, F]: a detector that `get_detector` made for "lpips".
        num_samples: pairs.
        epsilon: length of the step, as a share of the path.
        space: "w" walks on a line between two mapped latents, "z" on a great circle between the latents.
        sampling: "end" steps off at one of the two latents (t = 0), "full" anywhere between them.
        crop: look at the middle of faces only: rows 3/8 to 7/8 and columns 2/8 to 6/8.
        batch: pairs per call; changes speed and memory, the value by rounding only.
        seed: of all that is drawn.
        truncation_psi: 1 is no truncation.
        advance: told the number of pairs done, after each block of this rank.

    Raises:
        UserError: an argument out of its range, labels that do not fit, or distances that are not finite; on every rank alike.
    """
    _check(G, num_samples, epsilon, space, sampling, crop, batch)
    device = torch.device(device)
    source = GeneratorSource(G, dataset, device, seed=seed)
    path = _Path(float32_copy(G), device, distance, space, epsilon, crop, truncation_psi)
    lengths = torch.zeros(num_samples, device=device)
    with torch.no_grad(), full_precision():
        succeed_together(lambda: _walk(path, source, lengths, sampling, batch, advance))
    if world_size() > 1:
        dist.all_reduce(lengths)
    return _trimmed_mean(lengths.cpu().numpy().astype(np.float64) / epsilon**2)


def _walk(path: _Path, source: GeneratorSource, lengths: torch.Tensor, sampling: str, batch: int, advance: Callable[[int], None] | None) -> None:
    """Puts this rank's squared distances where they belong in `lengths`; arguments as those of `perceptual_path_length`."""
    for block in range(rank(), math.ceil(len(lengths) / LATENT_BLOCK), world_size()):
        own = lengths[block * LATENT_BLOCK : (block + 1) * LATENT_BLOCK]
        z, c = source.inputs(2 * block * LATENT_BLOCK, 2 * (block + 1) * LATENT_BLOCK)
        rng = np.random.default_rng([source.seed, block, *PATH_STREAM])
        t = rng.random(LATENT_BLOCK) if sampling == "full" else np.zeros(LATENT_BLOCK)
        path.renew_noise(rng)
        pairs = (z[:LATENT_BLOCK], z[LATENT_BLOCK:], c[:LATENT_BLOCK], torch.from_numpy(t))
        own.copy_(torch.cat([path.lengths(*part) for part in zip(*(values[: len(own)].split(batch) for values in pairs))]))
        if advance is not None:
            advance(len(own))


def _check(G: Any, num_samples: int, epsilon: float, space: str, sampling: str, crop: bool, batch: int) -> None:
    for name, value, known in (("space", space, ("z", "w")), ("sampling", sampling, ("full", "end"))):
        if value not in known:
            raise UserError(f"{name} of a path length is {known[0]} or {known[1]}, found {value!r}")
    if num_samples < 1 or batch < 1 or not 0 < epsilon < 1:
        found = f"num_samples={num_samples}, batch={batch}, epsilon={epsilon}"
        raise UserError(f"a path length needs at least one pair, at least one per batch and a step between 0 and 1, found {found}")
    height, width = made_size(G)
    if crop and min(height, width) < 8:
        raise UserError(f"a path length with crop needs images of at least 8x8 pixels, the generator makes {width}x{height}")


@dataclasses.dataclass(frozen=True)
class _Path:
    """How to walk: the arguments of `perceptual_path_length`, and a generator to draw noise into.

    It computes in float32: half precision has no digits for a step this small.
    """

    G: Any
    device: torch.device
    distance: Callable[[torch.Tensor], torch.Tensor]
    space: str
    epsilon: float
    crop: bool
    truncation_psi: float

    def renew_noise(self, rng: np.random.Generator) -> None:
        """Draws the noise images of all layers anew."""
        for name, noise in self.G.named_buffers():
            if name.split(".")[-1] == "noise_const":
                noise.copy_(torch.from_numpy(rng.standard_normal(tuple(noise.shape), dtype=np.float32)))

    def lengths(self, z0: torch.Tensor, z1: torch.Tensor, c: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Squared distances [n] of a step at t [n], float64, between z0 and z1 [n, z_dim] with labels c [n, c_dim]."""
        images = self.G.synthesis(self._points(z0, z1, c, t), noise_mode="const")
        features = self.distance(self._visible(images))
        if features.ndim != 2 or len(features) != len(images):
            found = f"shape {list(features.shape)} for {len(images)} images"
            raise UserError(f"a perceptual distance network returns a matrix with one row per image, found {found}")
        before, after = features.to(torch.float32).chunk(2)
        return (after - before).square().sum(dim=1)

    def _points(self, z0: torch.Tensor, z1: torch.Tensor, c: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """ws [2n, num_ws, w_dim] before the step and, after them, those at its end."""
        if self.space == "z":
            return self._map(torch.cat([great_circle(z0, z1, t), great_circle(z0, z1, t + self.epsilon)]), c)
        w0, w1 = self._map(torch.cat([z0, z1]), c).chunk(2)
        start = w0.lerp(w1, t.to(self.device, torch.float32)[:, None, None])
        # A step from the start, not another point of the line: t + epsilon less t is epsilon to three digits only in float32.
        return torch.cat([start, start + self.epsilon * (w1 - w0)])

    def _map(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.G.mapping(z.to(self.device, torch.float32), c.repeat(2, 1).to(self.device), truncation_psi=self.truncation_psi)

    def _visible(self, images: torch.Tensor) -> torch.Tensor:
        """What the distance network sees of images [N, C, R, R], about -1..1: float32 RGB, 0..255."""
        if self.crop:
            height, width = images.shape[2:]
            images = images[:, :, 3 * height // 8 : 7 * height // 8, 2 * width // 8 : 6 * width // 8]
        if (edge := min(made_size(self.G))) > LARGEST_EDGE:
            images = torch.nn.functional.avg_pool2d(images, edge // LARGEST_EDGE)
        return to_rgb_float(images.to(torch.float32) * 127.5 + 127.5)


def great_circle(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Points at t [n] between the directions of a and b [n, d], at constant speed (slerp).

    Float64 [n, d] of length sqrt(d), that of a typical latent; StyleGAN's mapping network asks for the direction only.
    """
    a, b = (torch.nn.functional.normalize(x.to(torch.float64), dim=1) for x in (a, b))
    angle = (a * b).sum(dim=1, keepdim=True).clamp(-1, 1).acos()
    t = t.to(torch.float64).unsqueeze(1)
    return math.sqrt(a.shape[1]) * (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def _trimmed_mean(lengths: np.ndarray) -> float:
    """Mean of those between the 1st and the 99th percentile, both included."""
    bad = np.count_nonzero(~np.isfinite(lengths))
    if bad:
        raise UserError(f"the path length is NaN or infinite for {bad:,} of {len(lengths):,} pairs; the generator or the distance network is broken")
    low, high = np.percentile(lengths, 1, method="lower"), np.percentile(lengths, 99, method="higher")
    return float(lengths[(lengths >= low) & (lengths <= high)].mean())
