"""The roll call: a rank that is gone, silent or stuck ends the others, with its name, within the limit; nothing else does."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from torch_utils.roll_call import KEY, LOST, RECENT, STARTING, JsonConnection, Member, Pace, judge

LIMIT = 40.0


def members(arrived, now=100.0, **changes):
    """Ranks that came to so many exchanges each, the last one just now, and report; `changes` are (rank, value) pairs by field."""
    found = {number: Member("here", count, "1.0 kimg", None, heard=now, moved=now) for number, count in enumerate(arrived)}
    for field, (number, value) in changes.items():
        setattr(found[number], field, value)
    return found


def test_ranks_that_report_and_move_are_left_alone():
    assert judge(members([7, 7, 7]), 100.0, LIMIT, 0.0) is None
    assert judge(members([7, 8, 7]), 100.0 + LIMIT / 2, LIMIT, 0.0) is None


@pytest.mark.parametrize("number", [0, 2])
def test_a_silent_rank_is_named(number):
    found = members([7, 7, 7], heard=(number, 79.0))
    assert judge(found, 100.0, LIMIT, 0.0) == f"rank {number} (here) has been silent for 21 s, last heard of at 1.0 kimg"
    assert judge(found, 98.0, LIMIT, 0.0) is None
    found[number].task = "metrics"  # nothing that a rank does excuses silence
    assert judge(found, 100.0, LIMIT, 0.0) is not None


def test_the_rank_that_the_others_wait_for_is_stuck():
    found = members([8, 7, 8], now=141.0, moved=(1, 100.0))
    assert judge(found, 141.0, LIMIT, 0.0) == "rank 1 (here) is stuck at 1.0 kimg: the others have waited for it for 41 s"
    assert judge(found, 139.0, LIMIT, 0.0) is None
    assert judge(found, 141.0, LIMIT, 9.0) is None  # where 9 s between two exchanges are common, 41 s are not strange
    found[2].arrived = 7
    found[2].moved = 100.0
    assert judge(found, 141.0, LIMIT, 0.0).startswith("rank 1 (here) (and 1 more) is stuck")
    found[0].arrived, found[0].moved = 7, 100.0
    assert judge(found, 141.0, LIMIT, 0.0) == "no rank has come further than 1.0 kimg for 41 s"


def test_a_busy_rank_may_keep_the_others_waiting():
    now = time.monotonic()
    found = members([8, 7, 8], now, moved=(1, now - 9000), task=(1, "metrics"))
    assert judge(found, now, LIMIT, 0.0) is None
    found[1].take_in({"arrived": 7, "place": "1.0 kimg", "task": None})
    assert judge(found, now, LIMIT, 0.0) is None  # its time runs from the end of the task on
    found[1].take_in({"arrived": 7, "place": "1.0 kimg", "task": None})
    found[1].moved -= 2 * LIMIT
    assert judge(found, now, LIMIT, 0.0) is not None


def test_a_task_of_those_who_wait_excuses_nobody():
    assert judge(members([8, 7], now=141.0, moved=(1, 100.0), task=(0, "metrics")), 141.0, LIMIT, 0.0) is not None


def test_pace_is_that_of_the_slowest_and_forgets():
    pace = Pace()
    assert pace.longest() == 0
    for now, arrived in [(0.0, [4, 4]), (3.0, [9, 5]), (4.0, [9, 9])]:
        pace.see(members(arrived), now)
    assert pace.longest() == 3.0
    for index in range(RECENT):
        pace.see(members([10 + index, 10 + index]), 5.0 + index)
    assert pace.longest() == 1.0
    pace.see(members([500, 500], task=(1, "metrics")), 1000.0)
    pace.see(members([501, 501]), 2000.0)
    assert pace.longest() == 1.0  # what a task took is no pace


def test_the_first_step_tells_how_long_exchanges_take():
    pace = Pace()
    for now, arrived in [(0.0, [0, 0]), (300.0, [1, 0]), (301.0, [1, 1]), (361.0, [2, 2])]:
        pace.see(members(arrived, task=(1, STARTING)), now)
    assert pace.longest() == 60.0  # what came before the first one is no pace
    second = members([2, 2], now=411.0, moved=(0, 361.0))
    second[1].moved = 361.0
    assert judge(second, 411.0, LIMIT, 0.0) is not None and judge(second, 411.0, LIMIT, pace.longest()) is None


def test_lines_carry_messages_in_any_pieces():
    here, there = tcp_pair()
    here.send(a=1)
    here.send(b=[2])
    assert [there.wait(5)["a"]] == [1]
    there.socket.sendall(b'{"c": ')
    assert here.wait(0.01) is None
    there.socket.sendall(b'3}\n{"d"')
    assert here.wait(5) == {"c": 3}


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n", b"[1]\n", b"\xff\xfe\n", b"7\n", b"x" * (1 << 17)])
def test_who_talks_nonsense_is_heard_no_more(nonsense):
    here, there = tcp_pair()
    there.socket.sendall(nonsense)
    end = time.monotonic() + 120
    while (heard := here.receive()) == []:
        assert time.monotonic() < end
    assert heard is None


def tcp_pair():
    with socket.create_server(("localhost", 0)) as server:
        there = socket.create_connection(server.getsockname())
        here, _ = server.accept()
    return JsonConnection(here), JsonConnection(there)


# Whole processes. They know nothing of torch, so they start at once; the store is a folder.

RANK = """
import os, pathlib, signal, sys, time
from torch_utils import roll_call
roll_call.BEAT, roll_call.VERDICT_SECONDS = 0.1, 10.0
folder, rank, size, fault = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

class Store:
    def set(self, key, value):
        (folder / "new").write_text(value)
        (folder / "new").rename(folder / key)
    def get(self, key):
        while not (folder / key).exists():
            time.sleep(0.01)
        return (folder / key).read_bytes()

roll = roll_call.RollCall(Store(), rank, size, "localhost", float(os.environ.get("LIMIT", 4)), float(os.environ.get("JOIN", 30)), "start again")
def step(number):
    roll.arrive()
    (folder / f"step-{rank}-{number}").touch()
    end = time.monotonic() + 110
    while not all((folder / f"step-{other}-{number}").exists() for other in range(size)):
        time.sleep(0.01)
        if time.monotonic() > end:
            sys.exit("nobody ended this rank")
    roll.stepped(f"step {number}")
for number in range(3):
    step(number)
with roll.busy("metrics"):
    pass
name, _, broken = fault.partition(":")
if broken == str(rank):
    (folder / "broken").touch()
    if name in ("KILL", "STOP"):
        os.kill(os.getpid(), getattr(signal, "SIG" + name))
    if name in ("STOP", "hang"):
        time.sleep(60)
    if name == "fail":
        roll.leave(ValueError("a torn file"), code=2)
        sys.exit(2)
    if name == "raise":
        try:
            {}["a torn key"]
        except KeyError as error:
            roll.leave(error, code=1)
            raise
    if name == "metrics":
        with roll.busy("metrics"):
            time.sleep(5)
if name == "pause":
    while not (folder / "go").exists():
        time.sleep(0.01)
step(3)
roll.leave()
"""


@pytest.fixture
def ranks(tmp_path, pytestconfig):
    """Starts three ranks with a fault; each is (process, what it wrote to stderr when done)."""
    started = []

    def start(fault, numbers=range(3), per_machine=3, **environment):
        for number in numbers:
            command = [sys.executable, "-c", RANK, str(tmp_path), str(number), "3", fault]
            local = {"PYTHONPATH": str(pytestconfig.rootpath), "LOCAL_RANK": str(number % per_machine)}
            environment = os.environ | environment | local
            started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends_of(processes, seconds=120):
    """(exit code, stderr) of each."""
    errors = [process.communicate(timeout=seconds)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, errors)]


def test_ranks_in_good_order_end_silently_also_behind_a_busy_one(ranks):
    assert ends_of(ranks("metrics:0")) == [(0, "")] * 3


@pytest.mark.parametrize("broken", [0, 1])
def test_a_killed_rank_is_missed_at_once(ranks, broken):
    start = ranks(f"KILL:{broken}", LIMIT="1000")
    others = [end for number, end in enumerate(ends_of(start)) if number != broken]
    assert [code for code, _ in others] == [LOST] * 2
    assert any(f"Error: rank {broken} (" in text and "is gone, last heard of at " in text and text.endswith("; start again\n") for _, text in others)
    assert all(text.count("\n") <= 1 for _, text in others)


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("per_machine", [1, 2, 3])
def test_each_machine_is_told_once(ranks, broken, per_machine):
    others = [end for number, end in enumerate(ends_of(ranks(f"KILL:{broken}", per_machine=per_machine, LIMIT="1000"))) if number != broken]
    machines = {number // per_machine for number in range(3) if number != broken}
    assert sum(text.count("Error: ") for _, text in others) == len(machines)


@pytest.mark.parametrize("broken", [0, 2])
def test_a_stopped_rank_is_missed_when_it_is_silent(ranks, broken):
    processes = ranks(f"STOP:{broken}")
    others = ends_of([process for number, process in enumerate(processes) if number != broken])
    assert [code for code, _ in others] == [LOST] * 2
    assert any(f"Error: rank {broken} (" in text and re.search(r"has been silent for \d+ s", text) for _, text in others)
    os.kill(processes[broken].pid, signal.SIGCONT)  # it finds the others gone
    ((code, _),) = ends_of([processes[broken]])
    assert code == LOST


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_hangs_is_named_by_all_and_ends_too(ranks, broken):
    ends = ends_of(ranks(f"hang:{broken}"))
    assert [code for code, _ in ends] == [LOST] * 3
    assert f"Error: rank {broken} (" in ends[0][1]
    assert re.search(r"is stuck at step 2: the others have waited for it for \d+ s; start again", ends[0][1])


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_fails_passes_on_reason_and_code(ranks, broken):
    ends = ends_of(ranks(f"fail:{broken}"))
    assert [code for code, _ in ends] == [2, 2, 2]
    assert any("has ended at step 2: a torn file" in text for number, (_, text) in enumerate(ends) if number != broken)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_fails_ends_in_its_own_way(ranks, broken):
    """The others' answer to its leave does not end it before its traceback is out."""
    ends = ends_of(ranks(f"raise:{broken}"))
    assert [code for code, _ in ends] == [1, 1, 1]
    assert ends[broken][1].startswith("Traceback") and ends[broken][1].endswith("KeyError: 'a torn key'\n")


def test_a_run_that_was_stopped_as_a_whole_goes_on(ranks, tmp_path):
    processes = ranks("pause:all", LIMIT="10")
    while len(list(tmp_path.glob("step-*-2"))) < 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(7)  # longer than a rank may be silent
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.5)
    (tmp_path / "go").touch()
    assert ends_of(processes) == [(0, "")] * 3


def test_a_rank_that_never_comes(ranks):
    ends = ends_of(ranks("none:0", numbers=[0, 1], JOIN="2"))
    assert all(code == 1 and "1 of 3 ranks, rank 2 first, did not come within 2 s" in text for code, text in ends)


def test_a_stranger_who_knocks_is_no_rank(ranks, tmp_path):
    first = list(ranks("none:all", numbers=[0, 1]))
    while not (tmp_path / KEY).exists():
        assert first[0].poll() is None
        time.sleep(0.01)
    port, _ = json.loads((tmp_path / KEY).read_text())
    with socket.create_connection(("localhost", port)) as stranger:
        JsonConnection(stranger).send(token="guessed", rank=2, host="elsewhere")
        assert ends_of(ranks("none:all", numbers=[2])) == [(0, "")] * 3


def test_judging_by_rank_0_alone_needs_no_pace():
    assert judge(members([0], moved=(0, -1e9)), 100.0, LIMIT, math.inf) is None
