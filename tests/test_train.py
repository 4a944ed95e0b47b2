"""Training end to end on tiny networks: the files of a run, exact repetition and continuation, and what a run says while it goes."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from tiny_runs import CLASSES, CPU, BrokenDetector, learned_stats, stats_of, tiny_args, write_detector
from tiny_runs import train as tiny_run

import calc_metrics
import generate
import train
from dnnlib import EasyDict, UserError
from metrics import detectors
from torch_utils import checkpoint
from torch_utils.ops import backend
from torch_utils.toolchain import BuildError
from training import objectives, training_loop
from training.networks import load_network
from training.run_files import RunDir
from training.state import TrainingState

# With path length, style mixing, ADA, pairing and its controller: everything that a state has to hold. 20 steps, 10 in a tick.
FULL = dict(batch=100, kimg=2, tick=1, snap=1, pairing_weight=0.05, pairing_target=0.5, metrics=["prdc10k5"])
SHORT = dict(batch=252, kimg=1)  # 4 steps
LAST = "network-snapshot-000001.safetensors"


@pytest.fixture(scope="module")
def full(place):
    """A whole run."""
    return tiny_run(str(place / "pics.zip"), place / "full", detector=str(place / "pool.pt"), **FULL)


@pytest.fixture(scope="module")
def short(place):
    """A short plain run."""
    return tiny_run(str(place / "pics.zip"), place / "short", **SHORT)


def short_run(place, run_dir, **typed):
    return tiny_run(str(place / "pics.zip"), run_dir, **{**SHORT, **typed})


def about(numbers):
    return pytest.approx(numbers, rel=1e-6, abs=1e-6)


def continue_run(run_dir):
    result = CliRunner().invoke(train.main, [f"--continue-run={run_dir}"], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


# What a run leaves.


def test_a_run_writes_the_files_of_the_field(full):
    numbered = {f"network-snapshot-00000{n}.safetensors" for n in range(3)} | {f"fakes00000{n}.png" for n in range(3)}
    states = {f"training-state-00000{n}.pt" for n in (1, 2)}  # the last good one and the one before
    single = {"log.txt", "stats.jsonl", "training_options.json", "reals.png", "fakes_init.png", "metric-prdc10k5_pool.jsonl"}
    single |= {"best.json", "network-snapshot-best.safetensors"}
    events = {path.name for path in full.glob("events.out.tfevents.*")}
    assert len(events) == 1 and {path.name for path in full.iterdir()} == numbered | states | single | events


def test_options_are_kept_in_full(full, place):
    args = json.loads((full / "training_options.json").read_text())
    assert args == tiny_args(str(place / "pics.zip"), full, detector=str(place / "pool.pt"), **FULL)
    assert list(args)[-1] == "run_dir" and '\n  "num_gpus": 1,' in (full / "training_options.json").read_text()


def test_statistics_have_the_fields_names(full):
    first = stats_of(full)[0]
    names = """Loss/scores/fake Loss/scores/real Loss/signs/fake Loss/signs/real Loss/G/loss Loss/D/loss Loss/pl_penalty Loss/G/reg Loss/r1_penalty
        Loss/D/reg Progress/tick Progress/kimg Progress/augment Timing/total_sec Timing/sec_per_tick Timing/sec_per_kimg Timing/maintenance_sec
        Timing/total_hours Timing/total_days Timing/Gmain Timing/Greg Timing/Dmain Timing/Dreg Resources/cpu_mem_gb Resources/peak_gpu_mem_gb
        Loss/pairing/loss Loss/pairing/accuracy Loss/pairing/weight Loss/pairing/grad_norm Loss/G/grad_norm Progress/nonfinite timestamp"""
    assert set(first) == set(names.split())
    assert all(set(value) == {"num", "mean", "std"} for key, value in first.items() if key != "timestamp")
    assert [line["Progress/tick"]["mean"] for line in stats_of(full)] == about([0, 1, 2])
    assert [line["Progress/kimg"]["mean"] for line in stats_of(full)] == about([0.1, 1.1, 2.0])
    second = stats_of(full)[1]
    assert second["Loss/G/loss"]["num"] == 1000 and second["Loss/pl_penalty"]["num"] == 2 * 50 and "Loss/r1_penalty" not in second
    assert 0 <= second["Loss/pairing/accuracy"]["mean"] <= 1 and second["Progress/nonfinite"]["mean"] == 0
    assert stats_of(full)[-1]["Progress/augment"]["mean"] > 0
    assert len({line["Loss/pairing/weight"]["mean"] for line in stats_of(full)}) == 3  # its controller moves it


def test_metric_lines_name_their_snapshot(full):
    lines = [json.loads(line) for line in (full / "metric-prdc10k5_pool.jsonl").read_text().splitlines()]
    assert [line["snapshot_pkl"] for line in lines] == [f"network-snapshot-00000{n}.safetensors" for n in range(3)]
    assert {"results", "metric", "total_time", "total_time_str", "num_gpus", "snapshot_pkl", "timestamp"} <= set(lines[0])


def test_a_snapshot_holds_all_networks(full):
    networks = load_network(full / "network-snapshot-000002.safetensors")
    assert set(networks) == {"G_ema", "G", "D", "P", "meta"}
    assert networks.meta["cur_nimg"] == 2000 and networks.meta["training_set_kwargs"]["max_size"] == 60
    assert set(networks.meta["augment_pipe"]) == {"kwargs", "p"} and networks.meta["augment_pipe"]["p"] > 0
    image = networks.G_ema(torch.randn(2, 8), torch.eye(CLASSES)[:2], truncation_psi=0.5, noise_mode="const")
    assert image.shape == (2, 3, 8, 8) and torch.isfinite(image).all()
    assert not torch.equal(networks.G_ema.mapping.fc0.weight, networks.G.mapping.fc0.weight)


def test_sheets_show_one_label_per_row(full, place):
    sheet = np.asarray(PIL.Image.open(full / "reals.png"))
    assert sheet.shape == (32 * 8, 32 * 8, 3) == np.asarray(PIL.Image.open(full / "fakes000002.png")).shape
    assert not np.array_equal(np.asarray(PIL.Image.open(full / "fakes_init.png")), np.asarray(PIL.Image.open(full / "fakes000002.png")))


def test_the_log_tells_progress_and_time_left(full):
    log = (full / "log.txt").read_text()
    ticks = [line for line in log.splitlines() if line.startswith("tick ")]
    order = ["tick", "kimg", "time", "sec/tick", "sec/kimg", "maintenance", "cpumem", "gpumem", "augment", "pairing", "eta"]
    assert len(ticks) == 3
    for line in ticks:
        assert [word for word in line.split() if word in order] == order
    assert "prdc10k5_pool_coverage" in log and log.endswith("Done.\n")


def test_tensorboard_has_losses_and_metrics(full):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(full))
    board.Reload()
    assert {"Loss/G/loss", "Loss/pairing/loss", "Progress/augment", "Metrics/prdc10k5_pool_coverage"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("Loss/G/loss")] == [0, 1, 2]


def test_the_live_line_shows_the_time_left(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    from training.progress import Progress

    progress = Progress(RunDir(tmp_path), total_kimg=2)
    state = type("State", (), {"cur_nimg": 0})()
    clock = iter([100.0, 100.0, 160.0, 160.0])
    monkeypatch.setattr("training.progress.time.time", lambda: next(clock))
    progress.live(state)
    state.cur_nimg = 500
    progress.live(state)
    lines = capsys.readouterr().out.split("\r")
    assert lines[1].strip() == "[" + "." * 24 + "] 0.0 / 2 kimg, - left"
    assert lines[2].strip() == "[" + "#" * 6 + "." * 18 + "] 0.5 / 2 kimg, 3m 00s left"


# The same again.


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(place, short, tmp_path):
    again, other = short_run(place, tmp_path / "again"), short_run(place, tmp_path / "other", seed=1)
    for name in (LAST, "fakes000001.png", "reals.png"):
        assert (again / name).read_bytes() == (short / name).read_bytes() != (other / name).read_bytes()
    assert learned_stats(again) == about(learned_stats(short))


def test_weight_zero_is_the_run_without_the_option(place, short, tmp_path, monkeypatch):
    """Bit for bit, and with pairing code that would fail if anything of it ran."""

    def forbidden(*_, **__):
        raise AssertionError("pairing code ran")

    for target in ("state.PairingNetwork", "state.PairingController"):
        monkeypatch.setattr(f"training.{target}", forbidden)
    for target in ("pairing.term.LatentGather", "pairing.term.infonce", "pairing.term.binary_pairing", "training.loss.mode_seeking"):
        monkeypatch.setattr(target, forbidden)
    weightless = short_run(place, tmp_path / "weightless", pairing_weight=0.0)
    for name in (LAST, "network-snapshot-000000.safetensors"):
        assert (weightless / name).read_bytes() == (short / name).read_bytes()
    assert learned_stats(weightless) == about(learned_stats(short))
    assert set(load_network(weightless / LAST)) == {"G_ema", "G", "D", "meta"}
    with pytest.raises(AssertionError, match="pairing code ran"):
        short_run(place, tmp_path / "weighty", pairing_weight=0.05)


def test_measuring_does_not_change_the_training(place, short, tmp_path):
    detectors._load.cache_clear()  # so that the detector is built in the middle of the run
    measured = short_run(place, tmp_path / "measured", metrics=["prdc10k5", "coverage"], detector="embedded")
    assert (measured / LAST).read_bytes() == (short / LAST).read_bytes()
    assert len((measured / "metric-coverage_embedded.jsonl").read_text().splitlines()) == 2


# Going on.


class Killed(Exception):
    """The end of a process in the middle of a run."""


@pytest.fixture(scope="module")
def continued(place, full):
    """The full run once more, ended between two states and continued by the command."""
    run_dir, steps, step = place / "continued", [], TrainingState.step

    def mortal_step(self, images, labels):
        steps.append(1)
        if len(steps) == 16:
            raise Killed
        step(self, images, labels)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingState, "step", mortal_step)
        tiny_run(str(place / "pics.zip"), run_dir, detector=str(place / "pool.pt"), **FULL)
    assert RunDir(run_dir).states() == [0, 1]
    with open(run_dir / "stats.jsonl", "a") as handle:
        handle.write('{"torn": ')
    (run_dir / ".training-state-000002.1234.tmp.pt").write_bytes(b"half")
    output = continue_run(run_dir)
    assert "Continuing at 1.1 kimg." in output
    return run_dir


def flat(value, name=""):
    """Leaves of nested dictionaries and lists by their path."""
    if isinstance(value, dict):
        return {key: leaf for part, item in value.items() for key, leaf in flat(item, f"{name}/{part}").items()}
    if isinstance(value, (list, tuple)):
        return {key: leaf for part, item in enumerate(value) for key, leaf in flat(item, f"{name}/{part}").items()}
    return {name: value}


def test_a_continued_run_ends_in_the_same_bits(full, continued):
    for name in ("network-snapshot-000002.safetensors", "fakes000002.png"):
        assert (continued / name).read_bytes() == (full / name).read_bytes()
    ours, theirs = (flat(checkpoint.load_state(run / "training-state-000002.pt")) for run in (continued, full))
    assert set(ours) == set(theirs)
    for name in ours:
        if not name.startswith("/lines") and not re.match("/progress/0/.*(seconds|maintenance)", name):
            same = torch.equal(ours[name], theirs[name]) if isinstance(ours[name], torch.Tensor) else ours[name] == theirs[name]
            assert same, name


def test_a_continued_run_writes_no_line_twice(full, continued):
    assert learned_stats(continued) == learned_stats(full)
    ours, theirs = ((run / "metric-prdc10k5_pool.jsonl").read_text().splitlines() for run in (continued, full))
    assert [json.loads(line)["results"] for line in ours] == [json.loads(line)["results"] for line in theirs]
    assert not list(continued.glob(".*"))
    assert sum(line.startswith("tick 1 ") for line in (continued / "log.txt").read_text().splitlines()) == 1


def test_a_finished_run_is_left_alone(continued):
    def listing():
        return {path.name: path.read_bytes() for path in continued.iterdir()}

    before = listing()
    assert "is finished" in continue_run(continued)
    assert listing() == before


def test_a_run_without_a_state_starts_afresh(place, short, tmp_path):
    args = tiny_args(str(place / "pics.zip"), tmp_path / "run", **SHORT)
    RunDir.create(args)
    (tmp_path / "run" / "stats.jsonl").write_text('{"left": "over"}\n')
    assert "No training state yet: starting afresh." in continue_run(tmp_path / "run")
    assert (tmp_path / "run" / LAST).read_bytes() == (short / LAST).read_bytes()
    assert learned_stats(tmp_path / "run") == about(learned_stats(short))


def test_a_damaged_state_is_passed_over_and_only_damaged_ones_are_refused(short, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    (run / LAST).unlink()
    (run / "training-state-000001.pt").write_bytes((short / "training-state-000001.pt").read_bytes()[:-500])
    shutil.copy(short / LAST, run / LAST)
    state = RunDir(run).last_state()
    assert state["training"]["counters"]["cur_nimg"] == 252
    (run / "training-state-000000.pt").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 training states can be used"):
        RunDir(run).last_state()


def test_a_run_keeps_to_the_ops_it_was_recorded_with(short, monkeypatch):
    """Continued where there are none of these, it is refused. Before there were native ops, "auto" stood for the reference."""
    assert json.loads((short / "training_options.json").read_text())["ops"] == backend.implementation("cpu") != "auto"
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "set_policy", asked.append)
        for recorded in ("native", "reference", "auto"):
            training_loop.set_backends(EasyDict(ops=recorded, device="cpu"))
    assert asked == ["native", "reference", "reference"]
    monkeypatch.setattr(backend, "_policy", "auto")
    monkeypatch.setattr(backend, "_load", lambda kind, try_out: BuildError("no compiler"))
    with pytest.raises(UserError, match="--ops=native: no compiler"):
        training_loop.set_backends(EasyDict(ops="native", device="cpu"))


# Many processes.


@pytest.mark.parametrize("launched", [False, True])
def test_nothing_runs_on_the_gpu_of_another_rank(place, monkeypatch, launched):
    """A rank takes its own before the native ops are tried out there; a process that only starts ranks tries nothing."""
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(backend, "_load", lambda kind, try_out: seen.append(try_out))
    for name in ("LOCAL_RANK", "RANK") if launched else ():
        monkeypatch.setenv(name, "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
    command = [f"--data={place / 'pics.zip'}", f"--outdir={place / 'runs'}", "--device=cuda", "--gpus=2", "--metrics=none", "--dry-run"]
    assert CliRunner().invoke(train.main, command, catch_exceptions=False).exit_code == 0
    assert seen == ([torch.device("cuda", 1), True] if launched else [False])


def test_two_ranks_through_the_launcher(place, tmp_path):
    """--gpus=2 on the CPU. The run itself compares the ranks' weights at every snapshot and fails if they differ."""
    options = f"--data={place / 'pics.zip'} --outdir={tmp_path} --cfg=demo --cond=1 --batch=512 --kimg=1 --metrics=none --pairing-weight=0.05"
    result = subprocess.run([sys.executable, train.__file__, *options.split(), "--gpus=2", "--device=cpu"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (run,) = tmp_path.iterdir()
    assert result.stdout.count("Training images:") == 1 and "2 process(es)" in result.stdout
    networks = load_network(run / LAST)
    assert all(torch.isfinite(tensor).all() for name in ("G", "D", "G_ema", "P") for tensor in networks[name].state_dict().values())
    ranks = checkpoint.load_state(run / "training-state-000001.pt")["training"]["ranks"]
    assert len(ranks) == 2 and not torch.equal(ranks[0]["torch_rng"], ranks[1]["torch_rng"])
    assert torch.equal(ranks[0]["controllers"]["ada"]["p"], ranks[1]["controllers"]["ada"]["p"])
    assert stats_of(run)[-1]["Loss/G/loss"]["num"] == 512  # of both ranks
    assert stats_of(run)[0]["Loss/pairing/loss"]["num"] == 2


def test_ranks_that_drift_apart_stop_the_run(place, tmp_path, monkeypatch):
    trainer = training_loop.Trainer(tiny_args(str(place / "pics.zip"), tmp_path / "run", **SHORT), CPU, 1)
    trainer.num_ranks = 2
    monkeypatch.setattr(training_loop, "gather_objects", lambda value: [value, value])
    trainer.check_ranks_agree()
    monkeypatch.setattr(training_loop, "gather_objects", lambda value: [value, value[::-1]])
    with pytest.raises(RuntimeError, match="different weights of G at"):
        trainer.check_ranks_agree()


# Mishaps.


def test_a_metric_that_fails_is_a_warning(place, short, tmp_path):
    broken = write_detector(tmp_path / "broken.pt", BrokenDetector)
    run = short_run(place, tmp_path / "run", metrics=["coverage"], detector=broken)
    log = (run / "log.txt").read_text()
    assert log.count("Warning: the metric coverage failed:") == 2 and log.endswith("Done.\n")
    assert (run / LAST).read_bytes() == (short / LAST).read_bytes() and not list(run.glob("metric-*"))


def test_gradients_that_stay_bad_stop_the_run(place, tmp_path, monkeypatch):
    good = objectives.generator_loss
    calls = []

    def bad_from(first):
        calls.clear()
        return lambda logits: good(logits) * (float("nan") if calls.append(1) or len(calls) >= first else 1)

    monkeypatch.setattr(training_loop, "MAX_BAD_STEPS", 3)
    monkeypatch.setattr(objectives, "generator_loss", bad_from(2))
    with pytest.raises(UserError, match=r"training diverged: gradients were not finite for 3 steps in a row; .*network-snapshot-000000"):
        short_run(place, tmp_path / "diverged")
    assert "Warning: " in (tmp_path / "diverged" / "log.txt").read_text()
    monkeypatch.setattr(objectives, "generator_loss", bad_from(3))
    run = short_run(place, tmp_path / "recovering")
    assert stats_of(run)[-1]["Progress/nonfinite"]["mean"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in load_network(run / LAST).G.state_dict().values())


# What comes after training.


def test_the_snapshot_is_measured_and_sampled_by_the_other_commands(full, place, tmp_path):
    network = shutil.copytree(full, tmp_path / "run") / "network-snapshot-000002.safetensors"
    options = [f"--network={network}", f"--data={place / 'pics.zip'}", "--metrics=prdc10k5", "--detector=embedded", "--device=cpu", "--verbose=0"]
    result = CliRunner().invoke(calc_metrics.main, options, catch_exceptions=False)
    assert result.exit_code == 0
    (line,) = (pathlib.Path(tmp_path) / "run" / "metric-prdc10k5_embedded.jsonl").read_text().splitlines()
    assert set(json.loads(line)["results"]) == {f"prdc10k5_embedded_{part}" for part in ("precision", "recall", "density", "coverage")}
    options = [f"--network={network}", "--seeds=0-2", "--class=1", f"--outdir={tmp_path / 'out'}", "--device=cpu"]
    assert CliRunner().invoke(generate.main, options, catch_exceptions=False).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["seed0000.png", "seed0001.png", "seed0002.png"]
