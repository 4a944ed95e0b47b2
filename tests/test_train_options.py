"""Options of train.py that change what is trained: each one trains, and does what it says."""

import pytest
import torch
from tiny_runs import CPU, PoolDetector, data_info, stats_of, tiny_args, train, write_data

from dnnlib import UserError
from metrics import detectors
from torch_utils.checkpoint import save_networks
from training import config
from training.networks import load_network
from training.options import Options
from training.phases import run_phase
from training.run_files import RunDir
from training.state import copy_matching
from training.training_loop import Trainer, training_loop, transfer

STEPS = dict(batch=252, kimg=1, precision="fp32")  # 4 steps, in one precision on every machine
LAST = "network-snapshot-000001.safetensors"
GOLDEN = "tests/data/sg2_network.pkl"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "pics.zip")


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """A run without any of the options."""
    return train(data, tmp_path_factory.mktemp("plain") / "run", **STEPS)


def state_of(data, **typed):
    args = tiny_args(data, "unused", **{**STEPS, **typed})
    return Trainer(args, CPU, 1).state


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# Each of these trains, reports, and ends elsewhere than the plain run.

CHANGES = {
    "relativistic with R2": (dict(objective="relativistic", r2_gamma=0.5), {"Loss/r2_penalty", "Loss/r1_penalty", "Loss/D/loss"}, {"G", "D"}),
    "R2 alone": (dict(r2_gamma=0.5, gamma=0.0), {"Loss/r2_penalty"}, {"G", "D"}),
    "mode seeking": (dict(ms_weight=1.0), {"Loss/ms/loss"}, {"G"}),
    "pairing": (dict(pairing_weight=0.5), {"Loss/pairing/loss", "Loss/pairing/accuracy", "Loss/pairing/weight"}, {"G"}),
    "binary pairing": (dict(pairing_weight=0.5, pairing_mode="binary"), {"Loss/pairing/loss", "Loss/pairing/accuracy"}, {"G"}),
    "shuffled pairing": (dict(pairing_weight=0.5, pairing_shuffle=True), {"Loss/pairing/loss"}, {"G"}),
    "further negatives": (dict(pairing_weight=0.5, pairing_extra=30, pairing_near=0.5, pairing_space="w"), {"Loss/pairing/grad_norm"}, {"G"}),
    "pairing after a warm-up": (dict(pairing_weight=0.5, pairing_warmup=1), {"Loss/pairing/loss"}, {"G"}),
    "pairing of w": (dict(pairing_weight=0.5, pairing_space="w"), {"Loss/pairing/loss"}, {"G"}),
    "bf16": (dict(precision="bf16"), set(), {"G", "D"}),
    "fixed augmentation": (dict(aug="fixed", p=0.5, augpipe="bgcfnc"), set(), {"G", "D"}),
    "accumulation": (dict(batch_gpu=84), set(), {"G", "D"}),
    "mirrored subset": (dict(mirror=True, subset=20), set(), {"G", "D"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_option_trains_and_matters(data, plain, tmp_path, name):
    typed, reported, changed = CHANGES[name]
    run = train(data, tmp_path / "run", **{**STEPS, **typed})
    networks, before = load_network(run / LAST), load_network(plain / LAST)
    assert reported <= set(stats_of(run)[0])
    for network in ("G", "D", "G_ema"):
        assert all(torch.isfinite(tensor).all() for tensor in networks[network].state_dict().values())
    for network in changed:
        assert not torch.allclose(weights(networks[network]), weights(before[network]))
    assert ("P" in networks) == ("pairing_weight" in typed)


def test_the_latent_tower_takes_what_the_space_says(data):
    for space, expected in (("z", 8), ("w", 12)):
        args = tiny_args(data, "unused", pairing_weight=0.05, pairing_space=space, **STEPS)
        args.G_kwargs.w_dim = 12
        assert Trainer(args, CPU, 1).state.P.z_dim == expected


def test_pairing_does_not_change_how_the_other_networks_start(data):
    starts = []
    for weight in (0.0, 0.05):
        state = state_of(data, pairing_weight=weight)
        starts.append(torch.cat([weights(state.G), weights(state.D), state.draw(4)[0].flatten()]))
    assert torch.equal(*starts)


def test_gradient_penalties_that_weigh_nothing_are_not_computed(data):
    assert [phase.name for phase in state_of(data).phases] == ["Gmain", "Greg", "Dmain", "Dreg"]
    assert [phase.name for phase in state_of(data, cfg="cifar", gamma=0.0, batch=256).phases] == ["Gmain", "Dmain"]
    assert [phase.name for phase in state_of(data, cfg="cifar", gamma=0.0, r2_gamma=1.0, batch=256).phases] == ["Gmain", "Dmain", "Dreg"]


@pytest.mark.parametrize("phase_name", ["Gmain", "Dmain", "Dreg"])
def test_accumulated_rounds_give_the_gradients_of_one_big_batch(data, phase_name):
    """With minibatch std over groups of one: it sees one round at a time, so it cannot agree otherwise. Noise strengths start at 0, and
    their gradients, which depend on the draws, are left out."""
    gradients = []
    for batch_gpu in (32, 8):
        args = tiny_args(data, "unused", cfg="demo", batch=32, batch_gpu=batch_gpu, aug="noaug", precision="fp32")
        args.D_kwargs.epilogue_kwargs.mbstd_group_size = 1
        state = Trainer(args, CPU, 1).state
        phase = next(phase for phase in state.phases if phase.name == phase_name)
        generator = torch.Generator().manual_seed(0)
        real, z = torch.randn(32, 3, 8, 8, generator=generator), torch.randn(32, 8, generator=generator)
        c = torch.eye(3)[torch.arange(32) % 3]
        run_phase(phase, state.loss, (real, c, z, c.flip(0)), batch_gpu)
        (module,) = phase.modules
        gradients.append({name: p.grad for name, p in module.named_parameters() if not name.endswith("noise_strength")})
    assert max(gradient.abs().max() for gradient in gradients[0].values()) > 0
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


# Starting from other networks.


def test_resume_starts_from_a_snapshot(data, plain, tmp_path, capsys):
    """The networks of the file are there before the first step, and what the field changes for a transfer is changed."""
    run = train(data, tmp_path / "run", resume=str(plain / LAST), seed=7, **STEPS)
    source, state = load_network(plain / LAST), state_of(data, seed=7)
    lines = transfer(state, str(plain / LAST))
    for name in ("G", "D", "G_ema"):
        assert torch.equal(weights(getattr(state, name)), weights(source[name]))
        assert f"Resumed {name}: {len(source[name].state_dict())} tensors\n" in (run / "log.txt").read_text()
    assert len(lines) == 3 and capsys.readouterr().out.count("Resumed") == 3
    moved = weights(load_network(run / "network-snapshot-000000.safetensors").G) - weights(source.G)
    assert 0 < moved.abs().max() < 0.05


def test_resume_takes_the_pairing_network_along(data, tmp_path):
    first = train(data, tmp_path / "first", pairing_weight=0.05, **STEPS)
    state = state_of(data, pairing_weight=0.05, seed=7)
    assert [line.split(":")[0] for line in transfer(state, str(first / LAST))] == [f"Resumed {name}" for name in ("G", "D", "G_ema", "P")]
    assert torch.equal(weights(state.P), weights(load_network(first / LAST).P))
    assert len(transfer(state_of(data), str(first / LAST))) == 3


def test_resume_reads_a_network_of_stylegan2_ada_and_says_what_does_not_fit(tmp_path):
    """The file has six labels and 32 pixels; here are three labels."""
    pictures = write_data(tmp_path / "pics.zip", size=32)
    args = config.resolve(Options(data=pictures, outdir="x", cond=True, cfg="cifar", batch=32), {"cond", "cfg", "batch"}, data_info(pictures), CPU)
    width = dict(channel_base=512, channel_max=16)
    args.G_kwargs.update(z_dim=48, w_dim=48, mapping_kwargs={"num_layers": 3})
    args.G_kwargs.synthesis_kwargs.update(width)
    args.D_kwargs.update(width)
    args.run_dir = str(tmp_path / "run")
    state = Trainer(args, CPU, 1).state
    lines = transfer(state, GOLDEN)
    source = load_network(GOLDEN)
    assert "left at their start: mapping.embed.weight" in lines[0]
    assert torch.equal(state.G.synthesis.b32.conv0.weight, source.G.synthesis.b32.conv0.weight)
    assert torch.equal(state.D.b32.fromrgb.weight, source.D.b32.fromrgb.weight)
    assert state.G.mapping.embed.weight.shape == (48, 3) and not lines[2].startswith("Resumed D")


def test_resume_from_networks_of_other_sizes_is_refused_and_leaves_nothing(data, tmp_path):
    with pytest.raises(UserError, match="no weight of its G fits this configuration"):
        train(data, tmp_path / "run", cfg="demo", batch=504, kimg=1, resume=GOLDEN)
    assert not (tmp_path / "run").exists()


def test_resume_needs_all_three_networks(data, plain, tmp_path):
    from training.networks import network_record

    save_networks(tmp_path / "half.safetensors", {"G": network_record(load_network(plain / LAST).G)}, {})
    with pytest.raises(UserError, match="the file holds no network 'D'"):
        train(data, tmp_path / "run", resume=str(tmp_path / "half.safetensors"), **STEPS)
    assert not (tmp_path / "run").exists()


def test_copy_matching_copies_equal_names_and_shapes():
    source, target = (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(width, 1)) for width in (3, 4))
    assert copy_matching(source, target) == (["0.weight", "0.bias", "1.bias"], ["1.weight"])
    assert torch.equal(source[0].weight, target[0].weight)


def test_frozen_layers_stay_and_the_others_move(data, plain, tmp_path):
    """Freeze-D with a transfer: the first two layers from the image side keep what the snapshot had."""
    run = train(data, tmp_path / "run", resume=str(plain / LAST), freezed=2, **STEPS)
    before, after = load_network(plain / LAST).D, load_network(run / LAST).D
    assert torch.equal(before.b8.fromrgb.weight, after.b8.fromrgb.weight) and torch.equal(before.b8.conv0.weight, after.b8.conv0.weight)
    assert not torch.equal(before.b8.conv1.weight, after.b8.conv1.weight)
    assert "b8.conv0.weight" not in dict(after.named_parameters())


# Files that stay.


def test_keep_bounds_the_snapshots_and_the_best_one_stays(tmp_path):
    run = RunDir(tmp_path)
    for kimg in range(8):
        run.snapshot(kimg).write_bytes(b"")
        run.state(kimg).write_bytes(b"")
        with open(run / "metric-coverage_x.jsonl", "a") as handle:
            value = 0.9 if kimg == 2 else 0.1
            handle.write(f'{{"results": {{"coverage_x": {value}}}, "snapshot_pkl": "network-snapshot-{kimg:06d}.safetensors"}}\n')
        run.prune(keep=3, metric="coverage_x")
        assert len(run.states()) <= 2
    assert run.snapshots() == [2, 5, 6, 7] and run.states() == [6, 7]
    assert run.best("coverage_x") == 2 and run.best("absent") is None and run.best(None) is None
    (tmp_path / "metric-fid10k.jsonl").write_text((tmp_path / "metric-coverage_x.jsonl").read_text())
    assert run.best("fid10k") != 2  # there, less is better


def test_keep_follows_the_metric_under_the_name_of_its_detector(data, tmp_path):
    torch.jit.script(PoolDetector()).save(str(tmp_path / "pool.pt"))
    detectors._load.cache_clear()
    trainer = Trainer(tiny_args(data, tmp_path / "run", metrics=["coverage"], detector=str(tmp_path / "pool.pt"), **STEPS), CPU, 1)
    assert trainer.leading_metric == "coverage_pool"
    run = train(data, tmp_path / "run", batch=252, kimg=3, tick=1, snap=1, keep=1, metrics=["coverage"], detector=str(tmp_path / "pool.pt"))
    stay = set(RunDir(run).states()) | {RunDir(run).best("coverage_pool")}
    assert set(RunDir(run).snapshots()) == stay and RunDir(run).best("coverage_pool") is not None


# Slow ones.


@pytest.mark.slow
def test_compiled_phases_train_to_nearly_the_same_weights(data, plain, tmp_path):
    args = tiny_args(data, tmp_path / "run", compile=True, **STEPS)
    training_loop(args, CPU, 1)
    compiled, eager = load_network(tmp_path / "run" / LAST), load_network(plain / LAST)
    assert torch.isfinite(weights(compiled.G)).all()
    assert (weights(compiled.D) - weights(eager.D)).abs().max() < 0.05
