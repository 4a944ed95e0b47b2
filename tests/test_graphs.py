"""A step never makes the host wait, and phases recorded as graphs give the numbers of plain phases: emulated on the CPU, for real on CUDA.

The emulation keeps to the rules of CUDA graphs: what Python does while a phase is recorded is not done again. A launch runs the recorded
tensor operations on the recorded memory, so a number that was baked in, a tensor that was replaced or an input that was not copied shows.
"""

import contextlib
import copy

import pytest
import torch
from tiny_runs import CPU, data_info, shrink, write_data
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnnlib import EasyDict, UserError
from pairing.adaptive import PairingController
from torch_utils import training_stats
from torch_utils.ops import grid_sample
from training import augment_geometry, config, graphs
from training.data_loader import open_loader
from training.dataset import ImageFolderDataset
from training.memory import memory_explained
from training.options import Options
from training.state import TrainingState

CUDA = torch.device("cuda")
# Two rounds of accumulation, path length, style mixing, R1, ADA, pairing and its controller.
FULL = dict(batch=8, batch_gpu=4, aug="ada", augpipe="bgcfnc", pairing_weight=0.05, pairing_target=0.5, cond=True)
PLAIN = dict(aug="noaug", augpipe=None)
BINARY, RELATIVISTIC = dict(pairing_mode="binary", **PLAIN), dict(objective="relativistic", r2_gamma=1.0, pairing_space="w", **PLAIN)
STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("graphs") / "pics.zip", count=16)


def arguments(data, device, **typed):
    typed = FULL | typed
    args = shrink(config.resolve(Options(data=data, **typed), set(typed), data_info(data), device))
    args.ada_kimg = 0.05  # p moves by a tenth and more at a time
    return args


def state_of(data, device=CPU, **typed):
    state = TrainingState(arguments(data, device, **typed), ImageFolderDataset(data, use_labels=True), device)
    if state.augment_pipe is not None:
        state.augment_pipe.p.fill_(0.5)
    for phase in state.phases:
        phase.interval = min(phase.interval, 2)  # so that the lazy ones warm up within the steps of a test
    return state


def batches(data, device, count=STEPS):
    loader = open_loader(ImageFolderDataset(data, use_labels=True), 8, device, seed=1)
    return [next(loader) for _ in range(count)]


def leaves(state):
    """Every tensor of a state."""
    return [leaf.cpu() for leaf in tree_leaves(state.state_dict()) if isinstance(leaf, torch.Tensor)]


def assert_same(a, b):
    ours, theirs = leaves(a), leaves(b)
    assert len(ours) == len(theirs) > 100
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs))


# Graphs on a CPU: the operations of a phase, noted and run again.


class _Tape(TorchDispatchMode):
    """Notes every operation below autograd with its very tensors."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def play(self):
        """The same operations once more, each result written where it was."""
        with torch.no_grad():
            for func, args, kwargs, noted in self.operations:
                if func.is_view:
                    continue  # shares its memory with what was noted before
                result = func(*args, **kwargs)
                for old, new in zip(tree_leaves(noted), tree_leaves(result)):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)


class TapeRecorder:
    """What `CudaRecorder` does, on any device and slowly. The recording is the first launch, because on a CPU it computes."""

    def __init__(self):
        self.recorded = self.launched = 0

    def renew(self):
        pass

    def warm_up(self, body, inputs):
        body(*inputs)

    def record(self, body, inputs):
        self.recorded += 1
        tape, fresh = _Tape(), [True]
        with tape:
            body(*inputs)

        def launch():
            self.launched += 1
            if fresh:
                fresh.pop()
            else:
                tape.play()

        return launch


def graphs_of(state, recorder):
    return graphs.PhaseGraphs(recorder, [phase.name for phase in state.phases])


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The geometric augmentation reads positions on a CPU only; here it does as elsewhere."""
    monkeypatch.setattr(augment_geometry, "_reads_positions", lambda device: False)


@pytest.mark.parametrize("typed", [{}, BINARY, RELATIVISTIC])
def test_recorded_phases_give_the_numbers_of_plain_ones(data, as_on_cuda, typed):
    """Bit for bit: weights, moments, averages, controllers, counters and statistics after steps with every lazy phase in them."""
    plain, recorded = state_of(data, **typed), state_of(data, **typed)
    recorder = TapeRecorder()
    recorded.graphs = graphs_of(recorded, recorder)
    figures = []
    for state in (plain, recorded):
        torch.manual_seed(7)
        collector = training_stats.Collector()
        for batch in batches(data, CPU):
            state.step(*batch)
        collector.update()
        figures.append({name: (f.num, pytest.approx(f.mean, rel=1e-5, abs=1e-6)) for name, f in collector.as_dict().items() if "Timing" not in name})
    lazy = len(plain.phases) - 2  # every second step, so the third of their runs is on the fifth step
    assert recorder.recorded == len(plain.phases) and recorder.launched == 2 * (STEPS - 5) + lazy * (STEPS // 2 - graphs.WARM_UP)
    assert_same(plain, recorded)
    assert figures[0] == figures[1] and len(figures[0]) > 8
    if plain.ada is not None:
        assert plain.augment_pipe.p != 0.5


def test_the_emulation_notices_what_a_graph_would_get_wrong():
    """A number that was baked in, and a tensor that was replaced."""

    class Body:
        scale, total = 1.0, torch.zeros([])

        def faulty(self, x):
            self.scale += 1
            self.total = self.total + x * self.scale

        def sound(self, x):
            self.total.add_(x)

    for method, right in ((Body.faulty, False), (Body.sound, True)):
        plain, recorded = Body(), Body()
        plain.total, recorded.total = torch.zeros([]), torch.zeros([])
        runner = graphs.PhaseGraphs(TapeRecorder(), ["body"])
        for value in range(8):
            method(plain, torch.tensor(float(value)))
            runner.run("body", lambda x, method=method, recorded=recorded: method(recorded, x), [torch.tensor(float(value))])
        assert torch.equal(plain.total, recorded.total) is right


def test_nothing_is_recorded_before_the_laziest_phase_has_warmed_up():
    """Memory of graphs is lost to plain runs, which need as much again."""
    recorder = TapeRecorder()
    runner = graphs.PhaseGraphs(recorder, ["often", "seldom"])
    for step in range(24):
        runner.run("often", lambda: None, [])
        if step in (0, 8, 16):
            runner.run("seldom", lambda: None, [])
        assert recorder.launched == max(step - 16, 0)


def test_a_restored_state_records_anew(data, as_on_cuda):
    """Load into a state that has records: they write to the moments that the load replaced, and are not used again."""
    first, second = state_of(data), state_of(data, seed=1)
    recorder = TapeRecorder()
    second.graphs = graphs_of(second, recorder)
    steps = batches(data, CPU)
    for batch in steps[:6]:
        second.step(*batch)
        first.step(*batch)
    before = recorder.recorded
    assert before == 2
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for state in (first, second):
        torch.manual_seed(3)
        for batch in steps[6:12]:
            state.step(*batch)
    assert_same(first, second)
    assert recorder.recorded == 2 * before


def record_failing(error):
    """Runs a phase whose recording fails, and whose end fails once more, as in CUDA."""

    class Refusing(TapeRecorder):
        def record(self, body, inputs):
            try:
                raise error
            finally:
                raise RuntimeError("the end of the recording failed, too")

    runner = graphs.PhaseGraphs(Refusing(), ["Gmain"])
    for _ in range(graphs.WARM_UP + 1):
        runner.run("Gmain", lambda: None, [])


def test_a_phase_that_cannot_be_recorded_says_what_to_do():
    """Whatever was being handled around it is not the reason, and nobody needs to have typed --graphs=on."""
    try:
        raise KeyError("of another matter")
    except KeyError:
        with pytest.raises(UserError, match=r"^the phase Gmain .*\(operation .* is capturing\); start with --graphs=off"):
            record_failing(RuntimeError("operation not permitted when stream is capturing\nmore lines"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_that_runs_out_during_a_recording_is_told_as_that(error):
    with pytest.raises(type(error)) as caught:
        record_failing(error)
    assert caught.value is error


def test_memory_that_runs_out_beside_graphs_is_told_with_a_way_without_them():
    expected = pytest.raises(UserError, match=r"start a new run with --graphs=off, .* or a lower --batch-gpu")
    with expected, memory_explained(EasyDict(graphs="on", batch_gpu=4), CUDA):
        raise torch.OutOfMemoryError("CUDA out of memory.")


# No waiting.


class _NothingFromTheHost(TorchDispatchMode):
    """Forbids operations that move tensors between host and device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor) and leaf.ndim > 0}
        assert len(devices) < 2, f"{func} moves data between {devices}"
        return result


def meta_controller(weight, *rest):
    """The controller of the pairing weight, which reads the first weight once, before training."""
    controller = PairingController(torch.tensor(0.05), *rest)
    controller.weight, controller.accuracies = weight, controller.accuracies.to(weight.device)
    return controller


@pytest.mark.parametrize("typed", [{}, BINARY, RELATIVISTIC])
def test_a_step_asks_for_no_value(data, monkeypatch, typed):
    """On the meta device, whose tensors have no values: item(), nonzero(), masks as indices and Python branches on tensors fail there."""
    meta = torch.device("meta")
    twice = grid_sample._differentiates_twice("cpu")
    monkeypatch.setattr(grid_sample, "_differentiates_twice", lambda device_type: twice)  # found out once in a process, before any graph
    monkeypatch.setattr(training_stats, "_moments", {})
    monkeypatch.setattr("training.state.PairingController", meta_controller)
    state = state_of(data, meta, ops="reference", **typed)
    images, labels = torch.zeros([8, 3, 8, 8], dtype=torch.uint8, device=meta), torch.zeros([8, 3], device=meta)
    with _NothingFromTheHost():
        for _ in range(1 if typed else 4):  # the first step has every phase, the fourth moves ADA's p
            state.step(images, labels)
    assert state.batch_idx > 0


def test_asking_for_a_value_would_be_noticed(data, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(training_stats, "_moments", {})
    state = state_of(data, torch.device("meta"), ops="reference", aug="noaug", augpipe=None, pairing_target=None)
    images, labels = torch.zeros([8, 3, 8, 8], dtype=torch.uint8, device="meta"), torch.zeros([8, 3], device="meta")
    monkeypatch.setattr(state.loss, "on_real_logits", lambda logits: logits.mean().item())
    with pytest.raises(RuntimeError, match="item"):
        state.step(images, labels)
    monkeypatch.setattr(state.loss, "on_real_logits", lambda logits: logits + torch.ones(logits.shape).to(logits.device))
    with pytest.raises(AssertionError, match="moves data between"), _NothingFromTheHost():
        state.step(images, labels)


# What --graphs means.


def test_auto_says_what_it_will_do():
    assert graphs.choose("auto", CUDA, 1, False) == graphs.choose("on", CUDA, 1, False) == "on"
    assert {graphs.choose("auto", CPU, 1, False), graphs.choose("auto", CUDA, 2, False), graphs.choose("auto", CUDA, 1, True)} == {"off"}
    assert graphs.choose("off", CUDA, 1, False) == "off"


@pytest.mark.parametrize(("place", "reason"), [((CPU, 1, False), "device is cpu"), ((CUDA, 2, False), "2 processes"), ((CUDA, 1, True), "--compile")])
def test_on_is_refused_where_graphs_do_not_work(place, reason):
    with pytest.raises(UserError, match=f"--graphs=on: .*{reason}.*; use --graphs=auto or --graphs=off"):
        graphs.choose("on", *place)


def test_the_choice_is_recorded(data):
    assert (arguments(data, CPU).graphs, arguments(data, CUDA).graphs, arguments(data, CUDA, graphs="off").graphs) == ("off", "on", "off")


# On a GPU.


def cuda_states(data, **typed):
    """The same state with and without graphs."""
    return [state_of(data, CUDA, graphs=choice, nobench=True, **typed) for choice in ("off", "on")]


@pytest.fixture
def deterministic():
    """The same algorithms on every call."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.deterministic = False


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cuda_graphs_give_the_numbers_of_plain_phases(data, deterministic, precision):
    """Bit for bit over 20 steps, random numbers included. Without geometric augmentation, because its gradient adds in any order on CUDA."""
    states, after = cuda_states(data, precision=precision, augpipe="color"), []
    for state in states:
        torch.cuda.manual_seed(7)
        for batch in batches(data, CUDA):
            state.step(*batch)
        after.append(torch.cuda.get_rng_state())
    assert len(states[1].graphs._launch) == len(states[1].phases)
    assert torch.equal(*after)
    assert_same(*states)


@pytest.mark.gpu
def test_cuda_graphs_hold_every_augmentation(data, deterministic):
    """Up to what the order of additions makes of 20 steps."""
    states, after = cuda_states(data, precision="fp32"), []
    for state in states:
        torch.cuda.manual_seed(7)
        for batch in batches(data, CUDA):
            state.step(*batch)
        after.append(torch.cuda.get_rng_state())
    assert torch.equal(*after)
    for name in ("G", "D", "P", "G_ema"):
        a, b = (torch.cat([p.flatten() for p in getattr(state, name).parameters()]) for state in states)
        assert (a - b).norm() < 0.02 * a.norm()


@pytest.mark.gpu
def test_cuda_resume_with_graphs_is_exact(data, deterministic):
    (_, whole), steps = cuda_states(data, augpipe="color"), batches(data, CUDA)
    torch.cuda.manual_seed(7)
    for batch in steps[:10]:
        whole.step(*batch)
    saved = copy.deepcopy(whole.state_dict())
    for batch in steps[10:]:
        whole.step(*batch)
    _, other = cuda_states(data, augpipe="color", seed=1)
    for batch in steps[:6]:
        other.step(*batch)
    other.load_state_dict(saved)
    for batch in steps[10:]:
        other.step(*batch)
    assert_same(whole, other)


@pytest.mark.gpu
@pytest.mark.parametrize("choice", ["on", "off"])
def test_a_step_never_makes_the_host_wait_for_the_gpu(data, choice):
    """Fetching the batch included. The first steps warm up, record and let cuDNN choose."""
    state = state_of(data, CUDA, graphs=choice)
    loader = open_loader(ImageFolderDataset(data, use_labels=True), 8, CUDA, seed=1)
    for _ in range(17):
        state.step(*next(loader))
    with contextlib.ExitStack() as stack:
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(16):
            state.step(*next(loader))
