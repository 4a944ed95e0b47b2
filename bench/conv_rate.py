"""The machine's own yardstick: how fast torch runs the convolution that StyleGAN2 spends its time in."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F


def conv_rate(device: torch.device, channels: int = 512, resolution: int = 32, batch: int = 64, repeats: int = 3) -> float:
    """FLOP/s of a float32 3x3 convolution, forward and both gradients, channels_last, all cores, best of `repeats`.

    A multiplication and an addition count as two; the three passes cost the same.
    """
    layout = torch.channels_last
    x = torch.randn([batch, channels, resolution, resolution], device=device).to(memory_format=layout).requires_grad_()
    w = torch.randn([channels, channels, 3, 3], device=device).to(memory_format=layout).requires_grad_()
    dy = torch.randn([batch, channels, resolution, resolution], device=device).to(memory_format=layout)
    flop = 3 * 2 * batch * channels**2 * 9 * resolution**2
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        torch.autograd.grad(F.conv2d(x, w, padding=1), [x, w], dy)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return flop / best


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
