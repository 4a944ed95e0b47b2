"""The C++ of the native ops equals the reference ops on thousands of random cases, and so does what the threads of the CUDA kernels do.

What a CUDA thread does is compiled for the CPU as well (csrc_threads.cpp) and run one thread after another; launching is not tested here.
"""

import ctypes
import math
import pathlib
import random
import shutil

import csrc_calls
import pytest
import torch

from torch_utils import custom_ops
from torch_utils.ops import backend
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.upfirdn2d import filter_size, setup_filter, upfirdn2d

CASES = 1500
HERE = pathlib.Path(__file__).parent
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
CUDA_DTYPES = (*DTYPES, torch.float16)
TOLERANCE = {torch.float32: 2e-6, torch.float64: 2e-13, torch.bfloat16: 6e-3, torch.float16: 8e-4}
FACTORS = ((1, 1), (2, 1), (1, 2))  # up and down of the kernels made for 4 and 12 taps
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def reference_ops():
    """The oracle is the reference whatever is built."""
    backend.set_policy("reference")


@pytest.fixture(scope="module")
def cpu():
    return csrc_calls.declared(custom_ops.load("cpu"))


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    """What CUDA threads do, on the CPU."""
    target = tmp_path_factory.mktemp("csrc") / "threads.so"
    csrc_calls.compiled(target, [HERE / "csrc_threads.cpp"], "-O1", "-shared", "-Wno-unknown-pragmas", f"-I{HERE}")
    return csrc_calls.declared(ctypes.CDLL(str(target)))


def near(actual, expected):
    """Within rounding of a result computed in double precision."""
    size = max(expected.abs().max().item(), 1e-3) if expected.numel() else 1.0
    return actual.shape == expected.shape and bool(((actual.double() - expected).abs() <= TOLERANCE[actual.dtype] * size).all())


def draw_image(rng, dtype, channels=(1, 2, 3, 8, 17, 24, 35), layouts=("nchw", "last", "rows", "gaps")):
    """A random image in a random layout, odd sizes and slices of larger tensors included."""
    shape = [rng.choice([1, 2, 3]), rng.choice(channels), rng.randint(1, 13), rng.randint(1, 13)]
    x = torch.randn(shape, generator=rng.torch, dtype=torch.float64).to(dtype)
    layout = rng.choice(layouts)
    if layout == "last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "rows":  # no axis of neighbours along rows or channels
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "gaps":
        large = torch.randn([shape[0], shape[1] + 1, shape[2] + 2, shape[3] + 3], generator=rng.torch, dtype=torch.float64).to(dtype)
        return large[:, 1:, 1:-1, 2:-1]
    return x


def draw_filter(rng):
    """Separable, of two dimensions, or of two dimensions and made of one."""
    kind = rng.choice(["separable", "free", "product", "usual"])
    if kind == "separable":
        return torch.randn(rng.randint(1, 13), generator=rng.torch)
    if kind == "free":
        return torch.randn(rng.randint(1, 5), rng.randint(1, 5), generator=rng.torch)
    return setup_filter([1, 3, 3, 1] if kind == "usual" else torch.rand(rng.randint(1, 6), generator=rng.torch) + 0.1)


def draw_padding(rng, x, f, up):
    """Padding and cropping that leave at least one pixel, or None if the draw does not."""
    (fw, fh), pad = filter_size(f), [rng.randint(-3, 7) for _ in range(4)]
    fits = x.shape[3] * up[0] + pad[0] + pad[1] >= fw and x.shape[2] * up[1] + pad[2] + pad[3] >= fh
    return pad if fits else None


def draws(seed):
    rng = random.Random(seed)
    rng.torch = torch.Generator().manual_seed(seed)
    return rng


@pytest.mark.parametrize("dtype", DTYPES)
def test_upfirdn2d_equals_the_reference(cpu, dtype):
    rng, tried = draws(0), 0
    while tried < CASES:
        x, f = draw_image(rng, dtype), draw_filter(rng)
        up, down = ([rng.choice([1, 1, 2, 2, 3]) for _ in "xy"] for _ in range(2))
        padding = draw_padding(rng, x, f, up)
        if padding is None:
            continue
        options = (up, down, padding, rng.random() < 0.5, rng.choice([1.0, 4.0, 0.3]))
        y = csrc_calls.upfirdn2d(cpu.upfirdn2d_cpu, x, f, *options)
        assert near(y, upfirdn2d(x.double(), f, *options)), (x.shape, x.stride(), f.shape, options)
        tried += 1


@pytest.mark.parametrize("dtype", CUDA_DTYPES)
@pytest.mark.parametrize("taps", [4, 12])
@pytest.mark.parametrize(("up", "down"), FACTORS)
def test_common_filters_equal_the_reference(cpu, threads, taps, up, down, dtype):
    rng, tried = draws(taps), 0
    while tried < CASES // 20:
        wide = rng.random() < 0.5
        layouts = ("nchw", "last", "rows", "gaps") if taps == 12 else ("nchw", "last", "gaps")
        x = draw_image(rng, dtype, (8, 20, 36), ("last",)) if wide else draw_image(rng, dtype, (1, 3, 20), layouts)
        f = torch.randn([12] if taps == 12 else [4] if rng.random() < 0.3 else [4, 4], generator=rng.torch)
        f = setup_filter([1, 3, 3, 1]) if taps == 4 and rng.random() < 0.3 else f
        padding = draw_padding(rng, x, f, [up, up])
        if padding is None:
            continue
        options = ((up, up), (down, down), padding, rng.random() < 0.5, rng.choice([1.0, 4.0, 0.3]))
        expected = upfirdn2d(x.double(), f, *options)
        if dtype in DTYPES:
            assert near(csrc_calls.upfirdn2d(cpu.upfirdn2d_cpu, x, f, *options), expected), (x.shape, f.shape, options)
        assert near(csrc_calls.upfirdn2d(threads.upfirdn2d_threads, x, f, *options, last=int(wide)), expected), (wide, x.shape, f.shape, options)
        tried += 1


@pytest.mark.parametrize(("up", "down"), FACTORS)
def test_kernels_with_32_bits_are_launched_only_where_these_are_enough(threads, up, down):
    """Addresses, threads and blocks of tensors that are never made, on both sides of the limit."""
    rng, outcomes = random.Random(0), set()
    f = torch.empty(4, device="meta")
    for _ in range(2000):
        n, c, h, w = (rng.choice([1, 2, 3, 7, 2 ** rng.randint(3, 12) + rng.choice([-1, 0, 1])]) for _ in range(4))
        x, pad = torch.empty([n, c, h, w], device="meta"), rng.choice([-1, 0, 2, 5, 1 << 10])
        out = [(size * up + 2 * max(pad, 0) + 4) // down for size in (h, w)]
        y = torch.empty([n, c, *out], device="meta")
        args, sizes = csrc_calls.upfirdn2d_args(x, f, y, (up, up), (down, down), (pad,) * 4, True, 1.0), (ctypes.c_int64 * 3)()
        fits = threads.fits_32_bits_threads(ctypes.byref(args), sizes)
        outcomes.add(bool(fits))
        if fits:
            assert x.numel() < 2**30 and y.numel() < 2**30 and 0 < max(sizes) < 2**30, (x.shape, pad)
    assert outcomes == {False, True}


def test_strides_and_paddings_beyond_32_bits_are_seen(threads):
    """Which no random case has: a small view of large memory, and a padding as long as the limit."""
    f, small = torch.empty(4, device="meta"), torch.empty([1, 1, 4, 4], device="meta")
    far = torch.empty_strided([2, 1, 4, 4], [2**31, 16, 4, 1], device="meta")

    def fits(x, y, padding):
        args = csrc_calls.upfirdn2d_args(x, f, y, (1, 1), (1, 1), padding, True, 1.0)
        return bool(threads.fits_32_bits_threads(ctypes.byref(args), (ctypes.c_int64 * 3)()))

    assert fits(small, small, (0,) * 4) and fits(small, small, (2**30 - 1,) * 4)
    assert not fits(far, small.expand(2, 1, 4, 4), (0,) * 4) and not fits(small.expand(2, 1, 4, 4), far, (0,) * 4)
    for padding in (2**30, -(2**30)):
        assert not fits(small, small, (padding, 0, 0, 0)) and not fits(small, small, (0, 0, padding, 0))


def test_eight_images_of_1024_pixels_under_augmentation_are_within_32_bits(threads):
    """The augmentation's finest lattice is the largest image that these kernels meet: a tensor's numbers are not counted twice."""
    f = torch.ones(12)
    for images, right in ((8, True), (10, False)):
        x, y = (torch.empty([images, 3, size, size], device="meta") for size in (3076, 6140))
        args = csrc_calls.upfirdn2d_args(x, f, y, (2, 2), (1, 1), (0,) * 4, True, 1.0)
        assert bool(threads.fits_32_bits_threads(ctypes.byref(args), (ctypes.c_int64 * 3)())) is right


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("taps", "up", "down"), [(taps, *factors) for taps in (3, 4, 12) for factors in FACTORS])
def test_the_number_of_threads_changes_no_bit(cpu, taps, up, down, channels_last):
    x = torch.randn(3, 24, 33, 31).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    f = torch.rand(taps)
    one, two, many = (csrc_calls.upfirdn2d(cpu.upfirdn2d_cpu, x, f, (up, up), (down, down), (taps // 2,) * 4, last=count) for count in (1, 2, 5))
    assert torch.equal(one, two) and torch.equal(one, many)


def test_nothing_beside_the_result_is_written(cpu):
    x = torch.randn(2, 20, 9, 7).contiguous(memory_format=torch.channels_last)
    for f in (setup_filter([1, 3, 3, 1]), torch.rand(12), torch.rand(3, 2)):
        for image in (x, x.contiguous()):
            whole = torch.full([4, 20, 30, 30], 7.0).contiguous(memory_format=torch.channels_last if image is x else torch.contiguous_format)
            inner = whole[1:3, :, 3:21, 2:15]
            csrc_calls.upfirdn2d(cpu.upfirdn2d_cpu, image, f, (2, 2), padding=(4, 4, 4, 4), out=inner)
            assert not (inner == 7).any()
            inner.fill_(7)
            assert (whole == 7).all()


def test_zeros_of_the_padding_are_not_multiplied_by_what_lies_beside(cpu):
    x = torch.full([1, 16, 4, 4], math.inf).contiguous(memory_format=torch.channels_last)
    y = csrc_calls.upfirdn2d(cpu.upfirdn2d_cpu, x[:, :, 1:3, 1:3].zero_(), setup_filter([1, 3, 3, 1]), padding=(3, 3, 3, 3))
    assert torch.equal(y, torch.zeros_like(y))


def test_wrong_arguments_are_told(cpu):
    x, f = torch.randn(1, 1, 4, 4), torch.rand(2, 2)
    y = torch.empty(1, 1, 3, 3)
    for field, value in {"up_x": 0, "down_y": -1, "fw": 0, "in_h": -1, "dtype": 2, "separable": 1}.items():
        args = csrc_calls.upfirdn2d_args(x, f, y, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0)
        args.fh = 3 if field == "separable" else args.fh
        setattr(args, field, value)
        assert cpu.upfirdn2d_cpu(ctypes.byref(args), x.data_ptr(), f.data_ptr(), y.data_ptr(), 1) > 0, field
    args = csrc_calls.bias_act_args(x, 1, "tanh", 0, 1, None, 1)
    assert cpu.bias_act_cpu(ctypes.byref(args), None, None, x.data_ptr(), x.data_ptr(), None, y.data_ptr(), 1) > 0  # tanh from its result
    assert cpu.bias_act_cpu(ctypes.byref(args), x.data_ptr(), None, None, None, None, y.data_ptr(), 1) > 0  # no dy


# ---- bias_act


def draw_activation(rng, act, dtype):
    """Operands and options."""
    shape = [rng.randint(1, 4), rng.choice([1, 3, 8, 33]), rng.randint(1, 9), rng.choice([1, 5, 40])]
    shape = shape if rng.random() < 0.7 else [rng.randint(1, 9), rng.randint(1, 600)]
    x = (torch.randn(shape, generator=rng.torch, dtype=torch.float64) * 2).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 and rng.random() < 0.5 else x
    b = torch.randn(shape[1], generator=rng.torch, dtype=torch.float64).to(dtype) if rng.random() < 0.7 else None
    return x, b, {"act": act, "alpha": rng.choice([0.2, 0.0, 1.1]), "gain": rng.choice([1.0, 1.4, -0.5]), "clamp": rng.choice([None, 0.7])}


def expected_to_second_order(x, b, dy, ddx, options):
    """Result and derivatives in double precision, and where no derivative is close to a jump."""
    x, b, dy, ddx = (None if t is None else t.double() for t in (x, b, dy, ddx))
    x.requires_grad_()
    y = bias_act(x, b, **options)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    second = torch.autograd.grad(dx, x, ddx, allow_unused=True)[0] if dx.requires_grad else None
    unclamped = bias_act(x, b, **(options | {"clamp": None})).abs()
    shift = 0 if b is None else b.reshape([1, -1] + [1] * (x.ndim - 2))
    smooth = ((x + shift).abs() > 1e-2) & (True if options["clamp"] is None else (unclamped - options["clamp"]).abs() > 2e-2)
    return y.detach(), dx.detach(), torch.zeros_like(dx) if second is None else second, smooth


@pytest.mark.parametrize("dtype", CUDA_DTYPES)
@pytest.mark.parametrize("act", list(ACTIVATIONS))
def test_bias_act_equals_the_reference_to_second_order(cpu, threads, act, dtype):
    rng = draws(1)
    for _ in range(CASES // 30):
        x, b, options = draw_activation(rng, act, dtype)
        dy, ddx = torch.randn_like(x), torch.randn_like(x)
        y, dx, d_x, smooth = expected_to_second_order(x, b, dy, ddx, options)
        numbers = (options["act"], options["alpha"], options["gain"], options["clamp"])
        orders = [csrc_calls.bias_act_args(x, 1, *numbers, order) for order in range(3)]
        for library in (cpu, threads) if dtype in DTYPES else (threads,):
            how = {"threads": rng.choice([1, 2]), "wide": x.numel() % (16 // x.element_size()) == 0 and rng.random() < 0.7}
            found = csrc_calls.bias_act(library, orders[0], x, b, **how)
            assert near(found, y), (x.shape, options)
            results = [(csrc_calls.bias_act(library, orders[1], x, b, dy=dy, **how), dx)]
            results.append((csrc_calls.bias_act(library, orders[2], x, b, None, dy, ddx, **how), d_x))
            if act in ("linear", "relu", "lrelu"):
                results.append((csrc_calls.bias_act(library, orders[1], None, None, found, dy, **how), dx))
                results.append((csrc_calls.bias_act(library, orders[2], None, None, found, dy, ddx, **how), torch.zeros_like(dx)))
            for actual, expected in results:
                assert near(torch.where(smooth, actual, 0), torch.where(smooth, expected, 0)), (x.shape, options)


@pytest.mark.parametrize("act", list(ACTIVATIONS))
def test_infinities_and_nans_pass_as_in_the_reference(cpu, threads, act):
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 88.0, -104.0, 25.0, -25.0, 1e-30, 3.0, -3.0, 19.9, 20.1]).reshape(1, -1)
    for clamp in (None, 2.0):
        leaf = x.clone().requires_grad_()
        expected = bias_act(leaf, act=act, gain=1.5, clamp=clamp)
        (slope,) = torch.autograd.grad(expected, leaf, torch.ones_like(x))
        alpha = ACTIVATIONS[act].alpha
        for library in (cpu, threads):
            orders = [csrc_calls.bias_act_args(x, 1, act, alpha, 1.5, clamp, order) for order in (0, 1)]
            actual, derivative = (csrc_calls.bias_act(library, args, x, None, dy=torch.ones_like(x)) for args in orders)
            torch.testing.assert_close(actual, expected.detach(), equal_nan=True)
            if act != "swish":  # whose derivative the reference makes of a product of zero and infinity
                torch.testing.assert_close(derivative, slope, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bias_act_has_the_same_bits_on_any_number_of_threads(cpu, channels_last):
    x = torch.randn(3, 37, 25, 23).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    args, b = csrc_calls.bias_act_args(x, 1, "swish", 0.0, 1.4, 0.9, 0), torch.randn(37)
    one, two, many = (csrc_calls.bias_act(cpu, args, x, b, threads=count) for count in (1, 2, 5))
    assert torch.equal(one, two) and torch.equal(one, many)
