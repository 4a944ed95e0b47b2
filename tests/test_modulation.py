"""The passes around a modulated convolution: native equals reference in value, first and second gradients, for every operand there may be."""

import random

import pytest
import torch

from torch_utils import allocator
from torch_utils.ops import backend
from torch_utils.ops.modulation import SLOPES, epilogue, modulate
from training.networks import Discriminator, Generator

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def policy():
    """Tests switch between implementations; whatever runs next finds the default."""
    yield
    backend.set_policy("auto")


@pytest.fixture(scope="module")
def native():
    if backend.used("cpu") != "native":
        pytest.skip("the native ops cannot be built here")


def operands(seed, n, c, h, w, dtype=torch.float32, shared_noise=False):
    """x, scale, noise, bias and a gradient."""
    g = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn([n, c, h, w], generator=g).to(dtype).contiguous(memory_format=LAST) for _ in range(2))
    scale, bias = torch.rand([n, c], generator=g) + 0.5, torch.randn([c], generator=g)
    noise = torch.randn([1 if shared_noise else n, 1, h, w], generator=g)
    return x, scale, noise, bias, dy


def gradients(policy, function, inputs, dy):
    """The value, the gradients, and the gradients of a function of those."""
    backend.set_policy(policy)
    inputs = [None if t is None else t.clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    there = [t for t in inputs if t is not None]
    dy = dy.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(*inputs)
    assert y.is_contiguous(memory_format=LAST)
    first = torch.autograd.grad(y, there, dy, retain_graph=True)
    again = torch.autograd.grad(y, there, dy, create_graph=True)
    second = torch.autograd.grad(sum(t.float().square().sum() for t in again), [*there, dy], materialize_grads=True)
    return [y, *first, *again, *second]


def assert_near(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a.float() - b.float()).abs().max() <= tolerance * max(b.float().abs().max().item(), 1e-3)


def random_size(seed):
    """Widths on both sides of a vector's, and more and fewer pixels than are summed at once."""
    draw = random.Random(seed)
    return draw.randint(1, 4), draw.choice([1, 3, 16, 17, 64, 70]), draw.randint(1, 9), draw.randint(1, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_modulate_equals_the_reference(native, dtype):
    for seed in range(60):
        x, scale, _, _, dy = operands(seed, *random_size(seed), dtype)
        expected = gradients("reference", modulate, (x.float(), scale), dy.float())
        actual = gradients("native", modulate, (x, scale), dy)
        assert_near(actual, [t.to(a.dtype) for t, a in zip(expected, actual)], 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("act", sorted(SLOPES))
@pytest.mark.parametrize("with_noise", ["none", "one", "each"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_native_epilogue_equals_the_reference(native, act, with_noise, with_bias):
    def function(*tensors):
        return epilogue(*tensors, act=act, gain=0.7 if with_bias else None)

    cases = 0
    for seed in range(20):
        x, scale, noise, bias, dy = operands(seed, *random_size(seed), shared_noise=with_noise == "one")
        inputs = (x, scale, None if with_noise == "none" else noise, bias if with_bias else None)
        u = x * scale[:, :, None, None] + (0 if inputs[2] is None else noise) + (bias[:, None, None] if with_bias else 0)
        if act == "linear" or u.abs().min() > 1e-5:  # rounding must not move anything across the kink
            assert_near(gradients("native", function, inputs, dy), gradients("reference", function, inputs, dy), 1e-5)
            cases += 1
    assert cases >= 5


def test_native_epilogue_clamps_as_the_reference(native):
    inputs, dy = operands(0, 3, 20, 9, 9)[:4], operands(1, 3, 20, 9, 9)[4]

    def function(*tensors):
        return epilogue(*tensors, act="lrelu", clamp=0.8)

    actual, expected = gradients("native", function, inputs, dy), gradients("reference", function, inputs, dy)
    assert (actual[0].abs() == 0.8).any() and actual[0].abs().max() <= 0.8
    assert_near(actual, expected, 1e-5)


def test_native_epilogue_in_bfloat16_is_near_float32(native):
    x, scale, noise, bias, dy = operands(2, 4, 64, 16, 16, torch.bfloat16)

    def function(*tensors):
        return epilogue(*tensors, act="lrelu")

    expected = gradients("reference", function, (x.float(), scale, noise, bias), dy.float())
    actual = gradients("native", function, (x, scale, noise, bias), dy)
    assert [t.dtype for t in actual[1:5]] == [torch.bfloat16, *[torch.float32] * 3]
    assert_near(actual, [t.to(a.dtype) for t, a in zip(expected, actual)], 2e-2)


def test_sums_do_not_depend_on_the_number_of_threads(native):
    x, scale, noise, bias, dy = operands(3, 5, 64, 24, 24)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients("native", lambda *t: epilogue(*t, act="lrelu"), (x, scale, noise, bias), dy)[:5])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_other_layouts_activations_and_types_run_the_reference(native):
    backend.set_policy("native")
    x, scale, noise, bias, _ = operands(4, 2, 6, 5, 5)
    assert torch.equal(modulate(x.contiguous(), scale), x * scale[:, :, None, None])
    want = torch.tanh(x.double() * scale[:, :, None, None] + noise + bias[:, None, None])
    torch.testing.assert_close(epilogue(x.double(), scale.double(), noise.double(), bias.double(), act="tanh"), want)
    torch.testing.assert_close(epilogue(x.clone(), scale, noise, bias, act="tanh"), want.float())


def test_empty_batches_pass(native):
    backend.set_policy("native")
    x = torch.randn(0, 4, 3, 3).contiguous(memory_format=LAST).requires_grad_()
    scale = torch.rand(0, 4).requires_grad_()
    y = epilogue(modulate(x, scale), scale, bias=torch.zeros(4), act="lrelu")
    assert y.shape == x.shape
    assert all(g.numel() == 0 for g in torch.autograd.grad(y.sum(), [x, scale]))


def test_opcheck(native):
    from torch_utils.ops.native_modulation import ops

    x, scale, noise, bias, dy = operands(5, 2, 4, 3, 3)
    torch.library.opcheck(ops.modulate.default, (x, scale))
    torch.library.opcheck(ops.modulate_backward.default, (dy, x, scale))
    torch.library.opcheck(ops.epilogue.default, (x, scale, noise, bias, 0.2, 1.4, -1.0))
    torch.library.opcheck(ops.epilogue_backward.default, (dy, x, scale, None, None, 0.2, 1.4, 0.5))


def losses(policy):
    """Gradients of a generator's weights for a plain loss and for a path length, and of a discriminator's for R1."""
    backend.set_policy(policy)
    torch.manual_seed(0)
    width = dict(channel_base=256, channel_max=16)
    G = Generator(8, 0, 8, 16, 3, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=width)
    D = Discriminator(0, 16, 3, **width)
    for layer in (G.synthesis.b8.conv0, G.synthesis.b16.conv1):  # otherwise zero, which would hide the noise
        layer.noise_strength.data.fill_(0.3)
    ws = G.mapping(torch.randn(4, 8), None)
    img = G.synthesis(ws, noise_mode="const")
    plain = torch.autograd.grad(img.square().mean(), list(G.parameters()), retain_graph=True, allow_unused=True)
    (slope,) = torch.autograd.grad((img * torch.randn_like(img)).sum(), ws, create_graph=True)
    path = torch.autograd.grad(slope.square().sum(), list(G.synthesis.parameters()), materialize_grads=True)
    real = torch.randn(4, 3, 16, 16).requires_grad_()
    (slope,) = torch.autograd.grad(D(real, None).sum(), real, create_graph=True)
    r1 = torch.autograd.grad(slope.square().sum(), list(D.parameters()), materialize_grads=True)
    return [img, *(g for g in plain if g is not None), *path, *r1]


def test_networks_and_their_regularisers_are_the_same_with_native_ops(native):
    assert_near(losses("native"), losses("reference"), 2e-4)


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory.__wrapped__() is False
