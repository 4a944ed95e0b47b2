"""Add a bias, apply an activation, scale, clamp: the point-wise op behind every layer of the networks.

A composition of public operators that autograd differentiates to any order. Activations that are positively homogeneous
(linear, relu, lrelu) let a layer fold their gain into its weights: gain * act(x) = act(gain * x).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from torch_utils.ops import backend
from torch_utils.ops.autograd_calls import composed


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation: its function of (x, alpha, inplace), its default slope parameter and gain, and whether act(g x) = g act(x) for g > 0.

    A homogeneous one is x above 0 and alpha x below.
    """

    function: Callable[[torch.Tensor, float, bool], torch.Tensor]
    alpha: float = 0.0
    gain: float = 1.0
    homogeneous: bool = False


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha, inplace: x, alpha=1.0, homogeneous=True),
    "relu": Activation(lambda x, alpha, inplace: F.relu(x, inplace=inplace), gain=math.sqrt(2), homogeneous=True),
    "lrelu": Activation(lambda x, alpha, inplace: F.leaky_relu(x, alpha, inplace=inplace), alpha=0.2, gain=math.sqrt(2), homogeneous=True),
    "tanh": Activation(lambda x, alpha, inplace: torch.tanh(x)),
    "sigmoid": Activation(lambda x, alpha, inplace: torch.sigmoid(x)),
    "elu": Activation(lambda x, alpha, inplace: F.elu(x)),
    "selu": Activation(lambda x, alpha, inplace: F.selu(x)),
    "softplus": Activation(lambda x, alpha, inplace: F.softplus(x)),
    "swish": Activation(lambda x, alpha, inplace: torch.sigmoid(x) * x, gain=math.sqrt(2)),
}
# The homogeneous ones by their slope below 0. As their derivative is constant on either side of it, the second one is 0.
SLOPES = {name: spec.alpha for name, spec in ACTIVATIONS.items() if spec.homogeneous}
NO_CLAMP = -1.0  # what the native ops are told where nothing bounds the result


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    inplace: bool = False,
) -> torch.Tensor:
    """clamp(gain * act(x + b)).

    Args:
        x: activations of any shape.
        b: bias [x.shape[dim]], or None.
        dim: the axis of `x` that the bias belongs to.
        act: one of `ACTIVATIONS`.
        alpha: slope parameter of lrelu; None: its default, 0.2.
        gain: None: the activation's default (sqrt(2) for relu, lrelu and swish, else 1).
        clamp: bound on the magnitude of the result; None: unbounded.
        inplace: `x` may be overwritten, since nothing else needs its values.

    Raises:
        ValueError: unknown activation, bias of another length than the axis, negative clamp.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"activation {act!r} is unknown, choose one of {', '.join(ACTIVATIONS)}")
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp is a bound of at least 0, found {clamp}")
    if b is not None and (b.ndim != 1 or not -x.ndim <= dim < x.ndim or b.shape[0] != x.shape[dim]):
        raise ValueError(f"bias of shape {list(b.shape)} does not fit axis {dim} of {list(x.shape)}")
    spec = ACTIVATIONS[act]
    alpha = float(spec.alpha if alpha is None else alpha)
    gain = float(spec.gain if gain is None else gain)
    native = None if composed() else backend.native("bias_act", x)
    if native is not None:
        return native(x, b, dim, act, alpha, gain, clamp)
    if b is not None:
        shape = [1] * x.ndim
        shape[dim] = -1
        x, inplace = x + b.to(x.dtype).reshape(shape), True
    # In place the backward pass sees the result only, whose sign tells the input's unless the slope is negative.
    x = spec.function(x, alpha, inplace and alpha >= 0)
    x = x * gain if gain != 1 else x
    return x.clamp(-clamp, clamp) if clamp is not None else x
