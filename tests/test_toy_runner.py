"""Parts, runner and sweep of the toy experiments: finished work is kept, shared and never mixed with other settings."""

import dataclasses
import json

import pytest
import torch

from dnnlib import UserError
from experiments.toy import runner, sweep
from experiments.toy.measures import MEASURES
from experiments.toy.methods import METHODS, Settings
from experiments.toy.parts import Part, load_part, part_path, save_part
from experiments.toy.runner import difference, protocol, run_jobs, run_parts, unfinished
from experiments.toy.studies import STUDIES, Study

QUICK = Study("quick", "Quick", STUDIES["ring"].distribution, Settings(steps=2, batch=8))
METHOD = METHODS["GAN+Pairing"]


@pytest.fixture(autouse=True)
def cheap_measure(monkeypatch):
    """Measuring is tested elsewhere and takes seconds; here it only has to tell models apart."""
    monkeypatch.setattr(runner, "measure", lambda G, distribution, settings: [{"coverage": float(w.sum()), "precision": 0.5} for w in G[0]])
    monkeypatch.setattr(runner, "FILM_STEPS", (0, 1))


def run(out, methods=("GAN",), seeds=(0, 1), **options):
    told = []
    parts = run_parts(QUICK, methods, seeds, out, workers=0, progress=told.append, **options)
    return parts, told


def test_a_part_comes_back_as_it_was(tmp_path):
    G = [torch.randn([1, 2, 3], generator=torch.Generator().manual_seed(0)), torch.zeros([1, 1, 3])]
    part = Part("ring", "GAN+Pairing(binary)+R1", 7, {"coverage": 0.1 + 0.2}, G, {0: G, 100: G[::-1]}, {"step": torch.tensor([1, 2])})
    save_part(part, tmp_path, {"k": 3})
    found, made_by = load_part(part_path(tmp_path, "ring", part.method, 7))
    assert made_by == {"k": 3} and found.measures == part.measures and (found.study, found.method, found.seed) == ("ring", part.method, 7)
    assert list(found.snapshots) == [0, 100] and torch.equal(found.history["step"], part.history["step"])
    for stack, wanted in ((found.G, G), (found.snapshots[0], G), (found.snapshots[100], G[::-1])):
        assert all(torch.equal(a, b) for a, b in zip(stack, wanted, strict=True))


def test_methods_have_files_of_their_own(tmp_path):
    assert len({part_path(tmp_path, "ring", name, 0) for name in METHODS}) == len(METHODS)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-9], lambda data: b"junk" + data])
def test_a_damaged_part_is_named(tmp_path, damage):
    run(tmp_path, seeds=[0])
    path = part_path(tmp_path, "quick", "GAN", 0)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"seed-000\.safetensors is damaged"):
        run(tmp_path, seeds=[0])


def test_what_is_finished_is_not_run_again(tmp_path):
    first, told = run(tmp_path)
    assert len(told) == 1 and "GAN, seeds 0 to 1 (1 of 1" in told[0]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    second, told = run(tmp_path, seeds=(2, 1, 0), methods=("GAN", "GAN+R1"))
    assert told[0].startswith("Quick: GAN, seed 2") and "GAN+R1, seeds 2 to 0" in told[1]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [part.seed for part in second["GAN"]] == [2, 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(second["GAN"][2].G, first["GAN"][0].G))
    _, told = run(tmp_path, again=True)
    assert len(told) == 1


def test_only_the_first_seed_keeps_its_film(tmp_path):
    parts, _ = run(tmp_path)
    assert [list(part.snapshots) for part in parts["GAN"]] == [[0, 1], []]


def test_a_part_of_other_settings_is_refused_with_the_difference(tmp_path):
    run(tmp_path)
    changed = dataclasses.replace(QUICK, settings=dataclasses.replace(QUICK.settings, lr=0.5))
    with pytest.raises(UserError, match=r"settings\.lr 0\.001 instead of 0\.5.*--again"):
        run_parts(changed, ["GAN"], [0], tmp_path, workers=0)
    run_parts(changed, ["GAN"], [0], tmp_path, workers=0, again=True)


def test_difference_names_the_first_place():
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) == ""
    assert difference({"a": {"b": 1}}, {"a": {"b": 3}}) == "a.b 1 instead of 3"
    assert difference({}, {"a": 1}) == "a None instead of 1"


def test_a_protocol_is_what_json_gives_back():
    for study in STUDIES.values():
        made_by = protocol(study, METHOD)
        assert json.loads(json.dumps(made_by)) == made_by


@pytest.mark.slow
def test_worker_processes_give_the_same_parts(tmp_path, monkeypatch):
    monkeypatch.undo()  # workers measure in full
    run_jobs(unfinished(QUICK, METHOD, [0, 1], tmp_path / "many"), workers=2)
    run_jobs(unfinished(QUICK, METHOD, [0, 1], tmp_path / "none"), workers=0)
    for seed in (0, 1):
        (a, _), (b, _) = (load_part(part_path(tmp_path / folder, "quick", METHOD.name, seed)) for folder in ("many", "none"))
        assert list(a.measures) == list(MEASURES) and all(torch.equal(x, y) for x, y in zip(a.G, b.G))


def test_the_environment_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("KEPT", "mine")
    monkeypatch.delenv("ADDED", raising=False)
    with runner.environment({"KEPT": "other", "ADDED": "1"}):
        assert (runner.os.environ["KEPT"], runner.os.environ["ADDED"]) == ("mine", "1")
    assert "ADDED" not in runner.os.environ


def test_sweep_varies_two_settings_at_a_time_around_the_tables_own(tmp_path, monkeypatch):
    monkeypatch.setitem(STUDIES, "quick", QUICK)
    monkeypatch.setattr(sweep, "FACTORS", {"pairing_weight": (0.0, 1.0), "tau": (1.0, 2.0), "lr": (1.0,)})
    told = []
    files = sweep.run_sweep(["quick"], [0, 1], tmp_path, workers=0, progress=told.append)
    assert [path.name for path in files] == ["sweep.json", "sweep-quick.png", "sweep-quick.svg"] and len(told) == 4  # of 6, 2 are in both tables
    tables = json.loads(files[0].read_text())["studies"]["quick"]
    assert [[(cell["settings"]["tau"], cell["settings"]["pairing_weight"]) for cell in row] for row in tables["tau"]] == [
        [(0.1, 0.0), (0.1, 0.05)],
        [(0.2, 0.0), (0.2, 0.05)],
    ]
    assert tables["lr"][0] == tables["tau"][0]
    cell = tables["tau"][1][1]["coverage"]
    assert len(cell["seeds"]) == 2 and cell["mean"] == pytest.approx(sum(cell["seeds"]) / 2)
    assert sweep.run_sweep(["quick"], [0, 1], tmp_path, workers=0, progress=told.append) and len(told) == 4
