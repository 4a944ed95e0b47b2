"""Presets, option combinations and the configuration they make: every number of StyleGAN2-ADA's presets, its key order."""

import dataclasses
import json
import re

import click
import pytest
import torch
from click.testing import CliRunner
from tiny_runs import CPU, write_data

import train
from dnnlib import UserError
from torch_utils.ops import backend
from training import config
from training.augment import AUGPIPE_PRESETS
from training.options import RESUME_SOURCES, Options, add_options, option_table
from training.presets import PRESETS, for_data

CUDA = torch.device("cuda")  # as an argument only: nothing here allocates


def info(resolution=32, length=1000, name="pics"):
    return config.DataInfo(name, length, resolution, 3, 10, True)


def resolved(data=None, device=CPU, **typed):
    return config.resolve(Options(outdir="out", data="pics.zip", **typed), set(typed), data or info(), device)


def refusal(data=None, device=CPU, **typed):
    with pytest.raises(UserError) as caught:
        resolved(data, device, **typed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Presets. Columns: ref_gpus kimg batch mbstd fmaps lrate gamma ema_kimg ema_ramp map_layers.

TABLE = {
    "auto": (None, 25000, None, None, None, None, None, None, 0.05, 2),
    "stylegan2": (8, 25000, 32, 4, 1, 0.002, 10, 10, None, 8),
    "paper256": (8, 25000, 64, 8, 0.5, 0.0025, 1, 20, None, 8),
    "paper512": (8, 25000, 64, 8, 1, 0.0025, 0.5, 20, None, 8),
    "paper1024": (8, 25000, 32, 4, 1, 0.002, 2, 10, None, 8),
    "cifar": (2, 100000, 64, 32, 1, 0.0025, 0.01, 500, 0.05, 2),
}


@pytest.mark.parametrize("name", TABLE)
def test_presets_are_the_fields(name):
    preset = PRESETS[name]
    assert dataclasses.astuple(preset)[:10] == TABLE[name]
    assert (preset.channel_max, preset.z_dim, preset.w_dim, preset.ada_kimg) == (512, 512, 512, 500)
    assert (preset.regularize_path, preset.d_architecture) == ((False, "orig") if name == "cifar" else (True, "resnet"))


def test_cifar_small_is_cifar_at_an_eighth_of_the_width():
    cifar, small = (dataclasses.asdict(PRESETS[name]) for name in ("cifar", "cifar-small"))
    assert (small["channel_max"], small["fmaps"] * 32768) == (64, 2048)
    assert {key for key in cifar if cifar[key] != small[key]} == {"ref_gpus", "kimg", "fmaps", "channel_max"}


# resolution, gpus -> batch, mbstd, fmaps, lrate, gamma, ema_kimg, by StyleGAN2-ADA's formulas.
AUTO = {
    (32, 1): (32, 4, 0.5, 0.0025, 0.0064, 10),
    (32, 2): (64, 4, 0.5, 0.0025, 0.0032, 20),
    (256, 1): (16, 4, 0.5, 0.0025, 0.8192, 5),
    (512, 8): (64, 4, 1, 0.0025, 0.8192, 20),
    (1024, 1): (4, 4, 1, 0.002, 52.4288, 1.25),
    (1024, 2): (8, 4, 1, 0.002, 26.2144, 2.5),
    (1024, 128): (128, 1, 1, 0.002, 1.6384, 40),
}


@pytest.mark.parametrize(("resolution", "gpus"), AUTO)
def test_auto_follows_resolution_and_gpus(resolution, gpus):
    preset = for_data(PRESETS["auto"], resolution, gpus)
    found = (preset.batch, preset.mbstd, preset.fmaps, preset.lrate, preset.gamma, preset.ema_kimg)
    assert found == pytest.approx(AUTO[resolution, gpus])
    assert preset.ref_gpus == gpus


def test_worked_example_of_auto_at_32_pixels():
    args = resolved()
    assert (args.batch_size, args.batch_gpu, args.ema_kimg, args.ema_rampup, args.total_kimg) == (32, 32, 10, 0.05, 25000)
    assert args.loss_kwargs.r1_gamma == pytest.approx(0.0064)
    assert args.G_opt_kwargs == args.D_opt_kwargs == dict(class_name="torch.optim.Adam", lr=0.0025, betas=[0.0, 0.99], eps=1e-8)
    assert args.D_kwargs.epilogue_kwargs.mbstd_group_size == 4
    assert (args.D_kwargs.channel_base, args.D_kwargs.channel_max) == (16384, 512)
    assert args.ada_target == 0.6 and set(args.augment_kwargs) - {"class_name"} == set(AUGPIPE_PRESETS["bgc"])
    assert args.metrics == ["fid50k_full"] and args.network_snapshot_ticks == 50 and args.kimg_per_tick == 4


# The file of a run.

FIELD_KEYS = """num_gpus image_snapshot_ticks network_snapshot_ticks metrics random_seed training_set_kwargs data_loader_kwargs G_kwargs D_kwargs
    G_opt_kwargs D_opt_kwargs loss_kwargs total_kimg batch_size batch_gpu ema_kimg ema_rampup ada_target augment_p augment_kwargs resume_pkl ada_kimg
    cudnn_benchmark allow_tf32 run_dir"""
OPTIONAL_KEYS = "ada_target augment_p augment_kwargs resume_pkl ada_kimg cudnn_benchmark allow_tf32"
OWN_KEYS = "device precision ops graphs compile kimg_per_tick keep_snapshots detector metric_seed P_kwargs P_opt_kwargs pairing_target pairing_warmup"


@pytest.mark.parametrize(
    "typed",
    [
        {},
        dict(resume="ffhq256", nobench=True, allow_tf32=True, subset=500, mirror=True, cond=True),
        dict(aug="fixed", p=0.2, freezed=2, nhwc=True, pairing_weight=0.05, pairing_target=0.8),
        dict(cfg="cifar", aug="noaug"),
    ],
)
def test_keys_come_in_the_fields_order(typed):
    args = resolved(device=CUDA, **typed)
    args.run_dir = "out/00000-x"
    fields = FIELD_KEYS.split()
    assert [key for key in args if key not in OWN_KEYS.split()] == [key for key in fields if key in args]
    assert set(fields) - set(args) <= set(OPTIONAL_KEYS.split())
    assert json.loads(json.dumps(args)) == args


def test_nested_keys_come_in_the_fields_order():
    args = resolved(device=CUDA, subset=500, freezed=2, nhwc=True)
    assert list(args.training_set_kwargs) == ["class_name", "path", "use_labels", "max_size", "xflip", "resolution", "random_seed"]
    assert list(args.data_loader_kwargs) == ["pin_memory", "num_workers", "prefetch_factor"]
    assert list(args.G_kwargs) == ["class_name", "z_dim", "w_dim", "mapping_kwargs", "synthesis_kwargs"]
    width = ["channel_base", "channel_max", "num_fp16_res", "conv_clamp"]
    assert list(args.G_kwargs.synthesis_kwargs) == [*width, "fp16_channels_last"]
    assert list(args.D_kwargs) == ["class_name", "block_kwargs", "mapping_kwargs", "epilogue_kwargs", *width]
    assert list(args.D_kwargs.block_kwargs) == ["freeze_layers", "fp16_channels_last"]
    assert list(args.loss_kwargs) == ["class_name", "r1_gamma"]
    assert list(resolved(device=CUDA, cfg="cifar").D_kwargs)[-1] == "architecture"
    assert resolved(cfg="cifar").loss_kwargs == dict(class_name="training.loss.StyleGAN2Loss", r1_gamma=0.01, pl_weight=0, style_mixing_prob=0)
    names = {key: args[key].class_name for key in ("training_set_kwargs", "G_kwargs", "D_kwargs", "G_opt_kwargs", "loss_kwargs", "augment_kwargs")}
    assert names == {
        "training_set_kwargs": "training.dataset.ImageFolderDataset",
        "G_kwargs": "training.networks.Generator",
        "D_kwargs": "training.networks.Discriminator",
        "G_opt_kwargs": "torch.optim.Adam",
        "loss_kwargs": "training.loss.StyleGAN2Loss",
        "augment_kwargs": "training.augment.AugmentPipe",
    }


def test_the_data_set_of_the_configuration():
    kwargs = resolved(subset=400, seed=3, mirror=True, cond=True).training_set_kwargs
    assert (kwargs.max_size, kwargs.random_seed, kwargs.xflip, kwargs.use_labels) == (400, 3, True, True)
    whole = resolved(subset=1000, seed=3).training_set_kwargs
    assert whole.max_size == 1000 and "random_seed" not in whole


def test_any_resume_speeds_ada_up_and_lifts_the_ramp():
    for source in ("ffhq256", "elsewhere/net.pkl"):
        args = resolved(resume=source)
        assert (args.ada_kimg, args.ema_rampup) == (100, None)
        assert args.resume_pkl == RESUME_SOURCES.get(source, source)
    assert "ada_kimg" not in resolved() and "resume_pkl" not in resolved(resume="noresume")


@pytest.mark.parametrize(
    ("device", "typed", "expected"),
    [
        (CUDA, {}, (4, 256, None)),
        (CUDA, dict(fp32=True), (0, None, None)),
        (CUDA, dict(precision="tf32"), (0, None, None)),
        (CUDA, dict(precision="bf16"), (4, None, "bfloat16")),
        (CPU, dict(precision="fp32"), (0, None, None)),
        (CPU, dict(precision="bf16"), (4, None, "bfloat16")),
    ],
)
def test_precision_of_both_networks(device, typed, expected):
    args = resolved(device=device, **typed)
    for kwargs in (args.G_kwargs.synthesis_kwargs, args.D_kwargs):
        assert (kwargs.num_fp16_res, kwargs.conv_clamp, kwargs.get("low_precision")) == expected
    assert args.get("allow_tf32", False) == (typed.get("precision") == "tf32")


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_becomes_what_the_device_is_made_for(monkeypatch, fast):
    monkeypatch.setattr(config, "has_fast_bfloat16", lambda device: fast and device.type == "cpu")
    assert resolved(device=CPU) == resolved(device=CPU, precision="bf16" if fast else "fp32")
    assert resolved(device=CUDA) == resolved(device=CUDA, precision="fp16")
    assert resolved(device=CUDA).precision == "fp16" and resolved(device=CPU).precision == ("bf16" if fast else "fp32")


def test_a_plan_of_a_run_builds_no_ops(monkeypatch):
    """Nor does it choose them for its process; what a run really has is found out where it starts."""
    monkeypatch.setattr(backend, "_load", lambda *_: pytest.fail("the native ops were asked for"))
    backend.set_policy("native")
    args = config.resolve(Options(outdir="out", data="pics.zip", ops="auto"), {"ops"}, info(), CPU, ops="reference")
    assert args.ops == "reference" and backend._policy == "native"


def test_weight_zero_leaves_no_trace_in_the_configuration():
    assert resolved(pairing_weight=0.0) == resolved() == resolved(pairing_weight=0.0, pairing_tau=0.2, pairing_mode="binary")
    args = resolved(pairing_weight=0.05)
    assert args.P_opt_kwargs.lr == args.G_opt_kwargs.lr and resolved(pairing_weight=0.05, pairing_lr=1e-3).P_opt_kwargs.lr == 1e-3
    assert args.loss_kwargs.pairing_weight == 0.05 and args.loss_kwargs.pairing_tau == 0.1


# Batch arithmetic.


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (dict(cfg="cifar"), (64, 32, 32)),
        (dict(cfg="cifar", gpus=2), (64, 32, 32)),
        (dict(cfg="cifar", gpus=4), (64, 16, 16)),
        (dict(cfg="stylegan2"), (32, 4, 4)),
        (dict(cfg="paper256", gpus=8), (64, 8, 8)),
        (dict(cfg="stylegan2", batch=16), (16, 16, 4)),
        (dict(cfg="stylegan2", batch=16, batch_gpu=4), (16, 4, 4)),
        (dict(cfg="stylegan2", batch=8, gpus=8), (8, 1, 1)),
        (dict(cfg="demo"), (32, 32, 8)),
    ],
)
def test_batch_is_dealt_out(typed, expected):
    args = resolved(**typed)
    assert (args.batch_size, args.batch_gpu, args.D_kwargs.epilogue_kwargs.mbstd_group_size) == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (dict(batch=10, gpus=4), "--batch=10 does not divide by --gpus=4"),
        (dict(batch=2, gpus=4), "--batch=2 does not divide by --gpus=4"),
        (dict(cfg="cifar", gpus=3), "--batch=64 does not divide by --gpus=3"),
        (dict(batch=12, batch_gpu=8), "--batch-gpu=8: the 12 images of each GPU"),
        (dict(batch=8, batch_gpu=16), "--batch-gpu=16: the 8 images of each GPU"),
        (dict(cfg="cifar", batch_gpu=40, batch=80), "--batch-gpu=40 does not divide into the minibatch-std groups of 32 of --cfg=cifar; 64 would"),
        (dict(cfg="cifar", batch=40), "--batch=40 with --gpus=1, --batch-gpu=40 does not divide into"),
        (dict(batch=1, pairing_weight=0.05), "--pairing-weight needs at least 2 images per GPU to tell"),
        (dict(batch=4, batch_gpu=1, pairing_weight=0.05, pairing_mode="binary"), "--pairing-mode=binary needs at least 2 images"),
        (dict(batch=4, batch_gpu=1, ms_weight=1.0), "--ms-weight needs at least 2 images"),
    ],
)
def test_impossible_batches_are_refused(typed, message):
    assert message in refusal(**typed)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (dict(aug="fixed"), "--aug=fixed needs the probability"),
        (dict(p=0.5), "--p goes with --aug=fixed"),
        (dict(aug="fixed", p=0.5, target=0.5), "--target goes with --aug=ada"),
        (dict(aug="noaug", augpipe="bgc"), "--augpipe goes with"),
        (dict(fp32=True, precision="bf16"), "--fp32=true contradicts --precision=bf16"),
        (dict(precision="fp16"), "--precision=fp16 needs CUDA"),
        (dict(precision="tf32"), "--precision=tf32 needs CUDA"),
        (dict(graphs="on"), "--graphs=on"),
        (dict(subset=1001), "--subset=1001: the data set has 1000 images"),
        (dict(pairing_weight=0.05, pairing_view=4), "--pairing-view=4 is not a power of two from 8 to the"),
        (dict(pairing_weight=0.05, pairing_view=12), "--pairing-view=12 is not a power of two"),
        (dict(pairing_weight=0.05, pairing_view=512), "--pairing-view=512 is not a power of two from 8 to the"),
        (dict(pairing_weight=0.05, pairing_features=True, pairing_view=8), "--pairing-features=1 shows the pairing network D's features"),
        (dict(pairing_weight=0.05, pairing_mode="binary", pairing_extra=9), "--pairing-extra=9 needs --pairing-mode=infonce"),
        (dict(pairing_weight=0.05, pairing_near=0.5), "--pairing-near=0.5 places the negatives of --pairing-extra, which is 0"),
        (dict(pairing_weight=0.05, pairing_warmup=9, pairing_target=0.9), "--pairing-warmup and --pairing-target both move"),
        (dict(metrics=["fid10k", "coverage_classwise"]), "--metrics=coverage_classwise is a figure per class, and without --cond=1 there are none"),
        (dict(objective="relativistic", aug="ada"), "--objective=relativistic gives D's scores no zero, and --aug=ada goes by their signs"),
    ],
)
def test_contradictions_are_refused(typed, message):
    assert message in refusal(**typed)


def test_every_detail_of_pairing_needs_its_weight():
    names = ["dim", "extra", "features", "gather", "lr", "mode", "near", "shuffle", "space", "target", "tau", "view", "warmup", "width"]
    assert sorted(config.PAIRING_DETAILS) == [f"pairing_{name}" for name in names]
    for name in config.PAIRING_DETAILS:
        assert f"--{name.replace('_', '-')} without --pairing-weight" in refusal(**{name: getattr(Options, name)})
        resolved(**{name: getattr(Options, name)}, pairing_weight=0.0)


def test_pairing_needs_eight_pixels():
    assert "at least 8x8 pixels, the data set has 4x4" in refusal(info(resolution=4), pairing_weight=0.05)
    resolved(info(resolution=4))


@pytest.mark.parametrize("option", ["gamma", "pairing-weight", "pairing-tau", "p", "ms-weight", "rank-timeout"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_are_finite(option, value):
    result = CliRunner().invoke(train.main, [f"--{option}={value}"])
    assert result.exit_code == 2 and ("is not a finite number" in result.output or "is not in the range" in result.output)


# The command line.

# Every option of StyleGAN2-ADA's train.py with a value, so that an existing command line keeps running.
FIELD_COMMAND = """--outdir={out} --gpus=1 --snap=10 --metrics=none --seed=1 -n --data={data} --cond=1 --subset=20 --mirror=yes
    --cfg=paper256 --gamma=0.5 --kimg=10 --batch=8 --aug=ada --target=0.7 --augpipe=bg --resume=ffhq256 --freezed=3 --fp32=true --nhwc=0 --nobench=1
    --allow-tf32=false --workers=2"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "pics.zip", count=24)


def dry_run(*arguments):
    result = CliRunner().invoke(train.main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_every_option_of_the_field_is_taken_and_a_dry_run_creates_nothing(data, tmp_path):
    args = dry_run(*FIELD_COMMAND.format(out=tmp_path / "runs", data=data).split(), "--device=cpu")
    assert not (tmp_path / "runs").exists()
    assert (args["num_gpus"], args["metrics"], args["random_seed"]) == (1, [], 1)
    assert args["image_snapshot_ticks"] == args["network_snapshot_ticks"] == 10
    assert args["training_set_kwargs"] == {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": data,
        "use_labels": True,
        "max_size": 20,
        "xflip": True,
        "resolution": 8,
        "random_seed": 1,
    }
    assert (args["loss_kwargs"]["r1_gamma"], args["total_kimg"], args["batch_size"], args["batch_gpu"]) == (0.5, 10, 8, 8)
    assert (args["ada_target"], args["cudnn_benchmark"], args["data_loader_kwargs"]["num_workers"]) == (0.7, False, 2)
    assert set(args["augment_kwargs"]) - {"class_name"} == set(AUGPIPE_PRESETS["bg"])
    assert args["D_kwargs"]["block_kwargs"] == {"freeze_layers": 3} and "allow_tf32" not in args
    name = "00000-pics-cond-subset20-mirror-paper256-gamma0.5-kimg10-batch8-ada-target0.7-bg-resumeffhq256-freezed3"
    assert args["run_dir"] == str(tmp_path / "runs" / name)


def test_a_dry_run_needs_no_detector(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "check_detectors", lambda specs: pytest.fail("a dry run looked for detectors"))
    assert dry_run(f"--outdir={tmp_path}", f"--data={data}", "--dry-run")["metrics"] == ["fid50k_full"]


OWN_OPTIONS = """pairing-weight pairing-tau pairing-mode pairing-space pairing-dim pairing-lr pairing-gather ms-weight pairing-target objective
    r2-gamma continue-run tick keep detector metric-seed ops graphs device precision batch-gpu compile"""


def test_every_option_of_the_contract_is_offered():
    offered = {option for param in train.main.params for option in param.opts}
    assert {f"--{name}" for name in OWN_OPTIONS.split()} | {"-n", "--dry-run", "--nhwc", "--p"} <= offered


def test_ranges_are_checked_by_the_command_line():
    command = add_options(click.Command("probe", callback=lambda **given: None))
    for bad in ("--p=1.5", "--gamma=-1", "--kimg=0", "--snap=0", "--freezed=-1", "--target=2", "--pairing-tau=0", "--seed=4294967296", "--aug=adaa"):
        assert CliRunner().invoke(command, [bad]).exit_code == 2, bad
    assert CliRunner().invoke(command, ["--p=1", "--gamma=0", "--seed=4294967295"]).exit_code == 0


def test_help_lists_every_option_under_the_groups_of_the_table():
    text = CliRunner().invoke(train.main, ["--help"], terminal_width=200).output
    groups = dict.fromkeys(field.metadata["group"] for field in dataclasses.fields(Options))
    assert re.findall(r"^(\w[\w ]*):$", text, flags=re.MULTILINE) == list(groups)
    sections = dict(zip(groups, re.split(r"^\w[\w ]*:$", text, flags=re.MULTILINE)[1:]))
    for field in dataclasses.fields(Options):
        assert f"--{field.name.replace('_', '-')} " in sections[field.metadata["group"]], field.name
    assert len(re.findall(r"--(?:outdir|data) TEXT .*\[required\]", text)) == text.count("[required]") == 2
    assert "default: -]" not in text and "default: required" not in text
    assert "python train.py --outdir=runs --data=" in text and "--subset INT " in text and "--continue-run DIR " in text


def test_the_option_table_has_a_row_for_every_option():
    rows = [line.split("|")[1].strip() for line in option_table().splitlines()]
    for field in dataclasses.fields(Options):
        assert f"`--{field.name.replace('_', '-')}`" in rows


@pytest.mark.parametrize("resolution", [32, 256, 1024])
def test_any_number_of_gpus_gets_a_batch_that_divides(resolution):
    for gpus in range(1, 100):
        preset = for_data(PRESETS["auto"], resolution, gpus)
        assert preset.batch % gpus == 0 and (preset.batch // gpus) % preset.mbstd == 0
        if gpus & (gpus - 1) == 0:
            assert preset.batch == max(min(gpus * min(4096 // resolution, 32), 64), gpus)  # as StyleGAN2-ADA
