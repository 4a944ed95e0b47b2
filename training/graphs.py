"""Phases as CUDA graphs: a phase that is always the same sequence of kernels is recorded once and then launched as one.

Small images leave a GPU waiting for the host to launch thousands of short kernels; a graph launches them at once. What a graph
may hold, and this module relies on:

- No value travels to the host inside a phase, and nothing that changes from step to step is a Python number in it: ADA's p, the
  pairing weight, the mean path length, statistics and Adam's counters are device tensors that are written in place.
- Every tensor that outlives a phase is made before the recording, during the warm-up runs. The graphs then share one memory pool.
- No phase is recorded before all have warmed up, the lazy ones too: the memory of graphs is lost to plain runs, which need as much.
- Random numbers come from the default generator of the device, which a graph advances at each launch as the plain phase would.

So a graph gives the numbers of the plain phase. Warm-up runs are ordinary runs of the phase; no state is saved or put back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from dnnlib import UserError
from torch_utils.allocator import is_out_of_memory

POLICIES = ("auto", "on", "off")
WARM_UP = 3
"""Plain runs of each phase before any is recorded: they make Adam's moments and the statistics' sums and let cuDNN choose its algorithms."""

Body = Callable[..., Any]


def choose(policy: str, device: torch.device, num_ranks: int, compiled: bool) -> str:
    """Resolves --graphs to what a run will do, 'on' or 'off', so that its options record it and a continued run does the same.

    Args:
        policy: one of `POLICIES`; auto turns graphs on where they work.
        num_ranks: processes of the run. With several, messages between ranks stand in the middle of a phase.
        compiled: whether --compile is given; compiled code allocates and launches in ways of its own.

    Raises:
        UserError: 'on' where graphs do not work.
    """
    obstacle = None
    if device.type != "cuda":
        obstacle = f"the device is {device.type}, and graphs are CUDA's"
    elif num_ranks > 1:
        obstacle = f"the run has {num_ranks} processes, and graphs hold no messages between them"
    elif compiled:
        obstacle = "--compile is given, which does not go with graphs"
    if policy == "on" and obstacle is not None:
        raise UserError(f"--graphs=on: {obstacle}; use --graphs=auto or --graphs=off")
    return "off" if policy == "off" or obstacle is not None else "on"


class CudaRecorder:
    """Records on a stream of its own into a memory pool of its own; warm-up runs go to the same stream.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self.renew()

    def renew(self) -> None:
        """Begins another memory pool: one whose graphs are all gone takes no new ones."""
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, body: Body, inputs: Sequence[torch.Tensor]) -> None:
        """Runs `body(*inputs)` plainly, in the order of the current stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            # Adam is made for graphs and says so whenever it steps outside of one.
            warnings.filterwarnings("ignore", message=".*capturable=True.*")
            body(*inputs)
        current.wait_stream(self._stream)

    def record(self, body: Body, inputs: Sequence[torch.Tensor]) -> Callable[[], None]:
        """The kernels of `body(*inputs)`, not run yet, as a function that launches them on the current stream.

        Raises:
            RuntimeError: `body` does what no graph can hold, such as waiting for the device.
        """
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls matter: the data loader's thread that pins memory goes on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            body(*inputs)
        return graph.replay


class PhaseGraphs:
    """Runs phases by name: plainly until each has run `WARM_UP` times, then recorded, and launched from the record ever after.

    Args:
        recorder: `CudaRecorder`, or what does its part in a test.
        names: of all phases.
    """

    def __init__(self, recorder: Any, names: Iterable[str]):
        self._recorder = recorder
        self._runs = dict.fromkeys(names, 0)
        self._inputs: dict[str, tuple[torch.Tensor, ...]] = {}
        self._launch: dict[str, Callable[[], None]] = {}

    def run(self, name: str, body: Body, inputs: Sequence[torch.Tensor]) -> None:
        """Does what `body(*inputs)` does; the tensors' shapes stay the same for one name.

        Raises:
            UserError: the phase cannot be recorded.
            torch.OutOfMemoryError: there is no memory left for it.
        """
        if min(self._runs.values()) < WARM_UP:
            self._runs[name] += 1
            self._recorder.warm_up(body, inputs)
            return
        if name not in self._launch:
            self._inputs[name] = tuple(value.clone() for value in inputs)
            self._launch[name] = self._record(name, body)
        for static, value in zip(self._inputs[name], inputs):
            static.copy_(value)
        self._launch[name]()

    def _record(self, name: str, body: Body) -> Callable[[], None]:
        try:
            return self._recorder.record(body, self._inputs[name])
        except RuntimeError as error:  # the device is in no state to go on without graphs
            first: BaseException = error
            while isinstance(first.__context__, (RuntimeError, MemoryError)):  # the end of a failed recording fails once more
                first = first.__context__
            if is_out_of_memory(first):
                raise first from None
            reason = str(first).strip().split("\n")[0]
            raise UserError(f"the phase {name} cannot be recorded as a CUDA graph ({reason}); start with --graphs=off") from error

    def reset(self) -> None:
        """Forgets all records, because tensors that they write to were replaced; every phase warms up again."""
        self._runs = dict.fromkeys(self._runs, 0)
        self._inputs.clear()
        self._launch.clear()
        self._recorder.renew()
