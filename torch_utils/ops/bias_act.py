"""Add a bias, apply an activation, scale, clamp: the point-wise op behind every layer of the networks.

Piecewise linear activations (linear, relu, lrelu: all that the networks use) run as one multiplication by a slope that is
kept for the backward pass; their second derivative is zero. The others are plain compositions that autograd differentiates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from torch_utils.ops import backend


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation: its function of (x, alpha), its default slope parameter and its default gain."""

    function: Callable[[torch.Tensor, float], torch.Tensor]
    alpha: float = 0.0
    gain: float = 1.0
    negative_slope: Callable[[float], float] | None = None  # slope below zero of a piecewise linear activation


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha: x, negative_slope=lambda alpha: 1.0),
    "relu": Activation(lambda x, alpha: F.relu(x), gain=math.sqrt(2), negative_slope=lambda alpha: 0.0),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), alpha=0.2, gain=math.sqrt(2), negative_slope=lambda alpha: alpha),
    "tanh": Activation(lambda x, alpha: torch.tanh(x)),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x)),
    "elu": Activation(lambda x, alpha: F.elu(x)),
    "selu": Activation(lambda x, alpha: F.selu(x)),
    "softplus": Activation(lambda x, alpha: F.softplus(x)),
    "swish": Activation(lambda x, alpha: torch.sigmoid(x) * x, gain=math.sqrt(2)),
}


class _Scale(torch.autograd.Function):
    """x * slope, where the slope depends on x but is locally constant: it is data to the gradient, of any order."""

    @staticmethod
    def forward(x, slope):
        return x * slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, dy):
        (slope,) = ctx.saved_tensors
        return _Scale.apply(dy, slope), None


def _slope(x: torch.Tensor, positive: float, negative: float, clamp: float | None) -> torch.Tensor:
    """The derivative of the clamped, scaled piecewise linear activation at x (detached)."""
    x = x.detach()
    slope = torch.where(x > 0, positive, negative).to(x.dtype)
    if clamp is not None:
        slope = torch.where((x * slope).abs() < clamp, slope, 0.0)
    return slope


def _piecewise_linear(x: torch.Tensor, negative_slope: float, gain: float, clamp: float | None) -> torch.Tensor:
    """gain * leaky_relu(x), clamped; differentiable twice (and more: the second derivative is zero)."""
    if negative_slope == 1 and clamp is None:
        return x * gain if gain != 1 else x
    if not (x.requires_grad and torch.is_grad_enabled()):
        x = F.leaky_relu(x, negative_slope) if negative_slope != 1 else x
        x = x * gain if gain != 1 else x
        return x.clamp(-clamp, clamp) if clamp is not None else x
    y = _Scale.apply(x, _slope(x, gain, gain * negative_slope, clamp))
    if clamp is None:
        return y
    bounded = (F.leaky_relu(x.detach(), negative_slope) * gain).clamp(-clamp, clamp)
    return torch.where(bounded.abs() >= clamp, bounded, y)


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
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
    native = backend.native("bias_act")
    if native is not None:
        return native(x, b, dim, act, alpha, gain, clamp)
    if b is not None:
        shape = [1] * x.ndim
        shape[dim] = -1
        x = x + b.to(x.dtype).reshape(shape)
    if spec.negative_slope is not None:
        return _piecewise_linear(x, spec.negative_slope(alpha), gain, clamp)
    x = spec.function(x, alpha)
    x = x * gain if gain != 1 else x
    return x.clamp(-clamp, clamp) if clamp is not None else x
