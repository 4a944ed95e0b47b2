"""torch.compile, torch.func and CUDA graphs see past the native ops; where these cannot run, the reference does, or one sentence says why not."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

from dnnlib import UserError
from torch_utils import custom_ops
from torch_utils.ops import backend
from torch_utils.ops.autograd_calls import composed
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.modulation import epilogue, modulate
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d, upsample2d
from torch_utils.toolchain import BuildError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


pytestmark = pytest.mark.usefixtures("native_ops")


def layer(x, w, b, f):
    """As in a network: the ops before and after a convolution, whose weight is differentiated, too."""
    x = torch.nn.functional.conv2d(bias_act(upsample2d(x, f), b, act="lrelu"), w, padding=1)
    return bias_act(upfirdn2d(x, f, down=2), b, act="tanh", clamp=0.9).square().sum()


def layer_inputs(device="cpu"):
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=g).to(device) for shape in ([2, 3, 6, 5], [3, 3, 3, 3], [3]))
    x = x.contiguous(memory_format=torch.channels_last)
    return *(t.requires_grad_() for t in (x, w, b)), setup_filter([1, 3, 3, 1], device=device)


def all_near(actual, expected):
    return all(torch.allclose(a, e, rtol=1e-4, atol=1e-6 * float(e.abs().max())) for a, e in zip(actual, expected))


def assert_all_near(actual, expected):
    assert all_near(actual, expected)


def test_compiled_in_one_graph():
    *inputs, f = layer_inputs()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_all_near(torch.autograd.grad(compiled(*inputs, f), inputs), torch.autograd.grad(layer(*inputs, f), inputs))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_gradients_the_native_ops_stand_in_the_graph(dynamic):
    seen = set()

    def look(graph, inputs):
        seen.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    x, *others, f = layer_inputs()
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend=look, dynamic=dynamic)
        for batch in (x, torch.cat([x, x, x])):
            assert torch.equal(compiled(batch, *others, f), layer(batch, *others, f))
        if not dynamic:
            torch.compiler.reset()
            assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x, *others, f), layer(x, *others, f))
    assert {"pairing_gan.upfirdn2d.default", "pairing_gan.bias_act.default"} <= seen


def test_compilers_find_the_mark_that_they_look_for():
    """It is made by hand, since making it as torch does imports the compiler."""
    assert vars(torch.compiler.assume_constant_result(lambda: None)).items() <= vars(backend.is_native).items()


def gradient_penalty(x, w, b, f):
    """R1's form by torch.func: a gradient inside, to be differentiated outside."""
    return torch.func.grad(layer)(x, w, b, f).square().sum()


@pytest.mark.parametrize("how", ["eager", "aot_eager"])
def test_a_gradient_penalty_by_torch_func_equals_the_one_by_autograd(how):
    *inputs, f = layer_inputs()
    (dx,) = torch.autograd.grad(layer(*inputs, f), inputs[0], create_graph=True)
    expected = torch.autograd.grad(dx.square().sum(), inputs)
    torch.compiler.reset()
    function = gradient_penalty if how == "eager" else torch.compile(gradient_penalty, fullgraph=True, backend=how)
    found = torch.autograd.grad(function(*inputs, f), inputs)
    if how != "eager" and not all_near(found, expected):
        backend.set_policy("reference")
        torch.compiler.reset()
        if not all_near(torch.autograd.grad(function(*inputs, f), inputs), expected):
            pytest.skip(f"torch {torch.__version__} compiles this wrong without our ops, too (2.9 does)")
    assert_all_near(found, expected)


def scaled_op(op):
    """What an op makes of operands that a number scales, as a function of the number."""
    x, _, b, f = (t.detach() for t in layer_inputs())
    styles, noise = x[:, :, 0, 0].exp(), x[:, :1].contiguous()
    return {
        "upfirdn2d": lambda w: upsample2d(x * w, f),
        "bias_act": lambda w: bias_act(x * w, b * w, act="tanh"),
        "modulate": lambda w: modulate(x * w, styles * w),
        "epilogue": lambda w: epilogue(x * w, styles * w, noise, b * w, act="lrelu", clamp=2),
    }[op]


each_op = pytest.mark.parametrize("op", ["upfirdn2d", "bias_act", "modulate", "epilogue"])


@each_op
def test_an_outer_derivative_by_torch_func_reaches_a_branch_that_the_inner_one_does_not(op):
    x, w, branch = torch.tensor([0.5, -1.5]), torch.tensor(1.3, requires_grad=True), scaled_op(op)

    def penalty(w):
        return torch.func.grad(lambda x: branch(w).square().sum() * x.square().sum())(x).square().sum()

    written_out = 4 * x.square().sum() * branch(w).square().sum() ** 2
    expected = torch.autograd.grad(written_out, w)
    assert_all_near(torch.autograd.grad(penalty(w), w), expected)
    assert_all_near([torch.func.grad(penalty)(w.detach())], expected)


@each_op
def test_tangents_pass_in_forward_mode(op):
    w, direction, function = torch.tensor(1.3, requires_grad=True), torch.tensor(2.0), scaled_op(op)
    (slope,) = torch.autograd.grad(function(w).square().sum(), w)
    _, by_func = torch.func.jvp(lambda w: function(w).square().sum(), (w.detach(),), (direction,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(w.detach(), direction)
        by_level = forward_ad.unpack_dual(function(dual).square().sum()).tangent
    assert_all_near([by_func, by_level], [2 * slope] * 2)


@each_op
def test_tangents_of_a_gradient_pass_or_are_refused(op):
    """Where the op has been applied before, outside of forward mode."""
    w = torch.tensor(1.3, requires_grad=True)
    y = scaled_op(op)(w)
    dy, direction = torch.randn(y.shape), torch.randn(y.shape)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(dy, direction)
        if op == "bias_act":
            with pytest.raises(NotImplementedError, match="jvp"):
                torch.autograd.grad(y, w, dual, retain_graph=True)
            return
        tangent = forward_ad.unpack_dual(torch.autograd.grad(y, w, dual, retain_graph=True)[0]).tangent
    assert_all_near([tangent], torch.autograd.grad(y, w, direction))


@each_op
def test_gradients_of_each_sample_by_vmap(op):
    ws, function = torch.tensor([1.3, -0.4]), scaled_op(op)
    slope = torch.func.grad(lambda w: function(w).square().sum())
    assert_all_near(torch.vmap(slope)(ws), [slope(w) for w in ws])


def test_without_transforms_nothing_keeps_the_native_ops_out():
    """In particular, this torch has what tells so."""
    assert not composed()
    within = []
    torch.vmap(lambda x: (within.append(composed()), x)[1])(torch.zeros(2))
    with forward_ad.dual_level():
        within.append(composed())
    assert within == [True, True] and not composed()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("last", [False, True])
def test_the_registrations_are_sound(device, last):
    x, _, b, f = (t.detach() for t in layer_inputs(device))
    x = x if last else x.contiguous()
    backend.implementation(device)
    ops = torch.ops.pairing_gan
    spec = (1, 8, 0.0, 1.5, 0.8)
    torch.library.opcheck(ops.upfirdn2d.default, (x, f, [2, 1], [1, 1], [1, 2, -1, 2], False, 4.0))
    torch.library.opcheck(ops.bias_act.default, (x, b, *spec))
    torch.library.opcheck(ops.bias_act_backward.default, (x.contiguous(), x, b, None, *spec))
    torch.library.opcheck(ops.bias_act_backward.default, (x.contiguous(), None, None, x, 1, 2, 0.2, 1.5, -1.0))
    torch.library.opcheck(ops.bias_act_double_backward.default, (x.contiguous(), x, x, b, *spec))


@pytest.mark.gpu
def test_captured_in_a_cuda_graph():
    *inputs, f = layer_inputs("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(layer(*inputs, f), inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = torch.autograd.grad(layer(*inputs, f), inputs)
    with torch.no_grad():
        inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    assert_all_near(gradients, torch.autograd.grad(layer(*inputs, f), inputs))


@pytest.mark.gpu
def test_no_host_waits_for_the_device():
    *inputs, f = layer_inputs("cuda")
    torch.autograd.grad(layer(*inputs, f), inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(layer(*inputs, f), inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_work_is_done_on_the_stream_at_hand():
    x, f = torch.randn(8, 64, 128, 128, device="cuda"), setup_filter([1, 3, 3, 1], device="cuda")
    expected = bias_act(upsample2d(x, f), act="lrelu")
    y, stream = torch.zeros_like(x), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(200):  # on another stream the ops would be done before x is there
            y.copy_(x.sin().cos())
        y.copy_(x)
        result = bias_act(upsample2d(y, f), act="lrelu")
    stream.synchronize()
    assert torch.equal(result, expected)


@pytest.mark.gpu
def test_work_is_done_on_the_device_of_the_operands():
    """Whichever is the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("takes two GPUs")
    *inputs, f = layer_inputs("cuda:1")
    with torch.cuda.device(0):
        gradients = torch.autograd.grad(layer(*inputs, f), inputs)
        x, styles = inputs[0].detach(), inputs[0][:, :, 0, 0].detach()
        passed = epilogue(modulate(x, styles), styles, act="lrelu")
    assert all(t.device == torch.device("cuda:1") for t in (*gradients, passed))
    *on_cpu, f = layer_inputs()
    assert_all_near([t.cpu() for t in gradients], torch.autograd.grad(layer(*on_cpu, f), on_cpu))
    x, styles = x.cpu(), styles.cpu()
    torch.testing.assert_close(passed.cpu(), epilogue(modulate(x, styles), styles, act="lrelu"))


@pytest.mark.filterwarnings("error")
def test_a_gradient_of_a_gradient_looks_for_no_derivative_where_there_is_none():
    """The incoming gradient is a constant, as a path length's; the activation's derivative is one, too, although it is made from what is not."""
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (dx,) = torch.autograd.grad(bias_act(x * x, torch.randn(3), act="linear", clamp=1.0), x, torch.ones_like(x), create_graph=True)
    (second,) = torch.autograd.grad(dx.sum(), x)
    assert set(second.unique().tolist()) == {0.0, 2.0}


def test_operands_on_another_device_are_refused():
    from torch_utils.ops import native_upfirdn2d

    x, f = torch.randn(1, 2, 6, 6), setup_filter([1, 3, 3, 1])
    with pytest.raises(RuntimeError, match="native upfirdn2d: operands are on cpu and on meta"):
        native_upfirdn2d._run(x, f.to("meta"), (1, 1), (1, 1), (1, 2, 1, 2), True, 1.0)


def test_operands_of_another_type_are_refused():
    x, f = torch.randn(1, 2, 6, 6), setup_filter([1, 3, 3, 1])
    ops, spec = torch.ops.pairing_gan, (1, 8, 0.0, 1.5, 0.8)
    with pytest.raises(RuntimeError, match=r"native upfirdn2d: an operand is torch\.float64 where torch\.float32 belongs"):
        ops.upfirdn2d(x, f.double(), [1, 1], [1, 1], [0] * 4, False, 1.0)
    with pytest.raises(RuntimeError, match=r"native bias_act: an operand is torch\.float64 where torch\.float32 belongs"):
        ops.bias_act_backward(x.double(), x, None, None, *spec)


def test_operands_of_shapes_that_do_not_belong_together_are_refused():
    x, b, spec = torch.randn(2, 8, 6, 6), torch.randn(8), (1, 8, 0.0, 1.5, 0.8)
    ops = torch.ops.pairing_gan
    backend.implementation("cpu")
    for call in (
        lambda: ops.bias_act(x, b[:7], *spec),
        lambda: ops.bias_act_backward(x[:1], x, b, None, *spec),
        lambda: ops.bias_act_double_backward(x, x[:1], x, None, *spec),
    ):
        with pytest.raises(ValueError, match="native bias_act: operands are of one shape, but for a bias along axis 1; found"):
            call()


def test_a_compiler_is_asked_for_the_very_strides():
    wanted = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
    assert all(wanted in getattr(torch.ops.pairing_gan, name).default.tags for name in ("upfirdn2d", "bias_act", "modulate", "epilogue_backward"))


# ---- where they do not run


def test_formats_without_native_ops_run_the_reference():
    x, f = torch.randn(1, 2, 6, 6), setup_filter([1, 3, 3, 1])
    assert backend.native("bias_act", x.half()) is None and backend.native("bias_act", x) is not None
    assert torch.allclose(upsample2d(x.half(), f).float(), upsample2d(x, f), atol=1e-2)
    # A filter of more digits than the native ops take is not rounded.
    f64 = f.double() / 3
    assert torch.allclose(upsample2d(x.double(), f64).sum(), upsample2d(x.double(), f).sum() / 3, rtol=1e-6)
    assert not torch.equal(f64.float().double(), f64)
    assert torch.allclose(upfirdn2d(torch.ones(1, 1, 4, 4, dtype=torch.float64), f64), f64.sum(), rtol=1e-14)


def test_a_policy_holds_from_the_next_op_on():
    assert backend.implementation("cpu") == "native"
    backend.set_policy("reference")
    assert backend.implementation("cpu") == "reference" and backend.native("bias_act", torch.zeros(1)) is None
    with pytest.raises(UserError, match="--ops=fast"):
        backend.set_policy("fast")


@pytest.fixture
def no_library(monkeypatch):
    """As on a machine that cannot build."""

    def refuse(kind, build=True):
        raise BuildError("there is no compiler; install one")

    monkeypatch.setattr(custom_ops, "load", refuse)
    backend._load.cache_clear()
    yield
    backend._load.cache_clear()


@pytest.mark.parametrize("broken", ["upfirdn2d", "bias_act", "modulate", "epilogue_backward"])
def test_a_library_with_a_broken_op_is_none(monkeypatch, broken):
    from torch_utils.ops import native

    assert backend.implementation("cpu") == "native"
    monkeypatch.setitem(native._functions, (broken, "cpu"), lambda *args: 1)
    with pytest.raises(BuildError, match=f"do not run here: native {broken} on cpu"):
        native._check(torch.device("cpu"))


def test_without_a_library_auto_warns_once_and_runs_the_reference(no_library, capsys):
    backend.set_policy("auto")
    x = torch.randn(2, 3)
    assert all(torch.equal(bias_act(x, act="relu", gain=1), x.relu()) for _ in range(3))
    assert backend.implementation("cpu") == "reference"
    assert capsys.readouterr().err.count("there is no compiler; install one") == 1


def test_without_a_library_native_is_a_user_error(no_library, capsys):
    for _ in range(2):
        with pytest.raises(UserError, match="--ops=native: there is no compiler; install one"):
            bias_act(torch.randn(2, 3), act="relu")
    assert capsys.readouterr().err == ""


WORKER = """
import torch
from torch_utils import custom_ops
from torch_utils.ops import backend

class Items(torch.utils.data.Dataset):
    def __len__(self): return 1
    def __getitem__(self, index): return backend.implementation("cpu")

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Items(), num_workers=1, multiprocessing_context="spawn")
    print([item for item in loader])
"""


def test_a_worker_of_a_data_loader_builds_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "worker.py").write_text(WORKER)
    root = str(custom_ops.SOURCES.parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = subprocess.run([sys.executable, "worker.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[['reference']]", done.stderr
    assert "Building" not in done.stderr
    assert not list((tmp_path / "cache" / "ops").iterdir())
