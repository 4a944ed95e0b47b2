"""Stacks of small multilayer perceptrons: M models of one shape computed side by side, weights [M, in, out].

The arithmetic of each model touches no other, so a stack equals M separate networks. Value and gradients of a whole stack are one node of the
autograd graph each (`apply_stack`, `value_and_slope`): recorded layer by layer, such small matrices would cost more book-keeping than arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

WIDTH = 128
SLOPE = 0.2  # of LeakyReLU, as in the discriminators of the field

Stack = list[torch.Tensor]  # three layers: weight [M, in, out] and bias [M, 1, out] of each


def initial_stack(in_features: int, out_features: int, generators: Sequence[torch.Generator]) -> Stack:
    """Two hidden layers of 128 and an output layer, drawn as torch.nn.Linear draws its own: uniform within 1 / sqrt(in), model by model.

    Args:
        in_features, out_features: width of the input and of the output.
        generators: one per model.

    Returns:
        Leaf tensors that require gradients.
    """
    widths = [in_features, WIDTH, WIDTH, out_features]
    stack: Stack = []
    for fan_in, fan_out in zip(widths, widths[1:]):
        bound = 1 / math.sqrt(fan_in)
        for shape in ([fan_in, fan_out], [1, fan_out]):
            stack.append(torch.stack([(torch.rand(shape, generator=generator) * 2 - 1) * bound for generator in generators]))
    return [tensor.requires_grad_() for tensor in stack]


def frozen(stack: Stack) -> Stack:
    """The same values without gradients for the weights."""
    return [tensor.detach() for tensor in stack]


def apply_stack(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    """Applies every model to its own rows: [M, N, in] -> [M, N, out]. Differentiable once."""
    return _Apply.apply(x, *stack)


def value_and_slope(stack: Stack, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of models with one output, and its gradient with respect to their input.

    Args:
        stack: models with one output.
        x: [M, N, in].

    Returns:
        Outputs [M, N, 1] and slopes [M, N, in], both differentiable once with respect to the weights (not to x).
    """
    return _ValueAndSlope.apply(x, *stack)


def _hidden(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu_(torch.baddbmm(bias, x, weight), SLOPE)


def _unrelu_(gradient: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    """Gradient before LeakyReLU from the one after it, in place; a positive slope keeps the sign, so the activation tells the side."""
    return torch.ops.aten.leaky_relu_backward.grad_input(gradient, activation, SLOPE, True, grad_input=gradient)


def _times_transposed(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if gradient.shape[2] == 1:  # an outer product: a tenth of the time as a multiplication
        return gradient * weight.transpose(1, 2)
    return torch.bmm(gradient, weight.transpose(1, 2))


def _weight_gradients(gradient: torch.Tensor, activation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.bmm(activation.transpose(1, 2), gradient), gradient.sum(dim=1, keepdim=True)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, w3, b3):
        h1 = _hidden(x, w1, b1)
        h2 = _hidden(h1, w2, b2)
        ctx.save_for_backward(x, h1, h2, w1, w2, w3)
        return torch.baddbmm(b3, h2, w3)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, h1, h2, w1, w2, w3 = ctx.saved_tensors
        needs_x, needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        d2 = _unrelu_(_times_transposed(dy, w3), h2)
        d1 = _unrelu_(_times_transposed(d2, w2), h1)
        dx = _times_transposed(d1, w1) if needs_x else None
        if not needs_weights:
            return dx, None, None, None, None, None, None
        return dx, *_weight_gradients(d1, x), *_weight_gradients(d2, h1), *_weight_gradients(dy, h2)


class _ValueAndSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, w3, b3):
        h1 = _hidden(x, w1, b1)
        h2 = _hidden(h1, w2, b2)
        u2 = _unrelu_(w3.transpose(1, 2).expand_as(h2).contiguous(), h2)  # dy / d(h2 before LeakyReLU)
        u1 = _unrelu_(_times_transposed(u2, w2), h1)
        ctx.save_for_backward(x, h1, h2, u1, u2, w1, w2, w3)
        return torch.baddbmm(b3, h2, w3), _times_transposed(u1, w1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dslope):
        x, h1, h2, u1, u2, w1, w2, w3 = ctx.saved_tensors
        # The slope is linear in each weight: LeakyReLU is piecewise linear, and its sides do not move with the weights almost everywhere.
        v1 = _unrelu_(torch.bmm(dslope, w1), h1)
        v2 = _unrelu_(torch.bmm(v1, w2), h2)
        d2 = _unrelu_(_times_transposed(dy, w3), h2)
        d1 = _unrelu_(_times_transposed(d2, w2), h1)
        dw1, db1 = _weight_gradients(d1, x)
        dw2, db2 = _weight_gradients(d2, h1)
        dw3, db3 = _weight_gradients(dy, h2)
        dw1.baddbmm_(dslope.transpose(1, 2), u1)
        dw2.baddbmm_(v1.transpose(1, 2), u2)
        dw3.add_(v2.sum(dim=1).unsqueeze(2))
        return None, dw1, db1, dw2, db2, dw3, db3
