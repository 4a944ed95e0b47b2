"""What can befall a run, one fault after the other: each ends it with one clear sentence, or lets it go on, and it comes to the same end."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from fault_tools import assert_same_run, disk_full, events_of, figures_of, raising, run_on, sending, step_with
from image_sets import pngs, write_folder, write_zip
from tiny_runs import CLASSES, CPU, tiny_args, write_data

import train
from dnnlib import UserError
from torch_utils import checkpoint
from training import stopping
from training.data_loader import open_loader
from training.dataset import ImageFolderDataset, load_array
from training.run_files import INTERRUPTED_STATE, RunDir
from training.stopping import Abandoned, Stopping
from training.training_loop import Trainer

# Eight steps, with snapshots after the first, the fifth and the last; everything that a state has to hold.
SETTINGS = dict(batch=252, kimg=2, tick=1, snap=1, pairing_weight=0.05, pairing_target=0.5, metrics=["prdc10k5"])
STEPS = 8


@pytest.fixture
def args(place, tmp_path):
    """The configuration of a run that has not begun."""
    return settings(place, tmp_path / "run")


def settings(place, run_dir, **other):
    return tiny_args(str(place / "pics.zip"), run_dir, detector=str(place / "pool.pt"), **{**SETTINGS, **other})


@pytest.fixture(scope="module")
def whole(place):
    """The run without any fault."""
    args = settings(place, place / "whole")
    assert run_on(args) == 0
    return pathlib.Path(args.run_dir)


# Signals.


def test_a_run_that_is_asked_to_end_again_and_again_ends_in_the_same_bits(args, whole, capfd):
    """In the middle of a tick, while it measures, in the middle of the next tick, and while it writes the last snapshot."""
    assert run_on(args, step=step_with(3, sending(signal.SIGTERM))) == signal.SIGTERM
    run = RunDir(args.run_dir)
    assert (run / INTERRUPTED_STATE).is_file() and run.states() == run.snapshots() == [0] and len(figures_of(run.path)) == 1
    assert run.last_state()["training"]["counters"]["cur_nimg"] == 3 * 252
    with pytest.raises(Abandoned) as abandoned:
        run_on(args, compute_metrics=sending(signal.SIGUSR1))
    assert abandoned.value.number == signal.SIGUSR1
    assert run.states() == run.snapshots() == [0, 1] and not (run / INTERRUPTED_STATE).exists() and len(figures_of(run.path)) == 1
    assert run_on(args, step=step_with(2, sending(signal.SIGINT))) == signal.SIGINT
    assert len(figures_of(run.path)) == 2  # made up for
    save = Trainer.save_networks

    def interrupted_save(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        save(trainer)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Abandoned):
        patch.setattr(Trainer, "save_networks", interrupted_save)
        run_on(args)
    assert not run.is_finished(2, ["prdc10k5_pool"]) and run.is_finished(2)
    assert run_on(args) == 0 and run.is_finished(2, ["prdc10k5_pool"])
    assert_same_run(args.run_dir, whole)
    for name in ("Loss/G/loss", "Metrics/prdc10k5_pool_coverage"):
        assert events_of(args.run_dir, name) == events_of(whole, name)
    said = capfd.readouterr()
    assert said.err.count("SIGTERM: leaving after this step, with a state to go on from.") == 2
    assert f"Stopped at 0.8 kimg, to go on with --continue-run={args.run_dir}" in said.out


def test_without_a_signal_nothing_changes_hands(place, tmp_path):
    args = settings(place, tmp_path / "run", kimg=1, metrics=[])
    before = [signal.getsignal(number) for number in stopping.STOP_SIGNALS]
    seen = []
    assert run_on(args, step=step_with(2, lambda _: seen.extend(map(signal.getsignal, stopping.STOP_SIGNALS)))) == 0
    assert [signal.getsignal(number) for number in stopping.STOP_SIGNALS] == before and not set(seen) & set(before)


def test_readers_outlive_a_signal_to_the_whole_job(place):
    """Their parent still needs them for its step."""
    with Stopping(), torch.multiprocessing.get_context("fork").Manager():
        dataset = ImageFolderDataset(place / "pics.zip")
        loader, before = open_loader(dataset, 4, CPU, workers=1, resident=False), multiprocessing.active_children()
        next(loader)
        (worker,) = set(multiprocessing.active_children()) - set(before)
        for number in stopping.STOP_SIGNALS:
            os.kill(worker.pid, number)
        assert next(loader)[0].shape == (4, 3, 8, 8) and worker.is_alive()
        loader.close()


def test_the_command_ends_with_the_code_of_the_signal(place, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "training_loop", lambda *_: signal.SIGUSR1)
    command = command_of(place, tmp_path / "00000-run")
    assert CliRunner().invoke(train.main, command, standalone_mode=False).return_value == 128 + signal.SIGUSR1
    monkeypatch.setattr(train, "training_loop", raising(Abandoned(signal.SIGTERM)))
    assert CliRunner().invoke(train.main, command, standalone_mode=False).return_value == 128 + signal.SIGTERM


# The same command again.


def command_of(place, outdir, *options):
    data = [f"--data={place / 'pics.zip'}", "--cfg=demo", "--cond=1", "--batch=512", "--kimg=1", "--metrics=none", "--device=cpu"]
    return [f"--outdir={outdir}", *data, *options]


def invoke(command):
    result = CliRunner().invoke(train.main, command, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def test_the_same_command_goes_on_with_a_run(place, tmp_path, monkeypatch):
    """A folder that is called like a run is the run's from the first start on."""
    folder = tmp_path / "00007-mine"
    command = command_of(place, folder, "--tick=1")
    with monkeypatch.context() as patch:
        patch.setattr("training.state.TrainingState.step", step_with(1, sending(signal.SIGTERM)))
        assert invoke(command).return_value == 128 + signal.SIGTERM
    assert RunDir(folder).states() == [0]
    result = invoke(command)
    assert "Continuing at 0.5 kimg." in result.output and result.return_value == 0 and RunDir(folder).is_finished(1)
    moved = shutil.copy(place / "pics.zip", tmp_path / "moved.zip")
    result = invoke([*command, f"--data={moved}", "--snap=3", "--keep=2"])
    assert "is finished: 1 kimg." in result.output and result.return_value == 0
    assert "Note: network_snapshot_ticks stays 50, as the run was started, not 3." in result.stderr


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--seed=3", "{}: --seed, random_seed, is 0 in the run and 3 in this command; give the settings of the run, or another --outdir"),
        ("--gamma=3", "{}: --gamma, loss_kwargs.r1_gamma, is"),
        ("--gpus=2", "{}: --gpus, num_gpus, is 1 in the run and 2 in this command"),
        ("--batch=256", "{}: --batch, batch_size, is 512 in the run and 256 in this command"),
        ("--pairing-weight=0.1", "{}: --pairing-weight, loss_kwargs.pairing_weight, is absent from the run and 0.1 in this command"),
        ("--mirror=1", "{}: --mirror, training_set_kwargs.xflip, is False in the run and True in this command"),
    ],
)
def test_a_setting_that_matters_is_not_changed_under_way(place, tmp_path, option, sentence):
    RunDir.create(train.configure(*options_of(command_of(place, tmp_path / "00000-run"))))
    with pytest.raises(UserError) as refused:
        invoke(command_of(place, tmp_path / "00000-run", option))
    assert sentence.format(tmp_path / "00000-run") in str(refused.value)


def test_a_finished_run_is_made_longer(args, whole):
    """It ends with the weights of a run that was given that length from the start."""
    args.total_kimg = 1
    assert run_on(args) == 0 and RunDir(args.run_dir).is_finished(1)
    args.total_kimg = 2
    assert run_on(args) == 0 and RunDir.open(args.run_dir)[1].total_kimg == 2
    last = "network-snapshot-000002.safetensors"
    assert pathlib.Path(args.run_dir, last).read_bytes() == (whole / last).read_bytes()


@pytest.mark.parametrize("again", [lambda run: [f"--continue-run={run}"], lambda run: command_of(run.parent, run)])
def test_either_way_of_going_on_takes_another_length(place, tmp_path, again):
    shutil.copy(place / "pics.zip", tmp_path)
    RunDir.create(train.configure(*options_of(command_of(tmp_path, tmp_path / "00000-run"))))
    result = invoke([*again(tmp_path / "00000-run"), "--kimg=3", "--dry-run"])
    assert json.loads(result.stdout)["total_kimg"] == 3


def options_of(arguments):
    from experiments.images.planned_config import parse_options

    return *parse_options(arguments), CPU


def test_two_processes_do_not_train_in_one_folder(args):
    assert run_on(args, step=step_with(2, sending(signal.SIGTERM)))
    holding = "import fcntl, sys; handle = open(sys.argv[1], 'a'); fcntl.lockf(handle, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    log = os.path.join(args.run_dir, "log.txt")
    with subprocess.Popen([sys.executable, "-c", holding, log], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="is in use by another process that trains there"):
            run_on(args)
        other.kill()
    assert run_on(args) == 0


# The disk.


def snapshot_file(name):
    return name.startswith(".network-snapshot-000001")


def figures_file(name):
    return name.startswith(".metric-")


def test_a_full_disk_ends_a_run_whose_last_state_is_good(args, whole, monkeypatch):
    with disk_full(monkeypatch, snapshot_file), pytest.raises(UserError, match=r"cannot write .*network-snapshot-000001.*: No space left on device"):
        run_on(args)
    assert RunDir(args.run_dir).states() == RunDir(args.run_dir).snapshots() == [0]
    assert run_on(args) == 0
    assert_same_run(args.run_dir, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 64 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path, leaving):
    """Writes a file until the disk is full, then gives so many bytes back."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as handle:
        while True:
            handle.write(bytes(4096))
    os.truncate(path, path.stat().st_size - leaving)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 8_192, 131_072], ids=["nothing fits", "a line fits", "a snapshot fits"])
def test_a_disk_that_is_really_full(place, whole, small_disk, room):
    args = settings(place, small_disk / "run")
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        run_on(args, step=step_with(3, lambda _: fill(small_disk / "filler", room)))
    assert RunDir(args.run_dir).states() == [0]
    (small_disk / "filler").unlink()
    assert run_on(args) == 0
    assert_same_run(args.run_dir, whole)


@pytest.mark.slow
def test_a_disk_that_is_read_only(place, whole, small_disk):
    args = settings(place, small_disk / "run")
    assert run_on(args, step=step_with(3, sending(signal.SIGTERM)))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"cannot write .*log\.txt: Read-only file system"):
        run_on(args)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert run_on(args) == 0
    assert_same_run(args.run_dir, whole)


@pytest.mark.parametrize("limit", [pytest.param(2_000, marks=pytest.mark.slow), 40_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_files_that_may_not_grow_end_a_run_whose_last_state_is_good(args, whole, limit):
    """A statistics line is cut at the first limit, a snapshot at the second, a state at the third."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def shrink(_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    try:
        with pytest.raises(UserError, match=r"cannot write .*File too large"):
            run_on(args, step=step_with(2, shrink))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run_on(args) == 0
    assert_same_run(args.run_dir, whole)


def test_a_folder_that_vanishes_ends_the_run_with_a_sentence(args, whole, tmp_path):
    away = tmp_path / "away"
    with pytest.raises(UserError, match=r"cannot write .*stats\.jsonl: No such file or directory"):
        run_on(args, step=step_with(3, lambda _: os.rename(args.run_dir, away)))
    os.rename(away, args.run_dir)
    assert run_on(args) == 0
    assert_same_run(args.run_dir, whole)


@pytest.fixture(scope="module")
def stopped(place, whole):
    """A run that was asked to end between its second and its last snapshot."""
    args = settings(place, place / "stopped")
    assert run_on(args, step=step_with(STEPS - 1, sending(signal.SIGTERM))) == signal.SIGTERM
    return pathlib.Path(args.run_dir)


def cut(path, size):
    os.truncate(path, path.stat().st_size - size)


SPOILED = {
    "interrupted state": [(INTERRUPTED_STATE, 500)],
    "interrupted and last state": [(INTERRUPTED_STATE, 1), ("training-state-000001.pt", 10_000)],
    "snapshot of the last state": [(INTERRUPTED_STATE, 1), ("network-snapshot-000001.safetensors", 3)],
    "statistics": [("stats.jsonl", 100)],
    "figures": [(INTERRUPTED_STATE, 1), ("metric-prdc10k5_pool.jsonl", 20)],
}


@pytest.mark.parametrize("files", SPOILED.values(), ids=SPOILED)
def test_a_run_gets_over_torn_files(place, stopped, whole, tmp_path, files):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for name, size in files:
        cut(run / name, size)
    assert run_on(settings(place, run)) == 0
    assert_same_run(run, whole)


def test_a_state_of_older_code_is_continued(place, stopped, whole, tmp_path):
    """It was written after the figures, knew no half ticks and no digest of the data."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (run / INTERRUPTED_STATE).unlink()
    saved = checkpoint.load_state(RunDir(run).state(1))
    for name in ("told_nonfinite", "snapshot_nimg"):
        del saved["training"]["counters"][name]
    older = {"training": saved["training"], "loader": saved["loader"], "line_sizes": {"stats.jsonl": saved["lines"]["size"]}, "seconds": 1.0}
    checkpoint.save_state(RunDir(run).state(1), older)
    assert run_on(settings(place, run)) == 0
    assert_same_run(run, whole)


def test_lines_that_are_lost_for_good_are_counted(place, stopped, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    size = (run / "stats.jsonl").stat().st_size
    cut(run / "stats.jsonl", size - 10)
    assert run_on(settings(place, run)) == 0
    assert f"has lost {size - 10:,} bytes since the state was written" in capsys.readouterr().out


# Memory and numbers.


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:130] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_names_what_to_lower(args, error):
    with pytest.raises(UserError, match=r"out of memory on cpu at --batch-gpu=252: .* start a new run with a lower --batch-gpu"):
        run_on(args, step=step_with(2, raising(error)))
    assert "Error: out of memory" in pathlib.Path(args.run_dir, "log.txt").read_text()


def test_another_error_is_not_taken_for_it(args):
    with pytest.raises(RuntimeError, match="unheard of"):
        run_on(args, step=step_with(2, raising(RuntimeError("unheard of"))))


@pytest.mark.parametrize(
    ("name", "stop"),
    [("P", False), ("D", True), *(pytest.param(name, stop, marks=pytest.mark.slow) for name, stop in (("G", False), ("G", True), ("D", False)))],
)
def test_weights_that_are_no_numbers_end_a_run_before_they_are_saved(args, whole, name, stop):
    def spoil(state):
        with torch.no_grad():
            next(getattr(state, name).parameters()).view(-1)[0] = float("nan")
        if stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(UserError, match=r"training diverged: weights are not finite .*; the last good snapshot is .*network-snapshot-000000"):
        run_on(args, step=step_with(3, spoil))
    assert not (RunDir(args.run_dir) / INTERRUPTED_STATE).exists()
    assert run_on(args) == 0
    assert_same_run(args.run_dir, whole)


# The data.


def test_a_data_set_that_has_changed_is_not_trained_on(args, place, whole, tmp_path):
    mine = pathlib.Path(shutil.copy(place / "pics.zip", tmp_path / "pics.zip"))
    args.training_set_kwargs.path = str(mine)
    assert run_on(args, step=step_with(2, sending(signal.SIGTERM)))
    write_data(mine, count=60, mode="L")
    files = pngs(60, size=(8, 8))
    first = "00000/img00000000.png"
    write_zip(mine, {**files, first: files["00000/img00000001.png"]}, [[name, index % CLASSES] for index, name in enumerate(files)])
    with pytest.raises(UserError, match=r"pics\.zip does not hold the images and labels that .*run was trained on so far"):
        run_on(args)
    write_data(mine)
    assert run_on(args) == 0
    args.training_set_kwargs.path = str(place / "pics.zip")


def test_figures_are_not_measured_on_data_that_has_changed(args, place, tmp_path):
    mine = pathlib.Path(shutil.copy(place / "pics.zip", tmp_path / "pics.zip"))
    args.training_set_kwargs.path = str(mine)
    assert run_on(args, step=step_with(2, lambda _: write_data(mine, count=50))) == 0
    log = pathlib.Path(args.run_dir, "log.txt").read_text()
    assert "Warning: the metric prdc10k5 failed" in log and "has changed since this process began to read the data set" in log
    assert [snapshot for _, snapshot, _ in figures_of(args.run_dir)] == ["network-snapshot-000000.safetensors"]


def test_an_image_that_changes_while_it_is_streamed_is_seen(tmp_path):
    folder = write_folder(tmp_path / "pics", pngs(2, size=(8, 8)))
    dataset = ImageFolderDataset(folder)
    dataset.fingerprint()
    loader = open_loader(dataset, 2, CPU, workers=1, resident=False)
    write_folder(folder, {"00000/img00000001.png": pngs(3, size=(8, 8))["00000/img00000002.png"]})
    with pytest.raises(UserError, match=r"img00000001\.png has changed since this process began to read the data set"):
        for _ in range(4):
            next(loader)
    loader.close()


def test_a_zip_that_is_exchanged_is_not_opened_again(tmp_path):
    write_zip(tmp_path / "pics.zip", pngs(3, size=(8, 8)))
    dataset = ImageFolderDataset(tmp_path / "pics.zip")
    dataset.close()
    dataset.check_unchanged()
    os.utime(write_zip(tmp_path / "new.zip", pngs(3, size=(8, 8), mode="L")), (0, 0))
    os.replace(tmp_path / "new.zip", tmp_path / "pics.zip")
    with pytest.raises(UserError, match=r"pics\.zip has changed since"):
        dataset[0]


def test_files_of_a_folder_are_read_once_unless_they_look_changed(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "pics", pngs(3, size=(8, 8)))
    dataset, reads, read_bytes = ImageFolderDataset(folder), [], pathlib.Path.read_bytes
    load_array(dataset)
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: reads.append(path.name) or read_bytes(path))
    before = dataset.fingerprint()
    dataset.check_unchanged()
    assert reads == []
    os.utime(folder / "00000" / "img00000001.png", (0, 0))
    dataset.check_unchanged()
    assert reads == ["img00000001.png"] and dataset.fingerprint() == before == ImageFolderDataset(folder).fingerprint()
    (folder / "00000" / "img00000002.png").write_bytes(b"other")
    with pytest.raises(UserError, match=r"img00000002\.png has changed since"):
        dataset.check_unchanged()
