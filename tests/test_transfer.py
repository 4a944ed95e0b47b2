"""--resume from networks of other sizes, and --freezed: what fits is copied bit for bit, the rest stays, and the table says so."""

import re

import pytest
import torch
from tiny_runs import CPU, data_info, tiny_args, train, write_data

from dnnlib import UserError
from torch_utils.checkpoint import save_networks
from training import config, transfer
from training.dataset import ImageFolderDataset
from training.networks import Discriminator, Generator, load_network, network_record
from training.networks.discriminator import count_freezable
from training.options import Options
from training.state import TrainingState
from training.transfer import ONLY_HERE, ONLY_THERE, OTHER_SHAPE, copy_matching, initialize_networks

STEPS = dict(batch=252, kimg=1, precision="fp32")  # 4 steps, in one precision on every machine
LAST = "network-snapshot-000001.safetensors"
GOLDEN = "tests/data/sg2_network.pkl"
# What a run's networks may be, against 16x16 RGB images without labels.
SHAPES = {
    "the same": {},
    "a lower resolution": dict(res=8),
    "a higher resolution": dict(res=32),
    "labels": dict(labels=3),
    "grey": dict(channels=1),
    "wider": dict(width=64),
    "a deeper mapping": dict(layers=4),
    "half precision": dict(fp16=2),
    "all of it": dict(res=32, labels=2, channels=4, width=64, layers=1),
}


def networks(res=16, labels=0, channels=3, width=32, layers=2, fp16=0, seed=0, freeze=0):
    """G and D of these sizes."""
    torch.manual_seed(seed)
    widths = dict(channel_base=width * 4, channel_max=width // 4, num_fp16_res=fp16)
    G = Generator(8, labels, 8, res, channels, mapping_kwargs=dict(num_layers=layers), synthesis_kwargs=widths)
    D = Discriminator(labels, res, channels, block_kwargs=dict(freeze_layers=freeze), **widths)
    for network in (G, D):
        for tensor in network.state_dict().values():  # so that no two tensors are equal by birth, as biases of zeros are
            tensor.copy_(torch.randn(tensor.shape))
    return G, D


def copies_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "pics.zip")


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """A run to start from."""
    return train(data, tmp_path_factory.mktemp("plain") / "run", **STEPS)


def state_of(data, **typed):
    args = tiny_args(data, "unused", **{**STEPS, **typed})
    return TrainingState(args, ImageFolderDataset(data, use_labels=args.training_set_kwargs.use_labels), CPU)


def weights(network):
    return torch.cat([tensor.flatten() for tensor in network.state_dict().values()])


# What is copied.


@pytest.mark.parametrize("shape", SHAPES)
def test_what_fits_is_copied_and_all_else_stays_and_is_listed(shape):
    for source, target in zip(networks(seed=1), networks(seed=2, **SHAPES[shape])):
        theirs, before = copies_of(source), copies_of(target)
        copied = copy_matching(source, target, "N")
        fits = {name for name in before if name in theirs and theirs[name].shape == before[name].shape}
        for name, tensor in target.state_dict().items():
            assert torch.equal(tensor, theirs[name] if name in fits else before[name]), name
        assert set(copied.names) == fits and fits
        listed = [misfit.name for misfit in copied.misfits]
        assert sorted(listed) == sorted((before.keys() | theirs.keys()) - fits)
        for misfit in copied.misfits:
            here, there = (tuple(state[misfit.name].shape) if misfit.name in state else None for state in (before, theirs))
            assert (misfit.here, misfit.there) == (here, there)
            assert misfit.why == (ONLY_HERE if there is None else ONLY_THERE if here is None else OTHER_SHAPE)
        assert copied.numbers == (sum(before[name].numel() for name in fits), sum(tensor.numel() for tensor in before.values()))
        # The text counts each of them once.
        rows = [line for line in transfer.describe([copied]) if line.startswith("  N: ")]
        counted = sum(int((re.search(r"and (\d+) more", row) or [0, 0])[1]) + 1 for row in rows if ONLY_THERE not in row)
        counted += sum(int(re.search(r"(\d+) tensor", row)[1]) for row in rows if ONLY_THERE in row)
        assert counted == len(listed)


def test_blocks_are_matched_by_their_resolution():
    (source, D), (target, target_D) = networks(res=32, seed=1), networks(res=16, seed=2)
    copy_matching(source, target)
    assert torch.equal(target.synthesis.b16.torgb.weight, source.synthesis.b16.torgb.weight)
    assert torch.equal(target.synthesis.b16.conv1.noise_const, source.synthesis.b16.conv1.noise_const)
    assert torch.equal(target.mapping.w_avg, source.mapping.w_avg)
    copied = copy_matching(D, target_D)
    assert torch.equal(target_D.b16.conv0.weight, D.b16.conv0.weight)
    assert [misfit.name for misfit in copied.misfits if misfit.why == ONLY_HERE] == [
        f"b16.fromrgb.{t}" for t in ("weight", "bias", "resample_filter")
    ]


def test_the_table_of_a_large_network_fits_a_screen():
    """Nothing but the shallowest tensors fits: every block of 1024x1024 networks is in the table, in one row for each reason."""
    big, small = networks(res=1024, labels=3, channels=3, width=1024), networks(res=512, labels=0, channels=1, width=512)
    lines = transfer.describe([copy_matching(a, b, name) for a, b, name in zip(small, big, ("G", "D"))])
    assert len(lines) <= 30 and max(map(len, lines)) <= 120
    for res in (2**n for n in range(3, 11)):
        assert sum(f"synthesis.b{res}." in line for line in lines) == 1 and sum(f"D: b{res}." in line for line in lines) >= 1
    lines = transfer.describe([copy_matching(b, a, name) for a, b, name in zip(small, big, ("G", "D"))])
    assert any("D: b1024, mapping" in line and "not used" in line for line in lines)


def test_the_table_says_names_shapes_and_reasons():
    (G, _), (own, _) = networks(labels=0, channels=3), networks(labels=3, channels=1)
    lines = transfer.describe([copy_matching(G, own, "G"), copy_matching(G, own, "G_ema")])
    assert re.fullmatch(r"Resumed G, G_ema: \d+ of \d+ tensors, \d\d\.\d% of the numbers", lines[0])
    table = {re.split(r"\s{2,}", line.strip())[0]: re.split(r"\s{2,}", line.strip())[1:] for line in lines[1:]}
    assert table["not copied"] == ["there", "here", "why"]
    assert table["G, G_ema: mapping.embed.weight and 1 more"] == ["-", "8x3", "only here, stays at its start"]
    assert table["G, G_ema: mapping.fc0.weight"] == ["8x8", "8x16", "other shape, stays at its start"]
    assert table["G, G_ema: synthesis.b16.torgb.weight and 1 more"] == ["3x8x1x1", "1x8x1x1", "other shape, stays at its start"]


def test_settings_that_change_what_equal_shapes_mean_are_told():
    (G, _), (own, _) = networks(layers=3), networks(layers=2)
    notes = [line for line in transfer.describe([copy_matching(G, own, "G")]) if line.startswith("Note")]
    assert len(notes) == 1 and "layers of the mapping network in G: 3 there, 2 here" in notes[0]
    slow, fast = (Generator(8, 0, 8, 8, 3, mapping_kwargs=dict(lr_multiplier=rate), synthesis_kwargs=dict(channel_max=8)) for rate in (0.01, 0.1))
    assert any("0.01 there, 0.1 here" in line for line in transfer.describe([copy_matching(slow, fast, "G")]))
    assert len(transfer.describe([copy_matching(slow, slow, "G")])) == 1


# Runs that start so.


def test_resume_starts_from_a_snapshot(data, plain, tmp_path, capsys):
    """The networks of the file are there before the first step, and what the field changes for a transfer is changed."""
    run = train(data, tmp_path / "run", resume=str(plain / LAST), seed=7, **STEPS)
    source, state = load_network(plain / LAST), state_of(data, seed=7)
    lines = initialize_networks(state, str(plain / LAST))
    for name in ("G", "D", "G_ema"):
        assert torch.equal(weights(getattr(state, name)), weights(source[name]))
    counts = {name: len(source[name].state_dict()) for name in ("G", "D")}
    told = [f"Resumed {names}: {count} of {count} tensors, 100.0% of the numbers" for names, count in zip(("G, G_ema", "D"), counts.values())]
    assert lines == told and "\n".join(told) in (run / "log.txt").read_text() and capsys.readouterr().out.count("Resumed") == 2
    moved = weights(load_network(run / "network-snapshot-000000.safetensors").G) - weights(source.G)
    assert 0 < moved.abs().max() < 0.05


def test_resume_takes_the_pairing_network_along(data, tmp_path):
    first = train(data, tmp_path / "first", pairing_weight=0.05, **STEPS)
    state = state_of(data, pairing_weight=0.05, seed=7)
    assert [line.split(":")[0] for line in initialize_networks(state, str(first / LAST))] == [f"Resumed {names}" for names in ("G, G_ema", "D", "P")]
    assert torch.equal(weights(state.P), weights(load_network(first / LAST).P))
    assert len(initialize_networks(state_of(data), str(first / LAST))) == 2


def test_a_run_on_larger_unlabelled_grey_images_starts_from_a_small_labelled_one(plain, tmp_path):
    pictures = write_data(tmp_path / "pics.zip", size=16, mode="L")
    run = train(pictures, tmp_path / "run", cond=False, resume=str(plain / LAST), **STEPS)
    log = (run / "log.txt").read_text()
    assert re.search(r"G, G_ema: mapping\.fc0\.weight +8x16 +8x8 +other shape, stays at its start\n", log)
    assert re.search(r"G, G_ema: synthesis\.b16\.conv0\.affine\.weight and \d+ more|G, G_ema: synthesis\.b16\.\S+ and \d+ more", log)
    assert load_network(run / LAST).G_ema.img_channels == 1


def test_resume_reads_a_network_of_stylegan2_ada_and_says_what_does_not_fit(tmp_path):
    """The file has six labels and 32 pixels; here are three labels."""
    pictures = write_data(tmp_path / "pics.zip", size=32)
    args = config.resolve(Options(data=pictures, outdir="x", cond=True, cfg="cifar", batch=32), {"cond", "cfg", "batch"}, data_info(pictures), CPU)
    width = dict(channel_base=512, channel_max=16)
    args.G_kwargs.update(z_dim=48, w_dim=48, mapping_kwargs={"num_layers": 3})
    args.G_kwargs.synthesis_kwargs.update(width)
    args.D_kwargs.update(width)
    state = TrainingState(args, ImageFolderDataset(pictures, use_labels=True), CPU)
    lines = initialize_networks(state, GOLDEN)
    source = load_network(GOLDEN)
    assert any(re.search(r"mapping\.embed\.weight +48x6 +48x3 +other shape", line) for line in lines)
    assert torch.equal(state.G.synthesis.b32.conv0.weight, source.G.synthesis.b32.conv0.weight)
    assert torch.equal(state.D.b32.fromrgb.weight, source.D.b32.fromrgb.weight)
    assert state.G.mapping.embed.weight.shape == (48, 3)


def test_resume_takes_a_url(data, plain, monkeypatch):
    asked = []
    monkeypatch.setattr(transfer, "fetch", lambda url: asked.append(url) or plain / LAST)
    state = state_of(data, seed=7)
    initialize_networks(state, "https://example.org/network.safetensors")
    assert asked == ["https://example.org/network.safetensors"]
    assert torch.equal(weights(state.G), weights(load_network(plain / LAST).G))


def test_resume_from_networks_of_other_sizes_is_refused_and_leaves_nothing(data, tmp_path):
    with pytest.raises(UserError, match="no weight of its G fits this configuration"):
        train(data, tmp_path / "run", cfg="demo", batch=504, kimg=1, resume=GOLDEN)
    assert not (tmp_path / "run").exists()


def test_resume_needs_all_three_networks(data, plain, tmp_path):
    save_networks(tmp_path / "half.safetensors", {"G": network_record(load_network(plain / LAST).G)}, {})
    with pytest.raises(UserError, match="the file holds no network 'D'"):
        train(data, tmp_path / "run", resume=str(tmp_path / "half.safetensors"), **STEPS)
    assert not (tmp_path / "run").exists()


# Freeze-D.


@pytest.mark.parametrize("resumed", [True, False])
def test_frozen_layers_keep_their_bits_and_the_others_move(data, plain, tmp_path, resumed):
    source = dict(resume=str(plain / LAST)) if resumed else {}
    before = copies_of(load_network(plain / LAST).D if resumed else state_of(data, freezed=2).D)
    run = train(data, tmp_path / "run", freezed=2, **source, **STEPS)
    after = load_network(run / LAST).D
    frozen = ("b8.fromrgb.", "b8.conv0.")
    for name, tensor in after.state_dict().items():
        if not name.endswith("resample_filter"):
            assert torch.equal(tensor, before[name]) == name.startswith(frozen), name
    assert not any(name.startswith(frozen) for name, _ in after.named_parameters())
    log = (run / "log.txt").read_text()
    assert "Freeze-D: 2 layers of D will not be trained: b8.fromrgb, b8.conv0\n" in log
    assert ("random weights" in log) == (not resumed)


def test_frozen_layers_that_nothing_was_copied_into_are_named():
    (_, D), (_, own) = networks(res=16), networks(res=8, freeze=2)
    lines = transfer.describe_frozen(own, [copy_matching(D, own, "D")])
    assert lines[1].startswith("Note: of these, nothing was copied into b8.fromrgb;") and len(lines) == 2
    assert transfer.describe_frozen(D, []) == []


@pytest.mark.parametrize("architecture", ["orig", "resnet", "skip"])
@pytest.mark.parametrize("res", [4, 8, 32])
def test_freezable_layers_are_counted_as_the_network_counts_them(res, architecture):
    D = Discriminator(0, res, 3, architecture=architecture, channel_max=4, block_kwargs=dict(freeze_layers=10**6))
    assert len(transfer.frozen_layers(D)) == count_freezable(res, architecture)


def test_more_frozen_layers_than_there_are_is_one_sentence(data, tmp_path):
    """The tiny set is 8x8: one residual block of three layers and fromrgb."""
    train(data, tmp_path / "all", freezed=4, **STEPS)
    with pytest.raises(UserError, match=r"--freezed=5: for 8x8 images and --cfg=auto D has 4 layers that can be frozen; give at most as many"):
        tiny_args(data, tmp_path / "run", freezed=5)
