"""Executing plans: resuming, repeating nothing, failures, locks, kills. Training and measuring are stand-ins (image_plans)."""

import dataclasses
import errno
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest
from image_plans import calls, smoke_plan, stand_ins

from dnnlib import UserError
from experiments.images import work
from experiments.images.board import Board, table
from experiments.images.budgets import BUDGETS
from experiments.images.folder_lock import hold
from experiments.images.plan import remember_plan
from experiments.images.results import load_tables
from experiments.images.run import How, run_plan
from experiments.images.run_state import SHEET
from experiments.images.speed import Speed
from experiments.images.work import Stop, last_words, make_run

ROOT = pathlib.Path(__file__).parent.parent
DRIVER = """
import pathlib, sys
sys.path[:0] = [{root!r}, {tests!r}]
from experiments.images import work
work.SCRIPTS = pathlib.Path({scripts!r})
from image_plans import smoke_plan
from experiments.images.run import How, run_plan
print(run_plan(smoke_plan({out!r}), How(workers=2)))
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Figure 4 at the smoke budget: three runs, made by stand-ins in `tmp_path / "scripts"`."""
    made = smoke_plan(tmp_path / "out")
    scripts = stand_ins(tmp_path / "scripts", made)
    monkeypatch.setattr(work, "SCRIPTS", scripts)
    return made


@pytest.fixture
def scripts(tmp_path):
    return tmp_path / "scripts"


def wait_for(condition, seconds=120):
    """Waits until a condition holds; fails after a while."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.05)


def start_elsewhere(plan, scripts):
    """Executes the plan in another process."""
    text = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"), scripts=str(scripts), out=str(plan.choice.out))
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_everything_is_made_once_and_measured(plan, scripts):
    assert run_plan(plan, How(workers=2)) == []
    keys = {run.key for run in plan.runs}
    assert sorted(calls(scripts)) == sorted([(word, key) for word in ("train", "measure", "look") for key in keys])
    assert all(run.look().is_measured for run in plan.runs)
    assert run_plan(plan, How(workers=2)) == [] and len(calls(scripts)) == 3 * len(keys)
    (figure,) = load_tables(plan.choice.out)
    assert figure.name == "figure4" and [len(row.runs) for row in figure.rows] == [1, 1, 1]


def test_what_is_missing_is_made_and_nothing_else(plan, scripts):
    _, second, third = plan.runs
    run_plan(plan, How(workers=1))
    (scripts / "calls.txt").unlink()
    folder = second.look().path
    (folder / f"network-snapshot-{second.kimg:06d}.safetensors").unlink()  # killed in training
    (folder / "metric-prdc10k5_embedded.jsonl").unlink()
    metrics = third.look().path / "metric-prdc10k5_embedded.jsonl"
    metrics.write_bytes(metrics.read_bytes().splitlines(keepends=True)[0] + b'{"results": {"prdc')  # killed in measuring
    assert [str(run.look()) for run in plan.runs] == ["measured", "partial at 1 kimg", "finished, 1 of 2 snapshots measured"]
    assert run_plan(plan, How(workers=1)) == []
    assert calls(scripts) == [("continue", second.key), ("measure", second.key), ("look", second.key), ("measure", third.key)]
    (third.look().path / SHEET).unlink()
    assert str(third.look()) == "finished, 2 of 2 snapshots measured, sheets missing"
    assert run_plan(plan, How(workers=1)) == [] and calls(scripts)[4:] == [("look", third.key)]


def test_the_end_alone_is_measured_where_a_table_shows_it(plan, scripts):
    run_plan(plan, How(workers=2))
    (scripts / "calls.txt").unlink()
    latents = smoke_plan(plan.choice.out, "latents")
    assert {str(run.look()) for run in latents.runs} == {"finished, 2 of 2 snapshots measured, metrics of the end missing"}
    assert run_plan(latents, How(workers=1)) == [] and calls(scripts) == [("measure-end", run.key) for run in latents.runs]
    assert run_plan(latents, How(workers=1)) == [] and len(calls(scripts)) == 3
    table = load_tables(plan.choice.out)[-1]
    assert table.name == "latents" and table.columns == ("precision", "coverage", "worst class")
    assert all(row.ours.keys() == set(table.columns) for row in table.rows)


def test_of_a_longer_run_the_planned_end_is_measured(plan, scripts):
    """Where the table looks, wherever the run has got to."""
    run_plan(plan, How(workers=2))
    longer = plan.runs[0].look().path
    (longer / "network-snapshot-000005.safetensors").write_text("")
    assert run_plan(smoke_plan(plan.choice.out, "latents"), How(workers=2)) == []
    lines = (longer / "metric-coverage_classwise_embedded.jsonl").read_text().splitlines()
    assert [json.loads(line)["snapshot_pkl"] for line in lines] == ["network-snapshot-000001.safetensors"]
    row = load_tables(plan.choice.out)[-1].rows[0]
    assert len(row.runs) == 1 and "worst class" in row.ours


def test_a_plan_of_longer_runs_takes_the_shorter_ones_further(plan, scripts):
    assert run_plan(plan, How(workers=2)) == []
    longer = plan.runs[0]
    options = {**longer.options, "total_kimg": longer.kimg + 1}
    longer = dataclasses.replace(longer, kimg=longer.kimg + 1, options=options)
    (scripts / "calls.txt").unlink()
    assert str(longer.look()) == "partial at 1 kimg"
    assert run_plan(dataclasses.replace(plan, runs=[longer]), How(workers=1)) == []
    assert calls(scripts) == [(word, longer.key) for word in ("continue", "measure", "look")]
    assert plan.runs[0].look().is_measured  # a longer run holds a shorter one


def test_sheets_of_an_end_that_is_none_any_more_are_drawn_again(plan, scripts):
    """A run that train.py took further has sheets of a snapshot before its last."""
    run_plan(plan, How(workers=2))
    run = plan.runs[0]
    folder = run.look().path
    (folder / "network-snapshot-000002.safetensors").write_text("")
    (scripts / "calls.txt").unlink()
    assert str(run.look()) == "finished, 2 of 3 snapshots measured, sheets missing"
    assert run_plan(plan, How(workers=1)) == [] and calls(scripts) == [("measure", run.key), ("look", run.key)]
    assert json.loads((folder / "look.json").read_text())["fake"] == "network-snapshot-000002.safetensors"


def test_a_failure_is_kept_apart_and_told(plan, scripts):
    broken = plan.runs[0]
    (scripts / f"fail-{broken.key}").touch()
    (failure,) = run_plan(plan, How(workers=2))
    assert failure.key == broken.key and "the disk is on fire" in failure.error and "train.py ended with code 2" in failure.error
    assert [run.look().is_measured for run in plan.runs] == [False, True, True]
    (scripts / f"fail-{broken.key}").unlink()
    assert run_plan(plan, How(workers=2)) == []
    assert calls(scripts)[-3:] == [("continue", broken.key), ("measure", broken.key), ("look", broken.key)]


def test_a_file_that_cannot_be_written_fails_one_run_alone(plan, scripts):
    broken = plan.runs[0]
    (broken.parent / "output.txt").mkdir(parents=True)
    (failure,) = run_plan(plan, How(workers=2))
    assert failure.key == broken.key and "output.txt: Is a directory" in failure.error
    assert [run.look().is_measured for run in plan.runs] == [False, True, True]


@pytest.mark.parametrize("error", [OSError("no room"), UserError("damaged"), KeyError("mean"), TypeError("no number")])
def test_a_speed_that_cannot_be_kept_ends_no_plan(plan, scripts, monkeypatch, capsys, error):
    def learn(*_):
        raise error

    monkeypatch.setattr(Speed, "learn", learn)
    assert run_plan(plan, How(workers=2)) == []
    assert capsys.readouterr().out.count("is not kept") == len(plan.runs)


def test_measuring_alone_teaches_no_speed(plan, scripts):
    run_plan(plan, How(workers=2))
    (plan.choice.out / "speed.json").unlink()
    (plan.runs[0].look().path / "metric-prdc10k5_embedded.jsonl").unlink()
    assert run_plan(plan, How(workers=2)) == [] and not (plan.choice.out / "speed.json").exists()


def test_a_guard_that_is_terminated_says_so():
    """Its standard input is the leash of who started it."""
    command = [sys.executable, "-m", "experiments.images.guard", sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
    for end in (lambda guard: guard.terminate(), lambda guard: guard.stdin.close()):
        guard = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        guard.stdout.readline()
        end(guard)
        assert guard.wait(30) == 128 + signal.SIGTERM


def test_a_run_of_other_settings_is_refused_before_anything_starts(plan, scripts):
    run_plan(plan, How(workers=2))
    (scripts / "calls.txt").unlink()
    path = plan.runs[1].look().path / "training_options.json"
    options = json.loads(path.read_text())
    options["loss_kwargs"]["r1_gamma"] = 7
    path.write_text(json.dumps(options))
    with pytest.raises(UserError, match=r"r1_gamma 7 instead of 0\.1"):
        run_plan(plan, How(workers=2))
    assert not calls(scripts)


def test_a_plan_that_does_not_fit_the_disk_is_refused(plan, scripts, monkeypatch):
    monkeypatch.setattr("experiments.images.disk.free_bytes", lambda folder: 1_000_000)
    with pytest.raises(UserError, match=r"needs about 0\.\d GB .* 0\.0 GB are free"):
        run_plan(plan, How())
    assert not calls(scripts)


def test_a_missing_detector_is_refused_before_anything_starts(plan, scripts):
    absent = dataclasses.replace(plan, budget=dataclasses.replace(plan.budget, detector=str(scripts / "absent.pt")))
    with pytest.raises(UserError, match=r"absent\.pt"):
        run_plan(absent, How())
    assert not calls(scripts)


def test_two_processes_on_one_folder_are_refused(plan, scripts):
    with hold(plan.choice.out, "--out=here"):
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()}"):
            run_plan(plan, How(workers=2))
        assert not calls(scripts)
    assert run_plan(plan, How(workers=2)) == []


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with hold(tmp_path / "new", "--out=here"):
        assert json.loads((tmp_path / "new" / "lock").read_text())["pid"] == os.getpid()


LEAVING_TOGETHER = """
import pathlib, signal, sys, time
here, name = pathlib.Path(sys.argv[1]), sys.argv[2]

def leave(*_):
    (here / f"told-{name}").touch()
    while len(list(here.glob("told-*"))) < 4:
        time.sleep(0.02)
    (here / f"left-{name}").touch()
    sys.exit()

signal.signal(signal.SIGTERM, leave)
print("here", flush=True)
time.sleep(60)
"""


def test_all_that_runs_is_ended_at_once(tmp_path):
    """Each leaves when all four have been told to: if one were waited for before the next is told, it would have to be killed."""
    command = [sys.executable, "-c", LEAVING_TOGETHER, str(tmp_path)]
    stop, processes = Stop(), [subprocess.Popen([*command, name], stdout=subprocess.PIPE) for name in "abcd"]
    for process in processes:
        process.stdout.readline()
        stop.started(process.pid)
    stop.set()
    assert sorted(path.name for path in tmp_path.glob("left-*")) == ["left-a", "left-b", "left-c", "left-d"]
    assert not any(map(psutil.pid_exists, [process.pid for process in processes]))


def test_a_killed_process_leaves_neither_lock_nor_trainings_and_the_next_goes_on(plan, scripts):
    hanging, *others = plan.runs
    (scripts / f"hang-train-{hanging.key}").touch()
    process = start_elsewhere(plan, scripts)
    wait_for(lambda: all(run.look().is_measured for run in others) and ("train", hanging.key) in calls(scripts))
    trainer = int(next(line for line in (scripts / "calls.txt").read_text().splitlines() if f"train {hanging.key}" in line).split()[2])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not psutil.pid_exists(trainer))
    (scripts / f"hang-train-{hanging.key}").unlink()
    (scripts / "calls.txt").unlink()
    assert str(hanging.look()) == "partial at 0 kimg"
    assert run_plan(plan, How(workers=2)) == []
    assert calls(scripts) == [("continue", hanging.key), ("measure", hanging.key), ("look", hanging.key)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupt_ends_what_runs(plan, scripts, number):
    for run in plan.runs:
        (scripts / f"hang-train-{run.key}").touch()
    process = start_elsewhere(plan, scripts)
    wait_for(lambda: len(calls(scripts)) == 2)
    pids = [int(line.split()[2]) for line in (scripts / "calls.txt").read_text().splitlines()]
    process.send_signal(number)
    assert process.wait(30) != 0
    assert not any(map(psutil.pid_exists, pids)) and len(calls(scripts)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_is_to_end_waits_for_its_training(plan, scripts, number):
    """`make` in a queue: the process goes last, after the training has written its state. A stand-in takes its time for that."""
    run = plan.runs[0]
    (scripts / f"hang-train-{run.key}").touch()
    slow = "import signal, time\nsignal.signal(15, lambda *_: (time.sleep(1), (here / 'state').touch(), sys.exit(143)))\n(here / 'listens').touch()\n"
    (scripts / "train.py").write_text((scripts / "train.py").read_text().replace('wait("train", key)', slow + 'wait("train", key)'))
    text = DRIVER.replace("import How, run_plan", "import signals_as_interrupt\nfrom experiments.images.work import make_run")
    text = text[: text.index("print(")] + "with signals_as_interrupt():\n    make_run(smoke_plan({out!r}).runs[0])\n"
    text = text.format(root=str(ROOT), tests=str(ROOT / "tests"), scripts=str(scripts), out=str(plan.choice.out))
    process = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.DEVNULL)
    wait_for((scripts / "listens").exists)
    process.send_signal(number)
    assert process.wait(30) != 0 and (scripts / "state").exists()


def test_a_run_that_is_being_made_is_not_made_twice(plan, scripts):
    run = plan.runs[0]
    with hold(run.parent, "the run"):
        outcome = make_run(run)
    assert "in use by process" in outcome.error and not calls(scripts)
    assert make_run(run).error == ""


def test_the_paper_budget_is_never_started_by_accident(plan, tmp_path):
    paper = dataclasses.replace(plan, budget=BUDGETS["paper"], choice=dataclasses.replace(plan.choice, budget="paper"))
    with pytest.raises(UserError, match="see what figure4 costs first"):
        run_plan(paper, How(confirmed=True))
    remember_plan(paper, None)
    with pytest.raises(UserError, match="see what figure4 costs first"):
        run_plan(paper, How(confirmed=True))
    remember_plan(paper, 1e6)
    with pytest.raises(UserError, match="add --yes"):
        run_plan(paper, How())


def test_finished_runs_teach_their_speed(plan, scripts):
    run_plan(plan, How(workers=2))
    assert set(Speed(plan.choice.out).training.values()) == {2.0}


def test_runs_that_shared_a_gpu_do_not(plan, scripts):
    """The last of them had more of it, and the probe has measured what it is to share."""
    run_plan(plan, How(workers=2))
    (plan.choice.out / "speed.json").unlink()
    speed = Speed(plan.choice.out)
    speed.sharing = 3
    speed.learn(plan.runs[0], plan.runs[0].look().path)
    assert speed.training == {} and not (plan.choice.out / "speed.json").exists()


# The table.


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_rewritten_and_a_log_gets_lines(plan, scripts):
    first, second, _ = plan.runs
    lines, screen = [], Terminal()
    board = Board(plan.runs, log=lines.append, stream=screen)
    board.set(first, "training")
    board.set(second, "failed: for a reason")
    board.draw()
    board.close()
    assert "\x1b[4F" in screen.getvalue() and "1 training, 1 failed, 1 waiting" in screen.getvalue()
    assert first.key in lines[0] and lines[0].endswith("training  (0 of 3 done)\n") and "for a reason  (1 of 3 done)" in lines[1]
    paper = io.StringIO()
    board = Board(plan.runs, stream=paper)
    board.set(first, "measured")
    board.close()
    assert "\x1b" not in paper.getvalue() and f"{first.key}: measured  (1 of 3 done)" in paper.getvalue()


def test_the_table_shows_what_goes_on_where_there_is_no_room(plan):
    states = dict(zip((run.key for run in plan.runs), ("measured", "training", "waiting")))
    head, *lines = table(plan.runs, states, {}, height=2)
    assert head == "3 runs: 1 measured, 1 training, 1 waiting" and len(lines) == 1 and "training, 0 of 1 kimg" in lines[0]
    assert len(table(plan.runs, states, {}, height=40)) == 4


def test_the_last_words_of_a_process_are_its_error(tmp_path):
    path = tmp_path / "output.txt"
    path.write_text("Error: of before\n")
    start = path.stat().st_size
    path.write_text("Error: of before\nsome\nlines\n\n")
    assert last_words(path, start) == "lines"
    path.write_text("Error: of before\nError: what went wrong\nlines\n")
    assert last_words(path, start) == "what went wrong"
