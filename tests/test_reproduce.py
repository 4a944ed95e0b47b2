"""The command: what it trains, leaves alone, refuses, prints and writes. Training and drawing are planted."""

import dataclasses
import json

import pytest

import reproduce
from experiments.paper import run as running
from experiments.paper.results import read_result
from experiments.paper.toy_experiments import EXPERIMENTS
from experiments.toy.measures import MEASURES
from experiments.toy.parts import Part
from experiments.toy.studies import STUDIES


@pytest.fixture
def calls(monkeypatch):
    """Stands in for training and drawing; lists (study, methods, seeds, again, workers) of every call."""
    made = []

    def run_parts(study, methods, seeds, out, *, again=False, workers=None, progress=print):
        made.append((study.name, tuple(methods), tuple(seeds), again, workers))
        return {method: [planted_part(study.name, method, place, seed) for seed in seeds] for place, method in enumerate(methods)}

    def draw(experiment, parts, out):
        path = out / f"{experiment.name}.png"
        path.write_bytes(b"picture of " + ", ".join(parts).encode())
        return [path]

    monkeypatch.setattr(running.runner, "run_parts", run_parts)
    monkeypatch.setattr(running.pictures, "draw", draw)
    return made


def planted_part(study, method, place, seed):
    measures = dict.fromkeys(MEASURES, 0.5 + 0.05 * place + 0.001 * seed * (1 + place % 2))
    return Part(study, method, seed, measures, [], {}, {})


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_writes_result_page_pictures_and_log(calls, command, tmp_path):
    out = tmp_path / "deep" / "out"
    status, printed, _ = command("run", "table1", "--seeds=3", f"--out={out}")
    assert status == 0 and calls == [("vertical", EXPERIMENTS["table1"].methods, (0, 1, 2), False, None)]
    assert {path.name for path in out.iterdir()} == {"table1.json", "table1.md", "table1.png", "log.txt"}
    result = read_result(out / "table1.json")
    assert result["protocol"]["seeds"] == [0, 1, 2] and list(result["claims"]) == ["C1", "C1b", "C1b-shares"] and result["aims"]
    line = f"python reproduce.py run table1 --seeds=3 --out={out.as_posix()}"
    assert result["protocol"]["command"] == line and line in (out / "log.txt").read_text() and line in printed
    assert "C1 does not hold" in printed or "C1 holds" in printed
    assert "](table1.png)" in (out / "table1.md").read_text()


def test_the_protocol_names_all_that_a_figure_depends_on(calls, command, tmp_path):
    command("run", "table2", "--seeds=3", f"--out={tmp_path}")
    protocol = read_result(tmp_path / "table2.json")["protocol"]
    assert protocol["settings"] == dataclasses.asdict(STUDIES["ring"].settings) and protocol["distribution"]["kind"] == "Ring"
    assert (protocol["k"], protocol["real"], protocol["generated"]) == (3, 10_000, 10_000)
    assert protocol["methods"]["GAN+R1"]["r1"] is True and {"torch", "python", "platform", "code"} <= protocol["versions"].keys()


def test_what_is_finished_is_left_alone(calls, command, tmp_path):
    command("run", "table1", "--seeds=3", f"--out={tmp_path}")
    before = contents(tmp_path)
    status, printed, _ = command("run", "table1", "--seeds=3", f"--out={tmp_path}")
    assert status == 0 and len(calls) == 1 and "finished already" in printed
    after = contents(tmp_path)
    assert all(after[path] == before[path] for path in before if path.name != "log.txt")


def test_more_seeds_extend_a_result_and_fewer_are_refused(calls, command, tmp_path):
    command("run", "table1", "--seeds=3", f"--out={tmp_path}")
    assert command("run", "table1", "--seeds=4", f"--out={tmp_path}")[0] == 0
    assert calls[-1][2:4] == ((0, 1, 2, 3), False) and len(read_result(tmp_path / "table1.json")["protocol"]["seeds"]) == 4
    status, _, errors = command("run", "table1", "--seeds=3", f"--out={tmp_path}")
    assert status == 2 and "4 seeds, more than --seeds=3" in errors and len(calls) == 2


def test_other_settings_are_refused_before_anything_is_trained(calls, command, tmp_path, monkeypatch):
    command("run", "table1", "--seeds=3", f"--out={tmp_path}")
    before = (tmp_path / "table1.json").read_bytes()
    changed = dataclasses.replace(STUDIES["vertical"], settings=dataclasses.replace(STUDIES["vertical"].settings, lr=0.25))
    monkeypatch.setitem(STUDIES, "vertical", changed)
    status, _, errors = command("run", "table2", "table1", "--seeds=3", f"--out={tmp_path}")
    assert status == 2 and "table1.json" in errors and "settings.lr" in errors and "0.25" in errors
    assert len(calls) == 1 and (tmp_path / "table1.json").read_bytes() == before
    assert command("run", "table1", "--seeds=3", "--again", f"--out={tmp_path}")[0] == 0
    assert read_result(tmp_path / "table1.json")["protocol"]["settings"]["lr"] == 0.25


def test_a_row_that_was_added_is_trained(calls, command, tmp_path, monkeypatch):
    command("run", "variants", "--seeds=3", f"--out={tmp_path}")
    longer = dataclasses.replace(EXPERIMENTS["variants"], methods=(*EXPERIMENTS["variants"].methods, "GAN"))
    monkeypatch.setitem(EXPERIMENTS, "variants", longer)
    assert command("run", "variants", "--seeds=3", f"--out={tmp_path}")[0] == 0
    assert "GAN" in read_result(tmp_path / "variants.json")["rows"]


def test_again_trains_each_method_of_a_study_once(calls, command, tmp_path):
    assert command("run", "all", "--seeds=3", "--again", "--workers=1", f"--out={tmp_path}")[0] == 0
    renewed = [(study, method) for study, methods, _, again, _ in calls if again for method in methods]
    needed = {(experiment.study, method) for experiment in EXPERIMENTS.values() for method in experiment.methods}
    assert len(renewed) == len(set(renewed)) and set(renewed) == needed
    assert all(workers == 1 for *_, workers in calls)
    assert {path.stem for path in tmp_path.glob("*.json")} == set(EXPERIMENTS)


def test_parts_measured_otherwise_are_refused(calls, command, tmp_path, monkeypatch):
    planted = running.runner.run_parts

    def uneven(*args, **kwargs):
        parts = planted(*args, **kwargs)
        del parts["GAN+R1"][1].measures["coverage"]
        return parts

    monkeypatch.setattr(running.runner, "run_parts", uneven)
    status, _, errors = command("run", "table1", "--seeds=3", f"--out={tmp_path}")
    assert status == 2 and "seed 1 of GAN+R1" in errors and "coverage" in errors and not (tmp_path / "table1.json").exists()


def test_a_stop_while_drawing_leaves_no_result(calls, command, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.pictures, "draw", stop)
    assert command("run", "table1", "--seeds=3", f"--out={tmp_path}")[0] == 130
    assert not list(tmp_path.glob("*.json"))


def test_the_report_prints_everything_and_writes_nothing(calls, command, tmp_path):
    command("run", "table1", "table2", "rpgan", "--seeds=3", f"--out={tmp_path}")
    before = contents(tmp_path)
    status, printed, _ = command("report", f"--out={tmp_path}")
    assert status == 0 and contents(tmp_path) == before
    for name in ("table1", "table2", "rpgan"):
        assert EXPERIMENTS[name].title in printed
    assert all(f"**{claim} " in printed for claim in ("C1", "C1b", "C2"))
    missing = printed.strip().splitlines()[-1]
    assert missing.startswith("Missing: ") and "tableA" in missing and "table1" not in missing
    assert any(line.split("|")[1].strip() == "C3" and "not judged" in line for line in printed.splitlines() if line.startswith("| C3"))
    assert command("report", "--write", f"--out={tmp_path}")[0] == 0
    assert (tmp_path / "summary.md").read_text() == printed


def test_the_report_reads_the_committed_results_by_default(calls, command, tmp_path, monkeypatch):
    command("run", "figure1", "--seeds=3", f"--out={tmp_path}")
    monkeypatch.setattr(reproduce, "COMMITTED", tmp_path)
    assert EXPERIMENTS["figure1"].title in command("report")[1]


def test_the_list_says_what_is_there(calls, command, tmp_path):
    command("run", "table2", "--seeds=3", f"--out={tmp_path}")
    status, printed, _ = command("list", f"--out={tmp_path}")
    lines = {line.split()[0]: line for line in printed.splitlines()}
    assert status == 0 and list(lines) == list(EXPERIMENTS)
    assert "3 seeds" in lines["table2"] and "not run" in lines["table1"] and EXPERIMENTS["table1"].title in lines["table1"]
    assert command("list", f"--out={tmp_path / 'absent'}")[1].count("not run") == len(EXPERIMENTS)


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["run", "table9"], "'table9'"),
        (["run"], "no experiment"),
        (["run", "table1", "--seeds=0"], "--seeds"),
        (["run", "table1", "--out={file}"], "{file}"),
        (["run", "table1", "--out={damaged}"], "table1.json"),
        (["report", "--out={absent}"], "{absent}"),
        (["report", "--out={file}"], "{file}"),
        (["report", "--out={damaged}"], "table1.json"),
        (["list", "--out={file}"], "{file}"),
    ],
)
def test_mistakes_are_one_sentence(args, found, calls, command, tmp_path):
    places = {"file": tmp_path / "file", "absent": tmp_path / "absent", "damaged": tmp_path / "damaged"}
    places["file"].write_text("")
    places["damaged"].mkdir()
    (places["damaged"] / "table1.json").write_text(json.dumps({"rows": {}}))
    status, _, errors = command(*(arg.format(**places) for arg in args))
    assert status == 2 and errors.startswith("Error: ") and found.format(**places) in errors and errors.count("\n") == 1
    assert not calls
