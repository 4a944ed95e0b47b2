"""Pixels as networks take them, float32 from -1 to 1, and as files hold them, bytes from 0 to 255."""

from __future__ import annotations

import torch


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as bytes 0..255, rounded to the nearest and clipped; uint8 images pass as they are. Any shape, any device."""
    if images.dtype == torch.uint8:
        return images
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(images: torch.Tensor) -> torch.Tensor:
    """Bytes 0..255 as float32 in [-1, 1]. Any shape, any device."""
    return images.to(torch.float32) / 127.5 - 1
