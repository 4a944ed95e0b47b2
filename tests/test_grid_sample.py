"""Grid sampling: both ways of differentiating it twice are right and agree, and the right one is chosen by trying."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.function import once_differentiable

from torch_utils.ops import grid_sample as module
from torch_utils.ops.grid_sample import grid_sample


@pytest.fixture(params=["native", "written out"])
def way(request, monkeypatch):
    """Runs a test with torch's own second derivative, where it has one, and with ours."""
    native = request.param == "native"
    if native and not module._differentiates_twice("cpu"):
        pytest.skip("this torch does not differentiate grid_sample twice")
    monkeypatch.setattr(module, "_differentiates_twice", lambda device_type: native)


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn([2, 3, 4, 5], dtype=dtype, generator=generator)
    grid = torch.rand([2, 3, 6, 2], dtype=dtype, generator=generator) * 3 - 1.5
    return images, grid


def sample_by_loop(images, grid):
    """Bilinear interpolation between pixel centres, zero outside, one output at a time."""
    n, c, height, width = images.shape
    out = images.new_zeros([n, c, *grid.shape[1:3]])
    for i in range(n):
        for row in range(grid.shape[1]):
            for column in range(grid.shape[2]):
                x, y = ((grid[i, row, column] + 1) * torch.tensor([width, height]) - 1) / 2
                for py in range(height):
                    for px in range(width):
                        weight = max(0, 1 - abs(x - px)) * max(0, 1 - abs(y - py))
                        out[i, :, row, column] += weight * images[i, :, py, px]
    return out


def test_equals_a_loop(way):
    images, grid = problem()
    torch.testing.assert_close(grid_sample(images.requires_grad_(), grid), sample_by_loop(images.detach(), grid))


def test_gradients(way):
    images, grid = problem()
    images.requires_grad_()
    assert gradcheck(lambda x: grid_sample(x, grid), images)
    # The square makes the second derivative something else than zero.
    assert gradgradcheck(lambda x: grid_sample(x, grid).square(), images)
    assert gradgradcheck(lambda x: grid_sample(x, grid), images)


def test_both_ways_agree_on_a_gradient_penalty(monkeypatch):
    if not module._differentiates_twice("cpu"):
        pytest.skip("this torch does not differentiate grid_sample twice")
    images, grid = problem(torch.float32)
    results = []
    for native in (True, False):
        monkeypatch.setattr(module, "_differentiates_twice", lambda device_type, native=native: native)
        x = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(grid_sample(x, grid).pow(3).sum(), x, create_graph=True)
        results.append((gradient.detach(), torch.autograd.grad(gradient.square().sum(), x)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_grid_is_a_constant(way):
    images, grid = problem()
    grid.requires_grad_()
    output = grid_sample(images.requires_grad_(), grid)
    assert torch.autograd.grad(output.sum(), [images, grid], allow_unused=True)[1] is None


class _OnceOnly(torch.autograd.Function):
    """One pixel sampled at its middle, as a torch gives it that cannot go on to the second derivative."""

    @staticmethod
    def forward(ctx, images, grid):
        return images.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        return grad_output.clone(), None


def test_probe_finds_a_torch_that_refuses(monkeypatch):
    monkeypatch.setattr(module, "_sample", _OnceOnly.apply)
    assert module._differentiates_twice.__wrapped__("cpu") is False


def test_probe_finds_a_wrong_second_derivative(monkeypatch):
    monkeypatch.setattr(module, "_sample", lambda images, grid: images + images.detach() * 0 + images.pow(2) * 0.5)
    assert module._differentiates_twice.__wrapped__("cpu") is False


def test_probe_accepts_a_right_one(monkeypatch):
    monkeypatch.setattr(module, "_sample", lambda images, grid: images * 1)
    assert module._differentiates_twice.__wrapped__("cpu") is True
