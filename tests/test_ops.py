"""The ops equal the golden numbers, differentiate twice, and keep their laws: linearity, adjointness, brightness."""

import json
import pathlib

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_utils import toolchain
from torch_utils.ops import backend
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from torch_utils.toolchain import BuildError

DATA = pathlib.Path(__file__).parent / "data"


@pytest.fixture(autouse=True, params=["reference", "native"])
def policy(request):
    """Both implementations; the native ones are skipped only where there is nothing to build them with."""
    if request.param == "native":
        try:
            toolchain.tool_identity("cpu")
        except BuildError as error:
            pytest.skip(str(error))
    backend.set_policy(request.param)


def load(name):
    with np.load(DATA / f"{name}.npz") as archive:
        return json.loads(str(archive["config"])), {k: torch.from_numpy(archive[k]) for k in archive.files if k != "config"}


def near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(expected.abs().max().item(), 1e-8)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", range(13))
def test_upfirdn2d_equals_golden(case, layout):
    config, t = load("upfirdn2d")
    t = {k.split(".")[1]: v for k, v in t.items() if k.startswith(f"case{case:02d}.")}
    x = t["x"].contiguous(memory_format=layout).requires_grad_()
    y = upfirdn2d(x, t["f"], **config[case])
    near(y, t["y"], 1e-4)
    near(torch.autograd.grad(y, x, t["dy"])[0], t["dx"], 1e-3)


@pytest.mark.parametrize("case", range(8))
def test_conv2d_resample_equals_golden(case):
    config, t = load("conv2d_resample")
    f = t.get(f"case{case:02d}.f", t.get("f"))
    t = {k.split(".")[1]: v for k, v in t.items() if k.startswith(f"case{case:02d}.")}
    x, w = t["x"].requires_grad_(), t["w"].requires_grad_()
    y = conv2d_resample(x, w, f=f, **config[case])
    near(y, t["y"], 1e-4)
    dx, dw = torch.autograd.grad(y, [x, w], t["dy"])
    near(dx, t["dx"], 1e-3)
    near(dw, t["dw"], 1e-3)


@pytest.mark.parametrize("case", range(18))
def test_bias_act_equals_golden_to_second_order(case):
    config, t = load("bias_act")
    t = {k.split(".")[1]: v for k, v in t.items() if k.startswith(f"case{case:02d}.")}
    x, b, dy = t["x"].requires_grad_(), t["b"].requires_grad_(), t["dy"].requires_grad_()
    y = bias_act(x, b, **config[case])
    near(y, t["y"], 1e-4)
    dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
    near(dx, t["dx"], 1e-3)
    near(db, t["db"], 1e-3)
    d_dy, d_x = torch.autograd.grad(dx, [dy, x], t["ddx"], allow_unused=True)
    near(d_dy, t["d_dy"], 1e-3)
    near(torch.zeros_like(x) if d_x is None else d_x, t["d_x"], 1e-3)


@pytest.mark.parametrize("act", list(ACTIVATIONS))
@pytest.mark.parametrize("clamp", [None, 0.7])
def test_bias_act_gradgradcheck(act, clamp):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=g)
    x = (x + 0.05 * x.sign()).requires_grad_()  # away from the kink at 0
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, b: bias_act(x, b, act=act, clamp=clamp), (x, b))
    assert gradgradcheck(lambda x, b: bias_act(x, b, act=act, clamp=clamp), (x, b))


def test_bias_act_with_a_negative_slope_has_the_right_gradient():
    x = torch.tensor([[-1.5, 0.5, -0.2]], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, b: bias_act(x, b, act="lrelu", alpha=-0.3), (x, b))


UP_DOWN = [(1, 1, 0), (2, 1, (2, 1, 2, 1)), (1, 2, (1, 1, 1, 1)), (2, 3, (3, -1, -2, 4)), ((1, 2), (3, 1), (-1, 2, 5, 0))]


@pytest.mark.parametrize("up,down,padding", UP_DOWN)
@pytest.mark.parametrize("separable", [False, True])
def test_upfirdn2d_gradgradcheck(up, down, padding, separable):
    f = setup_filter([1, 2, 4, 1], separable=separable).double()
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert gradcheck(lambda x: upfirdn2d(x, f, up, down, padding, gain=1.7).square(), (x,))
    assert gradgradcheck(lambda x: upfirdn2d(x, f, up, down, padding, gain=1.7).square(), (x,))


CONVOLUTIONS = [(1, 1, 3, 1, True), (2, 1, 3, 1, False), (1, 2, 3, 2, True), (2, 1, 1, 2, True), (1, 2, 1, 1, True), (2, 2, 3, 1, False)]


@pytest.mark.parametrize("up,down,k,groups,flip", CONVOLUTIONS)
def test_conv2d_resample_gradgradcheck(up, down, k, groups, flip):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=g, requires_grad=True)
    w = torch.randn(2, 4 // groups, k, k, dtype=torch.float64, generator=g, requires_grad=True)
    f = setup_filter([1, 3, 3, 1]).double()

    def function(x, w):
        return conv2d_resample(x, w, f, up=up, down=down, padding=k // 2, groups=groups, flip_weight=flip)

    assert gradcheck(function, (x, w))
    assert gradgradcheck(function, (x, w))


@pytest.mark.parametrize("up,down,padding", UP_DOWN)
def test_upfirdn2d_equals_its_definition(up, down, padding):
    """Against zero insertion, padding and a loop over taps in float64."""
    g = torch.Generator().manual_seed(3)
    x, f = torch.randn(1, 2, 5, 8, dtype=torch.float64, generator=g), torch.randn(3, 4, dtype=torch.float64, generator=g)
    (ux, uy), (dx, dy) = [(v, v) if isinstance(v, int) else v for v in (up, down)]
    x0, x1, y0, y1 = (padding,) * 4 if isinstance(padding, int) else padding
    big = torch.zeros(1, 2, 5 * uy, 8 * ux, dtype=torch.float64)
    big[:, :, ::uy, ::ux] = x
    big = torch.nn.functional.pad(big, [x0, x1, y0, y1])
    height, width = big.shape[2] - 2, big.shape[3] - 3
    expected = sum(f[2 - i, 3 - j] * big[:, :, i : i + height, j : j + width] for i in range(3) for j in range(4))[:, :, ::dy, ::dx]
    near(upfirdn2d(x, f, up, down, padding), expected, 1e-12)


def test_resampling_keeps_constants_and_layout():
    f = setup_filter([1, 3, 3, 1])
    x = torch.ones(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    for y in (upsample2d(x, f), downsample2d(x, f), filter2d(x, f)):
        assert torch.allclose(y[:, :, 3:-3, 3:-3], torch.ones(()), atol=1e-6)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_separable_equals_outer_product():
    x = torch.randn(2, 3, 20, 20)
    taps = torch.rand(12)
    near(upsample2d(x, setup_filter(taps)), upsample2d(x, setup_filter(taps, separable=False)), 1e-5)


@pytest.mark.parametrize("separable", [False, True])
def test_upfirdn2d_of_a_negative_gain_is_that_of_the_positive_one_negated(separable):
    x, f = torch.randn(2, 3, 8, 7), setup_filter([1, 3, 3, 1], separable=separable)
    assert torch.equal(upfirdn2d(x, f, up=2, padding=2, gain=-4), -upfirdn2d(x, f, up=2, padding=2, gain=4))


def test_empty_batch_and_bad_arguments():
    f = setup_filter([1, 3, 3, 1])
    assert upsample2d(torch.zeros(0, 3, 8, 8), f).shape == (0, 3, 16, 16)
    for call in (
        lambda: upfirdn2d(torch.zeros(3, 8, 8), f),
        lambda: upfirdn2d(torch.zeros(1, 1, 2, 2), f),
        lambda: upfirdn2d(torch.zeros(1, 1, 8, 8), f, up=0),
        lambda: bias_act(torch.zeros(2, 3), torch.zeros(4)),
        lambda: bias_act(torch.zeros(2, 3), act="gelu"),
        lambda: setup_filter([]),
        lambda: setup_filter([1, 1], separable=True, gain=-1),
    ):
        with pytest.raises(ValueError):
            call()


def test_the_seam_to_native_ops(monkeypatch, policy):
    monkeypatch.setattr(backend, "_natives", {"bias_act": lambda x, *rest: x + 41})
    monkeypatch.setattr(backend, "_load", lambda kind, try_out: None)
    assert upsample2d(torch.ones(1, 1, 4, 4), None).shape == (1, 1, 8, 8)  # no native one: the reference
    for chosen, result in (("auto", 42), ("native", 42), ("reference", 1)):
        backend.set_policy(chosen)
        assert bias_act(torch.ones(1), gain=1, act="relu").item() == result
