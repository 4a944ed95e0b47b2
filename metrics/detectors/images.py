"""What every detector does first with its input: images of any channel count become RGB. Resizing is each detector's own affair.

Features and probabilities are taken of images as files hold them, so their input is uint8 (`to_rgb_uint8`). LPIPS distances are also taken
between images that differ by less than a level, so their input keeps its fractions (`to_rgb_float`).
"""

from __future__ import annotations

import torch

from dnnlib import UserError


def to_rgb_uint8(images: torch.Tensor) -> torch.Tensor:
    """Converts images to three channels without leaving uint8.

    What has alpha is composited over black, rounded to the nearest integer by exact integer arithmetic; grey is repeated; RGB is returned as it is.

    Args:
        images: uint8 [N, C, H, W] with C = 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA); alpha is not premultiplied.

    Returns:
        uint8 [N, 3, H, W] on the same device. It may be a view of the input; do not write to it.

    Raises:
        UserError: another type, number of dimensions or number of channels, or images without pixels.
    """
    _check(images, "uint8", images.dtype == torch.uint8)
    if images.shape[1] in (1, 3):
        return images.expand(-1, 3, -1, -1)
    colour, alpha = images[:, :-1].to(torch.int32), images[:, -1:].to(torch.int32)
    # 255 is odd, so no product lies halfway between two levels and adding 127 before the division rounds to the nearest.
    return ((colour * alpha + 127) // 255).to(torch.uint8).expand(-1, 3, -1, -1)


def to_rgb_float(images: torch.Tensor) -> torch.Tensor:
    """Converts images to three channels of float32 with the range of uint8, 0 to 255, without rounding or clamping.

    Args:
        images: uint8, or floating point with the same range, [N, C, H, W] with C = 1 to 4 as for `to_rgb_uint8`.

    Returns:
        float32 [N, 3, H, W] on the same device; levels of uint8 images come out as the same numbers, those with alpha before rounding. It may be
        (a view of) the input; do not write to it.

    Raises:
        UserError: as `to_rgb_uint8`.
    """
    _check(images, "uint8 or float", images.dtype == torch.uint8 or images.is_floating_point())
    images = images.to(torch.float32)
    if images.shape[1] in (1, 3):
        return images.expand(-1, 3, -1, -1)
    return (images[:, :-1] * (images[:, -1:] / 255)).expand(-1, 3, -1, -1)


def _check(images: torch.Tensor, kinds: str, right_kind: bool) -> None:
    if not right_kind or images.ndim != 4:
        raise UserError(f"a detector takes {kinds} images of shape [N, C, H, W], but got {images.dtype} of shape {list(images.shape)}")
    if images.shape[2] == 0 or images.shape[3] == 0:
        raise UserError(f"a detector takes images of at least 1x1 pixels, but got shape {list(images.shape)}")
    if images.shape[1] not in (1, 2, 3, 4):
        raise UserError(f"a detector takes grey or RGB images, with alpha or without (1 to 4 channels), but got {images.shape[1]} channels")
