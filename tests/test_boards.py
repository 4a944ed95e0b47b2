"""Boards: Weights & Biases gets what TensorBoard gets, under one id however often a run is continued, and never stops a training."""

import json
import pathlib
import sys
import types

import pytest
from click.testing import CliRunner
from tiny_runs import stats_of, tiny_args, train, write_data

import train as train_command
from dnnlib import UserError
from dnnlib.cli import run_command
from training.boards import WandB, import_wandb
from training.progress import Progress
from training.run_files import RunDir, as_easydict
from training.stopping import Abandoned

STEPS = dict(batch=252, kimg=2, tick=1, snap=1)


class FakeRun:
    """What wandb.init returns: keeps what it is given."""

    def __init__(self, broken_after):
        self.lines, self.exit_code, self.broken_after, self.drawn_over = [], None, broken_after, {}

    def define_metric(self, name, step_metric=None):
        self.drawn_over[name] = step_metric

    def log(self, values):  # without a step: the service drops what does not rise
        if self.broken_after is not None and len(self.lines) >= self.broken_after:
            raise RuntimeError("the server is gone")
        values = dict(values)
        self.lines.append((values[self.drawn_over["*"]], {name: value for name, value in values.items() if name != "Progress/kimg"}))

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def service(monkeypatch):
    """A package wandb that was never installed; `starts` has the arguments and the run of every init."""
    module = types.ModuleType("wandb")
    module.starts, module.broken_after, module.refusal = [], None, None
    module.Image = lambda path: ("image", pathlib.Path(path).name)

    def init(**kwargs):
        if module.refusal:
            raise RuntimeError(module.refusal)
        module.starts.append((kwargs, FakeRun(module.broken_after)))
        return module.starts[-1][1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)


def test_a_run_and_its_continuation_are_one_run_there(service, tmp_path):
    data = write_data(tmp_path / "pics.zip")
    run = train(data, tmp_path / "run", wandb="faces", **STEPS)
    ((first, shown),) = service.starts
    saved = json.loads((run / "wandb-run.json").read_text())
    assert saved == {"project": "faces", "id": first["id"]} and first["resume"] == "allow" and (first["project"], first["name"]) == ("faces", "run")
    assert "mode" not in first  # WANDB_MODE decides
    assert first["config"] == json.loads((run / "training_options.json").read_text()) and first["config"]["wandb"] == "faces"
    scalars = [(step, values) for step, values in shown.lines if "fakes" not in values]
    names = ("Loss/G/loss", "Progress/tick")
    assert [step for step, _ in scalars] == [0, 1, 2] and shown.exit_code == 0 and shown.drawn_over == {"Progress/kimg": None, "*": "Progress/kimg"}
    assert [[values[name] for name in names] for _, values in scalars] == [[line[name]["mean"] for name in names] for line in stats_of(run)]
    assert [values for _, values in shown.lines if "fakes" in values] == [{"fakes": ("image", f"fakes00000{kimg}.png")} for kimg in range(3)]
    RunDir(run).state(2).unlink()
    assert CliRunner().invoke(train_command.main, [f"--continue-run={run}"], catch_exceptions=False).exit_code == 0
    (_, (second, continued)) = service.starts
    assert second["id"] == first["id"] and [step for step, values in continued.lines if "fakes" not in values] == [2]


def test_a_run_may_cease_to_report(service, tmp_path, monkeypatch):
    run = train(write_data(tmp_path / "pics.zip"), tmp_path / "run", wandb="faces", **STEPS)
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = [f"--continue-run={run}", "--kimg=3"]
    with pytest.raises(UserError, match="or give --wandb=none"):
        CliRunner().invoke(train_command.main, command, catch_exceptions=False)
    assert CliRunner().invoke(train_command.main, [*command, "--wandb=none"], catch_exceptions=False).exit_code == 0
    args = RunDir.open(run)[1]
    assert "wandb" not in args and args.total_kimg == 3


def test_where_a_run_reports_to_may_change(tmp_path):
    run, data = tmp_path / "00000-run", write_data(tmp_path / "pics.zip")
    command = [f"--outdir={run}", f"--data={data}", "--cfg=demo", "--cond=1", "--metrics=none", "--device=cpu"]

    def told(*arguments):
        return json.loads(CliRunner().invoke(train_command.main, [*arguments, "--dry-run"], catch_exceptions=False).stdout)

    RunDir.create(as_easydict(told(*command, "--wandb=faces") | {"run_dir": str(run)}))
    for again in ([f"--continue-run={run}"], command):
        assert [told(*again, *given).get("wandb") for given in ([], ["--wandb=birds"], ["--wandb=none"])] == ["faces", "birds", None]


def test_a_training_that_fails_is_told_as_failed(service, tmp_path):
    progress = Progress(RunDir(tmp_path), 1)
    state = types.SimpleNamespace(args={"wandb": "faces"}, cur_tick=0)
    for error, exit_code in ((RuntimeError, 1), (UserError, 1), (Abandoned, 0)):
        with pytest.raises(error), progress.boards(state):
            raise error(15)
        assert service.starts[-1][1].exit_code == exit_code
    with progress.boards(state):
        pass
    assert service.starts[-1][1].exit_code == 0


def test_metrics_are_sent_and_a_service_that_fails_is_one_warning(service, tmp_path, capsys):
    service.broken_after = 2
    board = WandB(RunDir(tmp_path), "faces", {})
    for step in range(4):
        board.scalars({"Metrics/fid50k_full": 12.0}, step, 1.0)
    board.picture("fakes", tmp_path / "fakes.png", 4)
    board.close()
    ((_, shown),) = service.starts
    assert shown.lines == [(0, {"Metrics/fid50k_full": 12.0}), (1, {"Metrics/fid50k_full": 12.0})] and shown.exit_code is None
    assert capsys.readouterr().out == "Warning: Weights & Biases gets no more of this run: the server is gone\n"


def test_a_service_that_does_not_start_is_one_sentence_and_takes_no_id(service, tmp_path):
    service.refusal = "api_key not configured"
    with pytest.raises(UserError, match=r"--wandb=faces: .* cannot be started \(api_key not configured\); .*WANDB_MODE=offline"):
        WandB(RunDir(tmp_path), "faces", {})
    assert not list(tmp_path.iterdir())
    (tmp_path / "wandb-run.json").write_text('{"torn')
    service.refusal = None
    WandB(RunDir(tmp_path), "faces", {})
    assert json.loads((tmp_path / "wandb-run.json").read_text())["id"] == service.starts[0][0]["id"]


def test_without_the_package_nothing_starts(absent, tmp_path, capsys):
    data = write_data(tmp_path / "pics.zip")
    with pytest.raises(SystemExit) as leaving:
        run_command(train_command.main, [f"--data={data}", f"--outdir={tmp_path / 'runs'}", "--device=cpu", "--metrics=none", "--wandb=faces"])
    assert leaving.value.code == 2 and not (tmp_path / "runs").exists()
    assert "--wandb=faces: the package wandb is not installed" in capsys.readouterr().err


def test_a_folder_of_that_name_is_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    with pytest.raises(UserError, match="a folder of that name is no package"):
        import_wandb("faces")


def test_without_the_option_the_package_is_not_looked_for(absent, tmp_path):
    args = tiny_args(write_data(tmp_path / "pics.zip"), tmp_path / "run", **STEPS)
    assert "wandb" not in args
    run = train(write_data(tmp_path / "pics.zip"), tmp_path / "run", batch=252, kimg=1)
    assert not (run / "wandb-run.json").exists()
