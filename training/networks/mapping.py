"""The mapping network: latent code and label to intermediate latents."""

from __future__ import annotations

import torch
from torch import nn

from torch_utils.layers import FullyConnectedLayer, normalize_2nd_moment


class MappingNetwork(nn.Module):
    """z and c to ws; without z it is the label embedding of the discriminator.

    Args:
        z_dim: length of the latent code, 0: none.
        c_dim: length of the label, 0: none.
        w_dim: length of an intermediate latent.
        num_ws: how many copies of w to give out; None: one, without the copies' axis.
        num_layers: depth.
        embed_features: width of the label embedding; None: w_dim.
        layer_features: width of the hidden layers; None: w_dim.
        activation: of every layer.
        lr_multiplier: learning rate of this network relative to the rest.
        w_avg_beta: decay of the running mean of w in training; None: no mean is kept.

    Raises:
        ValueError: no layers, which give out what comes in, but what comes in is not as wide as w.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws, self.num_layers = z_dim, c_dim, w_dim, num_ws, num_layers
        self.w_avg_beta = w_avg_beta if num_ws is not None else None  # a mapping that serves a discriminator keeps no mean
        embed_features = (w_dim if embed_features is None else embed_features) if c_dim > 0 else 0
        layer_features = w_dim if layer_features is None else layer_features
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        if num_layers == 0 and z_dim + embed_features != w_dim:
            raise ValueError(f"a mapping network without layers gives out {z_dim + embed_features} numbers, but w_dim is {w_dim}")
        features = [z_dim + embed_features] + [layer_features] * (num_layers - 1) + [w_dim]
        for index in range(num_layers):
            layer = FullyConnectedLayer(features[index], features[index + 1], activation=activation, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{index}", layer)
        if self.w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros([w_dim]))

    def forward(
        self,
        z: torch.Tensor | None,
        c: torch.Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
    ) -> torch.Tensor:
        """Maps [N, z_dim] and [N, c_dim] to ws [N, num_ws, w_dim] ([N, w_dim] if num_ws is None).

        Args:
            truncation_psi: 1 keeps w, 0 gives the mean.
            truncation_cutoff: number of the first ws to truncate; None: all.
            skip_w_avg_update: leave the running mean alone (it moves in training mode only).

        Raises:
            ValueError: z or c of another shape than the network takes, or truncation without a running mean.
        """
        parts = []
        if self.z_dim > 0:
            if z is None or z.ndim != 2 or z.shape[1] != self.z_dim:
                raise ValueError(f"z is [N, {self.z_dim}], found {None if z is None else list(z.shape)}")
            parts.append(normalize_2nd_moment(z.to(torch.float32)))
        if self.c_dim > 0:
            if c is None or c.ndim != 2 or c.shape[1] != self.c_dim:
                raise ValueError(f"c is [N, {self.c_dim}], found {None if c is None else list(c.shape)}")
            parts.append(normalize_2nd_moment(self.embed(c.to(torch.float32))))
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        if self.w_avg_beta is not None and self.training and not skip_w_avg_update:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is not None:
            x = x.unsqueeze(1).repeat([1, self.num_ws, 1])
        return self._truncate(x, truncation_psi, truncation_cutoff)

    def _truncate(self, ws: torch.Tensor, psi: float, cutoff: int | None) -> torch.Tensor:
        if psi == 1:
            return ws
        if self.w_avg_beta is None:
            raise ValueError("truncation needs the running mean of w, which this network does not keep")
        truncated = self.w_avg.lerp(ws, psi)
        if cutoff is None:
            return truncated
        return torch.cat([truncated[:, :cutoff], ws[:, cutoff:]], dim=1)
