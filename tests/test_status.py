"""The status command: what it says of finished, living, stopped, empty, torn and foreign run folders, always on one screen."""

import json
import os
import pathlib
import random
import shutil
import time

import pytest
from click.testing import CliRunner
from tiny_runs import train, write_data, write_detector

from dnnlib import UserError
from dnnlib.cli import run_command
from experiments import status
from experiments.run_summary import summarise
from training.run_files import RunDir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with pairing and figures."""
    place = tmp_path_factory.mktemp("status")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNNLIB_CACHE_DIR", str(place / "cache"))
        options = dict(metrics=["prdc10k5"], detector=write_detector(place / "pool.pt"), pairing_weight=0.05)
        return train(write_data(place / "pics.zip"), place / "00000-pics", batch=252, kimg=2, tick=1, snap=1, **options)


@pytest.fixture
def copy(run, tmp_path):
    return pathlib.Path(shutil.copytree(run, tmp_path / "00000-pics", symlinks=True))


@pytest.fixture
def stopped(copy):
    """The same run, ended after its second snapshot."""
    for path in (RunDir(copy).snapshot(2), RunDir(copy).state(2)):
        path.unlink()
    for name in ("stats.jsonl", "metric-prdc10k5_pool.jsonl"):
        lines = (copy / name).read_text().splitlines(keepends=True)
        (copy / name).write_text("".join(lines[:2]))
    return copy


def show(*runs):
    """What the command prints; every run on one screen."""
    result = CliRunner().invoke(status.main, [str(run) for run in runs], catch_exceptions=False)
    assert result.exit_code == 0
    for screen in result.output.strip("\n").split("\n\n"):
        lines = screen.split("\n")
        assert len(lines) <= 24 and max(map(len, lines)) <= 100, screen
    return result.output


def last_line(run):
    return json.loads((run / "stats.jsonl").read_text().splitlines()[-1])["timestamp"]


def test_a_finished_run(run):
    text = show(run)
    for words in ("StyleGAN2-ADA + pairing 0.05", "60 images of 8x8, with labels", "batch 252", "2.0 of 2 kimg (100%), tick 2", "finished"):
        assert words in text, words
    summary = summarise(run)
    figures = {figure["figure"]: figure for figure in summary["figures"]}
    lines = [json.loads(line)["results"] for line in (run / "metric-prdc10k5_pool.jsonl").read_text().splitlines()]
    for name, figure in figures.items():
        values = [line[name] for line in lines]
        assert (figure["last"], figure["at"], figure["evaluations"]) == (values[-1], 2, 3)
        assert figure["best"] == (None if name.endswith("density") else max(values))
    assert summary["figures"][0]["figure"] == "prdc10k5_pool_precision"  # the best snapshot is chosen by it
    assert 0 <= summary["training"]["pairing_accuracy"] <= 1 and summary["training"]["nonfinite"] == 0
    assert summary["disk"]["used"] == sum(file.stat().st_size for file in run.iterdir() if not file.is_symlink())
    assert (summary["continue"], summary["alarms"], summary["disk"]["needed"]) == (None, [], 0)


def test_a_stopped_run_says_how_to_go_on(stopped):
    assert f"python train.py --continue-run={stopped}" in show(stopped).replace("\\\n", "")
    summary = summarise(stopped, now=last_line(stopped) + 7000)
    assert summary["state"] == "stopped" and 3600 < summary["last_sign_seconds_ago"] <= 7000
    assert summary["seconds_left"] == pytest.approx((2 - summary["kimg"]) * summary["sec_per_kimg"])
    assert "stopped, or silent for longer than its ticks take, last sign of life 1 hour ago" in status.describe(summary)
    needed = summary["disk"]["needed"]
    assert 0 < RunDir(stopped).snapshot(1).stat().st_size < needed < 5e6


def test_a_run_lives_while_it_is_silent_for_no_longer_than_its_ticks(stopped):
    lines = [json.loads(line) for line in (stopped / "stats.jsonl").read_text().splitlines()]
    lines[-1]["Timing/sec_per_tick"]["mean"] = 1000.0
    (stopped / "stats.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    states = [summarise(stopped, now=last_line(stopped) + seconds)["state"] for seconds in (-10, 100, 2900, 3100)]
    assert states == ["running", "running", "running", "stopped"]
    assert "running, last sign of life 1 minute ago" in status.describe(summarise(stopped, now=last_line(stopped) + 110))


def test_open_alarms_are_shown(stopped):
    lines = []
    for index, signs in enumerate((0.5, 0.8, 0.4, 0.4, 0.95, 0.96)):
        means = {"Progress/kimg": 100 * index + 0.1, "Progress/tick": index, "Loss/signs/real": signs, "Progress/augment": 1.0}
        lines.append({name: {"num": 1, "mean": mean, "std": 0} for name, mean in means.items()})
    (stopped / "stats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (alarm,) = summarise(stopped)["alarms"]
    assert (alarm["kind"], alarm["kimg"], alarm["since"]) == ("overfitting", 500, 200)
    assert "alarms    overfitting: r_t, D's mean sign on training images, rose from 0.40 at 200 kimg to 0.96" in show(stopped)


def test_json_is_the_same_in_one_line_each(run, stopped):
    result = CliRunner().invoke(status.main, ["--json", str(run), str(stopped)], catch_exceptions=False)
    first, second = (json.loads(line) for line in result.output.splitlines())
    assert first["state"] == "finished" and second["snapshots"] == [0, 1] and first["figures"] == summarise(run)["figures"]


# Folders of other kinds.


def test_a_run_of_stylegan2_ada(tmp_path):
    run = tmp_path / "00007-photos-auto1"
    run.mkdir()
    options = {"num_gpus": 1, "network_snapshot_ticks": 50, "metrics": ["fid50k_full"], "total_kimg": 25000, "batch_size": 16, "ada_target": 0.6}
    options["training_set_kwargs"] = {"path": "photos.zip", "use_labels": False, "max_size": 4000, "xflip": True, "resolution": 256}
    options["loss_kwargs"] = {"class_name": "training.loss.StyleGAN2Loss", "r1_gamma": 0.8192}
    (run / "training_options.json").write_text(json.dumps(options))
    line = {"Progress/tick": 50, "Progress/kimg": 200.1, "Timing/sec_per_kimg": 24.0, "Timing/sec_per_tick": 96.0, "Progress/augment": 0.2}
    stats = {name: {"num": 1, "mean": mean, "std": 0} for name, mean in line.items()} | {"timestamp": time.time() - 30}
    (run / "stats.jsonl").write_text(json.dumps(stats) + "\n")
    for kimg in (0, 200):
        (run / f"network-snapshot-{kimg:06d}.pkl").write_bytes(b"x" * 1000)
        entry = {"results": {"fid50k_full": 300.0 - kimg}, "metric": "fid50k_full", "snapshot_pkl": f"network-snapshot-{kimg:06d}.pkl"}
        with open(run / "metric-fid50k_full.jsonl", "a") as handle:
            handle.write(json.dumps(entry) + "\n")
    text = show(run).replace("\\\n", "")
    for words in ("StyleGAN2-ADA, by StyleGAN2-ADA", "4,000 images of 256x256, mirrored: photos.zip", "gamma 0.8192", "200.1 of 25000 kimg (1%)"):
        assert words in text, words
    assert "running, last sign of life 3" in text and "fid50k_full  100     at 200    best 100     at 200    down, good" in text
    assert f"python train.py --outdir=runs --data=DATA --resume={run}/network-snapshot-000200.pkl" in text


def test_an_empty_run_and_folders_that_are_none(tmp_path, capsys):
    run = tmp_path / "runs" / "00000-new"
    run.mkdir(parents=True)

    def refusal(path):
        with pytest.raises(SystemExit) as leaving:
            run_command(status.main, [str(path)])
        assert leaving.value.code == 2
        return capsys.readouterr().err

    assert refusal(run).startswith(f"Error: {run} is no run: there is none of stats.jsonl, log.txt, training_options.json in it")
    (run / "training_options.json").write_text("{}")
    text = show(run)
    assert "options cannot be read" in text and "no tick yet" in text and "none measured" in text
    assert f"{run.parent} holds 1 run but is none; give one of them, such as {run}" in refusal(run.parent)
    assert f"{run / 'training_options.json'} is no folder; give the folder of a run" in refusal(run / "training_options.json")
    assert "is missing; give the folder of a run" in refusal(tmp_path / "absent")
    with pytest.raises(UserError, match="holds 1 run but is none"):
        summarise(tmp_path)


def damage(data, rng):
    """Bytes that were cut, flipped, or replaced by other JSON."""
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        place = rng.randrange(len(data))
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if kind == 2:
        other = rng.choice([b"null", b"-1", b"1e999", b'"x"', b"[]", b"{}", b"true", b"1" * 400])
        place = data.find(b": ", rng.randrange(len(data)))
        end = min((at for at in (data.find(b",", place), data.find(b"}", place)) if at >= 0), default=-1)
        return data if place < 0 or end < 0 else data[: place + 2] + other + data[end:]
    return rng.choice([b"", b"\0" * 50, b"[" * 3000, b"\xff\xfe", b"[1, 2]\n", b'{"Progress/kimg": {"mean": {}}}\n'])


@pytest.mark.parametrize("times", [80, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_never_stop_it(copy, times):
    """Whatever is in the files of a run, one screen comes out, and the sound files are told of."""
    rng = random.Random(0)
    files = {name: (copy / name).read_bytes() for name in ("stats.jsonl", "training_options.json", "metric-prdc10k5_pool.jsonl", "best.json")}
    for _ in range(times):
        for name, data in files.items():
            (copy / name).write_bytes(damage(data, rng) if rng.random() < 0.5 else data)
        summary = summarise(copy)
        text = status.describe(summary)
        assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 100
        json.dumps(summary, allow_nan=False)
    for name, data in files.items():
        (copy / name).write_bytes(data)
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    show(copy)
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before and os.listdir(copy.parent) == ["00000-pics"]


def test_long_names_fit_the_screen(copy):
    long = copy.rename(copy.with_name("00000-" + "x" * 150))
    RunDir(long).snapshot(2).unlink()
    options = json.loads((long / "training_options.json").read_text())
    options["training_set_kwargs"]["path"] = "y" * 300
    (long / "training_options.json").write_text(json.dumps(options))
    line = {"results": {f"figure{index}_{'z' * 80}": index for index in range(40)}, "snapshot_pkl": "network-snapshot-000001.safetensors"}
    (long / "metric-many.jsonl").write_text(json.dumps(line))
    text = show(long)
    assert "and 38 more" in text and f"--continue-run={long}" in text.replace("\\\n", "")
