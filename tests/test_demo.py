"""The demo: its command lines are valid, they hang together, and its summary says what the commands have written."""

import json
import shutil

import click
import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import calc_metrics
import dataset_tool
import generate
import train
from dnnlib import UserError
from experiments import demo, readability
from metrics.report import result_line
from training.run_files import RunDir

COMMANDS = {"dataset_tool.py": dataset_tool, "train.py": train, "calc_metrics.py": calc_metrics, "generate.py": generate}
NETWORK = "runs/00000-digits/network-snapshot-000048.safetensors"


def parse(step):
    """The options of a step as its command understands them; click refuses unknown ones and values of the wrong kind."""
    arguments = step.arguments
    if arguments[0] == "-m":
        assert arguments[1] == "experiments.readability"
        module, arguments = readability, arguments[2:]
    else:
        module, arguments = COMMANDS[arguments[0]], arguments[1:]
    context = click.Context(module.main)
    module.main.parse_args(context, list(arguments))
    return context.params


def test_every_step_is_a_valid_command_line():
    steps = [demo.data_step(), demo.train_step("runs", 3, 5), *demo.result_steps(NETWORK, "runs/00000-digits", 500)]
    data, training, sheet, walk, metrics, reading = map(parse, steps)
    assert data["source"] == "digits" and data["dest"] == training["data"] == reading["data"]
    asked = {name: training[name] for name in ("cfg", "cond", "aug", "pairing_weight", "outdir", "kimg", "seed", "metrics")}
    assert asked == {"cfg": "demo", "cond": True, "aug": "ada", "pairing_weight": 0.05, "outdir": "runs", "kimg": 3, "seed": 5, "metrics": []}
    assert all(params["network"] == NETWORK for params in (sheet, walk, metrics, reading))
    assert sheet["grid"] == "auto" and sheet["class_index"] is None  # one class per row
    assert walk["walk"] == "walk.gif" and walk["class_index"] < demo.CLASSES
    assert tuple(metrics["metrics"]) == demo.METRICS and metrics["detector"] == "embedded"
    assert reading["samples"] == 500


def test_the_preset_decides_the_length_unless_asked():
    assert parse(demo.train_step("runs", None, 0))["kimg"] is None


def test_a_step_is_shown_as_it_would_be_typed():
    step = demo.Step("", ["train.py", "--outdir=my runs"])
    assert step.shown() == "python train.py '--outdir=my runs'"


def test_a_failing_step_is_named():
    with pytest.raises(UserError, match=r"`python train.py --no-such-option` ended with code 2"):
        demo.run_step(demo.Step("", ["train.py", "--no-such-option"]))


def write_sheet(path, level):
    """A sheet as train.py writes it, 32 x 32 cells: the pixels of row r, column k are level + r + 50 * (k > 1)."""
    cells = np.full([32, 32], level) + np.arange(32)[:, None] + 50 * (np.arange(32) > 1)
    PIL.Image.fromarray(cells.astype(np.uint8).repeat(32, axis=0).repeat(32, axis=1)).save(path)


def test_growth_sheet_puts_the_same_latents_of_all_snapshots_below_one_another(tmp_path):
    for kimg, level in ((0, 10), (8, 100), (12, 150)):
        write_sheet(tmp_path / f"fakes{kimg:06d}.png", level)
    write_sheet(tmp_path / "fakes_init.png", 0)
    with PIL.Image.open(demo.growth_sheet(RunDir(tmp_path))) as picture:
        pixels = np.array(picture)
    assert pixels.shape == (3 * 32, 20 * 32)
    rows = pixels[16::32, 16::32]
    assert rows.tolist() == [[level + cell // 2 for cell in range(20)] for level in (10, 100, 150)]


def write_results(run, share):
    """What the commands leave in a run folder."""
    (run / "network-snapshot-000002.safetensors").touch()
    write_sheet(run / "fakes000000.png", 0)
    protocol = {"n_real": 1797, "n_fake": 10000, "detector": "embedded"}
    for name, value in (("fid10k_embedded", 1.25), ("prdc10k5_embedded", 0.75)):
        lines = [result_line(name, {name: figure}, 1.0, 1, protocol) for figure in (99.0, value)]
        (run / f"metric-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reading = readability.Readability(share, [share] * 10, 500, 0.98)
    (run / readability.RESULT_FILE).write_text(json.dumps(vars(reading)))


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """The demo with its commands replaced by a script that notes them and leaves results; `share` can be changed."""

    class Script:
        share = 0.9
        steps = []

    def run_step(step):
        Script.steps.append(step)
        if step.arguments[0] == "train.py":
            run = tmp_path / "runs" / "00003-digits"
            run.mkdir()
            write_results(run, Script.share)

    Script.steps = []
    (tmp_path / "runs" / "00002-older").mkdir(parents=True)
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "run_step", run_step)
    return Script


def test_the_steps_follow_one_another_on_the_new_run(scripted):
    result = CliRunner().invoke(demo.main, [])
    assert result.exception is None, result.output
    network = "--network=runs/00003-digits/network-snapshot-000002.safetensors"
    scripts = [step.arguments[0] for step in scripted.steps]
    assert scripts == ["dataset_tool.py", "train.py", "generate.py", "generate.py", "calc_metrics.py", "-m"]
    assert all(network in step.arguments for step in scripted.steps[2:])


def test_the_summary_gives_the_last_figures_and_pictures(scripted):
    output = CliRunner().invoke(demo.main, []).output
    assert "1.25" in output and "0.75" in output and "99" not in output
    assert "90.0% of 500 samples are named as asked" in output and "98.0% of unseen" in output
    for name in ("reals.png", "growth.png", "grid.png", "walk.gif"):
        assert f"runs/00003-digits/{name}" in output


def test_too_few_readable_digits_fail(scripted):
    scripted.share = 0.5
    result = CliRunner().invoke(demo.main, [])
    assert isinstance(result.exception, UserError) and "50.0% of the samples" in str(result.exception)
    shutil.rmtree(demo.ROOT / "runs" / "00003-digits")
    assert CliRunner().invoke(demo.main, ["--aim=0.5"]).exception is None


@pytest.mark.slow
def test_the_whole_demo_in_small(tmp_path):
    result = CliRunner().invoke(demo.main, [f"--outdir={tmp_path / 'runs'}", "--kimg=1", "--samples=20", "--aim=0"])
    assert result.exception is None, result.output
    (run,) = (tmp_path / "runs").iterdir()
    for name in ("growth.png", "grid.png", "walk.gif", "readability.json", "metric-fid10k_embedded.jsonl", "metric-prdc10k5_embedded.jsonl"):
        assert (run / name).stat().st_size > 0
