"""train.py on several ranks and machines, whole: two network namespaces are two machines, and what is lost is found again by resuming.

Slow: every rank imports everything.
"""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from tiny_runs import write_data

from torch_utils.checkpoint import tensors_digest
from torch_utils.roll_call import LOST
from training.networks import load_network

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent
OPTIONS = ["--cfg=demo", "--cond=1", "--batch=48", "--metrics=none", "--device=cpu", "--snap=1", "--tick=1", "--pairing-weight=0.05"]
NAMES, ADDRESSES = ("first", "second"), ("10.77.31.1", "10.77.31.2")
PORT = 29531


@dataclasses.dataclass
class Started:
    """A command that runs, and what it writes."""

    process: subprocess.Popen
    output: pathlib.Path

    def wait_for(self, text: str, seconds: float = 240) -> None:
        """Until it has written `text`."""
        end = time.monotonic() + seconds
        while text not in self.output.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.output.read_text()
            time.sleep(0.05)

    def worker(self, rank: int) -> int:
        """Process id of a rank that it has started."""
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                parent = int(re.search(r"PPid:\s+(\d+)", (entry / "status").read_text())[1])
            except OSError:
                continue
            if parent == self.process.pid and f"RANK={rank}".encode() in environment:
                return int(entry.name)
        raise LookupError(f"no rank {rank}")

    def has(self, rank: int) -> bool:
        """Whether it has started this rank."""
        try:
            return self.worker(rank) > 0
        except LookupError:
            return False


@pytest.fixture
def start(tmp_path):
    """Starts commands; ends those that still run."""
    started = []

    def begin(command, **environment) -> Started:
        output = tmp_path / f"output{len(started)}.txt"
        with open(output, "w") as handle:
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
            process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        started.append(Started(process, output))
        return started[-1]

    yield begin
    for one in started:
        one.process.terminate()
        one.process.wait()


def training(data, outdir, *more):
    return ["train.py", f"--data={data}", f"--outdir={outdir}", *OPTIONS, *more]


def digests(run, kimg):
    """Digests of the networks of a snapshot."""
    networks = load_network(run / f"network-snapshot-{kimg:06d}.safetensors")
    return {name: tensors_digest(networks[name].state_dict()) for name in ("G", "D", "G_ema", "P")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "pics.zip")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Digests of an uninterrupted run of 4 kimg of two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, *training(data, folder / "00000-whole", "--kimg=4", "--gpus=2")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, stdout=subprocess.DEVNULL)
    return digests(folder / "00000-whole", 4)


@pytest.mark.parametrize(("fault", "rank"), [("SIGKILL", 0), ("SIGKILL", 1), ("SIGSTOP", 0), ("SIGSTOP", 1)])
def test_a_lost_rank_ends_the_run_which_goes_on_exactly(start, data, whole, tmp_path, fault, rank):
    run = tmp_path / "00000-run"
    command = [sys.executable, *training(data, run, "--kimg=4", "--gpus=2")]
    broken = start(command)
    broken.wait_for("tick 2 ")
    begun = time.monotonic()
    os.kill(broken.worker(rank), getattr(signal, fault))
    code = broken.process.wait(60)
    seconds = time.monotonic() - begun
    written = broken.output.read_text()
    assert code in ((LOST,) if fault == "SIGSTOP" else (LOST, 128 + signal.SIGKILL)), written  # the launcher may see the end of either rank first
    assert re.search(rf"Error: rank {rank} \(\S+\) (is gone|has been silent for 20 s), last heard of at \d\.\d kimg; go on from", written)
    assert seconds < 60
    again = start(command)
    assert again.process.wait(300) == 0, again.output.read_text()
    assert "Continuing at" in again.output.read_text() and digests(run, 4) == whole


# Two machines.


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them; gives the words that run a command in each."""
    names = [f"{name}-{os.getpid()}" for name in NAMES]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable0", "netns", names[1])
        for name, address in zip(names, ADDRESSES):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable0", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    finally:
        for name in made:
            ip("netns", "del", name)


def on_machine(start, machines, number, *words):
    """torchrun on one of the machines, one rank on each."""
    command = ["ip", "netns", "exec", machines[number], sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *words]
    return start(command, GLOO_SOCKET_IFNAME="cable0")


def static(number):
    return [f"--node-rank={number}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}"]


def test_two_machines_train_as_one(start, machines, data, whole, tmp_path):
    run = tmp_path / "00000-run"
    both = [on_machine(start, machines, number, *static(number), *training(data, run, "--kimg=4")) for number in range(2)]
    assert [one.process.wait(400) for one in both] == [0, 0], both[0].output.read_text()
    assert digests(run, 4) == whole


def test_a_cut_cable_ends_both_sides(start, machines, data, tmp_path):
    run = tmp_path / "00000-run"
    both = [on_machine(start, machines, number, *static(number), *training(data, run, "--kimg=400")) for number in range(2)]
    both[0].wait_for("tick 1 ")
    ip("-n", machines[0], "link", "set", "cable0", "down")
    begun = time.monotonic()
    assert all(one.process.wait(60) != 0 for one in both) and time.monotonic() - begun < 60
    for number, one in enumerate(both):
        assert re.search(rf"Error: rank {1 - number} \(\S+\) has been silent for 20 s", one.output.read_text())


@pytest.mark.parametrize("rank", [0, 1])
def test_an_elastic_run_goes_on_by_itself(start, machines, data, whole, tmp_path, rank):
    run = tmp_path / "00000-run"
    meeting = ["--max-restarts=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=job"]
    local = [[f"--local-addr={address}", f"--rdzv-conf=is_host={int(not number)}"] for number, address in enumerate(ADDRESSES)]
    both = [on_machine(start, machines, number, *meeting, *local[number], *training(data, run, "--kimg=4")) for number in range(2)]
    log = run / "log.txt"
    end = time.monotonic() + 240
    while not (log.exists() and "tick 2 " in log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(both[0 if both[0].has(rank) else 1].worker(rank), signal.SIGKILL)  # ranks are given to machines as they come
    assert [one.process.wait(500) for one in both] == [0, 0], [one.output.read_text() for one in both]
    assert log.read_text().count("Continuing at") == 1 and digests(run, 4) == whole
