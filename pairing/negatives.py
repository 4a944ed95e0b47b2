"""More negatives: the latents' embeddings of all ranks, differentiably, and on their way while the images are embedded; and extra latents.

A negative is a latent that did not make the image, and latents cost nothing: where other contrastive losses keep a queue of stale embeddings,
`extra_latents` draws as many fresh ones as wanted.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from torch_utils.distributed import arrive

INDEPENDENT = 1.0  # distance of extra latents from those of a batch at which the two have nothing to do with each other


class _Message:
    """What the two ends of a gathering share: the message under way, and where it arrives."""

    def __init__(self):
        self.work = None
        self.own: torch.Tensor | None = None
        self.parts: list[torch.Tensor] = []
        self.gradient: torch.Tensor | None = None


class _Send(torch.autograd.Function):
    """Sends this rank's rows off and passes them on as they are; backward, it waits for the gradient of them from all ranks."""

    @staticmethod
    def forward(ctx, x, message):
        ctx.message, ctx.rows = message, x.shape[0]
        message.parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        arrive()
        message.own = x.contiguous()  # has to live as long as the message is under way
        message.work = dist.all_gather(message.parts, message.own, async_op=True)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        ctx.message.work.wait()
        first = dist.get_rank() * ctx.rows
        return ctx.message.gradient[first : first + ctx.rows], None


class _Receive(torch.autograd.Function):
    """Concatenation over ranks; its gradient is the sum over ranks of what each did with this rank's rows, sent off backward."""

    @staticmethod
    def forward(ctx, x, message):
        ctx.message, ctx.shape = message, x.shape
        message.work.wait()
        return torch.cat(message.parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        message = ctx.message
        message.gradient = dy.contiguous().clone()
        message.work = dist.all_reduce(message.gradient, async_op=True)
        # `_Send` waits for the sum; what goes there meanwhile has the right shape, and nobody reads it.
        return dy.new_zeros(ctx.shape), None


class LatentGather:
    """The latent embeddings of all ranks, under way since this object was made.

    What runs between making it and `finish` runs while the message travels; backward, likewise, that code's gradients are worked out
    while the gradients of the embeddings travel. So make it before the images are embedded. With gradients averaged over ranks, the mean
    of the ranks' losses has the gradient of one loss over the joined batch.

    Args:
        e_z: this rank's rows [N, D]; all ranks have as many.
    """

    def __init__(self, e_z: torch.Tensor):
        self._alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        self._message = _Message()
        self._e_z = e_z if self._alone else _Send.apply(e_z, self._message)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows [world size * N, D] in rank order, and the index of this rank's rows among them [N]."""
        own = torch.arange(len(self._e_z), device=self._e_z.device)
        if self._alone:
            return self._e_z, own
        return _Receive.apply(self._e_z, self._message), own + dist.get_rank() * len(self._e_z)


def extra_latents(z: torch.Tensor, count: int, distance: float = INDEPENDENT) -> torch.Tensor:
    """Latents as likely as those of a batch, at a distance from them.

    Args:
        z: latents [N, z_dim], standard normal.
        count: how many; number i is drawn around z[i % N].
        distance: 0 to 1; the mean squared difference is about distance^2 + (1 - sqrt(1 - distance^2))^2 per component, and at 1 they are independent.

    Returns:
        Latents [count, z_dim], standard normal, from the device's default generator.
    """
    around = z[torch.arange(count, device=z.device) % len(z)]
    return around * math.sqrt(1 - distance**2) + torch.randn_like(around) * distance
