"""The generator in its plainest form, for files that other programs run: standard operators only, gains folded into weights, float32.

No custom autograd, no shapes read at run time, so a trace of it holds for any batch. It is built from a `Generator` and must give its
images; `training.networks` is what trains, and what decides in doubt. Noise is that of `noise_mode="const"`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from torch_utils.layers import Conv2dLayer, FullyConnectedLayer
from torch_utils.ops.bias_act import ACTIVATIONS
from training.networks import Generator, MappingNetwork, SynthesisBlock, SynthesisLayer, ToRGBLayer

Padding = tuple[int, int, int, int]  # left, right, top, bottom; negative values crop


class PlainGenerator(nn.Module):
    """z [N, z_dim], c [N, c_dim] and truncation [] to images float32 [N, img_channels, H, W] in about -1..1.

    Args:
        G: the generator, with a running mean of w; it is copied and left as it is.
    """

    def __init__(self, G: Generator):
        super().__init__()
        self.mapping = _Mapping(G.mapping)
        self.blocks = nn.ModuleList(_Block(getattr(G.synthesis, f"b{res}")) for res in G.synthesis.block_resolutions)

    def forward(self, z: torch.Tensor, c: torch.Tensor, truncation: torch.Tensor) -> torch.Tensor:
        """Images; truncation 1 is none, 0 gives the mean image."""
        w = self.mapping(z, c, truncation)
        x = img = None
        for block in self.blocks:
            x, img = block(x, img, w)
        return img


class PlainUnconditionalGenerator(PlainGenerator):
    """A generator without labels: z and truncation to images."""

    def forward(self, z: torch.Tensor, truncation: torch.Tensor) -> torch.Tensor:
        """As PlainGenerator."""
        return super().forward(z, None, truncation)


class _Linear(nn.Module):
    """A fully connected layer with its gains folded in."""

    def __init__(self, layer: FullyConnectedLayer, gain: float = 1):
        super().__init__()
        self.register_buffer("weight", (layer.weight * layer.weight_gain * gain).detach().clone())
        self.register_buffer("bias", (layer.bias * layer.bias_gain * gain).detach().clone())
        self.activation, self.gain = layer.activation, ACTIVATIONS[layer.activation].gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _activate(F.linear(x, self.weight, self.bias), self.activation, self.gain)


class _Mapping(nn.Module):
    """z and c to w, truncated."""

    def __init__(self, mapping: MappingNetwork):
        super().__init__()
        self.embed = _Linear(mapping.embed) if mapping.c_dim > 0 else None
        self.layers = nn.ModuleList(_Linear(getattr(mapping, f"fc{index}")) for index in range(mapping.num_layers))
        self.register_buffer("w_avg", mapping.w_avg.detach().clone())

    def forward(self, z: torch.Tensor, c: torch.Tensor | None, truncation: torch.Tensor) -> torch.Tensor:
        w = _normalize(z)
        if self.embed is not None:
            w = torch.cat([w, _normalize(self.embed(c))], dim=1)
        for layer in self.layers:
            w = layer(w)
        return self.w_avg + (w - self.w_avg) * truncation


class _Modulated(nn.Module):
    """Modulated convolution, noise, bias, activation: a SynthesisLayer with the gain of its place."""

    def __init__(self, layer: SynthesisLayer, gain: float = 1):
        super().__init__()
        self.affine = _Linear(layer.affine)
        weight = layer.weight.detach()
        self.register_buffer("energy", weight.square().sum(dim=[2, 3]).clone())
        self.up, self.size, self.channels, self.activation = layer.up, weight.shape[2], weight.shape[0], layer.activation
        self.register_buffer("weight", (weight.transpose(0, 1) if layer.up > 1 else weight).clone())
        shift = layer.bias.detach()[None, :, None, None]
        if layer.use_noise:
            shift = shift + (layer.noise_const * layer.noise_strength).detach()[None, None]
        self.register_buffer("shift", shift.clone())
        if layer.up > 1:
            self.register_buffer("kernel", _kernel(layer.resample_filter, weight.shape[0], layer.up**2).flip([2, 3]))
            self.padding = self._filter_padding()
        self.gain = layer.act_gain * gain
        self.clamp = None if layer.conv_clamp is None else layer.conv_clamp * gain

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        styles = self.affine(w)
        scale = (F.linear(styles.square(), self.energy) + 1e-8).rsqrt()
        x = x * styles[:, :, None, None]
        if self.up == 1:
            x = F.conv2d(x, self.weight, padding=self.size // 2)
        else:
            x = F.conv_transpose2d(x, self.weight, stride=self.up)
            x = _depthwise(x, self.kernel, self.channels, self.padding)
        x = _activate(x * scale[:, :, None, None] + self.shift, self.activation, self.gain)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

    def _filter_padding(self) -> Padding:
        """Of the filter behind the transposed convolution, which reaches size - 1 pixels out at the left and top and size - up at the others."""
        reach = self.size // 2
        sides = []
        for taps in (self.kernel.shape[3], self.kernel.shape[2]):
            sides += [(taps + self.up - 1) // 2 + reach - (self.size - 1), (taps - self.up) // 2 + reach - (self.size - self.up)]
        return tuple(sides)


class _Enlarge(nn.Module):
    """Upsampling by two with a low-pass filter, as one transposed convolution of which the edges are cut."""

    def __init__(self, resample_filter: torch.Tensor, channels: int):
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", _kernel(resample_filter, channels, 4))
        taps_y, taps_x = self.kernel.shape[2:]
        crops = [(taps - 1 - (taps + 1) // 2, taps - 2 - (taps - 2) // 2) for taps in (taps_x, taps_y)]
        self.crop = crops[0][0] if len({crop for side in crops for crop in side}) == 1 else 0
        self.padding = None if self.crop > 0 else [-crop for side in crops for crop in side]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv_transpose2d(x, self.kernel, stride=2, groups=self.channels, padding=self.crop)
        return x if self.padding is None else F.pad(x, self.padding)


class _ToRGB(nn.Module):
    """Modulated 1x1 convolution to image channels, without demodulation."""

    def __init__(self, layer: ToRGBLayer):
        super().__init__()
        self.affine = _Linear(layer.affine, layer.weight_gain)
        self.register_buffer("weight", layer.weight.detach().clone())
        self.register_buffer("bias", layer.bias.detach().clone())
        self.padding, self.clamp = layer.weight.shape[-1] // 2, layer.conv_clamp

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x * self.affine(w)[:, :, None, None], self.weight, self.bias, padding=self.padding)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class _Shortcut(nn.Module):
    """The residual path of the `resnet` architecture: a 1x1 convolution, then upsampling."""

    def __init__(self, layer: Conv2dLayer):
        super().__init__()
        self.register_buffer("weight", (layer.weight * (layer.weight_gain * math.sqrt(0.5))).detach().clone())
        self.enlarge = _Enlarge(layer.resample_filter, layer.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.enlarge(F.conv2d(x, self.weight))


class _Block(nn.Module):
    """One resolution."""

    def __init__(self, block: SynthesisBlock):
        super().__init__()
        residual = block.in_channels != 0 and block.architecture == "resnet"
        if block.in_channels == 0:
            self.register_buffer("const", block.const.detach()[None].clone())
        self.conv0 = _Modulated(block.conv0) if block.in_channels != 0 else None
        self.conv1 = _Modulated(block.conv1, math.sqrt(0.5) if residual else 1)
        self.shortcut = _Shortcut(block.skip) if residual else None
        self.torgb = _ToRGB(block.torgb) if block.num_torgb else None
        self.enlarge = None
        if block.in_channels != 0 and block.architecture == "skip":
            self.enlarge = _Enlarge(block.resample_filter, block.torgb.weight.shape[0])

    def forward(self, x: torch.Tensor | None, img: torch.Tensor | None, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.conv0 is None:
            x = self.conv1(self.const, w)
        elif self.shortcut is None:
            x = self.conv1(self.conv0(x, w), w)
        else:
            x = self.shortcut(x) + self.conv1(self.conv0(x, w), w)
        if self.torgb is not None:
            colours = self.torgb(x, w)
            img = colours if img is None or self.enlarge is None else self.enlarge(img) + colours
        return x, img


def _normalize(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _activate(x: torch.Tensor, name: str, gain: float) -> torch.Tensor:
    """gain * activation(x)."""
    spec = ACTIVATIONS[name]
    x = spec.function(x, spec.alpha, False)
    return x if gain == 1 else x * gain


def _kernel(resample_filter: torch.Tensor, channels: int, gain: float) -> torch.Tensor:
    """A filter as the weight of a depthwise (transposed) convolution [channels, 1, height, width]."""
    f = torch.outer(resample_filter, resample_filter) if resample_filter.ndim == 1 else resample_filter
    return (f * gain)[None, None].repeat(channels, 1, 1, 1)


def _depthwise(x: torch.Tensor, kernel: torch.Tensor, channels: int, padding: Padding) -> torch.Tensor:
    """Correlation of every channel with its kernel."""
    if len(set(padding)) == 1 and padding[0] >= 0:
        return F.conv2d(x, kernel, padding=padding[0], groups=channels)
    return F.conv2d(F.pad(x, padding), kernel, groups=channels)
