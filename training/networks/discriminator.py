"""The discriminator: an image and its label to one logit."""

from __future__ import annotations

import math

import torch
from torch import nn

from torch_utils.image_size import SQUARE, check_start, size_of
from torch_utils.layers import DEFAULT_FILTER, LOW_PRECISION, Conv2dLayer, FullyConnectedLayer, block_dtype, block_memory_format
from torch_utils.ops import upfirdn2d
from training.networks.mapping import MappingNetwork
from training.networks.synthesis import ARCHITECTURES, channels_at, check_resolution, low_precision_from


def count_freezable(img_resolution: int, architecture: str) -> int:
    """How many layers freeze_layers can count: all convolutions before the 4x4 end."""
    blocks = max(check_resolution(img_resolution) - 2, 0)
    if architecture == "skip":
        return 3 * blocks  # each block sees the image
    return (3 if architecture == "resnet" else 2) * blocks + (blocks > 0)


class MinibatchStdLayer(nn.Module):
    """Appends the standard deviation over groups of samples as feature maps, so that D sees a lack of variety.

    Args:
        group_size: samples of a group (fewer if the batch is smaller); None: the whole batch.
        num_channels: feature maps to append, each from its own share of the channels.
    """

    def __init__(self, group_size: int | None, num_channels: int = 1):
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C + num_channels, H, W]; sample i belongs to group i mod (N / group_size).

        Raises:
            ValueError: the batch is no multiple of the group size.
        """
        n, c, h, w = x.shape
        group = n if self.group_size is None else min(self.group_size, n)
        if n % group:
            raise ValueError(f"the batch of {n} does not divide into minibatch-std groups of {group}")
        y = x.reshape(group, n // group, self.num_channels, c // self.num_channels, h, w)
        y = y - y.mean(dim=0)
        y = (y.square().mean(dim=0) + 1e-8).sqrt().mean(dim=[2, 3, 4])  # [n / group, num_channels]
        y = y.repeat(group, 1)[:, :, None, None].expand(-1, -1, h, w)
        return torch.cat([x, y], dim=1)


class DiscriminatorBlock(nn.Module):
    """One resolution of the discriminator: from RGB where the architecture asks for it, two layers, halving."""

    def __init__(
        self,
        in_channels: int,
        tmp_channels: int,
        out_channels: int,
        resolution: int,
        img_channels: int,
        first_layer_idx: int,
        architecture: str = "resnet",
        activation: str = "lrelu",
        resample_filter=DEFAULT_FILTER,
        conv_clamp: float | None = None,
        low_precision: torch.dtype | None = None,
        fp16_channels_last: bool = False,
        freeze_layers: int = 0,
    ):
        super().__init__()
        self.in_channels, self.architecture, self.num_layers = in_channels, architecture, 0
        self.low_precision, self.channels_last = low_precision, fp16_channels_last
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))

        def layer(*args, **kwargs) -> Conv2dLayer:
            trainable = first_layer_idx + self.num_layers >= freeze_layers
            self.num_layers += 1
            return Conv2dLayer(*args, trainable=trainable, resample_filter=resample_filter, **kwargs)

        if in_channels == 0 or architecture == "skip":
            self.fromrgb = layer(img_channels, tmp_channels, kernel_size=1, activation=activation, conv_clamp=conv_clamp)
        self.conv0 = layer(tmp_channels, tmp_channels, kernel_size=3, activation=activation, conv_clamp=conv_clamp)
        self.conv1 = layer(tmp_channels, out_channels, kernel_size=3, activation=activation, down=2, conv_clamp=conv_clamp)
        if architecture == "resnet":
            self.skip = layer(tmp_channels, out_channels, kernel_size=1, bias=False, down=2)

    def forward(self, x: torch.Tensor | None, img: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features [N, in, R, R] (None at the first block) and the image [N, img_channels, R, R] to those at R/2."""
        device = (img if x is None else x).device
        dtype = block_dtype(self.low_precision, device)
        layout = block_memory_format(device, dtype, self.channels_last and self.low_precision is not None)
        if x is not None:
            x = x.to(dtype=dtype, memory_format=layout)
        if self.in_channels == 0 or self.architecture == "skip":
            y = self.fromrgb(img.to(dtype=dtype, memory_format=layout))
            x = y if x is None else x + y
            img = upfirdn2d.downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture == "resnet":
            y = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv1(self.conv0(x), gain=math.sqrt(0.5))
            return y + x, img
        return self.conv1(self.conv0(x)), img


class DiscriminatorEpilogue(nn.Module):
    """The end at the starting grid: minibatch std, convolution, two fully connected layers, projection onto the label. Always float32."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        grid: tuple[int, int],
        img_channels: int,
        from_rgb: bool,
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        activation: str = "lrelu",
        conv_clamp: float | None = None,
    ):
        super().__init__()
        self.cmap_dim = cmap_dim
        self.fromrgb = Conv2dLayer(img_channels, in_channels, kernel_size=1, activation=activation) if from_rgb else None
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels > 0 else None
        self.conv = Conv2dLayer(in_channels + mbstd_num_channels, in_channels, kernel_size=3, activation=activation, conv_clamp=conv_clamp)
        self.fc = FullyConnectedLayer(in_channels * grid[0] * grid[1], in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim or 1)

    def forward(self, x: torch.Tensor | None, img: torch.Tensor | None, cmap: torch.Tensor | None) -> torch.Tensor:
        """Features [N, in, *grid], the image at that size or None, and label embeddings [N, cmap_dim] or None to logits [N, 1]."""
        layout = block_memory_format((img if x is None else x).device, torch.float32, False)
        if self.fromrgb is not None:
            y = self.fromrgb(img.to(dtype=torch.float32, memory_format=layout))
            x = y if x is None else x.to(torch.float32) + y
        x = x.to(dtype=torch.float32, memory_format=layout)
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim > 0:
            x = (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)
        return x


class Discriminator(nn.Module):
    """StyleGAN2 discriminator: images [N, img_channels, H, W] and labels [N, c_dim] to logits [N, 1].

    Args:
        c_dim: length of the label, 0: unconditional.
        img_resolution, img_channels: size of the image; not square where start_grid says otherwise.
        architecture: 'resnet', 'skip' or 'orig'.
        channel_base, channel_max: feature maps are min(channel_base / resolution, channel_max).
        num_fp16_res, low_precision, conv_clamp: as in `SynthesisNetwork`.
        cmap_dim: length of the label embedding; None: as many as feature maps at 4x4.
        block_kwargs: activation, resample_filter, freeze_layers, fp16_channels_last of the blocks.
        mapping_kwargs: arguments of the `MappingNetwork` that embeds the label.
        epilogue_kwargs: mbstd_group_size, mbstd_num_channels, activation.
        start_grid: as in `SynthesisNetwork`; the epilogue sees this many places.

    Raises:
        ValueError: resolution, starting grid, architecture or dtype out of range.
    """

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        low_precision: str = "float16",
        conv_clamp: float | None = None,
        cmap_dim: int | None = None,
        block_kwargs: dict | None = None,
        mapping_kwargs: dict | None = None,
        epilogue_kwargs: dict | None = None,
        start_grid: tuple[int, int] = SQUARE,
    ):
        super().__init__()
        self.start_grid = check_start(start_grid)
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "start_grid")}
        if self.start_grid != SQUARE:  # so that those of squares are StyleGAN2-ADA's
            arguments["start_grid"] = list(self.start_grid)
        self.init_kwargs = {name: dict(value or {}) if name.endswith("_kwargs") else value for name, value in arguments.items()}
        log2 = check_resolution(img_resolution)
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is one of {', '.join(ARCHITECTURES)}, found {architecture!r}")
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.block_resolutions = [2**i for i in range(log2, 2, -1)]
        channels = {res: channels_at(res, channel_base, channel_max) for res in self.block_resolutions + [4]}
        self.feature_channels = channels[4]
        cmap_dim = (channels[4] if cmap_dim is None else cmap_dim) if c_dim > 0 else 0
        low_from, low_dtype = low_precision_from(img_resolution, num_fp16_res), LOW_PRECISION[low_precision]
        layer_idx = 0
        for res in self.block_resolutions:
            block = DiscriminatorBlock(
                channels[res] if res < img_resolution else 0,
                channels[res],
                channels[res // 2],
                resolution=res,
                img_channels=img_channels,
                first_layer_idx=layer_idx,
                architecture=architecture,
                conv_clamp=conv_clamp,
                low_precision=low_dtype if res >= low_from else None,
                **self.init_kwargs["block_kwargs"],
            )
            setattr(self, f"b{res}", block)
            layer_idx += block.num_layers
        if c_dim > 0:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, num_ws=None, w_avg_beta=None, **self.init_kwargs["mapping_kwargs"])
        # At 4x4 there is no block before the epilogue, so it takes the image itself whatever the architecture.
        from_rgb = architecture == "skip" or img_resolution == 4
        self.b4 = DiscriminatorEpilogue(
            channels[4], cmap_dim, self.start_grid, img_channels, from_rgb, conv_clamp=conv_clamp, **self.init_kwargs["epilogue_kwargs"]
        )

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return size_of(self.img_resolution, self.start_grid)

    def features(self, img: torch.Tensor) -> torch.Tensor:
        """Feature maps [N, feature_channels, *start_grid] of images of 8x8 pixels or more, before the epilogue brings in the batch and the label."""
        return self._run_blocks(img)[0]

    def _run_blocks(self, img: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The features and, where the architecture hands it on, the image at 4x4."""
        height, width = self.img_size
        if img.ndim != 4 or img.shape[1:] != (self.img_channels, height, width):
            raise ValueError(f"images are [N, {self.img_channels}, {height}, {width}], found {list(img.shape)}")
        x = None
        for res in self.block_resolutions:
            x, img = getattr(self, f"b{res}")(x, img)
        return x, img

    def forward(self, img: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """Logits [N, 1], float32. Raises ValueError for images of another size than the network takes."""
        x, img = self._run_blocks(img)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(x, img, cmap)
