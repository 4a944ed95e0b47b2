"""The synthesis network: intermediate latents to an image, in blocks of doubling resolution."""

from __future__ import annotations

import math

import torch
from torch import nn

from torch_utils.image_size import SQUARE, check_start, size_of
from torch_utils.layers import DEFAULT_FILTER, LOW_PRECISION, Conv2dLayer, FullyConnectedLayer, block_dtype, block_memory_format
from torch_utils.ops import upfirdn2d
from torch_utils.ops.bias_act import ACTIVATIONS
from training.networks.modulated_conv import modulated_conv2d

ARCHITECTURES = ("orig", "skip", "resnet")
NOISE_MODES = ("random", "const", "none")


def check_resolution(img_resolution: int) -> int:
    """log2 of the resolution. Raises ValueError unless it is a power of two of at least 4."""
    if img_resolution < 4 or img_resolution & (img_resolution - 1):
        raise ValueError(f"img_resolution is a power of two of at least 4, found {img_resolution}")
    return img_resolution.bit_length() - 1


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps of a block: channel_base / resolution, at most channel_max."""
    return min(channel_base // resolution, channel_max)


def low_precision_from(img_resolution: int, num_fp16_res: int) -> int:
    """The lowest resolution whose block runs in low precision; a value past the image for none. The 4x4 block never does."""
    return max(2 ** (int(math.log2(img_resolution)) + 1 - num_fp16_res), 8) if num_fp16_res > 0 else 2 * img_resolution


class SynthesisLayer(nn.Module):
    """Modulated convolution, noise, bias, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size: tuple[int, int],
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter=DEFAULT_FILTER,
        conv_clamp: float | None = None,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.size, self.up = in_channels, out_channels, size, up
        self.use_noise, self.activation, self.conv_clamp = use_noise, activation, conv_clamp
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        self.padding = kernel_size // 2
        self.act_gain = ACTIVATIONS[activation].gain
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn([out_channels, in_channels, kernel_size, kernel_size]))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(size))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros([out_channels]))

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise_mode: str = "random", gain: float = 1) -> torch.Tensor:
        """[N, in, H, W] and w [N, w_dim] -> [N, out, H * up, W * up]; noise_mode 'random', 'const' or 'none'."""
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode is one of {', '.join(NOISE_MODES)}, found {noise_mode!r}")
        styles = self.affine(w)
        noise = None
        if self.use_noise and noise_mode == "random":
            noise = torch.randn([x.shape[0], 1, *self.size], device=x.device) * self.noise_strength
        if self.use_noise and noise_mode == "const":
            noise = (self.noise_const * self.noise_strength)[None, None]
        return modulated_conv2d(
            x,
            self.weight,
            styles,
            noise,
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
            bias=self.bias,
            act=self.activation,
            gain=self.act_gain * gain,
            clamp=None if self.conv_clamp is None else self.conv_clamp * gain,
        )


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution to image channels, without demodulation."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, kernel_size: int = 1, conv_clamp: float | None = None):
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn([out_channels, in_channels, kernel_size, kernel_size]))
        self.bias = nn.Parameter(torch.zeros([out_channels]))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """[N, in, H, W] and w [N, w_dim] -> [N, out, H, W]."""
        styles = self.affine(w) * self.weight_gain
        return modulated_conv2d(
            x, self.weight, styles, padding=self.weight.shape[-1] // 2, demodulate=False, bias=self.bias, clamp=self.conv_clamp
        )


class SynthesisBlock(nn.Module):
    """One resolution of the synthesis network: one or two layers, and the image or residual path of the architecture."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size: tuple[int, int],
        img_channels: int,
        is_last: bool,
        architecture: str,
        resample_filter,
        conv_clamp: float | None,
        low_precision: torch.dtype | None,
        fp16_channels_last: bool,
        **layer_kwargs,
    ):
        super().__init__()
        self.in_channels, self.architecture, self.is_last = in_channels, architecture, is_last
        self.low_precision, self.channels_last = low_precision, fp16_channels_last
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        common = dict(w_dim=w_dim, size=size, conv_clamp=conv_clamp, resample_filter=resample_filter, **layer_kwargs)
        self.num_conv = 1
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn([out_channels, *size]))
        else:
            self.num_conv = 2
            self.conv0 = SynthesisLayer(in_channels, out_channels, up=2, **common)
        self.conv1 = SynthesisLayer(out_channels, out_channels, **common)
        self.num_torgb = int(is_last or architecture == "skip")
        if self.num_torgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim=w_dim, conv_clamp=conv_clamp)
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(in_channels, out_channels, kernel_size=1, bias=False, up=2, resample_filter=resample_filter)

    def forward(
        self, x: torch.Tensor | None, img: torch.Tensor | None, ws: torch.Tensor, noise_mode: str = "random"
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features [N, in, R/2, R/2] and the image so far, with ws [N, num_conv + num_torgb, w_dim], to those at R."""
        dtype = block_dtype(self.low_precision, ws.device)
        layout = block_memory_format(ws.device, dtype, self.channels_last and self.low_precision is not None)
        w = iter(ws.unbind(dim=1))
        if self.in_channels == 0:
            x = self.const.to(dtype).unsqueeze(0).expand(ws.shape[0], -1, -1, -1).contiguous(memory_format=layout)
            x = self.conv1(x, next(w), noise_mode)
        else:
            x = x.to(dtype=dtype, memory_format=layout)
            if self.architecture == "resnet":
                y = self.skip(x, gain=math.sqrt(0.5))
                x = self.conv0(x, next(w), noise_mode)
                x = y + self.conv1(x, next(w), noise_mode, gain=math.sqrt(0.5))
            else:
                x = self.conv0(x, next(w), noise_mode)
                x = self.conv1(x, next(w), noise_mode)
        if img is not None:
            img = upfirdn2d.upsample2d(img, self.resample_filter)
        if self.num_torgb:
            # The image is summed in float32: its low bits are what a viewer sees in smooth regions.
            y = self.torgb(x, next(w)).to(torch.float32)
            img = y if img is None else img + y
        return x, img


class SynthesisNetwork(nn.Module):
    """ws [N, num_ws, w_dim] to an image [N, img_channels, H, W], about -1 to 1.

    Args:
        w_dim, img_resolution, img_channels: sizes; the resolution is a power of two, and the edge of the image unless start_grid says otherwise.
        channel_base, channel_max: feature maps are min(channel_base / resolution, channel_max).
        num_fp16_res: how many of the highest resolutions run in low precision.
        low_precision: 'float16' or 'bfloat16', the dtype of those.
        conv_clamp: clamp of the layers' outputs; None: no clamp.
        architecture: 'skip', 'resnet' or 'orig'.
        resample_filter: low-pass filter.
        use_noise, activation: of the layers.
        fp16_channels_last: channels_last memory in the low-precision blocks also where it is not the default.
        start_grid: (height, width) of the first block, for images that are not square with a power of two as edge (torch_utils.image_size).

    Raises:
        ValueError: resolution, starting grid, architecture or dtype out of range.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        low_precision: str = "float16",
        conv_clamp: float | None = None,
        architecture: str = "skip",
        resample_filter=DEFAULT_FILTER,
        use_noise: bool = True,
        activation: str = "lrelu",
        fp16_channels_last: bool = False,
        start_grid: tuple[int, int] = SQUARE,
    ):
        super().__init__()
        log2 = check_resolution(img_resolution)
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is one of {', '.join(ARCHITECTURES)}, found {architecture!r}")
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.start_grid = check_start(start_grid)
        self.block_resolutions = [2**i for i in range(2, log2 + 1)]
        low_from, low_dtype = low_precision_from(img_resolution, num_fp16_res), LOW_PRECISION[low_precision]
        self.num_ws, in_channels = 0, 0
        for res in self.block_resolutions:
            out_channels = channels_at(res, channel_base, channel_max)
            block = SynthesisBlock(
                in_channels,
                out_channels,
                w_dim=w_dim,
                size=size_of(res, self.start_grid),
                img_channels=img_channels,
                is_last=res == img_resolution,
                architecture=architecture,
                resample_filter=resample_filter,
                conv_clamp=conv_clamp,
                low_precision=low_dtype if res >= low_from else None,
                fp16_channels_last=fp16_channels_last,
                use_noise=use_noise,
                activation=activation,
            )
            self.num_ws += block.num_conv + (block.num_torgb if res == img_resolution else 0)
            setattr(self, f"b{res}", block)
            in_channels = out_channels

    def forward(self, ws: torch.Tensor, noise_mode: str = "random") -> torch.Tensor:
        """ws [N, num_ws, w_dim] -> images [N, img_channels, H, W], float32. Raises ValueError for ws of another shape."""
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws is [N, {self.num_ws}, {self.w_dim}], found {list(ws.shape)}")
        ws = ws.to(torch.float32)
        x = img = None
        first = 0
        for res in self.block_resolutions:
            block = getattr(self, f"b{res}")
            x, img = block(x, img, ws[:, first : first + block.num_conv + block.num_torgb], noise_mode)
            first += block.num_conv
        return img
