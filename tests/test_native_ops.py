"""The native ops equal the reference in double precision: values, gradients and second gradients, on thousands of random cases of every
dtype and layout. How torch sees them, and what runs where they cannot, is tested in test_native_torch."""

import dataclasses

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_utils.ops import backend
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d, upsample2d

CASES = 25  # per seed; every seed is a test
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Of the result, from its rounding, and of the sum over taps, from the arithmetic, which is float32 for the short formats.
ROUNDING = {torch.float64: 1e-15, torch.float32: 1e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ARITHMETIC = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}


pytestmark = pytest.mark.usefixtures("native_ops")


def pick(generator, values):
    """One of a sequence."""
    return values[int(torch.randint(len(values), [1], generator=generator))]


def between(generator, low, high):
    """An integer, both ends included."""
    return int(torch.randint(low, high + 1, [1], generator=generator))


def dtypes_of(device):
    return sorted(backend.DTYPES[device], key=str)


LAYOUTS = ["contiguous", "channels_last", "cropped", "cropped channels_last", "transposed", "expanded", "misaligned"]


def laid_out(x, layout):
    """The same numbers (where the layout allows it) otherwise in memory."""
    if layout.endswith("channels_last") and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout.startswith("cropped") and x.ndim > 0:
        wider = torch.cat([x, x, x], dim=-1)
        return wider.narrow(-1, x.shape[-1], x.shape[-1])
    if layout == "transposed" and x.ndim > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded" and x.ndim > 1:
        return x[:1].expand_as(x) if x.shape[0] else x
    if layout == "misaligned":
        return torch.cat([x.flatten()[:0], x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x


def random_tensor(generator, shape, dtype, device, layout):
    return laid_out(torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype), layout)


def assert_near(actual, expected, dtype, scale, roundings=1.01):
    """Within so many roundings of the result, and that of the arithmetic, whose largest intermediate is of size `scale`."""
    assert actual.shape == expected.shape and actual.dtype == dtype
    error = (actual.double() - expected).abs()
    assert bool((error <= roundings * ROUNDING[dtype] * expected.abs() + ARITHMETIC[dtype] * scale).all()), float(error.max())


# ---- upfirdn2d


@dataclasses.dataclass
class Resampling:
    """Arguments of upfirdn2d that fit together."""

    f: torch.Tensor
    up: tuple
    down: tuple
    padding: tuple
    flip_filter: bool
    gain: float

    def __call__(self, x):
        return upfirdn2d(x, self.f.to(x.device), self.up, self.down, self.padding, self.flip_filter, self.gain)


def random_resampling(g):
    """An image's shape and what is done to it, the cases of the networks among them."""
    h, w = between(g, 1, 17), between(g, 1, 17)
    usual = between(g, 0, 1)
    if usual:
        f = setup_filter(pick(g, [[1, 3, 3, 1], [1, 2, 1], list(range(1, 13))]))
        up, down = pick(g, [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 1), (1, 1)), ((1, 1), (1, 2))])
    else:
        size = [between(g, 1, 9) for _ in range(between(g, 1, 2))]
        f = torch.randn(size, generator=g)
        up, down = [tuple(pick(g, [1, 1, 2, 2, 3, 4]) for _ in range(2)) for _ in range(2)]
    fw, fh = f.shape[-1], f.shape[0]
    padding = []
    for size, factor, taps in ((w, up[0], fw), (h, up[1], fh)):
        before = between(g, -2, taps + 2)
        padding += [before, max(between(g, -2, taps + 2), taps - size * factor - before)]
    shape = [between(g, 0, 3) if between(g, 0, 9) == 0 else between(g, 1, 3), pick(g, [1, 2, 3, 4, 7, 8, 16, 33]), h, w]
    return shape, Resampling(f, up, down, tuple(padding), bool(between(g, 0, 1)), pick(g, [1.0, 4.0, 0.37]))


def check_resampling(g, device):
    """Value, gradient and second gradient of one random case. The op is linear, so these are the op, its adjoint, and the op again."""
    shape, op = random_resampling(g)
    dtype, layout = pick(g, dtypes_of(device)), pick(g, LAYOUTS)
    x = random_tensor(g, shape, dtype, device, layout).requires_grad_()
    y = op(x)
    dy = random_tensor(g, y.shape, dtype, device, pick(g, LAYOUTS)).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    ddx = random_tensor(g, shape, dtype, device, pick(g, LAYOUTS))
    (ddy,) = torch.autograd.grad(dx, dy, ddx)

    backend.set_policy("reference")
    exact = [t.detach().double() for t in (x, dy, ddx)]
    x64 = exact[0].requires_grad_()
    y64 = op(x64)
    (dx64,) = torch.autograd.grad(y64, x64, exact[1])
    ddy64 = op(exact[2])
    backend.set_policy("native")
    size = float(op.f.abs().sum()) ** (3 - op.f.ndim) * op.gain * 4
    for actual, expected in ((y, y64), (dx, dx64), (ddy, ddy64)):
        assert_near(actual.detach(), expected.detach(), dtype, size)
    if layout in ("contiguous", "channels_last", "cropped channels_last") and shape[1] > 1 and shape[2] * shape[3] > 1 and x.numel():
        last = layout != "contiguous"
        assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(60))
def test_upfirdn2d_equals_the_reference(seed, device):
    g = torch.Generator().manual_seed(seed)
    for _ in range(CASES):
        check_resampling(g, device)


# ---- bias_act


def random_activation(g, dim_size):
    """Shape, axis and arguments of one bias_act."""
    ndim = pick(g, [1, 2, 2, 3, 4, 4, 4, 5])
    dim = between(g, -ndim, ndim - 1)
    shape = [between(g, 0, 5) if between(g, 0, 19) == 0 else between(g, 1, 5) for _ in range(ndim)]
    shape[dim] = dim_size
    act = pick(g, list(ACTIVATIONS) + ["lrelu", "linear", "relu"] * 2)
    alpha = pick(g, [None, None, 0.0, 0.3, -0.4]) if act == "lrelu" else None
    arguments = {"act": act, "alpha": alpha, "gain": pick(g, [None, 1.0, 2.5, -0.7]), "clamp": pick(g, [None, 0.6, 256.0])}
    return shape, dim, arguments


def derivatives(x, b, dy, ddx, ddb, dim, arguments):
    """y, its gradients (dx, db), and those of <dx, ddx> + <db, ddb> with respect to dy, x and b; None where there is none."""
    y = bias_act(x, b, dim, **arguments)
    inputs = [x] if b is None else [x, b]
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    second = torch.autograd.grad(first, [dy, *inputs], [ddx] if b is None else [ddx, ddb], allow_unused=True)
    second = [torch.zeros_like(t) if s is None else s for s, t in zip(second, [dy, *inputs])]
    return [t.detach() for t in (y, *first, *second)]


def away_from_kinks(x, b, dim, arguments):
    """1 where a rounding cannot move the result over a kink, 0 elsewhere; float64 in, float64 out."""
    shape = [1] * x.ndim
    shape[dim] = -1
    s = x if b is None else x + b.view(shape)
    free = bias_act(s, None, dim, **{**arguments, "clamp": None})
    clamp = arguments["clamp"]
    near = s.abs() < 0.03
    if clamp is not None:
        near |= (free.abs() - clamp).abs() < 0.03 * max(clamp, 1)
    return (~near).double()


def check_activation(g, device):
    shape, dim, arguments = random_activation(g, between(g, 1, 9))
    dtype = pick(g, dtypes_of(device))
    x, dy, ddx = (random_tensor(g, shape, dtype, device, pick(g, LAYOUTS)) for _ in range(3))
    b, ddb = (random_tensor(g, [shape[dim]], dtype, device, "contiguous") for _ in range(2))
    if between(g, 0, 3) == 0:
        b = None
    backend.set_policy("reference")
    exact = [None if t is None else t.double() for t in (x, b)]
    smooth = away_from_kinks(*exact, dim, arguments)
    dy, ddx = dy * smooth.to(dtype), ddx * smooth.to(dtype)
    expected = derivatives(*(None if t is None else t.double().requires_grad_() for t in (x, b, dy, ddx, ddb)), dim, arguments)
    backend.set_policy("native")
    actual = derivatives(*(None if t is None else t.requires_grad_() for t in (x, b, dy, ddx, ddb)), dim, arguments)
    terms = max(x.numel() // shape[dim], 1)
    of_biases = (2, 5) if b is not None else ()
    of_dy = 2 if b is None else 3
    for number, (a, e) in enumerate(zip(actual, expected)):
        if number == of_dy:  # ddb reaches the kinks, too
            a, e = a * smooth.to(dtype), e * smooth
        # The gradient of a bias is a sum of what has been rounded. A second gradient begins with the sum of ddx and ddb, rounded.
        scale = 40 + (terms * 40 * ROUNDING[dtype] / ARITHMETIC[dtype] if number in of_biases else 0)
        assert_near(a, e, dtype, scale, 1.01 if number < 2 else 2.5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(60))
def test_bias_act_equals_the_reference(seed, device):
    g = torch.Generator().manual_seed(1000 + seed)
    for _ in range(CASES):
        check_activation(g, device)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_act_keeps_layout_and_does_not_touch_its_input(layout, dtype):
    x = torch.randn(2, 5, 6, 7, dtype=dtype).contiguous(memory_format=layout)
    kept = x.clone()
    y = bias_act(x.requires_grad_(), torch.ones(5), act="lrelu", inplace=True)
    assert y.stride() == x.stride() and torch.equal(x, kept)
    (dx,) = torch.autograd.grad(y, x, torch.ones(2, 5, 6, 7, dtype=dtype))
    assert dx.stride() == x.stride()


def test_nothing_to_do_is_nothing_done():
    x = torch.randn(3, 4)
    assert bias_act(x) is x


def test_not_a_number_stays_one():
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]])
    for act in ACTIVATIONS:
        y = bias_act(x, act=act, clamp=9.0)
        backend.set_policy("reference")
        expected = bias_act(x, act=act, clamp=9.0)
        backend.set_policy("native")
        assert torch.allclose(y, expected, rtol=1e-6, equal_nan=True), act


def test_the_third_derivative_is_refused_and_not_wrong():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(bias_act(x, act="tanh", dim=0).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="tanh twice, not three times"):
        torch.autograd.grad(second.sum(), x)


# ---- both


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck_of_both_in_one(device):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    b = torch.randn(3, dtype=torch.float64, device=device, requires_grad=True)
    f = setup_filter([1, 3, 3, 1], device=device)

    def layer(x, b):
        return upsample2d(bias_act(x, b, act="swish", clamp=3), f)

    assert gradcheck(layer, (x, b)) and gradgradcheck(layer, (x, b))


def test_numbers_do_not_depend_on_threads():
    g = torch.Generator().manual_seed(5)
    x, f = torch.randn(4, 8, 33, 31, generator=g), setup_filter([1, 3, 3, 1])
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append((upsample2d(x, f), upfirdn2d(x, f, down=2), bias_act(x, x[0, :, 0, 0], act="lrelu"), bias_act(x, act="softplus")))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.slow
def test_more_elements_than_32_bits_count():
    """Takes 9 GB."""
    x = torch.zeros(1, 2, 2**15 + 1, 2**15, dtype=torch.bfloat16)
    x[..., -1, -3:] = 1
    y = bias_act(x, torch.ones(2, dtype=torch.bfloat16))
    assert y[0, :, -1, -5:].tolist() == [[1, 1, 2, 2, 2]] * 2
    del y
    y = upfirdn2d(x, torch.tensor([[1.0, 2.0]]), padding=(1, 0, 0, 0), flip_filter=True)
    assert y[0, :, -1, -5:].tolist() == [[0, 0, 2, 3, 3]] * 2
