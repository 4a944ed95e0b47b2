"""Statistics: what lines report between two updates comes out as count, mean and deviation, over all ranks."""

import math
import uuid

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from torch_utils import distributed, training_stats
from torch_utils.distributed import leave
from torch_utils.training_stats import Collector, report


@pytest.fixture
def name():
    """A name that no other test reports under: statistics are the process's."""
    return f"Test/{uuid.uuid4().hex}"


def test_mean_and_deviation_equal_numpy(name):
    collector = Collector()
    parts = [torch.randn(size, generator=torch.Generator().manual_seed(index)) for index, size in enumerate(([3, 4], [1], [7], []))]
    for part in parts:
        report(name, part)
    collector.update()
    values = torch.cat([part.flatten() for part in parts]).double().numpy()
    assert collector.num(name) == 21
    assert (collector.mean(name), collector.std(name)) == pytest.approx((values.mean(), values.std()))
    assert collector.as_dict()[name] == {"num": 21, "mean": collector.mean(name), "std": collector.std(name)}


def test_each_update_sees_what_came_since_the_last(name):
    report(name, 100.0)
    collector = Collector()
    report(name, 1.0)
    assert collector.num(name) == 0
    collector.update()
    assert (collector.num(name), collector.mean(name), collector.std(name)) == (1, 1.0, 0.0)
    collector.update()
    assert collector.num(name) == 0 and name not in collector.names() and math.isnan(collector.mean(name)) and math.isnan(collector.std(name))


def test_two_collectors_do_not_take_from_each_other(name):
    first, second = Collector(), Collector()
    report(name, 1.0)
    first.update()
    report(name, 3.0)
    first.update()
    second.update()
    assert first.mean(name) == 3.0 and (second.num(name), second.mean(name)) == (2, 2.0)


def test_small_values_keep_their_digits_after_large_ones(name):
    """Also in the single precision of devices without float64, since sums are moved to the host at every update."""
    collector = Collector()
    report(name, 1e9)
    collector.update()
    assert torch.equal(training_stats._moments[name, "cpu"], torch.zeros(3, dtype=torch.float64))
    report(name, torch.tensor([0.25, 0.75]))
    collector.update()
    assert collector.mean(name) == pytest.approx(0.5, abs=1e-6)


def test_a_pattern_chooses_names(name):
    collector = Collector("Other/.*")
    report(name, 1.0)
    collector.update()
    assert name not in collector.as_dict()


def test_report_returns_the_value_and_cuts_the_graph(name):
    value = torch.ones(2, requires_grad=True) * 2
    assert report(name, value) is value and report(name, 3) == 3
    assert not training_stats._moments[name, "cpu"].requires_grad


def test_values_that_are_not_numbers_show(name):
    collector = Collector()
    report(name, torch.tensor([1.0, float("nan")]))
    collector.update()
    assert collector.num(name) == 2 and np.isnan(collector.mean(name))


def _rank(rank, file, results):
    arrivals = []
    distributed.arrive = lambda: arrivals.append("exchange")
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    collector = Collector()
    report("value", torch.full([rank + 1], float(rank)))
    collector.update()
    results[rank] = (collector.num("value"), collector.mean("value"), arrivals)
    leave()  # together: a rank that goes while another still talks to it may abort


def test_ranks_are_joined(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(tmp_path / "rendezvous", results), nprocs=2)
        assert dict(results) == {rank: (3, pytest.approx(2 / 3), ["exchange"]) for rank in (0, 1)}
