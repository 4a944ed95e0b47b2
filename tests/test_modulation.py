"""The passes around a modulated convolution: native equals reference in value, first and second gradients, for every operand there may be."""

import random

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_utils import allocator
from torch_utils.ops import backend
from torch_utils.ops.modulation import SLOPES, epilogue, modulate
from training.networks import Discriminator, Generator

LAST, NCHW = torch.channels_last, torch.contiguous_format
GPU = pytest.mark.gpu
PLACES = [("cpu", LAST), pytest.param("cuda", LAST, marks=GPU), pytest.param("cuda", NCHW, marks=GPU)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
FORMATS = [*((*place, dtype) for place in PLACES[:1] for dtype in (torch.float32, torch.float64, torch.bfloat16))]
FORMATS += [pytest.param("cuda", layout, dtype, marks=GPU) for layout in (LAST, NCHW) for dtype in TOLERANCE]
places = pytest.mark.parametrize(("device", "layout"), PLACES, ids=str)
formats = pytest.mark.parametrize(("device", "layout", "dtype"), FORMATS, ids=str)


def operands(seed, n, c, h, w, dtype=torch.float32, shared_noise=False, device="cpu", layout=LAST):
    """x, scale, noise, bias and a gradient."""
    g = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn([n, c, h, w], generator=g).to(device, dtype).contiguous(memory_format=layout) for _ in range(2))
    scale, bias = torch.rand([n, c], generator=g) + 0.5, torch.randn([c], generator=g)
    noise = torch.randn([1 if shared_noise else n, 1, h, w], generator=g)
    return x, *(t.to(device, torch.promote_types(dtype, torch.float32)) for t in (scale, noise, bias)), dy


def gradients(policy, function, inputs, dy):
    """The value, the gradients, and the gradients of a function of those."""
    backend.set_policy(policy)
    inputs = [None if t is None else t.clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    there = [t for t in inputs if t is not None]
    dy = dy.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(*inputs)
    assert all(y.is_contiguous(memory_format=layout) for layout in (LAST, NCHW) if inputs[0].is_contiguous(memory_format=layout))
    first = torch.autograd.grad(y, there, dy, retain_graph=True)
    again = torch.autograd.grad(y, there, dy, create_graph=True)
    second = torch.autograd.grad(sum(t.float().square().sum() for t in again), [*there, dy], materialize_grads=True)
    return [y, *first, *again, *second]


def assert_near(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a.double() - b.double()).abs().max() <= tolerance * max(b.double().abs().max().item(), 1e-3)


def random_size(seed):
    """Widths on both sides of a vector's, and more and fewer pixels than are summed at once."""
    draw = random.Random(seed)
    return draw.randint(1, 4), draw.choice([1, 3, 16, 17, 64, 70]), draw.randint(1, 9), draw.randint(1, 20)


@formats
def test_native_modulate_equals_the_reference(native_ops, device, layout, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    for seed in range(40):
        x, scale, _, _, dy = operands(seed, *random_size(seed), dtype, device=device, layout=layout)
        expected = gradients("reference", modulate, (x.to(wide), scale), dy.to(wide))
        actual = gradients("native", modulate, (x, scale), dy)
        assert_near(actual, [t.to(a.dtype) for t, a in zip(expected, actual)], TOLERANCE[dtype])


@places
@pytest.mark.parametrize("act", sorted(SLOPES))
@pytest.mark.parametrize("with_noise", ["none", "one", "each"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_native_epilogue_equals_the_reference(native_ops, act, with_noise, with_bias, device, layout):
    def function(*tensors):
        return epilogue(*tensors, act=act, gain=0.7 if with_bias else None)

    cases = 0
    for seed in range(20):
        x, scale, noise, bias, dy = operands(seed, *random_size(seed), shared_noise=with_noise == "one", device=device, layout=layout)
        inputs = (x, scale, None if with_noise == "none" else noise, bias if with_bias else None)
        u = x * scale[:, :, None, None] + (0 if inputs[2] is None else noise) + (bias[:, None, None] if with_bias else 0)
        if act == "linear" or u.abs().min() > 1e-5:  # rounding must not move anything across the kink
            assert_near(gradients("native", function, inputs, dy), gradients("reference", function, inputs, dy), 1e-5)
            cases += 1
    assert cases >= 5


@places
def test_native_epilogue_clamps_as_the_reference(native_ops, device, layout):
    *inputs, dy = operands(0, 3, 20, 9, 9, device=device, layout=layout)

    def function(*tensors):
        return epilogue(*tensors, act="lrelu", clamp=0.8)

    actual, expected = gradients("native", function, inputs, dy), gradients("reference", function, inputs, dy)
    assert (actual[0].abs() == 0.8).any() and actual[0].abs().max() <= 0.8
    assert_near(actual, expected, 1e-5)


@formats
def test_native_epilogue_in_any_format_is_near_the_reference_in_more_digits(native_ops, device, layout, dtype):
    x, scale, noise, bias, dy = operands(2, 4, 64, 16, 16, dtype, device=device, layout=layout)
    wide = torch.promote_types(dtype, torch.float32)

    def function(*tensors):
        return epilogue(*tensors, act="lrelu")

    expected = gradients("reference", function, (x.to(wide), scale, noise, bias), dy.to(wide))
    actual = gradients("native", function, (x, scale, noise, bias), dy)
    assert [t.dtype for t in actual[1:5]] == [dtype, *[wide] * 3]
    assert_near(actual, [t.to(a.dtype) for t, a in zip(expected, actual)], TOLERANCE[dtype])


@places
@pytest.mark.parametrize("clamp", [None, 1.0])
def test_gradcheck_to_second_order(native_ops, device, layout, clamp):
    x, scale, noise, bias, _ = operands(6, 2, 3, 2, 3, torch.float64, device=device, layout=layout)

    def layer(x, scale, noise, bias):
        return epilogue(modulate(x, scale), scale, noise, bias, act="lrelu", clamp=clamp)

    inputs = [t.requires_grad_() for t in (x, scale, noise, bias)]
    assert gradcheck(layer, inputs) and gradgradcheck(layer, inputs)


def test_sums_do_not_depend_on_the_number_of_threads(native_ops):
    x, scale, noise, bias, dy = operands(3, 5, 64, 24, 24)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients("native", lambda *t: epilogue(*t, act="lrelu"), (x, scale, noise, bias), dy)[:5])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@places
def test_other_layouts_activations_and_types_run_the_reference(native_ops, device, layout):
    x, scale, noise, bias, _ = operands(4, 2, 6, 5, 5, device=device, layout=layout)
    elsewhere = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(modulate(elsewhere, scale), x * scale[:, :, None, None])
    want = torch.tanh(x.double() * scale[:, :, None, None] + noise + bias[:, None, None])
    torch.testing.assert_close(epilogue(x.double(), scale.double(), noise.double(), bias.double(), act="tanh"), want)
    torch.testing.assert_close(epilogue(x.clone(), scale, noise, bias, act="tanh"), want.float())


@places
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)])
def test_empty_tensors_pass(native_ops, device, layout, shape):
    x, scale, noise, bias, _ = (t.requires_grad_() for t in operands(0, *shape, device=device, layout=layout))
    y = epilogue(modulate(x, scale), scale, noise, bias, act="lrelu")
    assert y.shape == x.shape
    for gradient, t in zip(torch.autograd.grad(y.sum(), [x, scale, noise, bias]), (x, scale, noise, bias)):
        assert gradient.shape == t.shape and not gradient.any()


@places
def test_operands_at_odd_addresses_and_with_gaps_give_the_same(native_ops, device, layout):
    x, scale, noise, bias, dy = operands(7, 2, 16, 4, 6, device=device, layout=layout)

    def function(*tensors):
        return epilogue(*tensors, act="lrelu")

    def moved(t):
        return torch.empty(t.numel() + 1, device=device)[1:].as_strided(t.shape, t.stride()).copy_(t)

    plain = gradients("native", function, (x, scale, noise, bias), dy)
    backend.set_policy("native")
    inputs = moved(x), torch.stack([scale, scale], 2)[..., 0], noise.transpose(2, 3).contiguous().transpose(2, 3), bias
    inputs = [t.requires_grad_() for t in inputs]
    y = function(*inputs)
    assert_near([y, *torch.autograd.grad(y, inputs, torch.cat([dy, dy], 3)[..., :6])], plain[:5], 1e-6)


@places
@pytest.mark.parametrize("kind", ["expanded", "gaps", "gaps in channels_last", "transposed"])
def test_the_ops_themselves_take_any_strides(native_ops, device, layout, kind):
    """As a compiler may hand them over."""
    from torch_utils.ops.native_modulation import ops

    backend.implementation(device)
    x, scale, noise, bias, dy = operands(9, 2, 16, 4, 6, device=device, layout=layout)
    if kind == "expanded":
        x, dy = x[:1].expand_as(x), dy[:, :1].expand_as(dy)
    elif kind == "gaps":
        x, dy = (torch.cat([t, t], 3)[..., :6] for t in (x.contiguous(), dy.contiguous()))
    elif kind == "gaps in channels_last":
        x, dy = (torch.cat([t, t], 1).contiguous(memory_format=LAST)[:, :16] for t in (x, dy))
    else:
        x, dy = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (x, dy))
    dense = [t.contiguous(memory_format=layout) for t in (x, dy)]
    assert not x.is_contiguous() and not x.is_contiguous(memory_format=LAST)
    settings = 0.2, 1.4, -1.0
    cases = [(ops.modulate, ((x, scale), (dense[0], scale))), (ops.modulate_backward, ((dy, x, scale), (dense[1], dense[0], scale)))]
    cases += [(ops.epilogue, [(t, scale, noise, bias, *settings) for t in (x, dense[0])])]
    cases += [(ops.epilogue_backward, [(d, t, scale, noise, bias, *settings) for d, t in ((dy, x), (dense[1], dense[0]))])]
    for op, (given, right) in cases:
        results, expected = ([t] if isinstance(t, torch.Tensor) else t for t in (op(*given), op(*right)))
        assert_near(results, expected, 1e-6)
        torch.library.opcheck(op.default, given)


@places
def test_operands_of_another_type_are_refused(native_ops, device, layout):
    from torch_utils.ops.native_modulation import ops

    backend.implementation(device)
    x, scale, noise, bias, dy = operands(5, 2, 4, 3, 3, device=device, layout=layout)
    with pytest.raises(RuntimeError, match=r"native modulate: an operand is torch\.float64 where torch\.float32 belongs"):
        ops.modulate(x, scale.double())
    with pytest.raises(RuntimeError, match=r"torch\.bfloat16 where torch\.float32 belongs, beside torch\.bfloat16"):
        ops.epilogue(x.bfloat16(), scale, noise, bias.bfloat16(), 0.2, 1.4, -1.0)
    with pytest.raises(RuntimeError, match=r"native epilogue_backward: an operand is torch\.bfloat16"):
        ops.epilogue_backward(dy.bfloat16(), x, scale, noise, bias, 0.2, 1.4, -1.0)


SHAPES = {
    "styles": [(1, 4), (2, 3), (2, 4, 1)],
    "noise": [(3, 1, 3, 5), (2, 4, 3, 5), (1, 1, 1, 1), (3, 5)],
    "bias": [(1,), (2, 4)],
    "x": [(2, 4, 15)],
}


@places
@pytest.mark.parametrize("policy", ["native", "reference"])
@pytest.mark.parametrize(("operand", "shape"), [(name, shape) for name, shapes in SHAPES.items() for shape in shapes], ids=str)
def test_operands_of_other_shapes_are_refused(native_ops, policy, operand, shape, device, layout):
    """The reference would broadcast some; the native passes would read beside them."""
    backend.set_policy(policy)
    x, scale, noise, bias, _ = operands(5, 2, 4, 3, 5, device=device, layout=layout)
    given = {"x": x, "styles": scale, "noise": noise, "bias": bias} | {operand: torch.ones(shape, device=device)}
    with pytest.raises(ValueError, match=r"takes styles or scale \[N, C\], noise \[N or 1, 1, H, W\].*; found x \["):
        epilogue(*given.values(), act="lrelu")
    if operand in ("x", "styles"):
        with pytest.raises(ValueError, match="found x"):
            modulate(given["x"], given["styles"])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gradients_of_other_shapes_are_refused(native_ops, device):
    from torch_utils.ops.native_modulation import ops

    backend.implementation("cpu")
    x, scale, noise, bias, dy = (t.to(device) for t in operands(5, 2, 4, 3, 5))
    settings = 0.2, 1.4, -1.0
    for call in (
        lambda: ops.modulate(x, scale[:1]),
        lambda: ops.modulate_backward(dy[:1], x, scale),
        lambda: ops.epilogue(x, scale, noise, bias[:1], *settings),
        lambda: ops.epilogue_backward(dy[..., :4], x, scale, noise, bias, *settings),
        lambda: ops.epilogue_backward(dy, x, scale, noise[:, :, :1], bias, *settings),
    ):
        with pytest.raises(ValueError, match="gradient as x; found x"):
            call()


@places
@pytest.mark.parametrize("act", sorted(SLOPES))
def test_derivatives_at_the_kinks_are_those_of_the_reference(native_ops, act, device, layout):
    """Of the clamp and of the activation: exactly there, where every number has an exact binary form."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.25, -1.25], device=device)
    x = values.repeat(2, 6, 1).view(2, 6, 2, 4).contiguous(memory_format=layout)
    ones = torch.ones(2, 6, device=device)
    for gain, clamp in ((1.0, 1.0), (2.0, 1.0), (0.5, 0.0), (-1.0, 1.0)):

        def function(*tensors, gain=gain, clamp=clamp):
            return epilogue(*tensors, act=act, gain=gain, clamp=clamp)

        inputs = (x, ones, torch.zeros(2, 1, 2, 4, device=device), torch.zeros(6, device=device))
        found, expected = (gradients(policy, function, inputs, torch.ones_like(x)) for policy in ("native", "reference"))
        assert_near(found, expected, 1e-6)


@places
@pytest.mark.parametrize("act", ["lrelu", "relu", "linear", "tanh"])
@pytest.mark.parametrize("gain", [0.0, -0.7])
def test_gains_of_zero_and_less(native_ops, act, gain, device, layout):
    *inputs, dy = operands(11, 2, 6, 5, 5, torch.float64, device=device, layout=layout)
    x, scale, noise, bias = inputs

    def function(*tensors):
        return epilogue(*tensors, act=act, gain=gain, clamp=0.9)

    u = x * scale[:, :, None, None] + noise + bias[:, None, None]
    shape = {"lrelu": lambda u: torch.where(u > 0, u, 0.2 * u), "relu": torch.relu, "linear": lambda u: u, "tanh": torch.tanh}[act]
    found, expected = gradients("native", function, inputs, dy), gradients("reference", function, inputs, dy)
    torch.testing.assert_close(expected[0].detach(), (gain * shape(u)).clamp(-0.9, 0.9))
    assert_near(found, expected, 1e-12)


@pytest.mark.parametrize("differentiable", [True, False])
def test_compiled_in_one_graph(native_ops, differentiable):
    """Made of PyTorch's operators where it may be differentiated, else of the native ops."""
    seen = set()

    def look(graph, inputs):
        seen.update(str(node.target).removesuffix(".default") for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def layer(x, scale, noise, bias):
        return epilogue(modulate(x, scale), scale, noise, bias, act="lrelu", clamp=1.5)

    *inputs, dy = operands(12, 2, 6, 4, 5)
    inputs = [t.requires_grad_() for t in inputs]
    torch.compiler.reset()
    with torch.set_grad_enabled(differentiable):
        found = torch.compile(layer, fullgraph=True, backend="aot_eager" if differentiable else look)(*inputs)
        expected = layer(*inputs)
    if differentiable:
        found, expected = ([y, *torch.autograd.grad(y, inputs, dy)] for y in (found, expected))
        assert_near(found, expected, 1e-5)
    else:
        assert torch.equal(found, expected) and {"pairing_gan.modulate", "pairing_gan.epilogue"} <= seen


@places
def test_opcheck(native_ops, device, layout):
    from torch_utils.ops.native_modulation import ops

    backend.implementation(device)
    x, scale, noise, bias, dy = operands(5, 2, 4, 3, 3, device=device, layout=layout)
    torch.library.opcheck(ops.modulate.default, (x, scale))
    torch.library.opcheck(ops.modulate_backward.default, (dy, x, scale))
    torch.library.opcheck(ops.epilogue.default, (x, scale, noise, bias, 0.2, 1.4, -1.0))
    torch.library.opcheck(ops.epilogue_backward.default, (dy, x, scale, None, None, 0.2, 1.4, 0.5))


def layer_on_gpu(layout, *size):
    """Its inputs, and a function that gives its gradients."""
    x, scale, noise, bias, dy = operands(8, *size, torch.float16, device="cuda", layout=layout)
    inputs = [t.requires_grad_() for t in (x, scale, noise, bias)]

    def run():
        y = epilogue(modulate(x, scale), scale, noise, bias, act="lrelu", clamp=256)
        return torch.autograd.grad(y, inputs, dy)

    return inputs, run


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [LAST, NCHW], ids=str)
def test_sums_on_a_gpu_have_the_same_bits_every_time(layout):
    _, run = layer_on_gpu(layout, 16, 512, 32, 32)
    first = run()
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(first, run()))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [LAST, NCHW], ids=str)
def test_captured_in_a_cuda_graph(layout):
    inputs, run = layer_on_gpu(layout, 8, 64, 32, 32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, run()))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [LAST, NCHW], ids=str)
def test_no_host_waits_for_the_device(layout):
    _, run = layer_on_gpu(layout, 2, 8, 4, 4)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("layout", [LAST, NCHW], ids=str)
def test_more_elements_than_32_bits_count(layout):
    """Takes 18 GB."""
    x = torch.ones(2, 64, 2**12, 2**12 + 8, dtype=torch.bfloat16, device="cuda").contiguous(memory_format=layout).requires_grad_()
    scale = torch.ones(2, 64, device="cuda", requires_grad=True)
    y = modulate(x, scale)
    dx, dscale = torch.autograd.grad(y, [x, scale], torch.ones_like(y))
    assert (y[-1, -1, -1] == 1).all() and (dx[-1, -1, -1] == 1).all()
    torch.testing.assert_close(dscale, torch.full_like(scale, 2**12 * (2**12 + 8)), rtol=1e-5, atol=0)


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


def test_networks_and_their_regularisers_are_the_same_with_native_ops(native_ops):
    assert_near(losses("native"), losses("reference"), 2e-4)


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory.__wrapped__() is False
