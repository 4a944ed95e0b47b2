"""Bilinear sampling on a grid that can be differentiated twice with respect to the image.

Recent torch differentiates `F.grid_sample` twice by itself; older ones refuse at the second derivative. Which of the two is at hand is found by
trying it once per device type, never by a version number. The other way is a pair of autograd functions, each the other's derivative.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F


def grid_sample(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Samples images bilinearly at given positions; outside of the image is zero.

    Args:
        images: float [N, C, H, W].
        grid: [N, h, w, 2], positions (x, y); -1 and 1 are the outer edges of the outermost pixels (align_corners=False).
            Treated as a constant: no gradient flows into it.

    Returns:
        [N, C, h, w], differentiable any number of times with respect to `images`.
    """
    grid = grid.detach()
    if not images.requires_grad or _differentiates_twice(images.device.type):
        return _sample(images, grid)
    return _Sample.apply(images, grid)


def _sample(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@functools.cache
def _differentiates_twice(device_type: str) -> bool:
    """Whether this torch's own grid_sample gives a correct second derivative on that kind of device."""
    with torch.enable_grad():
        image = torch.ones([1, 1, 1, 1], device=device_type, requires_grad=True)
        weight = torch.ones([1, 1, 1, 1], device=device_type, requires_grad=True)
        try:
            (first,) = torch.autograd.grad(_sample(image, torch.zeros([1, 1, 1, 2], device=device_type)), image, weight, create_graph=True)
            (second,) = torch.autograd.grad(first, weight, torch.full_like(first, 3.0))
        except (RuntimeError, NotImplementedError):
            return False
    # One pixel sampled at its middle is the identity, so the second derivative returns what was put in.
    return bool(second.item() == 3.0)


class _Sample(torch.autograd.Function):
    """Sampling; linear in the images, so its derivative is its transpose whatever the images are."""

    @staticmethod
    def forward(ctx, images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(grid)
        ctx.image_shape = images.shape
        return _sample(images, grid)

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _SampleTranspose.apply(grad_output, grid, ctx.image_shape), None


class _SampleTranspose(torch.autograd.Function):
    """The transpose of sampling: spreads values given at the grid's positions over the pixels around them."""

    @staticmethod
    def forward(ctx, values: torch.Tensor, grid: torch.Tensor, image_shape: torch.Size) -> torch.Tensor:
        ctx.save_for_backward(grid)
        # The native first derivative is reached by differentiating a call of the public function at an arbitrary image.
        with torch.enable_grad():
            image = values.new_zeros(image_shape).requires_grad_()
            (spread,) = torch.autograd.grad(_sample(image, grid), image, values)
        return spread

    @staticmethod
    def backward(ctx, grad_spread: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(grad_spread, grid), None, None
