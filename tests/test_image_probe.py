"""The speed of this machine: each kind of run is tried once, and a GPU is shared by as many runs as train most together."""

import dataclasses
import json
import os
import time

import pytest
from image_plans import calls, plan_with_stand_ins

from dnnlib import UserError, cores
from experiments.images import probe
from experiments.images.launchers import local_slots
from experiments.images.run import How, run_plan
from experiments.images.speed import Speed, cost_class


@pytest.fixture
def plan(tmp_path, monkeypatch):
    return plan_with_stand_ins(tmp_path, monkeypatch)


@pytest.fixture
def scripts(tmp_path):
    return tmp_path / "scripts"


@pytest.fixture
def gpus(monkeypatch):
    """Makes this machine look as if it had so many GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(probe, "PROBE_KIMG", {"cuda": 0})  # the runs here are short
    return lambda number: monkeypatch.setattr("torch.cuda.device_count", lambda: number)


def test_the_probe_measures_each_kind_of_run_once(plan, scripts):
    said = []
    measured = Speed(plan.choice.out)
    probe.probe(plan, measured, {}, said.append)
    assert [word for word, _ in calls(scripts)] == ["train", "measure", "train", "train"] and len(said) == 3
    assert set(measured.training.values()) == {2.0} and len(measured.training) == 3 and len(measured.measuring) == 1
    assert all(measured.left(run).total > 0 for run in plan.runs) and not (plan.choice.out / "runs").exists()
    again = Speed(plan.choice.out)
    probe.probe(plan, again, {}, said.append)
    assert again.training == measured.training and len(said) == 3


def test_a_probe_without_its_detector_measures_training_alone(plan, scripts):
    said = []
    measured = Speed(plan.choice.out)
    elsewhere = dataclasses.replace(plan, budget=dataclasses.replace(plan.budget, detector=str(scripts / "absent.pt")))
    probe.probe(elsewhere, measured, {}, said.append)
    assert "cannot be measured" in said[0] and "absent.pt" in said[0]
    assert measured.left(plan.runs[0]).training == 2.0 and measured.left(plan.runs[0]).measuring is None


def test_a_slow_machine_is_judged_by_the_first_step(plan, tmp_path):
    phases = {"Gmain": 640, "Dmain": 320, "Greg": 0, "Dreg": 1600}
    line = {f"Timing/{name}": {"mean": milliseconds} for name, milliseconds in phases.items()}
    assert probe.first_step(tmp_path, plan.runs[0]) is None
    (tmp_path / "stats.jsonl").write_text(json.dumps(line) + "\n" + '{"torn')
    assert probe.first_step(tmp_path, plan.runs[0]) == (640 + 320 + 100) / 32


def test_a_probe_that_makes_no_step_in_time_is_told(plan, scripts, monkeypatch):
    (scripts / "train.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"does not make one step in 0\.5 seconds"):
        probe.probe(plan, Speed(plan.choice.out), {}, print)


# Places.


def test_slots_share_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "QUOTA_FILE", tmp_path / "absent")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)  # those that a queue gives a job
    assert [slot["OMP_NUM_THREADS"] for slot in local_slots("cpu", 1, None)] == ["1"] * 8
    assert [slot["OMP_NUM_THREADS"] for slot in local_slots("cpu", 1, 2)] == ["4"] * 2
    assert len(local_slots("cpu", 4, None)) == 2


@pytest.mark.parametrize(("limit", "right"), [("max 100000", 8), ("400000 100000", 4), ("250000 100000", 3), ("50000 100000", 1), ("?", 8)])
def test_a_container_may_have_a_share_of_the_cores(monkeypatch, tmp_path, limit, right):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(cores, "QUOTA_FILE", tmp_path / "cpu.max")
    assert len(local_slots("cpu", 1, None)) == right


def test_slots_share_the_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    visible = [slot["CUDA_VISIBLE_DEVICES"] for slot in local_slots("auto", 1, 6)]
    assert visible == ["0", "1", "2", "3", "0", "1"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in local_slots("cuda", 2, None)] == ["0,1", "2,3"]
    with pytest.raises(UserError, match="--gpus=5"):
        local_slots("cuda", 5, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in local_slots("cuda", 2, None)] == ["4,5", "6,7"]


# Sharing a GPU.


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ([3.0], 1),
        ([3.0, 3.0, 3.0, 3.0], 4),
        ([3.0, 6.0], 1),
        ([3.0, 5.6], 1),
        ([3.0, 5.4], 2),
        ([3.0, 4.0, None], 2),
        ([3.0, None], 1),
        ([3.0, 7.0, 3.0], 1),  # the third is not asked
    ],
)
def test_one_more_run_on_a_gpu_must_be_worth_it(seconds, best):
    assert probe.best_sharing(seconds) == best


def test_a_gpu_is_shared_while_that_trains_more_and_known_speeds_are_not_measured_again(plan, gpus, monkeypatch):
    gpus(1)
    said, tried, per_kimg = [], [], {1: 2.0, 2: 2.4, 3: 4.0}

    def train_a_bit(run, number, environment, folder):
        tried.append((number, environment["CUDA_VISIBLE_DEVICES"]))
        return per_kimg[number]

    monkeypatch.setattr(probe, "_train_a_bit", train_a_bit)
    speed = Speed(plan.choice.out)
    slots = probe.places(plan, None, speed, said.append)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "0"] and speed.sharing == 2
    assert tried == [(1, "0"), (2, "0"), (3, "0")]  # the third is no gain
    assert len(said) == 4 and "2 runs share a GPU" in said[-1]
    again = Speed(plan.choice.out)
    assert probe.places(plan, None, again, said.append) == slots and len(tried) == 3
    first = plan.runs[0]
    assert again.left(first).training == 2.4 * first.kimg  # what one takes beside another
    assert len(probe.places(plan, 1, again, said.append)) == 1 and again.left(first).training == 2.0 * first.kimg
    assert len(probe.places(plan, 3, again, said.append)) == 3 and again.sharing == 3


def test_runs_that_do_not_fit_a_gpu_together_go_alone(plan, gpus, monkeypatch):
    gpus(1)
    said = []

    def train_a_bit(run, number, environment, folder):
        if number == 2:
            raise UserError("CUDA out of memory")
        return 2.0

    monkeypatch.setattr(probe, "_train_a_bit", train_a_bit)
    assert len(probe.places(plan, None, Speed(plan.choice.out), said.append)) == 1
    assert said[-1] == "2 at once do not work here: CUDA out of memory"
    assert len(probe.places(plan, None, Speed(plan.choice.out), said.append)) == 1 and len(said) == 3


def test_nothing_is_tried_side_by_side_in_vain(plan, gpus, monkeypatch):
    monkeypatch.setattr(probe, "_train_a_bit", None)
    quiet = [probe.places(plan, None, Speed(plan.choice.out), print)]  # on the CPU
    gpus(3)
    quiet += [probe.places(plan, None, Speed(plan.choice.out), print)]  # a GPU for each run
    gpus(1)
    quiet += [probe.places(plan, None, Speed(plan.choice.out), print, measure=False), probe.places(plan, 2, Speed(plan.choice.out), print)]
    monkeypatch.setattr(probe, "PROBE_KIMG", {"cuda": 24})
    quiet += [probe.places(plan, None, Speed(plan.choice.out), print)]  # runs that are shorter than a trial
    assert [len(slots) for slots in quiet[1:]] == [3, 1, 2, 1]


def test_run_shares_gpus_by_itself(plan, scripts, gpus):
    gpus(2)
    assert run_plan(plan, How()) == []  # the stand-ins are as fast side by side as alone
    probes = [key for word, key in calls(scripts) if word == "train" and len(key) == 1]
    assert sorted(probes) == ["0", "0", "1"]
    kind = cost_class(plan.runs[0])
    learned = Speed(plan.choice.out).training
    assert {kind, cost_class(plan.runs[0], 2)} <= learned.keys()


def test_a_copy_that_fails_ends_the_others_and_says_why(plan, scripts, tmp_path):
    (scripts / "hang-train-0").write_text("")
    (scripts / "fail-1").write_text("")
    start = time.time()
    with pytest.raises(UserError, match="the disk is on fire"):
        probe._train_a_bit(plan.runs[0], 2, {}, tmp_path)
    assert time.time() - start < 60
