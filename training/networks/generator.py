"""The generator: mapping and synthesis under one roof."""

from __future__ import annotations

import torch
from torch import nn

from torch_utils.image_size import size_of
from training.networks.mapping import MappingNetwork
from training.networks.synthesis import SynthesisNetwork


class Generator(nn.Module):
    """StyleGAN2 generator: z [N, z_dim] and c [N, c_dim] to images [N, img_channels, H, W].

    Args:
        z_dim, c_dim, w_dim: lengths of latent code, label (0: unconditional) and intermediate latent.
        img_resolution, img_channels: size of the image; it is not square where synthesis_kwargs holds a start_grid.
        mapping_kwargs, synthesis_kwargs: further arguments of `MappingNetwork` and `SynthesisNetwork`.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict | None = None,
        synthesis_kwargs: dict | None = None,
    ):
        super().__init__()
        mapping_kwargs, synthesis_kwargs = dict(mapping_kwargs or {}), dict(synthesis_kwargs or {})
        self.z_dim, self.c_dim, self.w_dim, self.img_resolution, self.img_channels = z_dim, c_dim, w_dim, img_resolution, img_channels
        self.init_kwargs = dict(
            z_dim=z_dim,
            c_dim=c_dim,
            w_dim=w_dim,
            img_resolution=img_resolution,
            img_channels=img_channels,
            mapping_kwargs=mapping_kwargs,
            synthesis_kwargs=synthesis_kwargs,
        )
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws, self.start_grid = self.synthesis.num_ws, self.synthesis.start_grid
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, num_ws=self.num_ws, **mapping_kwargs)

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return size_of(self.img_resolution, self.start_grid)

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
    ) -> torch.Tensor:
        """Images for latents z and labels c; truncation as in `MappingNetwork`, noise_mode 'random', 'const' or 'none'."""
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, noise_mode=noise_mode)
