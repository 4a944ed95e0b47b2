"""Sizes of images that the networks make and see: a small grid of pixels, doubled a number of times.

Squares with a power of two as edge start at 4x4, as in StyleGAN2. Other images start at another grid whose shorter side is 4 to 7 pixels;
their networks have as many blocks as those of a square, and the blocks are named after the square's resolutions.
"""

from __future__ import annotations

from typing import Any

SQUARE = (4, 4)
MOST = 64  # pixels along the longer side of a starting grid
LARGEST = 8192  # pixels along a side of an image
SIZES = f"of a size up to {LARGEST} that can be halved evenly until its sides are 4 to 7 and 4 to {MOST} pixels, such as 256x256 or 320x192"


def start_of(height: int, width: int) -> tuple[int, tuple[int, int]] | None:
    """(img_resolution, start_grid) of the networks for images of this size; None where there are none.

    img_resolution is the edge of a square of as many doublings; start_grid is (height, width) of what is doubled.
    """
    steps = _steps(height, width)
    start = height >> steps, width >> steps
    fits = min(start) >= 4 and max(start) <= MOST and max(height, width) <= LARGEST and size_of(4 << steps, start) == (height, width)
    return (4 << steps, start) if fits else None


def size_of(img_resolution: int, start_grid: tuple[int, int] = SQUARE) -> tuple[int, int]:
    """(height, width) in pixels at the block of this resolution."""
    height, width = start_grid
    return height * img_resolution // 4, width * img_resolution // 4


def written_size(value: Any) -> tuple[int, int] | None:
    """(height, width) from how options write it: the edge of a square, or [height, width]; None where it is neither."""
    pair = [value, value] if isinstance(value, int) else value
    is_pair = isinstance(pair, list) and len(pair) == 2 and all(type(edge) is int and edge > 0 for edge in pair)
    return (pair[0], pair[1]) if is_pair else None


def nearest_size(height: int, width: int) -> tuple[int, int]:
    """The largest (height, width) of nearly the same shape that networks can make and that an image of this size holds, at least 4x4."""
    height, width = min(height, LARGEST), min(width, LARGEST)
    steps = _steps(height, width)
    start = max(min(height >> steps, MOST), 4), max(min(width >> steps, MOST), 4)
    return size_of(4 << steps, start)


def check_start(start_grid: tuple[int, int]) -> tuple[int, int]:
    """The grid as a tuple. Raises ValueError where it is none that networks start from."""
    start = tuple(start_grid)
    if len(start) != 2 or not all(isinstance(side, int) for side in start) or not 4 <= min(start) <= 7 or max(start) > MOST:
        raise ValueError(f"start_grid is (height, width) with a shorter side of 4 to 7 and a longer one of at most {MOST}, found {start_grid}")
    return start


def _steps(height: int, width: int) -> int:
    """Doublings that make the shorter side of 4 to 7 pixels; none for images of less."""
    return max(min(height, width).bit_length() - 3, 0)
