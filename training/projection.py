"""Projection: the w whose image looks most like a given one (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", app. D).

One w for all layers and the noise images of all layers are optimised together. Noise on w, fading away, lets the search leave the
neighbourhood of the mean; a penalty on the correlation of neighbouring noise pixels keeps the image out of the noise. Files and options are
projector.py's business, what "looks like" means is `training.perceptual`'s.
"""

from __future__ import annotations

import dataclasses
import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from dnnlib import UserError
from torch_utils.layers import float32_copy
from training.networks import Generator
from training.perceptual import PerceptualDistance

MEAN_SEED = 123  # of the latents that mean and spread of w are estimated with, as in StyleGAN2-ADA
MAX_FILE_BYTES, MAX_HEADER_BYTES = 1 << 28, 1 << 16  # of a projection, and of the header of its array
MEAN_BATCH = 1000
SMALLEST_NOISE = 8  # noise images are not averaged down below this edge


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to search; defaults are those of the paper.

    Attributes:
        num_steps: of Adam.
        seed: of the noise.
        mean_samples: latents that mean and spread of w are estimated with.
        learning_rate: the highest.
        ramp_up, ramp_down: shares of the steps in which the learning rate rises linearly at the start and falls as a cosine at the end.
        noise_factor: standard deviation of the noise on w at the start, in spreads of w.
        noise_ramp: share of the steps after which there is none.
        noise_weight: of the penalty on the noise images.
    """

    num_steps: int = 1000
    seed: int = 303
    mean_samples: int = 10_000
    learning_rate: float = 0.1
    ramp_up: float = 0.05
    ramp_down: float = 0.25
    noise_factor: float = 0.05
    noise_ramp: float = 0.75
    noise_weight: float = 1e5


@dataclasses.dataclass(frozen=True)
class Projection:
    """What a search found.

    Attributes:
        steps: w after each step, float32 [num_steps, w_dim] on the CPU; the last one is the result.
        distances: of the images before each step, with noise on w and the optimised noise images [num_steps].
    """

    steps: torch.Tensor
    distances: torch.Tensor


def project(
    G: Generator,
    target: torch.Tensor,
    distance: PerceptualDistance,
    c: torch.Tensor | None = None,
    settings: Settings | None = None,
    advance: Callable[[int, float], None] | None = None,
) -> Projection:
    """Searches the w whose image is nearest to a target. G is left as it is, and so are the global random generators.

    Args:
        G: generator; its device is where to search.
        target: image [C, H, W] in -1..1, of the size and channels of G.
        distance: on the device of G.
        c: label [c_dim] of a network with labels: the search starts at the mean of its w.
        settings: how; None: the defaults.
        advance: told the number of the step and its distance.

    Raises:
        UserError: a target of another shape, or a search that became NaN or infinite.
    """
    settings, device = settings or Settings(), next(G.parameters()).device
    expected = (G.img_channels, *G.img_size)
    if tuple(target.shape) != expected:
        raise UserError(f"the target is an image of shape {list(target.shape)}, but the network makes {list(expected)}")
    G = float32_copy(G)
    wanted = distance.look(target.to(device)[None]).detach()
    mean, spread = w_statistics(G, c, settings.mean_samples)
    random = torch.Generator().manual_seed(settings.seed)  # on the CPU, so that every device searches alike
    noises = _fresh_noise(G, random)
    w = mean.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w, *noises], betas=(0.9, 0.999))
    steps, distances = [], []
    for step in range(settings.num_steps):
        lr, scale = schedule(step / settings.num_steps, settings)
        optimizer.param_groups[0]["lr"] = lr
        jitter = torch.randn(w.shape, generator=random).to(device) * (scale * spread)
        images = G.synthesis((w + jitter).repeat(1, G.num_ws, 1), noise_mode="const")
        found = distance.between(distance.look(images), wanted).sum()
        (found + settings.noise_weight * noise_penalty(noises)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _renormalize(noises)
        value = float(found.detach())
        if not math.isfinite(value) or not bool(w.isfinite().all()):
            raise UserError(f"the projection became NaN or infinite in step {step}; the network's weights are broken or its images overflow")
        steps.append(w.detach()[0, 0].cpu().clone())
        distances.append(value)
        if advance is not None:
            advance(step, value)
    return Projection(torch.stack(steps), torch.tensor(distances))


@torch.no_grad()
def w_statistics(G: Generator, c: torch.Tensor | None, num_samples: int) -> tuple[torch.Tensor, float]:
    """Mean of w [1, 1, w_dim] over random latents, for the label c [c_dim] if there is one, and the root of the mean squared distance from it."""
    device = next(G.parameters()).device
    z = np.random.RandomState(MEAN_SEED).randn(num_samples, G.z_dim)
    labels = torch.zeros(1, G.c_dim) if c is None else c[None]
    parts = torch.from_numpy(z).to(torch.float32).split(MEAN_BATCH)
    mapped = torch.cat([G.mapping(part.to(device), labels.to(device).expand(len(part), -1))[:, 0].cpu().double() for part in parts])
    mean = mapped.mean(dim=0)
    spread = float((mapped - mean).square().sum(dim=1).mean().sqrt())
    return mean.to(device, torch.float32)[None, None], spread


def schedule(t: float, settings: Settings) -> tuple[float, float]:
    """Learning rate, and noise on w in spreads of it, after a share t of the steps, 0..1."""
    fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / settings.ramp_down))
    rise = min(1.0, t / settings.ramp_up)
    return settings.learning_rate * fall * rise, settings.noise_factor * max(0.0, 1 - t / settings.noise_ramp) ** 2


def noise_penalty(noises: list[torch.Tensor]) -> torch.Tensor:
    """Sum over noise images [H, W], and over those averaged down to a shorter side of 8 to 15, of the squared correlations with their neighbours
    right and below.

    Images wrap around at their edges. Averages of 2x2 pixels are doubled, which keeps the variance of white noise.
    """
    total = torch.zeros((), device=noises[0].device) if noises else torch.zeros(())
    for noise in noises:
        x = noise[None, None]
        while True:
            total = total + (x * x.roll(1, dims=3)).mean().square() + (x * x.roll(1, dims=2)).mean().square()
            if min(x.shape[2:]) < 2 * SMALLEST_NOISE:
                break
            x = F.avg_pool2d(x, 2) * 2
    return total


def _fresh_noise(G: Generator, random: torch.Generator) -> list[torch.Tensor]:
    """The noise images of G, drawn anew and ready to be optimised."""
    noises = [noise for name, noise in G.synthesis.named_buffers() if name.split(".")[-1] == "noise_const"]
    for noise in noises:
        noise.copy_(torch.randn(noise.shape, generator=random))
        noise.requires_grad_(True)
    return noises


@torch.no_grad()
def _renormalize(noises: list[torch.Tensor]) -> None:
    """Noise images of zero mean and unit variance, in place."""
    for noise in noises:
        noise -= noise.mean()
        noise *= noise.square().mean().rsqrt()


def read_projection(path: str, G: Generator) -> torch.Tensor:
    """The w of a projection that projector.py wrote, [N, num_ws, w_dim]; `path` is that of --projected-w.

    Raises:
        UserError: no such file, or one that holds something else or not the w of such a network.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            w = _read_array(archive, "w.npy")
    except OSError as error:
        raise UserError(f"--projected-w={path} cannot be read: {error.strerror or 'not an .npz file'}") from error
    except (ValueError, LookupError, TypeError, EOFError, RuntimeError, SyntaxError, tokenize.TokenError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"--projected-w={path} is not an .npz file with an array named w") from error
    expected = (G.num_ws, G.w_dim)
    if w.dtype.kind not in "fiu" or w.ndim != 3 or w.shape[1:] != expected or len(w) == 0:
        raise UserError(
            f"--projected-w={path} holds w of shape {list(w.shape)} and type {w.dtype}; this network takes numbers [N, {expected[0]}, {expected[1]}]"
        )
    with np.errstate(over="ignore"):
        w = w.astype(np.float32)
    if not np.isfinite(w).all():
        raise UserError(f"--projected-w={path} holds w that are not finite numbers; project the picture again")
    return torch.from_numpy(w)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an .npz, after a look at its header: numpy makes room for whatever that announces."""
    info = archive.getinfo(name)
    if info.file_size > MAX_FILE_BYTES:
        raise ValueError("an array of more than a projection's length")
    with archive.open(info) as member:
        start = io.BytesIO(member.read(MAX_HEADER_BYTES))  # a header, too, has whatever length it announces
    version = np.lib.format.read_magic(start)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(start)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != info.file_size - start.tell():
        raise ValueError("an array of another length than it says")
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
