"""Statistics that any line of the training code may report: `report(name, tensor)` now, means and deviations once a tick.

Values are summed on their own device; nothing waits for a GPU until a `Collector` reads.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist

from dnnlib import EasyDict
from torch_utils.distributed import sum_over_ranks_, world_size

# (name, device type) -> [count, sum, sum of squares] since the last fold, on the values' device and always in the same memory
_moments: dict[tuple[str, str], torch.Tensor] = {}
# Every collector in use; each is given what is folded.
_collectors: weakref.WeakSet[Collector] = weakref.WeakSet()


def report(name: str, value: torch.Tensor | float) -> torch.Tensor | float:
    """Adds the elements of `value` to the statistic `name` and returns `value` as it came.

    The sums are added to in place, so a CUDA graph may hold a report that was made once outside of the graph.

    Raises:
        RuntimeError: the first report of a name, inside of a CUDA graph.
    """
    elements = torch.as_tensor(value).detach().flatten()
    # float64 does not exist on MPS; there the sums of a few hundred values a tick are exact enough in float32.
    elements = elements.to(torch.float32 if elements.device.type == "mps" else torch.float64)
    key = (name, elements.device.type)
    if key not in _moments:
        if elements.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"the statistic {name!r} is reported for the first time inside of a CUDA graph; warm the graph's code up first")
        _moments[key] = torch.zeros(3, dtype=elements.dtype, device=elements.device)
    _moments[key] += torch.stack([torch.ones_like(elements), elements, elements.square()]).sum(dim=1)
    return value


def report_grad_norm(name: str, x: torch.Tensor, gain: float) -> torch.Tensor:
    """x itself; in the backward pass the L2 norm of the gradient of each sample's own loss at that sample is reported.

    Only what is computed from the returned tensor counts. Weights of a term, such as lambda, stay in.

    Args:
        x: samples [N, ...].
        gain: factor on the loss, which is gain times a mean over the samples: each norm that arrives is multiplied by N / gain.
    """

    def report_norms(gradient: torch.Tensor) -> None:
        norms = gradient.detach().float().flatten(1).norm(dim=1)
        report(name, norms * (len(norms) / gain))

    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(report_norms)
    return x


def _fold() -> None:
    """Gives every collector what was reported since the last fold; this waits for the device."""
    for (name, _), moments in _moments.items():
        values = moments.to("cpu", torch.float64).numpy()
        if values[0] > 0:
            for collector in _collectors:
                collector.add(name, values)
        moments.zero_()


def state_dict() -> dict[str, dict[str, torch.Tensor]]:
    """What was reported since the last fold, as {name: {device type: sums}}: half a tick, where a state is written in the middle of one."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for (name, device), moments in _moments.items():
        if moments[0] > 0:
            state.setdefault(name, {})[device] = moments.to("cpu", copy=True)
    return state


def load_state_dict(state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Goes on from what `state_dict` returned, and forgets what was reported in this process. To be called before collectors are made or
    right after their update, on the kind of device where the state was taken."""
    for moments in _moments.values():
        moments.zero_()  # in place, for a CUDA graph may hold it
    for name, by_device in state.items():
        for device, sums in by_device.items():
            if (name, device) not in _moments:
                _moments[name, device] = torch.zeros_like(sums, device=device)
            _moments[name, device].copy_(sums)


class Collector:
    """Mean and deviation of each statistic between two calls of `update`, over all ranks. What was reported before it was made is not its business.

    Args:
        pattern: regular expression of the names to follow.
    """

    def __init__(self, pattern: str = ".*"):
        self._pattern = re.compile(pattern)
        self._gathered: dict[str, np.ndarray] = {}
        self._delta: dict[str, np.ndarray] = {}
        _fold()
        _collectors.add(self)

    def add(self, name: str, moments: np.ndarray) -> None:
        """Takes over [count, sum, sum of squares] of values that were reported."""
        if self._pattern.fullmatch(name):
            self._gathered[name] = self._gathered.get(name, 0) + moments

    def names(self) -> list[str]:
        """Names with a value, in alphabetical order."""
        return sorted(name for name, delta in self._delta.items() if delta[0] > 0)

    def update(self) -> None:
        """Makes the values since the last update the current ones. All ranks call this together, having reported the same names."""
        _fold()
        gathered, self._gathered = self._gathered, {}
        names = sorted({name for name, _ in _moments if self._pattern.fullmatch(name)})
        if not names:
            return
        deltas = np.stack([gathered.get(name, np.zeros(3)) for name in names])
        if world_size() > 1:
            deltas = sum_over_ranks_(torch.from_numpy(deltas).to("cuda" if dist.get_backend() == "nccl" else "cpu")).cpu().numpy()
        self._delta = dict(zip(names, deltas))

    def num(self, name: str) -> int:
        """How many values came in between the last two updates."""
        return int(self._delta.get(name, np.zeros(3))[0])

    def mean(self, name: str) -> float:
        """Their mean; NaN without any."""
        count, total, _ = self._delta.get(name, np.zeros(3))
        return float(total / count) if count else float("nan")

    def std(self, name: str) -> float:
        """Their population standard deviation; NaN without any."""
        count, total, squares = self._delta.get(name, np.zeros(3))
        return float(np.sqrt(max(squares / count - (total / count) ** 2, 0))) if count else float("nan")

    def as_dict(self) -> EasyDict:
        """name -> {num, mean, std}, as written to stats.jsonl."""
        return EasyDict({name: EasyDict(num=self.num(name), mean=self.mean(name), std=self.std(name)) for name in self.names()})
