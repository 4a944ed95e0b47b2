"""The sheets of a run: real images once, and the same latents at every snapshot, so that one sees them grow."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import torch

from torch_utils.pixels import to_uint8
from training.dataset import ImageFolderDataset
from training.images import default_grid, grid_indices, save_image_grid

BATCH_PIXELS = 64 * 64 * 64


class GridPictures:
    """A fixed grid of real images, and of latents under the same labels.

    Args:
        dataset: the training set.
        z_dim: length of the latents.
        seed: of the choice of images and of the latents; the training's random state is not touched.
    """

    def __init__(self, dataset: ImageFolderDataset, z_dim: int, seed: int):
        height, width = dataset.image_shape[1:]
        self.grid = default_grid(width, height)
        indices = grid_indices(dataset, self.grid, seed)
        self.reals = torch.from_numpy(np.stack([dataset[i][0] for i in indices]))
        self.labels = torch.from_numpy(np.stack([dataset.get_label(i) for i in indices]))
        self.latents = torch.randn([len(indices), z_dim], generator=torch.Generator().manual_seed(seed))

    def save_reals(self, path: pathlib.Path) -> None:
        """Writes the real images. Raises UserError where that is impossible."""
        save_image_grid(self.reals, path, self.grid)

    @torch.no_grad()
    def save_fakes(self, G: torch.nn.Module, device: torch.device, path: pathlib.Path) -> None:
        """Writes G's images of the grid's latents. Raises UserError where that is impossible."""
        batch = max(BATCH_PIXELS // math.prod(G.img_size), 1)
        parts = zip(self.latents.split(batch), self.labels.split(batch))
        images = [to_uint8(G(z.to(device), c.to(device), noise_mode="const")).cpu() for z, c in parts]
        save_image_grid(torch.cat(images), path, self.grid)
