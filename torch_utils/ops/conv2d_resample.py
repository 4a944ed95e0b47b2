"""2-D convolution combined with up- or downsampling, in the cheapest order of the two that gives the same numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from torch_utils.ops.upfirdn2d import Padding, filter_size, parse_padding, upfirdn2d


def _conv(
    x: torch.Tensor, w: torch.Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0), groups: int = 1, flip_weight: bool = True, bias=None
) -> torch.Tensor:
    """Correlation with `w` ([O, I/groups, kh, kw]), or convolution if not flip_weight; plus `bias` [O]."""
    if not flip_weight and (w.shape[2] > 1 or w.shape[3] > 1):
        w = w.flip([2, 3])
    return F.conv2d(x, w, bias, stride=stride, padding=padding, groups=groups)


def _transposed_weight(w: torch.Tensor, groups: int) -> torch.Tensor:
    """[O, I/groups, kh, kw] as the [I, O/groups, kh, kw] that a transposed convolution takes."""
    if groups == 1:
        return w.transpose(0, 1)
    out_channels, in_per_group, kh, kw = w.shape
    w = w.reshape(groups, out_channels // groups, in_per_group, kh, kw).transpose(1, 2)
    return w.reshape(groups * in_per_group, out_channels // groups, kh, kw)


def _upsampling_conv(x, w, f, up, padding, groups, flip_weight) -> torch.Tensor:
    """A strided transposed convolution, then the filter: as many multiplications as a convolution at the low resolution."""
    x0, x1, y0, y1 = padding
    kh, kw = w.shape[2:]
    # The transposed convolution reaches k-1 pixels beyond the zero-inserted image, which itself ends up-1 zeros later.
    x0, x1, y0, y1 = x0 - (kw - 1), x1 - (kw - up), y0 - (kh - 1), y1 - (kh - up)
    crop_x, crop_y = max(min(-x0, -x1), 0), max(min(-y0, -y1), 0)
    w = w.flip([2, 3]) if flip_weight and (kh > 1 or kw > 1) else w
    y = F.conv_transpose2d(x, _transposed_weight(w, groups), stride=up, padding=(crop_y, crop_x), groups=groups)
    return upfirdn2d(y, f, padding=(x0 + crop_x, x1 + crop_x, y0 + crop_y, y1 + crop_y), gain=up**2)


def conv2d_resample(
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Upsamples by `up`, convolves with `w`, downsamples by `down`, with the low-pass filter `f` for both resamplings.

    Args:
        x: [N, in_channels, H, W].
        w: [out_channels, in_channels / groups, kh, kw].
        f: filter as made by `upfirdn2d.setup_filter`; None resamples without a filter.
        padding: with respect to the upsampled image; one number, (x, y) or (x0, x1, y0, y1).
        flip_weight: True is a correlation (as `F.conv2d`), False a convolution.
        flip_filter: True correlates with `f`, False convolves.
        bias: added to the result, [out_channels]; where the convolution comes last it costs nothing there.

    Returns:
        [N, out_channels, (H * up + padding - kh + 1) / down, (likewise)].

    Raises:
        ValueError: wrong ranks or factors.
    """
    if x.ndim != 4 or w.ndim != 4 or up < 1 or down < 1:
        raise ValueError(f"need 4-D x and w and factors of at least 1, found {list(x.shape)}, {list(w.shape)}, up {up}, down {down}")
    kh, kw = w.shape[2:]
    fw, fh = filter_size(f)
    x0, x1, y0, y1 = parse_padding(padding)
    if up > 1:
        x0, x1, y0, y1 = x0 + (fw + up - 1) // 2, x1 + (fw - up) // 2, y0 + (fh + up - 1) // 2, y1 + (fh - up) // 2
    if down > 1:
        x0, x1, y0, y1 = x0 + (fw - down + 1) // 2, x1 + (fw - down) // 2, y0 + (fh - down + 1) // 2, y1 + (fh - down) // 2
    pixelwise = kh == 1 and kw == 1

    if pixelwise and down > 1 and up == 1:  # fewer pixels first: a 1x1 convolution commutes with the filter
        x = upfirdn2d(x, f, down=down, padding=(x0, x1, y0, y1), flip_filter=flip_filter)
        return _conv(x, w, groups=groups, bias=bias)
    if pixelwise and up > 1 and down == 1:  # convolve the fewer pixels, then enlarge
        x = _conv(x, w, groups=groups)
        x = upfirdn2d(x, f, up=up, padding=(x0, x1, y0, y1), gain=up**2, flip_filter=flip_filter)
        return x if bias is None else x + bias[:, None, None]
    if down > 1 and up == 1:
        x = upfirdn2d(x, f, padding=(x0, x1, y0, y1), flip_filter=flip_filter)
        return _conv(x, w, stride=down, groups=groups, flip_weight=flip_weight, bias=bias)
    if up == 1 and down == 1 and x0 == x1 >= 0 and y0 == y1 >= 0:
        return _conv(x, w, padding=(y0, x0), groups=groups, flip_weight=flip_weight, bias=bias)
    if up > 1 and not flip_filter:
        x = _upsampling_conv(x, w, f, up, (x0, x1, y0, y1), groups, flip_weight)
    else:
        x = upfirdn2d(x, f if up > 1 else None, up=up, padding=(x0, x1, y0, y1), gain=up**2, flip_filter=flip_filter)
        x = _conv(x, w, groups=groups, flip_weight=flip_weight)
    if down > 1:
        x = upfirdn2d(x, f, down=down, flip_filter=flip_filter)
    return x if bias is None else x + bias[:, None, None]
