"""Images from seeds: latents, labels, the layout of sheets, style mixing, walks between seeds, and rendering in batches.

An image is a function of the network, its seed, its label and the look asked for. How many are rendered at a time changes how
numbers are rounded, no more: single levels of 256 in float32, a few in half precision. Files are written elsewhere (training.images, generate.py).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from dnnlib import UserError
from dnnlib.cli import MAX_SEED
from torch_utils.pixels import to_uint8
from training.images import default_grid

# Pixels of the images rendered at a time, and how many images at most. More than fits a CPU's caches slows it down (bench.generate).
BATCH_PIXELS = {"cpu": (2**17, 64)}
GPU_BATCH_PIXELS = (2**22, 256)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """The cells of a sheet of images, row by row: a seed and a class (None without labels) each."""

    grid: tuple[int, int]
    seeds: list[int]
    classes: list[int | None]


def default_batch(size: tuple[int, int], device: torch.device) -> int:
    """How many images of (height, width) pixels to render at a time on `device`, at least 1."""
    pixels, most = BATCH_PIXELS.get(device.type, GPU_BATCH_PIXELS)
    return max(min(pixels // math.prod(size), most), 1)


@dataclasses.dataclass(frozen=True)
class Renderer:
    """A generator with a look. Images raise UserError where they hold NaN or infinity, which bytes would show as black or white.

    Args:
        G: generator in eval mode on `device`.
        device: where to compute.
        batch: images per call.
        truncation_psi: 1 keeps w, 0 gives the mean image.
        noise_mode: 'const', 'none', or 'random', which is seeded per image and rendered one by one.
    """

    G: torch.nn.Module
    device: torch.device
    batch: int = 16
    truncation_psi: float = 1
    noise_mode: str = "const"

    @torch.no_grad()
    def map(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Latents [N, z_dim] and labels [N, c_dim] to truncated ws [N, num_ws, w_dim] on the CPU."""
        parts = zip(z.split(self.batch), c.split(self.batch))
        return torch.cat([self.G.mapping(a.to(self.device), b.to(self.device), truncation_psi=self.truncation_psi).cpu() for a, b in parts])

    def render(self, ws: torch.Tensor, noise_seeds: Sequence[int]) -> Iterator[torch.Tensor]:
        """Images uint8 [C, H, W] on the CPU, one for each of ws [N, num_ws, w_dim]; the seeds matter to random noise only."""
        if self.noise_mode == "random":
            for w, seed in zip(ws, noise_seeds, strict=True):
                yield from self._synthesize_seeded(w[None], seed)
        else:
            yield from self._in_advance(ws.split(self.batch))

    def render_seeds(self, seeds: Sequence[int], classes: Sequence[int | None]) -> Iterator[torch.Tensor]:
        """Images uint8 [C, H, W], one for each pair of a seed and a class (None for networks without labels)."""
        starts = range(0, len(seeds), self.batch)
        parts = [(seeds[start : start + self.batch], classes[start : start + self.batch]) for start in starts]
        mapped = (self.map(seed_latents(part, self.G.z_dim), one_hot(labels, self.G.c_dim)) for part, labels in parts)
        if self.noise_mode != "random":
            yield from self._in_advance(mapped)
            return
        for (part, _), ws in zip(parts, mapped):
            yield from self.render(ws, part)

    def _in_advance(self, parts: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Images of one batch of ws after another. A GPU works on the next batch while the caller does something with the images of this one."""
        ahead = 1 if self.device.type == "cuda" else 0
        started: collections.deque[Callable[[], torch.Tensor]] = collections.deque()
        for ws in parts:
            started.append(self._synthesize(ws))
            if len(started) > ahead:
                yield from started.popleft()()
        for wait in started:
            yield from wait()

    @torch.no_grad()
    def _synthesize(self, ws: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Starts to make images of ws [N, num_ws, w_dim]; the result waits for them and gives uint8 [N, C, H, W] on the CPU."""
        images = self.G.synthesis(ws.to(self.device, non_blocking=True), noise_mode=self.noise_mode)
        copied = torch.cuda.Event() if self.device.type == "cuda" else None  # other devices' copies are there when they return
        finite, pixels = (part.to("cpu", non_blocking=copied is not None) for part in (images.isfinite().all(), to_uint8(images)))
        if copied is not None:
            copied.record()

        def wait() -> torch.Tensor:
            if copied is not None:
                copied.synchronize()
            if not finite:
                raise UserError("the network makes images that hold NaN or infinity; take a snapshot from before its training went wrong")
            return pixels

        return wait

    def _synthesize_seeded(self, ws: torch.Tensor, seed: int) -> torch.Tensor:
        devices = list(range(torch.cuda.device_count())) if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return self._synthesize(ws)()


def seed_latents(seeds: Sequence[int], z_dim: int) -> torch.Tensor:
    """Latents float32 [N, z_dim], each the first draw of numpy's RandomState of its seed, as users of StyleGAN2 know them.

    Raises:
        UserError: a seed outside 0..2^32-1.
    """
    if bad := [seed for seed in seeds if not 0 <= seed <= MAX_SEED]:
        raise UserError(f"{bad[0]} is outside the range of seeds, 0 to {MAX_SEED}")
    rows = [np.random.RandomState(seed).randn(1, z_dim) for seed in seeds]
    return torch.from_numpy(np.concatenate(rows) if rows else np.zeros([0, z_dim])).to(torch.float32)


def one_hot(classes: Sequence[int | None], c_dim: int) -> torch.Tensor:
    """Labels float32 [N, c_dim]; None gives a row of zeros."""
    labels = torch.zeros(len(classes), c_dim)
    for row, index in enumerate(classes):
        if index is not None:
            labels[row, index] = 1
    return labels


def plan_sheet(grid: tuple[int, int] | None, seeds: Sequence[int] | None, class_index: int | None, c_dim: int, size: tuple[int, int]) -> Sheet:
    """Decides the cells of a sheet.

    One class, or a network without labels: one seed per cell. A network with labels and no class: rows are classes from 0 on, columns
    are seeds; when there are more rows than classes, the classes start again with the next seeds.

    Args:
        grid: columns and rows; None: made for the seeds, else the size that training uses for its sheets.
        seeds: None: 0, 1, 2, ... as many as needed.
        size: (height, width) of the images.

    Raises:
        UserError: another number of seeds than the grid needs.
    """
    rows_are_classes = c_dim > 0 and class_index is None
    columns, rows = grid or _automatic_grid(seeds, c_dim if rows_are_classes else 0, size)
    blocks = math.ceil(rows / c_dim) if rows_are_classes else rows
    needed = columns * blocks
    if grid is not None and seeds is not None and len(seeds) != needed:
        what = "one per cell" if not rows_are_classes else "one per column" if blocks == 1 else "one per column for each round of the classes"
        raise UserError(f"--grid={columns}x{rows} needs {needed} seeds ({what}), but --seeds names {len(seeds)}")
    seeds = list(range(needed)) if seeds is None else list(seeds)
    if not rows_are_classes:
        return Sheet((columns, rows), seeds, [class_index] * len(seeds))
    cells = [(seeds[row // c_dim * columns + column], row % c_dim) for row in range(rows) for column in range(columns)]
    return Sheet((columns, rows), [seed for seed, _ in cells], [label for _, label in cells])


def _automatic_grid(seeds: Sequence[int] | None, class_rows: int, size: tuple[int, int]) -> tuple[int, int]:
    if seeds is None:
        columns, rows = default_grid(size[1], size[0])
        return columns, min(rows, class_rows or rows)
    if class_rows:
        return len(seeds), class_rows
    columns = math.ceil(math.sqrt(len(seeds)))
    return columns, math.ceil(len(seeds) / columns)


def mix_styles(ws: torch.Tensor, other: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """ws [num_ws, w_dim] with those of some layers taken from `other` of the same shape; neither is changed."""
    mixed = ws.clone()
    mixed[list(layers)] = other[list(layers)]
    return mixed


def walk_latents(z: torch.Tensor, steps: int, loop: bool = True) -> torch.Tensor:
    """A walk through latents [K, z_dim] along great circles, frame k * steps being latent k.

    The length is interpolated linearly, the direction at constant angular speed.

    Args:
        steps: frames from one latent to the next.
        loop: return to the first latent, K * steps frames; else end on the last one, (K - 1) * steps + 1 frames.
    """
    parts = [_slerp(a, b, steps) for a, b in zip(z, z.roll(-1, dims=0))]
    return torch.cat(parts if loop else [*parts[:-1], z[-1:]])


def walk_ws(ws: torch.Tensor, steps: int, loop: bool = True) -> torch.Tensor:
    """A walk through ws [K, num_ws, w_dim] along straight lines, frame k * steps being ws k; arguments as in `walk_latents`."""
    t = torch.arange(steps, dtype=ws.dtype) / steps
    ends = ws.roll(-1, dims=0)
    frames = (ws[:, None] + (ends - ws)[:, None] * t[None, :, None, None]).flatten(0, 1)
    return frames if loop else torch.cat([frames[:-steps], ws[-1:]])


def _slerp(a: torch.Tensor, b: torch.Tensor, steps: int) -> torch.Tensor:
    """[steps, D] from a (included) towards b (excluded), both [D]."""
    t = (torch.arange(steps, dtype=torch.float64) / steps)[:, None]
    a, b = a.double(), b.double()
    length_a, length_b = a.norm(), b.norm()
    unit_a, unit_b = a / length_a, b / length_b
    angle = torch.acos((unit_a * unit_b).sum().clamp(-1, 1))
    if angle.sin() < 1e-6:  # the same direction, or opposite ones: no great circle is singled out
        return (a + (b - a) * t).float()
    direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / angle.sin()
    return (direction * (length_a + (length_b - length_a) * t)).float()
