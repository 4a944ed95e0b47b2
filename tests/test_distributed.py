"""Ranks: gradients exchanged flat equal what each parameter alone would get, and processes start and end in order."""

import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from torch_utils import distributed
from torch_utils.distributed import exchange_gradients


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(4, 3), nn.PReLU())


def give_gradients(module, seed):
    draw = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=draw)


def test_one_rank_keeps_its_gradients_and_makes_them_finite():
    module = network()
    give_gradients(module, 1)
    before = [p.grad.clone() for p in module.parameters()]
    before[0][0, 0, 0] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    for p, grad in zip(module.parameters(), before):
        p.grad = grad.clone()
    assert exchange_gradients(module.parameters()) == 3
    for p, grad in zip(module.parameters(), before):
        assert torch.equal(p.grad, torch.nan_to_num(grad, nan=0.0, posinf=1e5, neginf=-1e5)) and p.grad.shape == p.shape


def test_parameters_without_gradient_get_zeros_and_frozen_ones_are_left_alone():
    module = network()
    give_gradients(module, 1)
    module[1].weight.grad = None
    module[1].bias.requires_grad_(False)
    frozen = module[1].bias.grad
    assert exchange_gradients(module.parameters()) == 0
    assert torch.equal(module[1].weight.grad, torch.zeros(3, 4)) and module[1].bias.grad is frozen


def test_gradients_of_any_memory_layout_arrive_at_their_own_places():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2))
    grad = torch.randn(4, 3, 2, 2)
    weight.grad = grad.to(memory_format=torch.channels_last)
    exchange_gradients([weight])
    assert torch.equal(weight.grad, grad)


def _rank(rank, file, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module = network()
    give_gradients(module, rank)
    if rank == 1:
        module[0].weight.grad = None
    count = exchange_gradients(module.parameters())
    results[rank] = (int(count), [p.grad.clone() for p in module.parameters()])
    distributed.leave()  # together: a rank that goes while another still talks to it may abort


def test_two_ranks_get_the_mean(tmp_path):
    wanted = []
    for rank in range(2):
        module = network()
        give_gradients(module, rank)
        wanted.append([p.grad for p in module.parameters()])
    wanted[1][0] = torch.zeros_like(wanted[1][0])
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(tmp_path / "rendezvous", results), nprocs=2)
        ranks = dict(results)
    for count, grads in ranks.values():
        assert count == 0
        for grad, a, b in zip(grads, *wanted):
            assert torch.equal(grad, (a + b) / 2)


RANK = """
    import sys, torch
    from torch_utils import distributed
    if not distributed.launched():
        distributed.launch_local(__file__, sys.argv[1:], 2)
    distributed.join(torch.device("cpu"), rank_timeout=60)
    if distributed.rank() == int(sys.argv[1]):
        distributed.leave(SystemExit(7), code=7)
        sys.exit(7)
    print(f"sum {int(distributed.sum_over_ranks_(torch.ones([])))}\\n", end="")  # in one piece: both write to one pipe
    distributed.leave()
"""


@pytest.mark.parametrize(("broken_rank", "code"), [(-1, 0), (1, 7)])
def test_the_launcher_ends_with_its_ranks(tmp_path, pytestconfig, broken_rank, code):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(RANK))
    command = [sys.executable, str(script), str(broken_rank)]
    environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == code, result.stderr
    if code == 0:
        assert result.stdout.count("sum 2") == 2
    else:
        # The other rank ends with the same code, and the launcher may see that first.
        assert re.search("Error: rank [01] ended with exit code 7; its own message is above", result.stderr)


def test_the_last_exchange_shows_who_is_late_too(monkeypatch):
    seen = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "arrive", lambda: seen.append("arrive"))
    monkeypatch.setattr(dist, "barrier", lambda: seen.append("barrier"))
    distributed.leave()
    assert seen == ["arrive", "barrier"]


HANGING = """
    import time, torch.distributed as dist
    from torch_utils import distributed
    distributed.LEAVE_SECONDS = 0.5
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.destroy_process_group = lambda: time.sleep(60)
    try:
        {}["a torn key"]
    except KeyError as error:
        distributed.leave(error, code=7)
"""


def test_a_rank_that_fails_does_not_wait_for_those_that_are_gone(pytestconfig):
    """As leaving a group does under NCCL."""
    environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath)}
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(HANGING)], stderr=subprocess.PIPE, text=True, env=environment, timeout=50)
    assert result.returncode == 7 and result.stderr.endswith("KeyError: 'a torn key'\n")
