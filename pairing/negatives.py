"""More negatives: the latents' embeddings of all ranks, differentiably."""

from __future__ import annotations

import torch
import torch.distributed as dist


class _AllGather(torch.autograd.Function):
    """Concatenation over ranks; its gradient is the sum over ranks of what each did with this rank's rows."""

    @staticmethod
    def forward(ctx, x):
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, dy):
        dy = dy.contiguous().clone()
        dist.all_reduce(dy)
        first = dist.get_rank() * ctx.rows
        return dy[first : first + ctx.rows]


def gather_latents(e_z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins the latent embeddings of all ranks, which all have as many rows.

    With gradients averaged over ranks, the mean of the ranks' losses has the gradient of one loss over the joined batch.

    Args:
        e_z: this rank's rows [N, D].

    Returns:
        All rows [world size * N, D] in rank order, and the index of this rank's rows among them [N].
    """
    n = len(e_z)
    own = torch.arange(n, device=e_z.device)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return e_z, own
    return _AllGather.apply(e_z), own + dist.get_rank() * n
