"""The pairing network P: an image tower e_x and a latent tower e_z into one embedding space (paper, section 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from torch_utils.image_size import SQUARE, check_start
from torch_utils.layers import Conv2dLayer, FullyConnectedLayer, block_memory_format, normalize_2nd_moment

EMBED_DIM = 128
MIN_CHANNELS = 16
MIN_RESOLUTION = 8


def is_view(edge: int, img_resolution: int) -> bool:
    """Whether the image tower can see images of `img_resolution` at this edge: a power of two of at least 8, and no larger."""
    return MIN_RESOLUTION <= edge <= img_resolution and not edge & (edge - 1)


class PairingBlock(nn.Module):
    """Residual block that halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv0 = Conv2dLayer(in_channels, in_channels, kernel_size=3, activation="lrelu")
        self.conv1 = Conv2dLayer(in_channels, out_channels, kernel_size=3, activation="lrelu", down=2)
        self.skip = Conv2dLayer(in_channels, out_channels, kernel_size=1, bias=False, down=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in, R, R] -> [N, out, R/2, R/2]."""
        return self.skip(x, gain=math.sqrt(0.5)) + self.conv1(self.conv0(x), gain=math.sqrt(0.5))


class PairingNetwork(nn.Module):
    """Embeds images and latents so that an image is nearest to the latent that made it.

    The label is not an input: with it the task would be solved by class alone. Latents enter after second-moment
    normalisation, as the mapping network sees them.

    Args:
        z_dim: length of the latents (w_dim if the pairing is made in W).
        img_resolution, img_channels: size of the images; the resolution is a power of two of at least 8.
        embed_dim: length of the embeddings.
        channel_base, channel_max: feature maps at resolution r are channel_base / r, at least 16 and at most channel_max.
        latent_features, latent_layers: features and depth of the latent tower.
        width: multiplies the feature maps and features of both towers, not the embedding.
        view: edge of the images as the image tower sees them, averaged down from img_resolution; None: as they are. Nothing finer can tell
            latents apart then.
        feature_channels: channels of a discriminator's feature maps, which the image side takes in place of images, without a tower of its own;
            None: it takes images.
        start_grid: of the networks whose images these are, if they are not square with a power of two as edge (torch_utils.image_size).

    Raises:
        ValueError: a starting grid that is none, a resolution or view that is no power of two of at least 8, a view larger than the images, or
            one of features.
    """

    def __init__(
        self,
        z_dim: int,
        img_resolution: int,
        img_channels: int,
        embed_dim: int = EMBED_DIM,
        channel_base: int = 512,
        channel_max: int = 128,
        latent_features: int = 256,
        latent_layers: int = 3,
        width: int = 1,
        view: int | None = None,
        feature_channels: int | None = None,
        start_grid: tuple[int, int] = SQUARE,
    ):
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__", "start_grid")}
        self.start_grid = check_start(start_grid)
        self.init_kwargs = given if self.start_grid == SQUARE else given | {"start_grid": list(self.start_grid)}
        if not is_view(img_resolution, img_resolution):
            raise ValueError(f"img_resolution is a power of two of at least {MIN_RESOLUTION}, found {img_resolution}")
        if view is not None and not is_view(view, img_resolution):
            raise ValueError(f"view is a power of two from {MIN_RESOLUTION} to img_resolution = {img_resolution}, found {view}")
        if view is not None and feature_channels is not None:
            raise ValueError(f"view = {view} is one of images, and feature_channels = {feature_channels} takes none; give one")
        self.z_dim, self.img_resolution, self.img_channels, self.embed_dim = z_dim, img_resolution, img_channels, embed_dim
        self.view, self.feature_channels = view or img_resolution, feature_channels

        def channels(resolution: int) -> int:
            return width * min(max(channel_base // resolution, MIN_CHANNELS), channel_max)

        blocks: list[nn.Module] = []
        if feature_channels is None:
            resolution = self.view // 2
            blocks.append(Conv2dLayer(img_channels, channels(resolution), kernel_size=3, activation="lrelu", down=2))
            while resolution > 4:
                blocks.append(PairingBlock(channels(resolution), channels(resolution // 2)))
                resolution //= 2
        self.image_tower = nn.Sequential(*blocks)
        places = self.start_grid[0] * self.start_grid[1]
        self.image_head = nn.Sequential(
            FullyConnectedLayer((feature_channels or channels(4)) * places, channels(4), activation="lrelu"),
            FullyConnectedLayer(channels(4), embed_dim),
        )
        features = [z_dim] + [width * latent_features] * (latent_layers - 1)
        layers = [FullyConnectedLayer(a, b, activation="lrelu") for a, b in zip(features, features[1:])]
        self.latent_tower = nn.Sequential(*layers, FullyConnectedLayer(features[-1], embed_dim))

    def embed_image(self, img: torch.Tensor) -> torch.Tensor:
        """Unit rows [N, embed_dim] of images [N, img_channels, H, W], about -1 to 1, or of feature maps [N, feature_channels, *start_grid]."""
        if self.feature_channels is not None:
            # Their size grows as the discriminator learns; the head is to see their direction.
            return F.normalize(self.image_head(normalize_2nd_moment(img.to(torch.float32).flatten(1))), dim=1)
        x = img.to(dtype=torch.float32, memory_format=block_memory_format(img.device, torch.float32, False))
        if self.view < self.img_resolution:
            x = F.avg_pool2d(x, self.img_resolution // self.view)
        return F.normalize(self.image_head(self.image_tower(x).flatten(1)), dim=1)

    def embed_latent(self, z: torch.Tensor) -> torch.Tensor:
        """Unit rows [N, embed_dim] of latents [N, z_dim]."""
        return F.normalize(self.latent_tower(normalize_2nd_moment(z.to(torch.float32))), dim=1)

    def forward(self, img: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(e_x, e_z): unit rows [N, embed_dim] of images and latents."""
        return self.embed_image(img), self.embed_latent(z)
