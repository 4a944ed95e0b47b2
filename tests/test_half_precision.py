"""A generator with blocks in float16 stays finite and near float32, gradients and path length's second gradients included. Emulated on a CPU.

PyTorch's convolutions take float16 on a CPU. The native passes around them do not: here they compute in float32 and round what they store, as the
CUDA kernels do.
"""

import types

import pytest
import torch

from torch_utils.ops import backend, modulation
from training.networks import Generator, modulated_conv, synthesis

WIDTH = dict(channel_base=256, channel_max=32, num_fp16_res=4, conv_clamp=256)


def rounded(op):
    """A native pass that takes float16, too: arithmetic in float32, activations rounded to float16."""

    def run(*operands):
        if operands[0].dtype != torch.float16:
            return op(*operands)
        results = op(*(t.float() if isinstance(t, torch.Tensor) else t for t in operands))
        return (results[0].half(), *results[1:]) if isinstance(results, tuple) else results.half()

    return run


@pytest.fixture(params=["composition", "native"])
def half_on_cpu(request, monkeypatch):
    """Blocks in float16 on the CPU, with the operators' composition or with the emulated native passes around the convolutions."""
    monkeypatch.setattr(synthesis, "block_dtype", lambda low_precision, device: low_precision or torch.float32)
    if request.param == "native":
        request.getfixturevalue("native_ops")
        backend.implementation("cpu")  # loads them, or fails
        real, takes = modulation._ops(), modulation._runs_native
        names = ("modulate", "modulate_backward", "epilogue", "epilogue_backward")
        passes = types.SimpleNamespace(**{name: rounded(getattr(real, name)) for name in names})
        monkeypatch.setattr(modulation, "_ops", lambda: passes)
        monkeypatch.setattr(modulation, "_runs_native", lambda x: x.dtype == torch.float16 or takes(x))


def generator(scale):
    """A small generator whose convolutions' weights and styles are `scale` times too large; demodulation takes that out again."""
    torch.manual_seed(0)
    G = Generator(8, 0, 8, 16, 3, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=WIDTH)
    for name, parameter in G.synthesis.named_parameters():
        if ".conv" in name and name.endswith(("conv0.weight", "conv1.weight", "affine.weight", "affine.bias")):
            parameter.data *= scale
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.1)
    return G


def images_and_gradients(G):
    """Images, gradients of a loss, gradients of a path length."""
    ws = G.mapping(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), None)
    img = G.synthesis(ws, noise_mode="const")
    plain = torch.autograd.grad(img.square().mean(), list(G.parameters()), retain_graph=True, allow_unused=True)
    noise = torch.randn(img.shape, generator=torch.Generator().manual_seed(2)) / img[0, 0].numel() ** 0.5
    (slope,) = torch.autograd.grad((img * noise).sum(), ws, create_graph=True)
    path = torch.autograd.grad(slope.square().sum(2).mean(1).sqrt().mean(), list(G.synthesis.parameters()), materialize_grads=True)
    return img.detach(), [g for g in plain if g is not None], path


def relative_difference(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_a_generator_with_weights_of_any_scale_stays_near_float32(half_on_cpu):
    G = generator(1e4)
    img, *gradients = images_and_gradients(G)
    for module in G.modules():
        if hasattr(module, "low_precision"):
            module.low_precision = None
    expected, *exact = images_and_gradients(G)
    assert relative_difference(img, expected) < 1e-2
    for ours, theirs in zip(gradients, exact):
        assert all(g.isfinite().all() for g in ours)
        # Not those of the noise's strengths: single numbers, in which nearly all cancels out.
        pairs = [(g, e) for g, e in zip(ours, theirs, strict=True) if g.numel() > 1 and e.any()]
        assert len(pairs) > 10 and all(relative_difference(g, e) < 0.1 for g, e in pairs)


def test_without_scaling_before_the_convolution_it_overflows(half_on_cpu, monkeypatch):
    """What the test above would see if the order were wrong."""
    monkeypatch.setattr(modulated_conv.torch, "float16", None)
    G = generator(1e4)
    with torch.no_grad():
        img = G.synthesis(G.mapping(torch.randn(4, 8), None), noise_mode="const")
    assert not img.isfinite().all() or img.abs().max() >= 256
