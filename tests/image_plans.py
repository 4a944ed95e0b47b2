"""Plans whose train.py and calc_metrics.py are stand-ins: they take a moment, leave the files of the real ones, and misbehave on demand."""

import json
import pathlib

from experiments.images import probe, work
from experiments.images.plan import Choice, make_plan

STAND_IN = '''
import json, os, pathlib, shutil, sys, time
given = dict(argument.lstrip("-").partition("=")[::2] for argument in sys.argv[1:])
here = pathlib.Path(__file__).parent

def note(word, key):
    with open(here / "calls.txt", "a") as handle:
        handle.write(f"{word} {key} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\\n")

def wait(name, key):
    """Waits while a file hang-NAME-KEY is there."""
    while (here / f"hang-{name}-{key}").exists():
        time.sleep(0.05)
'''
TRAIN = (
    STAND_IN
    + '''
if "continue-run" in given:
    run = pathlib.Path(given["continue-run"])
    note("continue", run.parent.name)
else:
    parent = pathlib.Path(given["outdir"])
    run = parent / "00000-made-here"
    note("train", parent.name)
    run.mkdir(parents=True)
    own = here / "options" / f"{parent.name}.json"
    options = own if own.exists() else min((here / "options").iterdir())  # a probe has a folder elsewhere
    shutil.copy(options, run / "training_options.json")
key = run.parent.name
options = json.loads((run / "training_options.json").read_text())
kimg = options["total_kimg"] = int(given.get("kimg") or options["total_kimg"])
(run / "training_options.json").write_text(json.dumps(options))
with open(run / "stats.jsonl", "a") as handle:
    for at in (0, kimg / 2, kimg):
        line = {"Progress/kimg": at, "Timing/sec_per_kimg": 2.0, "Timing/total_sec": 2.0 * at}
        handle.write(json.dumps({name: {"num": 1, "mean": value, "std": 0} for name, value in line.items()}) + "\\n")
(run / "network-snapshot-000000.safetensors").write_text("")
(run / "training-state-000000.pt").write_text("")
wait("train", key)
if (here / f"fail-{key}").exists():
    print("Error: the disk is on fire\\nand a last line")
    sys.exit(2)
(run / f"network-snapshot-{kimg:06d}.safetensors").write_text("")
(run / f"training-state-{kimg:06d}.pt").write_text("")
'''
)
MEASURE = (
    STAND_IN
    + '''
if sys.argv[1] == "show":
    note("look", pathlib.Path(given["fake"]).parent.parent.name)
    pathlib.Path(given["out"] + "-uncovered.png").write_text("")
    pathlib.Path(given["out"] + ".json").write_text(json.dumps({"fake": pathlib.Path(given["fake"]).name}))
    sys.exit()
run = pathlib.Path(given["network"])
snapshots = sorted(run.glob("network-snapshot-*"))
if run.is_file():
    run, snapshots = run.parent, [run]
key = run.parent.name
note("measure" if len(snapshots) > 1 else "measure-end", key)
wait("measure", key)
sys.path.insert(0, str(here))
from values import value
for snapshot in snapshots:
    for metric in given["metrics"].split(","):
        name = f"{metric}_{given['detector']}"
        ends = ("_precision", "_recall", "_coverage") if metric.startswith("prdc") else ("_mean", "_worst") if "classwise" in metric else ("",)
        kimg = int(snapshot.stem[-6:])
        line = {"results": {name + end: value(key, name + end, kimg) for end in ends}, "metric": name, "snapshot_pkl": snapshot.name}
        with open(run / f"metric-{name}.jsonl", "a") as handle:
            handle.write(json.dumps(line | {"protocol": {"detector": given["detector"]}}) + "\\n")
'''
)
VALUES = '''
def value(key, figure, kimg):
    """A figure of a run: one that grows, and differs a little between seeds."""
    return 0.2 + 0.001 * kimg + 0.001 * (int(key[-1]) if key[-1].isdigit() else 0) + 0.1 * ("pairing" in key)
'''


def stand_ins(folder, plan):
    """Writes the stand-in scripts for the runs of a plan. Returns their folder."""
    (folder / "options").mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(TRAIN)
    (folder / "calc_metrics.py").write_text(MEASURE)
    (folder / "values.py").write_text(VALUES)
    for run in plan.runs:
        (folder / "options" / f"{run.key}.json").write_text(json.dumps(run.options))
    return folder


def smoke_plan(out, *names, **choice):
    """A plan at the smoke budget."""
    return make_plan(Choice(names or ("figure4",), "smoke", pathlib.Path(out), **choice))


def calls(folder):
    """What the stand-ins were called for: [(word, key)], in order."""
    path = folder / "calls.txt"
    return [tuple(line.split()[:2]) for line in path.read_text().splitlines()] if path.exists() else []


def fake_run(run, **changes):
    """The files of a finished run, with some of its options changed."""
    folder = run.parent / "00003-by-hand"
    folder.mkdir(parents=True)
    options = json.loads(json.dumps(run.options))
    for name, value in changes.items():
        *places, last = name.split("__")
        table = options
        for place in places:
            table = table[place]
        table[last] = value
    (folder / "training_options.json").write_text(json.dumps(options))
    for kimg in (0, run.kimg):
        (folder / f"network-snapshot-{kimg:06d}.safetensors").write_text("")
    return folder


def plan_with_stand_ins(tmp_path, monkeypatch):
    """Figure 4 at the smoke budget: three runs, made by stand-ins in `tmp_path / "scripts"`."""
    made = smoke_plan(tmp_path / "out")
    scripts = stand_ins(tmp_path / "scripts", made)
    monkeypatch.setattr(work, "SCRIPTS", scripts)
    monkeypatch.setattr(probe, "SCRIPTS", scripts)
    return made
