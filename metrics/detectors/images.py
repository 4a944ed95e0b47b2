"""What every detector does first with its input: uint8 images of any channel count become RGB. Resizing is each detector's own affair."""

from __future__ import annotations

import torch

from dnnlib import UserError


def to_rgb_uint8(images: torch.Tensor) -> torch.Tensor:
    """Converts images to three channels without leaving uint8.

    Grey is repeated; RGBA is composited over black, rounded to the nearest integer by exact integer arithmetic; RGB is returned as it is.

    Args:
        images: uint8 [N, C, H, W] with C = 1 (grey), 3 (RGB) or 4 (RGBA, alpha not premultiplied).

    Returns:
        uint8 [N, 3, H, W] on the same device. It may be a view of the input; do not write to it.

    Raises:
        UserError: another type, number of dimensions or number of channels, or images without pixels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(f"a detector takes uint8 images of shape [N, C, H, W], but got {images.dtype} of shape {list(images.shape)}")
    if images.shape[2] == 0 or images.shape[3] == 0:
        raise UserError(f"a detector takes images of at least 1x1 pixels, but got shape {list(images.shape)}")
    channels = images.shape[1]
    if channels == 3:
        return images
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    if channels == 4:
        rgb, alpha = images[:, :3].to(torch.int32), images[:, 3:].to(torch.int32)
        # 255 is odd, so no product lies halfway between two levels and adding 127 before the division rounds to the nearest.
        return ((rgb * alpha + 127) // 255).to(torch.uint8)
    raise UserError(f"a detector takes grey, RGB or RGBA images (1, 3 or 4 channels), but got {channels} channels")
