"""A step is the same step however its batch is spread over ranks: 1 x 64, 2 x 32, 4 x 16, 3 x 20, and over rounds of one rank.

Real images come through the loaders. What every rank draws for itself (latents, noise, augmentation, style mixing, the direction of path
lengths) is given or switched off here, for it differs by design.
"""

import multiprocessing
import os
import sys
from multiprocessing import forkserver

import pytest
import torch
import torch.multiprocessing as mp
from tiny_runs import CPU, tiny_args, write_data

from torch_utils import distributed
from training.data_loader import open_loader
from training.dataset import ImageFolderDataset
from training.networks.discriminator import MinibatchStdLayer
from training.state import TrainingState

STEPS = 5  # path lengths at 0 and 4, R1 at 0
TYPICAL, WORST = 2e-3, 2e-2  # differences, as shares of what the steps did to a tensor, of the median tensor and of any


def train_rank(rank, size, store, data, out, typed):
    """Some steps as one of `size` ranks; rank 0 writes its networks to `out`, before and after."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    args = tiny_args(data, out, gpus=size, aug="noaug", precision="fp32", **typed)
    args.loss_kwargs.style_mixing_prob = 0
    args.G_kwargs.synthesis_kwargs.use_noise = False
    args.G_opt_kwargs.eps = args.D_opt_kwargs.eps = 1e-3  # else Adam makes much of the rounding of gradients that are nearly nothing
    dataset = ImageFolderDataset(data, use_labels=True)
    state = TrainingState(args, dataset, CPU)
    loader = open_loader(dataset, args.batch_size // size, CPU, rank=rank, num_replicas=size)
    given = torch.Generator().manual_seed(3)

    def draw(count):
        z = torch.randn([count * size, state.G.z_dim], generator=given)
        return z[rank::size], state.labels[torch.randint(len(state.labels), [count * size], generator=given)[rank::size]]

    state.draw = draw
    torch.randn_like = lambda x: torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(5)).expand_as(x)
    before = tensors_of(state)
    for _ in range(STEPS):
        state.step(*next(loader))
    state.share_averages()
    if rank == 0:
        torch.save((before, tensors_of(state)), out)
    distributed.leave()


def tensors_of(state):
    """Everything that training moves, by name."""
    networks = {name: module for name in ("G", "D", "P", "G_ema") if (module := getattr(state, name)) is not None}
    named = {f"{name}.{key}": value.clone() for name, module in networks.items() for key, value in module.state_dict().items()}
    return named | {"pl_mean": state.loss.pl_mean.clone()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The outcome of (ranks, options), each made once. Processes are forked from one that has imported everything."""
    folder = tmp_path_factory.mktemp("ranks")
    data, done = write_data(folder / "pics.zip", count=200), {}
    multiprocessing.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:  # the server of forks looks for modules nowhere else
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()

    def train(size, **typed):
        key = (size, *typed.items())
        if key not in done:
            out = folder / f"{len(done)}.pt"
            args = (size, out.with_suffix(".store"), data, str(out), typed)
            mp.start_processes(train_rank, args=args, nprocs=size, start_method="forkserver")
            done[key] = torch.load(out)
        return done[key]

    return train


def differences(one, other, at_rest=()):
    """How far two outcomes lie apart, tensor by tensor, as shares of what training did to each, from small to large.

    Nothing stands still but filters and what is said to be `at_rest`: of that there are no shares.
    """
    (before, after), (same, others) = one, other
    assert all(torch.equal(before[name], same[name]) for name in before)
    moved = {name: float((after[name] - before[name]).norm()) for name in after}
    still = {name for name in after if name.endswith("resample_filter")} | set(at_rest)
    for outcome in (after, others):
        assert {name for name in outcome if torch.equal(outcome[name], before[name])} == still
    return sorted((float((after[name] - others[name]).norm()) / moved[name], name) for name in after if name not in still)


def test_groups_of_minibatch_std_are_the_same_on_every_share_of_a_batch():
    draw = torch.Generator().manual_seed(0)
    x, layer = torch.randn([48, 3, 4, 4], generator=draw), MinibatchStdLayer(4)
    for shares in (1, 2, 3, 4, 6, 12):
        joined = torch.empty(48, 4, 4, 4)
        for share in range(shares):
            joined[share::shares] = layer(x[share::shares])
        assert torch.allclose(joined, layer(x))


@pytest.mark.parametrize(("size", "batch"), [(2, 64), (4, 64), pytest.param(3, 60, marks=pytest.mark.slow)])
def test_ranks_do_together_what_one_does(trained, size, batch):
    options = {"batch": batch, "pairing_weight": 0.5}
    apart = differences(trained(1, **options), trained(size, **options))
    assert apart[len(apart) // 2][0] < TYPICAL and apart[-1][0] < WORST, apart[-5:]


def test_rounds_do_together_what_one_does(trained):
    options = {"batch": 64, "cfg": "cifar-small", "pairing_weight": 0.5}  # without path lengths, whose mean moves with every round, as that of w does
    apart = differences(trained(1, **options), trained(1, batch_gpu=32, **options), at_rest=["pl_mean"])
    apart = [(share, name) for share, name in apart if not name.endswith("w_avg")]
    assert apart[len(apart) // 2][0] < TYPICAL and apart[-1][0] < WORST, apart[-5:]


def test_ranks_in_rounds_do_together_what_one_does_at_once(trained):
    options = {"batch": 128, "cfg": "cifar-small", "pairing_weight": 0.5}
    apart = differences(trained(1, **options), trained(2, batch_gpu=32, **options), at_rest=["pl_mean"])
    apart = [(share, name) for share, name in apart if not name.endswith("w_avg")]
    assert apart[len(apart) // 2][0] < TYPICAL and apart[-1][0] < WORST, apart[-5:]


def test_negatives_of_one_rank_alone_are_not_the_same(trained):
    options = {"batch": 64, "pairing_weight": 0.5}
    apart = {name: share for share, name in differences(trained(1, **options), trained(2, pairing_gather=False, **options))}
    assert apart["P.image_head.0.weight"] > 10 * WORST
