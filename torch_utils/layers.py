"""Layers with equalised learning rate that generator, discriminator and pairing network share."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

from torch_utils.ops import upfirdn2d
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample

Module = TypeVar("Module", bound=nn.Module)
DEFAULT_FILTER = (1, 3, 3, 1)
LOW_PRECISION = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def normalize_2nd_moment(x: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """Scales x so that the mean of its squares along `dim` is one."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def block_dtype(low_precision: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype in which a block computes on `device`: bfloat16 anywhere but on MPS, float16 on CUDA only, else float32.

    So a network that was trained in half precision runs everywhere: on a CPU in float32, with more digits than it was trained with.
    """
    supported = {"cuda": (torch.float16, torch.bfloat16), "cpu": (torch.bfloat16,)}.get(device.type, ())
    return low_precision if low_precision in supported else torch.float32


def float32_copy(network: Module) -> Module:
    """A copy of a network that computes in float32 at every resolution and on every device, in eval mode and without gradients."""
    result = copy.deepcopy(network).eval().requires_grad_(False)
    for part in result.modules():
        if hasattr(part, "low_precision"):
            part.low_precision = None
    return result


def block_memory_format(device: torch.device, dtype: torch.dtype, channels_last: bool) -> torch.memory_format:
    """Channels last where it is faster: always on a CPU (measured, docs/benchmarks.md), elsewhere in low precision or on request."""
    if device.type == "cpu" or channels_last or dtype != torch.float32:
        return torch.channels_last
    return torch.contiguous_format


class FullyConnectedLayer(nn.Module):
    """y = act(gain * W x + b), with W ~ N(0, 1) / lr_multiplier and the equalising factor applied at run time.

    Args:
        in_features, out_features: sizes.
        bias: whether there is one.
        activation: name of an activation of `bias_act`.
        lr_multiplier: scale of the effective learning rate.
        bias_init: value that the bias starts at.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation: str = "linear", lr_multiplier: float = 1.0, bias_init: float = 0.0
    ):
        super().__init__()
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.weight = nn.Parameter(torch.randn([out_features, in_features]) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in_features] -> [N, out_features], in the dtype of x."""
        w = (self.weight * self.weight_gain).to(x.dtype)
        b = None
        if self.bias is not None:
            b = (self.bias * self.bias_gain if self.bias_gain != 1 else self.bias).to(x.dtype)
        if self.activation == "linear" and b is not None:
            return torch.addmm(b.unsqueeze(0), x, w.t())
        return bias_act(x @ w.t(), b, act=self.activation)

    def extra_repr(self) -> str:
        """Sizes, for printing the module."""
        return f"{self.in_features}, {self.out_features}, activation={self.activation}"


class Conv2dLayer(nn.Module):
    """Convolution, optional resampling, bias and activation, with equalised learning rate.

    Args:
        in_channels, out_channels: widths.
        kernel_size: width and height of the kernel.
        bias: whether there is one.
        activation: name of an activation of `bias_act`.
        up, down: resampling factors.
        resample_filter: low-pass filter for the resampling.
        conv_clamp: clamp the output to +-conv_clamp (times gain); None: no clamp.
        trainable: False makes weight and bias buffers (Freeze-D).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter=DEFAULT_FILTER,
        conv_clamp: float | None = None,
        trainable: bool = True,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(resample_filter))
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = ACTIVATIONS[activation].gain
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
        values = {"weight": weight, "bias": torch.zeros([out_channels]) if bias else None}
        for name, value in values.items():
            if trainable:
                self.register_parameter(name, None if value is None else nn.Parameter(value))
            elif value is not None:
                self.register_buffer(name, value)
            else:
                setattr(self, name, None)

    def forward(self, x: torch.Tensor, gain: float = 1) -> torch.Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H * up / down, W * up / down]."""
        act_gain = self.act_gain * gain
        # Where act(g x) = g act(x), the gain goes into the small tensors instead of over the activations once more.
        fold = act_gain if ACTIVATIONS[self.activation].homogeneous else 1.0
        w = (self.weight * (self.weight_gain * fold)).to(x.dtype)
        b = None if self.bias is None else (self.bias * fold).to(x.dtype)
        # Without upsampling the kernel is correlated, with it convolved: the transposed convolution then takes it as it is.
        x = conv2d_resample(x, w, f=self.resample_filter, up=self.up, down=self.down, padding=self.padding, flip_weight=self.up == 1)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, b, act=self.activation, gain=act_gain / fold, clamp=clamp, inplace=True)

    def extra_repr(self) -> str:
        """Sizes, for printing the module."""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return f"{sizes}, activation={self.activation}, up={self.up}, down={self.down}"
