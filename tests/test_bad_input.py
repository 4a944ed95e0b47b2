"""Bad input through the real commands: one sentence that names what is wrong and where, exit code 2, and nothing left behind."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_sets import png, pngs, write_folder, write_zip
from tiny_runs import tiny_args, write_data, write_detector
from tiny_runs import train as tiny_run

import calc_metrics
import dataset_tool
import generate
import train
from dnnlib import download
from dnnlib.cli import run_command
from torch_utils.checkpoint import save_networks
from training.networks import load_network
from training.run_files import RunDir

SNAPSHOT = "network-snapshot-000000.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A data set, a detector and a finished run to spoil copies of."""
    place = tmp_path_factory.mktemp("good")
    write_data(place / "pics.zip", count=24)
    write_detector(place / "pool.pt")
    tiny_run(str(place / "pics.zip"), place / "run", batch=500, kimg=1, aug="noaug")
    return place


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs a command that must refuse: returns its sentence, after making sure that there is one only and that no file but a log has changed."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))

    def listing():
        paths = [path for path in tmp_path.rglob("*") if path.relative_to(tmp_path).parts[0] != "cache" and path.name != "log.txt"]
        return {path: path.read_bytes() if path.is_file() else None for path in paths}

    def run(command, *arguments):
        before = listing()
        with pytest.raises(SystemExit) as caught:
            run_command(command, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert caught.value.code == 2, captured.err
        assert captured.err.startswith("Error: ") and captured.err.count("\n") == 1, captured.err
        assert listing() == before
        return captured.err

    return run


@pytest.fixture
def refused_training(refused, tmp_path):
    """Training on a data set that must refuse."""

    def run(data, *options, outdir=None):
        outdir = tmp_path / "runs" if outdir is None else outdir
        return refused(train.main, f"--outdir={outdir}", f"--data={data}", "--cfg=demo", "--metrics=none", "--device=cpu", *options)

    return run


# Data.


def spoiled(tmp_path, files, labels=None):
    return write_zip(tmp_path / "bad.zip", files, labels)


def test_a_missing_set(refused_training, tmp_path):
    assert f"data set {tmp_path / 'absent.zip'} does not exist" in refused_training(tmp_path / "absent.zip")


def test_a_torn_zip(refused_training, good, tmp_path):
    torn = tmp_path / "torn.zip"
    torn.write_bytes((good / "pics.zip").read_bytes()[:-300])
    assert f"{torn} is not a whole zip file" in refused_training(torn)


def test_an_empty_zip_and_another_kind_of_file(refused_training, tmp_path):
    assert "holds no images" in refused_training(spoiled(tmp_path, {"readme.txt": b"hello"}))
    (tmp_path / "notes.txt").write_text("hello")
    assert "notes.txt is neither a folder nor a .zip" in refused_training(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        (png(7, size=(16, 16)), "is 16x16 with 3 channel(s), the first image 8x8 with 3"),
        (png(7, mode="L", size=(8, 8)), "is 8x8 with 1 channel(s), the first image 8x8 with 3"),
        (png(7, size=(8, 8))[:-40], "is a torn image"),
        (b"no image at all", "is not an image that can be read"),
    ],
)
def test_one_image_unlike_the_others(refused_training, tmp_path, odd, found):
    name = "00000/img00000007.png"
    sentence = refused_training(spoiled(tmp_path, {**pngs(12, size=(8, 8)), name: odd}))
    assert f"{name} in {tmp_path / 'bad.zip'} {found}" in sentence


def test_one_image_unlike_the_others_in_a_folder(refused_training, tmp_path):
    folder = write_folder(tmp_path / "pics", {**pngs(6, size=(8, 8)), "00000/img00000003.png": png(0, size=(4, 4))})
    assert f"{folder / '00000' / 'img00000003.png'} is 4x4" in refused_training(folder)


@pytest.mark.parametrize("size", [(13, 13), (8, 17), (2, 2)])
def test_odd_resolutions(refused_training, tmp_path, size):
    found = f"img00000000.png in {tmp_path / 'bad.zip'} is {size[0]}x{size[1]} pixels; images must be of a size up to 8192 that can be halved"
    assert found in refused_training(spoiled(tmp_path, pngs(4, size=size)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "it has no dataset.json"),
        ("null", "its dataset.json says that there are none"),
        ([["00000/img00000000.png", 1]], "no label"),
        ([[f"00000/img{index:08d}.png", 0] for index in range(4)] + [["00000/absent.png", 1]], "absent.png"),
    ],
)
def test_labels_that_are_missing_or_of_no_file(refused_training, tmp_path, labels, message):
    sentence = refused_training(spoiled(tmp_path, pngs(4, size=(8, 8)), labels), "--cond=1")
    assert message in sentence and "bad.zip" in sentence


def test_a_subset_larger_than_the_set(refused_training, good):
    assert "--subset=25: the data set has 24 images" in refused_training(good / "pics.zip", "--subset=25")


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch=12", "--batch-gpu=8"], "--batch-gpu=8: the 12 images of each GPU (--batch=12, --gpus=1) do not divide by it"),
        (["--batch=9", "--gpus=2"], "--batch=9 does not divide by --gpus=2"),
        (["--aug=fixed"], "--aug=fixed needs the probability"),
        (["--kimg=0"], "'--kimg': 0 is not in the range"),
        (["--cfg=cifra"], "'--cfg': 'cifra' is not one of"),
        (["--nonsense=1"], "No such option"),
        (["--metrics=fid"], "--metrics: 'fid' is no known metric; known are: "),
        (["--metrics=coverage", "--detector=absent.pt"], "detector absent.pt is neither"),
        (["--resume=absent.pkl"], "--resume=absent.pkl: no such file"),
    ],
)
def test_options_that_cannot_be(refused_training, good, options, message):
    assert message in refused_training(good / "pics.zip", *options)


def test_required_options(refused, good, tmp_path):
    assert "--outdir is missing" in refused(train.main, f"--data={good / 'pics.zip'}")
    assert "--data is missing" in refused(train.main, f"--outdir={tmp_path / 'runs'}")


def test_a_device_that_is_not_there(refused_training, good, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device=cuda: torch" in refused_training(good / "pics.zip", "--device=cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = ["--device=cuda", "--gpus=2", "--ops=reference"]
    assert "--gpus=2: this machine has 1 device(s) of kind cuda" in refused_training(good / "pics.zip", *options)


def test_torchrun_with_another_number_of_processes(refused_training, good, monkeypatch):
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert "--gpus=2, but torchrun or srun started 4 processes" in refused_training(good / "pics.zip", "--gpus=2")


@pytest.fixture
def offline(monkeypatch):
    """No way out of this machine."""
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


def test_a_detector_that_cannot_be_downloaded(refused_training, good, offline):
    sentence = refused_training(good / "pics.zip", "--metrics=fid50k_full")
    assert "detector 'inception' is not available" in sentence and "--detector=embedded needs no download" in sentence


def test_a_network_that_cannot_be_downloaded(refused_training, good, offline):
    assert "cannot download https://" in refused_training(good / "pics.zip", "--resume=ffhq256")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("a_file", "a_file is no folder"),
        ("a_file/below", "a_file is no folder"),
        ("/proc/runs", "(cannot create|not writable|0.00 GB are free)"),
    ],
)
def test_an_output_folder_that_cannot_be_made(refused_training, good, tmp_path, place, message):
    (tmp_path / "a_file").write_text("")
    outdir = place if place.startswith("/") else tmp_path / place
    sentence = refused_training(good / "pics.zip", outdir=outdir)
    assert sentence.startswith("Error: --outdir") and re.search(message, sentence)


# Networks and runs.


def damaged(good, tmp_path, kind):
    path = tmp_path / "network.safetensors"
    data = bytearray((good / "run" / SNAPSHOT).read_bytes())
    if kind == "torn":
        data = data[:-100]
    if kind == "flipped bit":
        data[-50] ^= 1
    if kind == "foreign":
        data = b"<html>not found</html>"
    path.write_bytes(data)
    if kind == "foreign tensors":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(3)}, path)
    if kind == "foreign pickle":
        path = tmp_path / "network.pkl"
        path.write_bytes(b"\x80\x04cposix\nsystem\n.")
    if kind == "other network":
        from training.networks import network_record

        save_networks(path, {"P": network_record(load_network(good / "run" / SNAPSHOT).G)}, {})
    return path


KINDS = ["torn", "flipped bit", "foreign", "foreign tensors", "foreign pickle", "other network"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_and_foreign_networks(refused_training, refused, good, tmp_path, kind):
    path = damaged(good, tmp_path, kind)
    assert str(path) in refused_training(good / "pics.zip", f"--resume={path}")
    assert str(path) in refused(generate.main, f"--network={path}", "--seeds=0", "--class=0", f"--outdir={tmp_path / 'out'}", "--device=cpu")
    options = [f"--network={path}", "--metrics=coverage", f"--detector={good / 'pool.pt'}", f"--data={good / 'pics.zip'}", "--device=cpu"]
    assert str(path) in refused(calc_metrics.main, *options)


def test_a_network_for_other_images(refused_training, good, tmp_path):
    """Every size differs, so that nothing could be taken over."""
    assert "no weight of its G fits" in refused_training(good / "pics.zip", "--cond=1", f"--resume={good / 'run' / SNAPSHOT}")


def continuation(refused, run, *options):
    return refused(train.main, f"--continue-run={run}", *options)


def test_runs_that_cannot_be_continued(refused, good, tmp_path):
    assert "no training_options.json there" in continuation(refused, tmp_path / "absent")
    run = tmp_path / "run"
    shutil.copytree(good / "run", run)
    options = run / "training_options.json"
    assert "leave out --seed" in continuation(refused, run, "--seed=2")
    assert "was started with --gpus=1" in continuation(refused, run, "--gpus=2")
    text = options.read_text()
    elsewhere = json.loads(text)
    elsewhere["training_set_kwargs"]["path"] = "gone.zip"
    options.write_text(json.dumps(elsewhere | {"total_kimg": 9}))
    assert "its data set gone.zip is not there; say with --data where it is now" in continuation(refused, run)
    assert "its data set other.zip is not there" in continuation(refused, run, "--data=other.zip")
    options.write_text(text[: len(text) // 2])
    assert "training_options.json is damaged" in continuation(refused, run)
    named = run.rename(tmp_path / "00000-x")  # --outdir goes on with it, and is what was typed
    sentence = refused(train.main, f"--outdir={named}", f"--data={good / 'pics.zip'}")
    assert f"--outdir={named}: " in sentence and "training_options.json is damaged" in sentence and "restore it" in sentence
    run = named.rename(run)
    options.write_text("{}")
    assert "is of another program" in continuation(refused, run)


def test_a_run_whose_states_are_all_damaged_is_not_started_over(refused, good, tmp_path):
    run = tmp_path / "run"
    args = tiny_args(str(good / "pics.zip"), run, batch=500, kimg=3, aug="noaug")
    RunDir.create(args)
    shutil.copy(good / "run" / SNAPSHOT, run)
    (run / "training-state-000000.pt").write_bytes(b"half")
    assert "none of its 1 training states can be used" in continuation(refused, run)


def test_a_state_of_other_networks(refused, good, tmp_path):
    run = tmp_path / "run"
    args = tiny_args(str(good / "pics.zip"), run, batch=500, kimg=3, aug="noaug")
    args.G_kwargs.w_dim = 16
    RunDir.create(args)
    for name in (SNAPSHOT, "training-state-000000.pt"):
        shutil.copy(good / "run" / name, run)
    assert "its training state does not fit its options (" in continuation(refused, run)
    assert f"Error: {run}: " in (run / "log.txt").read_text()


# The other commands, and a whole process.


def test_conversion_of_what_is_no_set(refused, tmp_path):
    for name, source in {"absent": tmp_path / "absent.zip", "torn": tmp_path / "torn.zip"}.items():
        if name == "torn":
            source.write_bytes(b"PK\x03\x04 and no more")
        assert str(source) in refused(dataset_tool.main, f"--source={source}", f"--dest={tmp_path / 'out.zip'}")


def test_pictures_into_a_place_that_is_no_folder(refused, good, tmp_path):
    (tmp_path / "a_file").write_text("")
    network = good / "run" / SNAPSHOT
    assert "a_file" in refused(generate.main, f"--network={network}", "--seeds=0", "--class=0", f"--outdir={tmp_path / 'a_file'}", "--device=cpu")


def test_a_whole_process_ends_with_one_sentence_and_code_2(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(1))
    command = [sys.executable, train.__file__, "--outdir=runs", "--data=x.npy", "--metrics=none"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "Error: data set x.npy is neither a folder nor a .zip; convert it with dataset_tool.py\n"
    assert [path.name for path in pathlib.Path(tmp_path).iterdir()] == ["x.npy"]


def test_the_fixtures_are_sound(good):
    """What is spoiled above works when it is whole."""
    assert set(load_network(good / "run" / SNAPSHOT)) == {"G_ema", "G", "D", "meta"}
    assert json.loads((good / "run" / "training_options.json").read_text())["total_kimg"] == 1
