"""What the threads of the CUDA kernels around a modulated convolution do equals the reference: values and all gradients, every dtype and layout.

As in test_csrc, the threads' code is compiled for the CPU (csrc_modulation_threads.cpp) and run one thread after another. Launching is not tested.
"""

import ctypes
import pathlib
import random
import shutil

import csrc_calls
import pytest
import torch

from torch_utils.ops import backend
from torch_utils.ops.modulation import SLOPES, epilogue, modulate, small_dtype
from torch_utils.ops.native_modulation import _arguments as arguments

HERE = pathlib.Path(__file__).parent
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = {"last": torch.channels_last, "nchw": torch.contiguous_format}
ROUNDING = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
ARITHMETIC = {torch.float64: 1e-13, torch.float32: 5e-6}
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(autouse=True)
def reference_ops():
    """The oracle is the reference whatever is built."""
    backend.set_policy("reference")


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    """What CUDA threads do, on the CPU."""
    target = tmp_path_factory.mktemp("csrc") / "modulation_threads.so"
    csrc_calls.compiled(target, [HERE / "csrc_modulation_threads.cpp"], "-O0", "-shared", "-Wno-unknown-pragmas", f"-I{HERE}")
    library = ctypes.CDLL(str(target))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.modulation_parts_threads.argtypes = [pointer, pointer, number, ctypes.c_int64]
    library.modulation_threads.argtypes = [pointer, pointer, number, number, ctypes.c_int64]
    return library


class Case:
    """Random operands, and how blocks are laid out."""

    def __init__(self, seed, dtype, layout):
        rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
        n, c = rng.randint(1, 3), rng.choice([1, 3, 8, 16, 24, 65, 520])
        h, w = rng.choice([(1, 1), (4, 4), (5, 3), (8, 9), (16, 16), (23, 24)])
        self.x, self.dy = (torch.randn([n, c, h, w], generator=g).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2))
        small = small_dtype(self.x)
        self.scale, bias = (torch.rand([n, c], generator=g) + 0.5).to(small), torch.randn([c], generator=g).to(small)
        noise = torch.randn([rng.choice([1, n]), 1, h, w], generator=g).to(small)
        self.noise, self.bias = rng.choice([None, noise, noise]), rng.choice([None, bias, bias])
        self.last = layout == "last"
        self.aligned = rng.random() < 0.8 and all(t.data_ptr() % 16 == 0 for t in (self.x, self.dy))
        self.grid = rng.choice([32, 96, 256]), rng.choice([1, 7, 768])

    def run(self, library, activated, backward, numbers=(1.0, 1.0, -1.0)):
        """y; or dx, dscale, dbias and dnoise. What no thread writes stays NaN, and so do the bytes beside the results."""
        x, (threads, blocks) = self.x, self.grid
        noise, bias = (self.noise, self.bias) if activated else (None, None)
        per_sample = noise is not None and noise.shape[0] == x.shape[0]
        args = arguments(x.dtype, x.shape, per_sample, self.last, self.aligned, *numbers)
        parts = (ctypes.c_int64 * 2)()
        library.modulation_parts_threads(args, parts, threads, blocks)
        n, c, h, w = x.shape
        shapes = [[parts[0], n, c], [parts[0], n, c], [parts[1], n, h * w]]
        guarded = [torch.full([torch.Size(shape).numel() + 64], torch.nan, dtype=small_dtype(x)) for shape in shapes]
        sums = [t[32:-32].view(shape) for t, shape in zip(guarded, shapes)]
        sums = [t if there else None for t, there in zip(sums, (True, activated, noise is not None))]
        room = torch.full([x.numel() + 64], torch.nan, dtype=x.dtype)
        self.aligned = self.aligned and room.data_ptr() % 16 == 0
        y = room[32:-32].as_strided(x.shape, x.stride(), 32)
        operands = [x, self.scale, noise, bias, self.dy if backward else None, y, *(sums if backward else [None] * 3)]
        addresses = (ctypes.c_void_p * 9)(*(None if t is None else t.data_ptr() for t in operands))
        assert library.modulation_threads(args, addresses, activated, threads, blocks) == 0
        for t in (room, *guarded):
            assert t[:32].isnan().all() and t[-32:].isnan().all()
        if not backward:
            return [y]
        dscale, dbias, dnoise = (None if t is None else t.sum(dim=0) for t in sums)
        return [y, dscale, None if dbias is None or bias is None else dbias.sum(dim=0), dnoise]

    def expected(self, activated, **options):
        """The same in double precision from autograd."""
        there = (self.x, self.scale, self.noise, self.bias) if activated else (self.x, self.scale)
        leaves = [None if t is None else t.double().requires_grad_() for t in there]
        y = epilogue(*leaves, **options) if activated else modulate(*leaves)
        gradients = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], self.dy.double()))
        dx, dscale, *rest = [None if t is None else next(gradients) for t in leaves]
        dnoise, dbias = rest if rest else (None, None)
        if dnoise is not None:
            dnoise = dnoise.flatten(1)
        return y.detach(), [dx, dscale, dbias, dnoise]


def assert_near(actual, expected, shared_noise=False):
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if a is None:
            continue
        if shared_noise and a.ndim == 2 and e.shape[0] == 1:
            a = a.sum(dim=0, keepdim=True)
        assert a.shape == e.shape
        tolerance = ROUNDING[a.dtype] if a.ndim == 4 else ARITHMETIC[a.dtype]
        size = max(e.abs().max().item(), 1.0)
        assert ((a.double() - e).abs() <= tolerance * size).all(), (a.shape, (a.double() - e).abs().max().item(), size)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_modulate_and_its_gradients_equal_the_reference(threads, dtype, layout):
    for seed in range(15):
        case = Case(seed, dtype, layout)
        y, gradients = case.expected(False)
        assert_near(case.run(threads, False, False), [y])
        assert_near(case.run(threads, False, True), [gradients[0], gradients[1], None, None])


def away_from_kinks(case, clamp):
    """No result so near a kink that rounding could move it across."""
    u = case.x.double() * case.scale.double()[:, :, None, None]
    u = u + (0 if case.noise is None else case.noise) + (0 if case.bias is None else case.bias[:, None, None])
    y = torch.where(u > 0, u, SLOPES["lrelu"] * u) * 2**0.5
    near = (u.abs() < 1e-4) | (False if clamp is None else (y.abs() - clamp).abs() < 1e-4)
    case.dy = torch.where(near, 0, case.dy).contiguous(memory_format=LAYOUTS["last" if case.last else "nchw"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_epilogue_and_its_gradients_equal_the_reference(threads, dtype, layout):
    for seed in range(25):
        case, clamp = Case(100 + seed, dtype, layout), random.Random(seed).choice([None, 0.8, 256.0])
        away_from_kinks(case, clamp)
        numbers = (SLOPES["lrelu"], 2**0.5, -1.0 if clamp is None else clamp)
        y, gradients = case.expected(True, act="lrelu", clamp=clamp)
        assert_near(case.run(threads, True, False, numbers), [y])
        assert_near(case.run(threads, True, True, numbers), gradients, shared_noise=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_parts_and_tiles_come_up(threads, layout):
    """The random cases reach what they should: sums in several parts, packs and single elements."""
    parts = set()
    for seed in range(40):
        case = Case(100 + seed, torch.float32, layout)
        found = (ctypes.c_int64 * 2)()
        args = arguments(case.x.dtype, case.x.shape, False, case.last, case.aligned, 1.0, 1.0, -1.0)
        threads.modulation_parts_threads(args, found, *case.grid)
        parts.add((found[0] > 1, found[1] > 1))
    assert {(True, False), (False, True), (False, False)} <= parts


def test_parts_are_none_of_nothing_and_hold_beyond_32_bits(threads):
    def parts(*shape, layout):
        found = (ctypes.c_int64 * 2)()
        threads.modulation_parts_threads(arguments(torch.float16, shape, False, layout == "last", True, 1.0, 1.0, -1.0), found, 256, 768)
        return list(found)

    assert parts(0, 8, 4, 4, layout="last") == parts(2, 0, 4, 4, layout="nchw") == parts(2, 8, 0, 4, layout="last") == [0, 0]
    assert parts(64, 512, 32, 32, layout="last") == [12, 1]
    assert parts(1, 1 << 20, 1 << 10, 1 << 10, layout="last") == [2, 512]
    assert parts(1, 8, 1 << 20, 1 << 20, layout="nchw") == [1 << 29, 1]
