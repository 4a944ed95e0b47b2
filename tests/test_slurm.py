"""Slurm: node lists read as Slurm writes them, and ranks made of the tasks of a step and of nothing else."""

import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest
from tiny_runs import write_data

from dnnlib import UserError
from torch_utils import slurm

ROOT = pathlib.Path(__file__).parent.parent
STEP = {
    "SLURM_JOB_ID": "120",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[05-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("vm", ["vm"]),
        ("n[001-003,7],x1", ["n001", "n002", "n003", "n7", "x1"]),
        ("a[9-11]", ["a9", "a10", "a11"]),
        ("r[1-2]n[1-2].lan", ["r1n1.lan", "r1n2.lan", "r2n1.lan", "r2n2.lan"]),
        ("node-1-2,10.0.0.7", ["node-1-2", "10.0.0.7"]),
    ],
)
def test_node_lists(text, hosts):
    assert slurm.expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", "a,", "n[1-3", "n]1[", "n[]", "n[3-1]", "n[a-b]", "n[1-2-3]", "n[[1]]"])
def test_what_is_no_node_list(text):
    with pytest.raises(UserError, match="Slurm's node list"):
        slurm.expand_hosts(text)


def folded(draw, tails=("", ".lan")):
    """A random node list and the hosts that it stands for."""
    entries, hosts = [], []
    for _ in range(draw.randint(1, 4)):
        head = draw.choice(["n", "gpu-", "rack1-node"])
        tail = draw.choice(tails)
        if draw.random() < 0.3:
            entries.append(f"{head}{tail}x")
            hosts.append(entries[-1])
            continue
        width, spans, numbers = draw.randint(1, 4), [], []
        for _ in range(draw.randint(1, 3)):
            first = draw.randint(0, 10**width - 1)
            last = draw.randint(first, min(first + 5, 10**width - 1))
            spans.append(f"{first:0{width}d}" + (f"-{last:0{width}d}" if last > first else ""))
            numbers += [f"{number:0{width}d}" for number in range(first, last + 1)]
        entries.append(f"{head}[{','.join(spans)}]{tail}")
        hosts += [head + number + tail for number in numbers]
    return ",".join(entries), hosts


def test_lists_of_many_shapes_unfold_to_their_hosts():
    draw = random.Random(0)
    for _ in range(500):
        text, hosts = folded(draw)
        assert slurm.expand_hosts(text) == hosts, text


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="there is no Slurm here")
def test_scontrol_unfolds_alike():
    draw = random.Random(1)
    for _ in range(20):
        text, _ = folded(draw, tails=[""])  # scontrol takes nothing behind the bracket
        answer = subprocess.run(["scontrol", "show", "hostnames", text], capture_output=True, text=True)
        if answer.returncode != 0:
            pytest.skip(f"scontrol does not answer: {answer.stderr.strip()[:200]}")
        assert slurm.expand_hosts(text) == answer.stdout.split(), text


def test_a_task_of_a_step_is_a_rank():
    assert slurm.ranks_of_step(STEP) == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": "23722"}
    chosen = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    assert slurm.ranks_of_step(STEP | chosen).items() >= chosen.items()


def test_steps_and_jobs_side_by_side_meet_elsewhere():
    steps = [{"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in range(20) for step in range(9)]
    ports = {slurm.ranks_of_step(STEP | step)["MASTER_PORT"] for step in steps}
    assert len(ports) == 180 and all(20000 <= int(port) < 30000 for port in ports)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {key: value for key, value in STEP.items() if not key.startswith("SLURM_STEP")} | {"SLURM_PROCID": "0"},  # a batch script of four tasks
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # a shell, or a job of submitit
    ],
)
def test_what_is_no_rank(environment):
    assert slurm.ranks_of_step(environment) is None


def test_torchrun_within_a_step_has_the_say(monkeypatch):
    for name, value in {**STEP, "LOCAL_RANK": "0", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    slurm.adopt_step()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("1", "2")


OPTIONS = ["--cfg=demo", "--cond=1", "--batch=64", "--kimg=1", "--metrics=none", "--device=cpu"]


def train(start, data, outdir, **environment):
    """The processes that start `train.py` by the words of `start`."""
    command = [*start, sys.executable, str(ROOT / "train.py"), f"--data={data}", f"--outdir={outdir}", *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def snapshot(outdir):
    """The one snapshot of the end below a folder."""
    (found,) = outdir.glob("*/network-snapshot-000001.safetensors")
    return found.read_bytes()


@pytest.mark.slow
def test_two_tasks_train_together(tmp_path):
    """With the variables that Slurm sets: on a machine without Slurm, too. The run itself compares the ranks' weights."""
    data = write_data(tmp_path / "pics.zip")
    step = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    tasks = [train([], data, tmp_path / "runs", **(step | {"SLURM_PROCID": number, "SLURM_LOCALID": number})) for number in "01"]
    outputs = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "2 process(es)" in outputs[0] and outputs[1] == "" and snapshot(tmp_path / "runs")


@pytest.mark.skipif(not (shutil.which("srun") and subprocess.run(["sinfo"], capture_output=True).returncode == 0), reason="there is no Slurm here")
@pytest.mark.slow
def test_srun_trains_as_torchrun_does(tmp_path):
    data = write_data(tmp_path / "pics.zip")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    for name, start in {"srun": ["srun", "--overcommit", "--ntasks=2"], "torchrun": torchrun}.items():
        process = train(start, data, tmp_path / name)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0 and re.search(r"2 process\(es\)", output), output
    assert snapshot(tmp_path / "srun") == snapshot(tmp_path / "torchrun")
