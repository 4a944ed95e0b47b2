"""What befalls results from outside: data that move or change, links to nowhere, full disks, terminals that go, and queues that end a job."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import threading
import time

import pytest
from image_plans import calls, fake_run, plan_with_stand_ins, smoke_plan

import reproduce
from dnnlib import UserError
from experiments.images import speed, work
from experiments.images.adopt import adopt
from experiments.images.board import Board, progress
from experiments.images.budgets import BUDGETS
from experiments.images.experiments import choose
from experiments.images.folder_lock import hold
from experiments.images.plan import plan_path, read_plans, remember_plan, write_plans
from experiments.images.planned_config import fingerprint
from experiments.images.results import load_run, unusable, without_copies
from experiments.images.run import How, run_plan
from experiments.images.run_state import RunState
from experiments.images.speed import Speed
from experiments.images.work import last_words, make_run, measuring_command, training_command
from training.dataset_sources import open_source
from training.dataset_writer import convert_dataset, make_transform

METRIC = "prdc10k5_embedded"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    return plan_with_stand_ins(tmp_path, monkeypatch)


def measured(run, digest=None, value="0.5", kimg=1):
    """Adds a line of a snapshot to a run folder."""
    line = {"results": {f"{METRIC}_coverage": "VALUE"}, "metric": METRIC, "snapshot_pkl": f"network-snapshot-{kimg:06d}.safetensors"}
    with open(run / f"metric-{METRIC}.jsonl", "a") as handle:
        handle.write(json.dumps({**line, "protocol": {"dataset": digest} if digest else {}}).replace('"VALUE"', value) + "\n")


# Data.


def test_data_that_were_moved_are_named_to_every_process(plan, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = str(shutil.move(plan.data, tmp_path / "elsewhere"))
    again = smoke_plan(plan.choice.out, data=moved).runs[1]
    run = again.parent / "00000-begun"
    run.mkdir(parents=True)
    (run / "training_options.json").write_text(json.dumps(plan.runs[1].options))
    (run / "network-snapshot-000000.safetensors").write_text("")
    for command in (training_command(again), measuring_command(again)):
        assert f"--data={moved}" in command


def test_data_that_changed_under_their_name_are_refused(plan):
    remember_plan(plan, None)
    pathlib.Path(plan.data).unlink()
    convert_dataset(open_source("digits", max_images=241), plan.data, make_transform(None, 16, 16, "box"))
    with pytest.raises(UserError, match=r"--data=.*digits\.zip holds other images or labels than when .*plan\.json was written"):
        smoke_plan(plan.choice.out)
    saved = read_plans(plan.choice.out)
    saved["smoke"]["fingerprint"] = None  # a plan from before it was kept
    write_plans(plan_path(plan.choice.out), saved)
    assert smoke_plan(plan.choice.out).data == plan.data


def test_data_that_runs_were_not_measured_against_are_refused(plan):
    run = fake_run(plan.runs[0])
    measured(run, "cd" * 32)
    with pytest.raises(UserError, match=r"than those that .*metric-prdc10k5_embedded\.jsonl was measured against"):
        smoke_plan(plan.choice.out)
    measured(run, fingerprint(plan.data))
    assert smoke_plan(plan.choice.out).runs[0].look().measured == 1  # the last line counts


# Runs from elsewhere.


def by_hand(plan, tmp_path):
    return fake_run(dataclasses.replace(plan.runs[0], parent=tmp_path / "hand"))


def test_a_link_to_nowhere_is_no_missing_run(plan, tmp_path):
    folder = by_hand(plan, tmp_path)
    (run,) = adopt([folder], plan.choice)
    shutil.move(folder.parent, tmp_path / "away")
    with pytest.raises(UserError, match=f"is a link to {folder}, which is not there"):
        run.look()


def test_a_copy_that_fails_leaves_nothing(plan, tmp_path, monkeypatch):
    def copytree(source, target):
        target.mkdir()
        raise shutil.Error([("a/state.pt", "b/state.pt", "No space left on device"), ("a", "b", "and more")])

    monkeypatch.setattr(shutil, "copytree", copytree)
    with pytest.raises(UserError, match=r"cannot copy a/state\.pt into .*: No space left on device$"):
        adopt([by_hand(plan, tmp_path)], plan.choice, copy=True)
    assert not list(plan.runs[0].parent.iterdir()) and plan.runs[0].look() == RunState()


def test_a_copy_of_a_run_is_no_second_seed(plan, tmp_path):
    first = fake_run(plan.runs[0])
    other = fake_run(dataclasses.replace(plan.runs[0], parent=tmp_path / "other"), random_seed=1)
    copy = shutil.copytree(first, tmp_path / "copy" / first.name)
    (first / "network-snapshot-000002.safetensors").write_text("")  # went on
    kept, said = without_copies([load_run(path) for path in (copy, first, other, first)])
    assert {run.path for run in kept} == {first, other} and len(said) == 1
    assert said[0].startswith(f"{copy} has the seed and the options of {first} and is left out")


# Figures that are none.


def test_what_is_not_finite_is_measured_again(plan, tmp_path):
    assert run_plan(plan, How(workers=2)) == []
    run = plan.runs[0]
    path = run.look().path / f"metric-{METRIC}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    measured(path.parent, value="NaN")
    assert str(run.look()) == "finished, 1 of 2 snapshots measured" and "network-snapshot-000001" in unusable(load_run(path.parent))[0]
    assert run_plan(plan, How(workers=2)) == [] and calls(tmp_path / "scripts")[-1] == ("measure", run.key)
    assert run.look().is_measured and not unusable(load_run(path.parent))


def test_a_run_none_of_whose_figures_is_finite_stops_no_page(plan, tmp_path, capsys):
    remember_plan(plan, None)
    good, lost = fake_run(plan.runs[0]), fake_run(plan.runs[1])
    measured(good)
    measured(lost, value="NaN")
    reproduce.write_page((), tmp_path / "out")
    assert "not measured in all of their rows yet: " in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    reproduce.write_page((good, lost), tmp_path / "page")
    assert f"{lost / f'metric-{METRIC}.jsonl'} has figures of network-snapshot-000001" in capsys.readouterr().out
    assert load_run(lost).figures == {} and load_run(good).figures


def test_options_without_data_are_one_sentence(plan):
    path = fake_run(plan.runs[0]) / "training_options.json"
    for data in ({}, {"path": 7}, "digits.zip"):
        path.write_text(json.dumps({**plan.runs[0].options, "training_set_kwargs": data}))
        with pytest.raises(UserError, match="holds no options of a training"):
            plan.runs[0].look()


def test_what_nobody_thought_of_fails_one_run_alone(plan, monkeypatch):
    def execute(*_):
        raise KeyError("mean")

    monkeypatch.setattr(work, "execute", execute)
    assert make_run(plan.runs[0]).error == "KeyError: 'mean'"


def test_last_words_name_the_warning_before_them(tmp_path):
    path = tmp_path / "output.txt"
    path.write_text("Warning: a is passed over: no data\nsome\nError: 2 of 2 could not be measured\n")
    assert last_words(path) == "2 of 2 could not be measured - Warning: a is passed over: no data"
    path.write_text("Warning: all of it\n")
    assert last_words(path) == "Warning: all of it"


# The table.


class Gone(io.StringIO):
    """A terminal that went away."""

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(5, "Input/output error")


def test_a_terminal_that_goes_ends_nothing(plan):
    lines = []
    shown = Board(plan.runs, log=lines.append, stream=Gone())
    shown.draw()
    assert not shown.live
    shown.set(plan.runs[0], "measured")
    shown.close()
    assert lines[0].endswith("measured  (1 of 3 done)\n")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-1", f"1{400 * '0'}", '"2"'])
def test_statistics_that_are_none_are_not_shown(plan, value):
    (fake_run(plan.runs[0]) / "stats.jsonl").write_text(f'{{"Progress/kimg": {{"mean": 0.5}}, "Timing/sec_per_kimg": {{"mean": {value}}}}}\n')
    assert progress(plan.runs[0]) == "training, 0 of 1 kimg"


# Speed.


def test_ticks_of_another_machine_teach_no_speed(tmp_path):
    times = [(1, 90.0), (2, 90.0), (11, 7.0), (12, 2.0), (13, 2.0)]
    lines = [json.dumps({"Timing/sec_per_kimg": {"mean": value}, "timestamp": at}) for at, value in times]
    (tmp_path / "stats.jsonl").write_text("\n".join(lines))
    assert speed.sec_per_kimg(tmp_path, since=10) == 2.0 and speed.sec_per_kimg(tmp_path, since=13) is None


def test_nothing_is_measured_beside_runs_that_are_made(plan, tmp_path, capsys):
    with hold(plan.choice.out, "--out=out"):
        assert reproduce.find_places(plan, 1, Speed(plan.choice.out), measure=True)
    assert "Speeds are not measured now: --out=" in capsys.readouterr().out and not calls(tmp_path / "scripts")


def test_a_probe_that_is_ended_leaves_no_files(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "scripts" / "hang-train-0").touch()

    def end():
        while not list(tmp_path.glob("probe-*/0/0*/stats.jsonl")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        reproduce.find_places(plan, 1, Speed(plan.choice.out), measure=True)
    assert not list(tmp_path.glob("probe-*"))


# Words.


def test_all_stands_alone():
    with pytest.raises(UserError, match="all means the paper's six"):
        choose(("all", "table3"))


def test_the_paper_s_plan_is_asked_for_with_all_options(plan):
    choice = dataclasses.replace(plan.choice, budget="paper", device="cuda", seeds=1, data="my data.zip")
    paper = dataclasses.replace(plan, budget=BUDGETS["paper"], choice=choice)
    command = f"`python reproduce.py plan figure4 --budget=paper --out={choice.out} '--data=my data.zip' --seeds=1 --device=cuda`"
    with pytest.raises(UserError, match=f"{command} on a GPU node"):
        run_plan(paper, How(launcher="slurm"))


def test_a_folder_that_cannot_be_printed_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be printed; give a folder of another name"):
        reproduce.log_into(tmp_path / b"caf\xe9".decode("utf-8", "surrogateescape"))
