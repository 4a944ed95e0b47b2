"""Space on the disk and the best snapshot: forecasts against files of real runs, what is warned of and when, what best.json and its link say."""

import json
import pathlib
import shutil

import pytest
import torch
from tiny_runs import CPU, tiny_args, train

from dnnlib import UserError
from training import disk
from training.config import leading_figure
from training.disk import DiskWatch, Sizes, measure_sizes, needed_bytes, predict_sizes, snapshots_left
from training.metric_sides import find_networks
from training.networks import load_network
from training.run_files import RunDir
from training.training_loop import Trainer

SIZES = Sizes(snapshot=100, state=300, picture=10)
STEPS = dict(batch=252, kimg=2, tick=1, snap=1)


@pytest.fixture(scope="module")
def measured(place):
    """A run with three snapshots, the best of which by coverage is not the best by recall."""
    options = dict(metrics=["prdc10k5"], detector=str(place / "pool.pt"), best="prdc10k5_coverage", pairing_weight=0.05)
    return train(str(place / "pics.zip"), place / "run", **options, **STEPS)


# Space.


def test_sizes_are_foretold(place, measured, tmp_path):
    args = tiny_args(str(place / "pics.zip"), tmp_path / "run", pairing_weight=0.05, freezed=2, **STEPS)
    predicted = Trainer(args, CPU, 1).disk.predicted
    found = measure_sizes(RunDir(measured), Sizes(0, 0, 0))
    assert found.snapshot <= predicted.snapshot <= found.snapshot + 2 * disk.SPARE
    assert 0.4 * predicted.state <= found.state <= predicted.state + 2 * disk.SPARE
    assert 0.5 * predicted.picture <= found.picture <= 1.1 * predicted.picture
    assert measure_sizes(RunDir(tmp_path), predicted) == predicted


def test_sizes_of_large_networks_follow_their_numbers():
    """Four bytes a number, G twice, and two numbers of Adam's for each that is trained: nothing else matters in a large network."""
    G, D = torch.nn.Linear(1000, 1000), torch.nn.Linear(1000, 500)
    D.bias.requires_grad_(False)
    sizes = predict_sizes({"G": G, "D": D}, (1024, 1024), 3, 70_000)
    numbers = 2 * 1_001_000 + 500_500
    assert sizes.snapshot == 4 * numbers + disk.SPARE and sizes.picture == 7 * 4 * 1024**2 * 3
    assert sizes.state == 4 * (numbers + 2 * 1_501_500) + 8 * 70_000 + disk.SPARE


def test_snapshots_are_counted_as_the_run_writes_them(measured):
    args = json.loads((measured / "training_options.json").read_text())
    assert snapshots_left(args, 0) == len(RunDir(measured).snapshots()) == 3
    assert [snapshots_left(args, nimg) for nimg in (252, 1260, 2016)] == [2, 1, 0]


@pytest.mark.parametrize("keep", [0, 1, 3, 10])
def test_what_is_needed_is_what_a_run_piles_up(keep):
    """Against a run played through, in which the best is the first and every file is written before an old one goes."""
    for total in (1, 2, 5, 20):
        snapshots, states, peak = [], [], 0
        for kimg in range(total):
            snapshots.append(kimg)
            states.append(kimg)
            peak = max(peak, len(snapshots) * 100 + len(states) * 300 + (kimg + 1) * 10)
            states = states[-2:]
            snapshots = [kimg for kimg in snapshots if not keep or kimg in {0, *snapshots[-keep:], *states}]
        need = needed_bytes(SIZES, total, keep)
        assert peak <= need <= peak + (2 * 100 if keep else 0)
        half = needed_bytes(SIZES, total - total // 2, keep, snapshots=total // 2, states=min(total // 2, 2))
        assert half <= need
    assert needed_bytes(SIZES, 0, keep, 5, 2) == 0


def watch_of(run, free, monkeypatch, total=20, keep=0):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: free)
    args = dict(kimg_per_tick=1, batch_size=10, network_snapshot_ticks=1, total_kimg=total - 1, keep_snapshots=keep)
    return DiskWatch(RunDir(run), args, Sizes(10**9, 3 * 10**9, 10**7))


def test_one_line_says_what_is_needed_and_which_keep_would_fit(tmp_path, monkeypatch):
    watch = watch_of(tmp_path, 20 * 10**9, monkeypatch)
    (line,) = watch.look(0)
    assert line == "Warning: the rest of the run needs about 29.20 GB for 20 snapshots and 20.00 GB are free; --keep=6 would fit."
    assert watch.look(1000) == []  # said
    for keep, fits in ((6, True), (7, False)):
        assert (watch_of(tmp_path, 20 * 10**9, monkeypatch, keep=keep).look(0) == []) == fits
    assert watch_of(tmp_path, 29.3e9, monkeypatch).look(0) == []
    (line,) = watch_of(tmp_path, 8e9, monkeypatch).look(0)
    assert line.endswith("even --keep=1 would not fit.")


def test_the_line_comes_again_when_space_came_and_went(tmp_path, monkeypatch):
    watch = watch_of(tmp_path, 20e9, monkeypatch)
    free = iter([20e9, 40e9, 20e9])
    monkeypatch.setattr(disk, "free_bytes", lambda folder: next(free))
    assert [len(watch.look(0)) for _ in range(3)] == [1, 0, 1]


def test_a_run_is_refused_only_where_not_even_one_state_fits(place, tmp_path, monkeypatch):
    args = tiny_args(str(place / "pics.zip"), tmp_path / "new" / "run", **STEPS)
    trainer = Trainer(args, CPU, 1)
    least = trainer.disk.predicted.snapshot + trainer.disk.predicted.state
    monkeypatch.setattr(disk, "free_bytes", lambda folder: least)
    trainer.disk.check_start()
    monkeypatch.setattr(disk, "free_bytes", lambda folder: least - 1)
    with pytest.raises(UserError, match=r"--outdir=.*new: a snapshot and its training state need 0\.00 GB and 0\.00 GB are free; make room"):
        train(str(place / "pics.zip"), tmp_path / "new" / "run", **STEPS)
    assert not (tmp_path / "new").exists()


# The best snapshot.


def test_the_best_snapshot_is_named_and_linked(measured):
    best = json.loads((measured / "best.json").read_text())
    lines = [json.loads(line) for line in (measured / "metric-prdc10k5_pool.jsonl").read_text().splitlines()]
    values = [line["results"]["prdc10k5_pool_coverage"] for line in lines]
    kimg = max(range(3), key=lambda kimg: (values[kimg], kimg))
    snapshot = f"network-snapshot-{kimg:06d}.safetensors"
    assert best == {"figure": "prdc10k5_pool_coverage", "kimg": kimg, "value": values[kimg], "snapshot": snapshot}
    link = measured / "network-snapshot-best.safetensors"
    assert link.is_symlink() and link.resolve() == (measured / snapshot).resolve() and "G_ema" in load_network(link)
    assert RunDir(measured).snapshots() == [0, 1, 2] and not list(measured.glob(".*"))


def test_measuring_goes_past_the_link(measured):
    found = find_networks(str(measured))
    assert [pathlib.Path(path).name for path in found] == [f"network-snapshot-00000{kimg}.safetensors" for kimg in range(3)]
    (itself,) = find_networks(str(measured / "network-snapshot-best.safetensors"))
    assert itself == str(measured / json.loads((measured / "best.json").read_text())["snapshot"])


def test_a_link_that_became_a_file_is_not_measured_twice(measured, tmp_path):
    """As in a run that was copied from another machine. Alone it is a network like others."""
    copy = shutil.copytree(measured, tmp_path / "run", symlinks=False)
    snapshots = [RunDir(copy).snapshot(kimg) for kimg in range(3)]
    assert find_networks(str(copy)) == list(map(str, snapshots))
    for snapshot in snapshots:
        snapshot.unlink()
    assert find_networks(str(copy)) == [str(copy / "network-snapshot-best.safetensors")]


def test_the_best_follows_the_lines_and_the_snapshots_that_are_there(measured, tmp_path):
    run = RunDir(shutil.copytree(measured, tmp_path / "run", symlinks=True))
    lines = [json.loads(line) for line in (run / "metric-prdc10k5_pool.jsonl").read_text().splitlines()]
    for value, line in zip((0.5, float("nan"), 0.75), lines):
        line["results"]["prdc10k5_pool_coverage"] = value
    (run / "metric-prdc10k5_pool.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"torn')
    run.mark_best("prdc10k5_pool_coverage")
    assert json.loads((run / "best.json").read_text())["kimg"] == 2 == run.best("prdc10k5_pool_coverage").kimg
    run.snapshot(2).unlink()
    run.mark_best("prdc10k5_pool_coverage")
    assert json.loads((run / "best.json").read_text())["kimg"] == 0
    assert (run / "network-snapshot-best.safetensors").resolve() == run.snapshot(0).resolve()


def test_without_links_the_file_says_it(measured, tmp_path, monkeypatch):
    run = RunDir(shutil.copytree(measured, tmp_path / "run", symlinks=True))
    for name in ("best.json", "network-snapshot-best.safetensors"):
        (run / name).unlink()

    def refuse(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(pathlib.Path, "symlink_to", refuse)
    run.mark_best("prdc10k5_pool_coverage")
    assert (run / "best.json").is_file() and not (run / "network-snapshot-best.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("best", "metrics", "figure"),
    [
        (None, [], None),
        (None, ["coverage", "fid10k"], "coverage_embedded"),
        ("fid10k", ["coverage", "fid10k"], "fid10k_embedded"),
        ("prdc50k3_recall", ["fid10k", "prdc50k3"], "prdc50k3_embedded_recall"),
        ("prdc50k3_embedded_recall", ["fid10k", "prdc50k3"], "prdc50k3_embedded_recall"),
    ],
)
def test_the_best_is_chosen_by_metric_or_figure(place, best, metrics, figure):
    args = tiny_args(str(place / "pics.zip"), "unused", metrics=metrics, detector="embedded", **({} if best is None else {"best": best}))
    assert leading_figure(args) == figure


@pytest.mark.parametrize("best", ["fid50k", "coverage_typo", "fid10k_kid", "prdc50k3_density"])
def test_a_best_that_is_not_measured_is_one_sentence(place, best):
    with pytest.raises(UserError, match=f"--best={best} is neither one of --metrics=fid10k,prdc50k3 nor a figure of one"):
        tiny_args(str(place / "pics.zip"), "unused", metrics=["fid10k", "prdc50k3"], best=best)
