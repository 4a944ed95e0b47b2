"""Options of train.py that change what is trained: each one trains, and does what it says."""

import pytest
import torch
from tiny_runs import CPU, stats_of, tiny_args, train, write_data, write_detector

from metrics import detectors
from training.networks import load_network
from training.phases import run_phase
from training.run_files import Best, RunDir
from training.training_loop import Trainer, training_loop

STEPS = dict(batch=252, kimg=1, precision="fp32")  # 4 steps, in one precision on every machine
LAST = "network-snapshot-000001.safetensors"
GOLDEN = "tests/data/sg2_network.pkl"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "pics.zip")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The run folder of some options, each made once. Images are 8x8 unless `size` says otherwise."""
    done = {}

    def run(size=8, **typed):
        key = (size, *sorted(typed.items()))
        if key not in done:
            folder = tmp_path_factory.mktemp("trained")
            source = data if size == 8 else write_data(folder / "pics.zip", size=size)
            done[key] = train(source, folder / "run", **{**STEPS, **typed})
        return done[key]

    return run


def state_of(data, **typed):
    args = tiny_args(data, "unused", **{**STEPS, **typed})
    return Trainer(args, CPU, 1).state


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# Each of these trains, reports, and ends elsewhere than the run that differs from it by the option alone.

PAIRED, FIXED = dict(pairing_weight=0.5), dict(aug="fixed", augpipe="bgcfnc")
MANY = dict(**PAIRED, pairing_extra=30)
CHANGES = {  # what the run is compared with, what is added to it, what is reported then, and whose weights end elsewhere
    "relativistic": (dict(aug="noaug", r2_gamma=0.5), dict(objective="relativistic"), {"Loss/r2_penalty", "Loss/r1_penalty"}, {"G", "D"}),
    "R1": (dict(gamma=0.0), dict(gamma=0.5), {"Loss/r1_penalty"}, {"G", "D"}),
    "R2": (dict(gamma=0.0), dict(r2_gamma=0.5), {"Loss/r2_penalty"}, {"G", "D"}),
    "mode seeking": ({}, dict(ms_weight=1.0), {"Loss/ms/loss"}, {"G"}),
    "pairing": ({}, PAIRED, {"Loss/pairing/loss", "Loss/pairing/accuracy", "Loss/pairing/weight", "Loss/pairing/grad_norm"}, {"G"}),
    "binary pairing": (PAIRED, dict(pairing_mode="binary"), {"Loss/pairing/loss", "Loss/pairing/accuracy"}, {"G", "P"}),
    "shuffled pairing": (PAIRED, dict(pairing_shuffle=True), {"Loss/pairing/loss"}, {"G", "P"}),
    "extra negatives": (PAIRED, dict(pairing_extra=30), {"Loss/pairing/grad_norm"}, {"G", "P"}),
    "nearer negatives": (MANY, dict(pairing_near=0.5), {"Loss/pairing/grad_norm"}, {"G", "P"}),
    "extra negatives of w": (MANY, dict(pairing_space="w"), {"Loss/pairing/grad_norm"}, {"G", "P"}),
    "pairing at another temperature": (PAIRED, dict(pairing_tau=0.5), {"Loss/pairing/loss"}, {"G", "P"}),
    "pairing at another rate": (PAIRED, dict(pairing_lr=0.01), {"Loss/pairing/loss"}, {"G", "P"}),
    "pairing by wider towers": (PAIRED, dict(pairing_width=2), {"Loss/pairing/loss"}, {"G"}),
    "pairing of a coarse view": (dict(size=16, **PAIRED), dict(pairing_view=8), {"Loss/pairing/loss"}, {"G"}),
    "pairing by D's features": (PAIRED, dict(pairing_features=True), {"Loss/pairing/loss", "Loss/pairing/grad_norm"}, {"G"}),
    "pairing after a warm-up": (PAIRED, dict(pairing_warmup=1), {"Loss/pairing/loss"}, {"G", "P"}),
    "pairing of w": (PAIRED, dict(pairing_space="w"), {"Loss/pairing/loss"}, {"G", "P"}),
    "bf16": ({}, dict(precision="bf16"), set(), {"G", "D"}),
    "fixed augmentation": (dict(**FIXED, p=0.0), dict(p=0.5), set(), {"G", "D"}),
    "another augmentation": (dict(aug="fixed", augpipe="bgc", p=0.5), dict(augpipe="bgcfnc"), set(), {"G", "D"}),
    "accumulation": ({}, dict(batch_gpu=84), set(), {"G", "D"}),
    "mirror": ({}, dict(mirror=True), set(), {"G", "D"}),
    "subset": ({}, dict(subset=20), set(), {"G", "D"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_option_trains_and_matters(trained, name):
    without, typed, reported, changed = CHANGES[name]
    run, other = trained(**{**without, **typed}), trained(**without)
    networks, before = load_network(run / LAST), load_network(other / LAST)
    assert reported <= set(stats_of(run)[0])
    for network in ("G", "D", "G_ema"):
        assert all(torch.isfinite(tensor).all() for tensor in networks[network].state_dict().values())
    for network in changed:
        assert not torch.allclose(weights(networks[network]), weights(before[network]))
    assert ("P" in networks) == ("pairing_weight" in without | typed)


def test_a_run_that_differs_by_no_option_ends_at_the_same_weights(data, trained, tmp_path):
    """Without which none of the above would say anything."""
    again = train(data, tmp_path / "run", **STEPS, **MANY)
    for network in ("G", "D", "P"):
        assert torch.equal(weights(load_network(again / LAST)[network]), weights(load_network(trained(**MANY) / LAST)[network]))


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
    assert run.best("coverage_x") == Best("coverage_x", 2, 0.9) and run.best("absent") is None and run.best(None) is None
    (tmp_path / "metric-fid10k.jsonl").write_text((tmp_path / "metric-coverage_x.jsonl").read_text().replace("coverage_x", "fid10k"))
    assert run.best("fid10k") == Best("fid10k", 7, 0.1)  # there, less is better; of equal ones the last


def test_keep_follows_the_metric_under_the_name_of_its_detector(data, tmp_path):
    write_detector(tmp_path / "pool.pt")
    detectors._load.cache_clear()
    trainer = Trainer(tiny_args(data, tmp_path / "run", metrics=["coverage"], detector=str(tmp_path / "pool.pt"), **STEPS), CPU, 1)
    assert trainer.leading_metric == "coverage_pool"
    run = train(data, tmp_path / "run", batch=252, kimg=3, tick=1, snap=1, keep=1, metrics=["coverage"], detector=str(tmp_path / "pool.pt"))
    stay = set(RunDir(run).states()) | {RunDir(run).best("coverage_pool").kimg}
    assert set(RunDir(run).snapshots()) == stay and RunDir(run).best("coverage_pool") is not None


# Slow ones.


@pytest.mark.slow
def test_compiled_phases_train_to_nearly_the_same_weights(data, trained, tmp_path):
    args = tiny_args(data, tmp_path / "run", compile=True, **STEPS)
    training_loop(args, CPU, 1)
    compiled, eager = load_network(tmp_path / "run" / LAST), load_network(trained() / LAST)
    assert torch.isfinite(weights(compiled.G)).all()
    assert (weights(compiled.D) - weights(eager.D)).abs().max() < 0.05
