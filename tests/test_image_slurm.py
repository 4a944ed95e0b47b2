"""Jobs of Slurm without a Slurm: squeue and submitit are stand-ins. With a real one: tests/test_image_smoke.py."""

import itertools
import json
import os
import sys
import types

import pytest
from image_plans import smoke_plan

from dnnlib import UserError
from experiments.images import launchers
from experiments.images.launchers import launch_slurm, queued_jobs
from experiments.images.work import Outcome, Stop


class FailedJobError(Exception):
    """What submitit raises where sbatch fails."""


class Job:
    """Ends as soon as it is asked, unless it is said to hang."""

    hanging: set[str] = set()

    def __init__(self, folder, job_id, key=""):
        self.job_id, self.key = job_id, key
        self.paths = types.SimpleNamespace(stderr=f"{folder}/{job_id}.err", result_pickle=folder / f"{job_id}.pkl")

    def done(self):
        return self.job_id not in self.hanging

    def result(self):
        return Outcome(self.key)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Returns what the stand-ins are told by: `answer(text, errors, code)` of squeue, `limit` of jobs that are taken, and keys `submitted`."""
    told = types.SimpleNamespace(limit=99, submitted=[], folder=tmp_path / "bin")
    told.folder.mkdir()

    def answer(text="", errors="", code=0):
        (told.folder / "squeue").write_text(f"#!/bin/sh\necho asked >> {told.folder}/asked\nprintf '{text}'\nprintf '{errors}' >&2\nexit {code}\n")
        (told.folder / "squeue").chmod(0o755)

    class Executor:
        def __init__(self, folder, cluster):
            self.folder = folder
            folder.mkdir(parents=True, exist_ok=True)

        def update_parameters(self, **_):
            pass

        def submit(self, _, run, environment):
            if len(told.submitted) >= told.limit:
                raise FailedJobError("the queue is full")
            told.submitted.append(run.key)
            return Job(self.folder, str(100 + len(told.submitted)), run.key)

    told.answer = answer
    answer()
    monkeypatch.setenv("PATH", str(told.folder), prepend=os.pathsep)
    submitit = types.ModuleType("submitit")
    submitit.AutoExecutor = Executor
    submitit.SlurmJob = lambda folder, job_id: Job(folder, job_id, "attached")
    submitit.core = types.SimpleNamespace(utils=types.SimpleNamespace(FailedJobError=FailedJobError))
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    monkeypatch.setattr(Job, "hanging", set())
    for name, seconds in {"POLL_SECONDS": 0.05, "QUEUE_SECONDS": 0.1, "LOST_SECONDS": 0.3}.items():
        monkeypatch.setattr(launchers, name, seconds)
    return told


@pytest.fixture
def plan(tmp_path):
    return smoke_plan(tmp_path / "out")


def launch(plan, stop=None):
    return list(launch_slurm(plan.runs, plan.choice.out, {}, stop or Stop(), lambda run, state: None))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("7 RUNNING\\n8 COMPLETED\\n9 PENDING\\n",), {"7", "9"}),
        (("", "slurm_load_jobs error: Invalid job id specified", 1), set()),
        (("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1), None),
    ],
)
def test_what_squeue_says_of_jobs(slurm, given, found):
    slurm.answer(*given)
    assert queued_jobs(["7", "8", "9"]) == found


def test_a_queue_that_does_not_answer_loses_no_job(slurm, plan, monkeypatch):
    """A job that Slurm has forgotten is lost; one that it says nothing about is waited for."""
    Job.hanging.add("101")
    slurm.answer("", "Unable to contact slurm controller", 1)
    outcomes = launch_slurm(plan.runs, plan.choice.out, {}, Stop(), lambda run, state: None)
    assert [next(outcomes).error for _ in range(2)] == ["", ""]
    ends = iter(range(4))
    forget = ("", "Invalid job id specified", 1)
    monkeypatch.setattr(launchers.time, "sleep", lambda seconds: slurm.answer(*forget) if next(ends, None) is None else None)
    (lost,) = outcomes
    assert lost.key == plan.runs[0].key and "job 101 is not in the queue any more" in lost.error


def test_one_question_asks_for_all_jobs(slurm, plan, monkeypatch):
    monkeypatch.setattr(launchers, "QUEUE_SECONDS", 60.0)
    Job.hanging |= {"101", "102", "103"}
    slurm.answer("101 RUNNING\\n102 RUNNING\\n103 PENDING\\n")
    waits = itertools.count()  # subprocess waits by the same function
    monkeypatch.setattr(launchers.time, "sleep", lambda seconds: Job.hanging.clear() if next(waits) == 9 else None)
    assert [outcome.error for outcome in launch(plan)] == [""] * 3
    assert (slurm.folder / "asked").read_text() == "asked\n"


def test_jobs_that_wait_still_are_not_handed_over_again(slurm, plan):
    launch(plan)
    first, second, third = (run.key for run in plan.runs)
    assert json.loads((plan.choice.out / "slurm" / "jobs.json").read_text()) == {first: "101", second: "102", third: "103"}
    slurm.answer("102 PENDING\\n")
    assert "attached" in [outcome.key for outcome in launch(plan)]
    assert slurm.submitted == [first, second, third, first, third]
    slurm.answer("", "Unable to contact slurm controller", 1)
    with pytest.raises(UserError, match="squeue does not say whether jobs of an earlier call still wait"):
        launch(plan)


def test_a_job_that_has_ended_is_handed_over_again_though_slurm_shows_it_still(slurm, plan):
    launch(plan)
    slurm.answer("101 COMPLETING\\n102 RUNNING\\n")
    (plan.choice.out / "slurm" / "101.pkl").write_text("")  # its result, a failure, since the run is planned still
    slurm.submitted.clear()
    launch(plan)
    first, _, third = (run.key for run in plan.runs)
    assert slurm.submitted == [first, third]


def test_jobs_that_slurm_does_not_take_are_failures_of_their_own(slurm, plan):
    slurm.limit = 1
    first, *others = plan.runs
    found = {outcome.key: outcome.error for outcome in launch(plan)}
    assert found[first.key] == "" and all("cannot be handed over: the queue is full" in found[run.key] for run in others)
    slurm.limit = 0
    slurm.submitted.clear()
    with pytest.raises(UserError, match="the queue is full"):
        launch(plan)


def test_no_squeue_is_one_sentence(slurm, plan, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="there is no squeue on this machine"):
        launch(plan)
