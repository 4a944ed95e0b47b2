"""What networks of StyleGAN2 for TensorFlow compute, by definition: slow, sample by sample, sharing no layer with this project's networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.tensorflow_files import WIDTHS, Network
from torch_utils.ops.upfirdn2d import downsample2d, setup_filter, upsample2d

FILTER = setup_filter([1, 3, 3, 1])


def images_of(network: Network, z: torch.Tensor, c: torch.Tensor | None, architecture: str) -> torch.Tensor:
    """What the generator draws with its stored noise, by definition: zeros between the pixels, kernels correlated, then the filter."""
    get = _getter(network)
    x = _normalized(z)
    if c is not None:
        x = torch.cat([x, _normalized(_dense(get, c, "mapping/LabelEmbed"))], dim=1)
    for index in range(2):
        x = _leaky(_dense(get, x, f"mapping/Dense{index}", rate=0.01))
    w, image = x, None
    x = get("synthesis/4x4/Const/const").expand(len(z), -1, -1, -1)
    for step, res in enumerate(WIDTHS):
        name = f"synthesis/{res}x{res}"
        skip = x
        for layer, index in ({"Conv0_up": 2 * step - 1, "Conv1": 2 * step} if step else {"Conv": 0}).items():
            x = _modulated(get, x, w, f"{name}/{layer}", up=layer == "Conv0_up")
            x = x + get(f"synthesis/noise{index}") * get(f"{name}/{layer}/noise_strength")
            x = _leaky(x + get(f"{name}/{layer}/bias")[:, None, None])
        if architecture == "resnet" and step:
            x = (x + _convolution(get, upsample2d(skip, FILTER), f"{name}/Skip")) * math.sqrt(0.5)
        image = None if image is None else upsample2d(image, FILTER)
        if architecture == "skip" or res == max(WIDTHS):
            y = _modulated(get, x, w, f"{name}/ToRGB", demodulate=False) + get(f"{name}/ToRGB/bias")[:, None, None]
            image = y if image is None else image + y
    return image


def scores_of(network: Network, images: torch.Tensor, c: torch.Tensor | None, architecture: str, group: int) -> torch.Tensor:
    """The discriminator's logits [N, 1]."""
    get = _getter(network)
    x = None
    for res in sorted(WIDTHS, reverse=True):
        if architecture == "skip" or res == max(WIDTHS):
            y = _leaky(_convolution(get, images, f"{res}x{res}/FromRGB"))
            x = y if x is None else x + y
        if res == 4:
            break
        skip = x
        x = _leaky(_convolution(get, x, f"{res}x{res}/Conv0"))
        x = _leaky(_convolution(get, _blurred(x, 2), f"{res}x{res}/Conv1_down", stride=2, pad=0))
        if architecture == "resnet":
            x = (x + _convolution(get, downsample2d(skip, FILTER), f"{res}x{res}/Skip")) * math.sqrt(0.5)
        images = downsample2d(images, FILTER)
    groups = x.unflatten(0, (group, -1))  # [samples of a group, groups, C, H, W]
    spread = ((groups - groups.mean(0)).square().mean(0) + 1e-8).sqrt().mean(dim=[1, 2, 3])
    x = torch.cat([x, spread.repeat(group)[:, None, None, None].expand(-1, 1, 4, 4)], dim=1)
    x = _leaky(_convolution(get, x, "4x4/Conv"))
    x = _dense(get, _leaky(_dense(get, x.flatten(1), "4x4/Dense0")), "Output")
    if c is None:
        return x
    labels = _normalized(_dense(get, c, "LabelEmbed"))
    return (x * labels).sum(1, keepdim=True) / math.sqrt(x.shape[1])


def _getter(network: Network) -> Callable[[str], torch.Tensor]:
    """Variables by full name, biases of a convolution together with what they belong to."""
    values = dict(network.variables)
    for part, inner in network.parts.items():
        values |= {f"{part}/{name}": value for name, value in inner.variables.items()}
    return lambda name: torch.as_tensor(values[name]) if name in values else torch.zeros([])


def _normalized(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()


def _leaky(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def _dense(get: Callable[[str], torch.Tensor], x: torch.Tensor, name: str, rate: float = 1) -> torch.Tensor:
    weight = get(f"{name}/weight")
    return x @ weight * (rate / math.sqrt(len(weight))) + get(f"{name}/bias") * rate


def _convolution(get: Callable[[str], torch.Tensor], x: torch.Tensor, name: str, stride: int = 1, pad: int | None = None) -> torch.Tensor:
    weight = get(f"{name}/weight")  # [height, width, in, out]
    kernel = torch.stack([weight[:, :, :, index].movedim(2, 0) for index in range(weight.shape[3])])
    y = F.conv2d(x, kernel / math.sqrt(weight[:, :, :, 0].numel()), stride=stride, padding=weight.shape[0] // 2 if pad is None else pad)
    bias = get(f"{name}/bias")
    return y + bias[:, None, None] if bias.ndim else y


def _blurred(x: torch.Tensor, pad: int) -> torch.Tensor:
    return F.conv2d(F.pad(x, [pad] * 4), FILTER.expand(x.shape[1], 1, 4, 4), groups=x.shape[1])


def _modulated(get: Callable[[str], torch.Tensor], x: torch.Tensor, w: torch.Tensor, name: str, up: bool = False, demodulate: bool = True):
    """Sample by sample, the kernels themselves scaled."""
    weight = get(f"{name}/weight") / math.sqrt(get(f"{name}/weight")[:, :, :, 0].numel())
    mod_weight = get(f"{name}/mod_weight")
    styles = w @ mod_weight / math.sqrt(len(mod_weight)) + get(f"{name}/mod_bias") + 1
    if up:
        between = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        between[:, :, ::2, ::2] = x
        x = between
    rows = []
    for sample, style in zip(x, styles):
        scaled = weight * style[None, None, :, None]
        if demodulate:
            scaled = scaled / (scaled.square().sum(dim=[0, 1, 2]) + 1e-8).sqrt()
        rows.append(F.conv2d(sample[None], scaled.permute(3, 2, 0, 1), padding=2 if up else weight.shape[0] // 2))
    return _blurred(torch.cat(rows), 1) * 4 if up else torch.cat(rows)
