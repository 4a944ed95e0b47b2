"""Archives: results without their weights say what the results say, take in runs of other machines, and lose nothing that they have."""

import json
import pathlib
import shutil

import pytest
from image_plans import calls, smoke_plan, stand_ins
from PIL import Image
from report_runs import cells_of, write_run, write_sheet

from dnnlib import UserError
from experiments.images import work
from experiments.images.plan import PLAN_FILE, plan_path, read_plans
from experiments.images.results import load_tables
from experiments.images.run import How, run_plan
from experiments.images.run_state import archived_snapshots
from experiments.report.archive import MOST_LINES, archive_runs
from experiments.report.page import make_page
from experiments.report.plain import table_text
from experiments.report.run_pictures import CELL, read_block
from training.history import read_signals

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results"


def make(folder, seeds, kimg=1):
    """Table 3 at the smoke budget, made by stand-ins, with pictures. Returns the results folder."""
    plan = smoke_plan(folder / "out", "table3", seeds=seeds)
    before, work.SCRIPTS = work.SCRIPTS, stand_ins(folder / "scripts", plan)
    try:
        assert run_plan(plan, How(workers=4)) == []
    finally:
        work.SCRIPTS = before
    for run in plan.runs:
        path = run.look().path
        write_sheet(path / "fakes000001.png", 40 + run.seed)
        if run.seed == 0:
            write_sheet(path / "look-uncovered.png", 90)
    return folder / "out"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three seeds."""
    return make(tmp_path_factory.mktemp("made"), 3)


@pytest.fixture
def kept(made, tmp_path):
    """Their archive."""
    archive_runs(made, tmp_path / "kept")
    return tmp_path / "kept"


def content(out):
    """What the tables of a folder say, without where the runs are."""
    return [
        (
            *(table.name, table.columns, table.note, table.training, table.detector, table.claims, table.differences),
            [(row.method, row.ours, [(run.method, run.seed, run.kimg, run.figures, run.seconds) for run in row.runs]) for row in table.rows],
        )
        for table in load_tables(out)
    ]


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_an_archive_says_what_the_results_say_without_their_weights(made, kept, tmp_path):
    assert content(kept) == content(made)
    assert not [path for path in kept.rglob("*") if path.suffix in (".safetensors", ".pt", ".png")]
    pages = [make_page(load_tables(folder), [], tmp_path / name) for folder, name in ((made, "a"), (kept, "b"))]
    for kind in ("ours", "numbers"):
        assert cells_of(pages[0], kind) == cells_of(pages[1], kind)
    counts = [page.read_text().count("data:image/webp") for page in pages]
    assert counts[0] == counts[1] == 9 + 3  # samples of every run, and a sheet of uncovered reals per method


def test_what_is_archived_is_not_made_again_and_further_seeds_are(kept, tmp_path):
    plan = smoke_plan(kept, "table3", seeds=4, data=read_plans(kept)["smoke"]["data"])
    assert {str(run.look()) for run in plan.runs if run.seed < 3} == {"archived"}
    scripts = stand_ins(tmp_path / "scripts", plan)
    before, work.SCRIPTS = work.SCRIPTS, scripts
    try:
        assert run_plan(plan, How(workers=4)) == []
    finally:
        work.SCRIPTS = before
    assert {key[-1] for _, key in calls(scripts)} == {"3"}
    assert [len(row.runs) for row in load_tables(kept)[0].rows] == [4, 4, 4]


def test_an_archived_run_counts_however_far_apart_its_snapshots_were(kept):
    plan = smoke_plan(kept, "table3", seeds=3, data=read_plans(kept)["smoke"]["data"])
    run = plan.runs[0]
    options = run.look().path / "training_options.json"

    def change(**values):
        options.write_text(json.dumps(json.loads(options.read_text()) | values))

    change(network_snapshot_ticks=run.options["network_snapshot_ticks"] + 1)
    assert str(run.look()) == "archived"
    change(batch_size=run.options["batch_size"] * 2)
    with pytest.raises(UserError, match="batch_size"):
        run.look()


def test_runs_of_several_machines_come_together(made, tmp_path):
    """Seeds 0 and 1 of one folder and all three of another, in either order."""
    shutil.copytree(made, tmp_path / "one")
    for path in (tmp_path / "one" / "runs").glob("*-seed2"):
        shutil.rmtree(path)
    first = archive_runs(tmp_path / "one", tmp_path / "kept")
    assert len(first) == 6 and not any(run.left for run in first)
    second = archive_runs(made, tmp_path / "kept")
    assert [run.key[-1] for run in second if not run.left] == ["2"] * 3
    assert content(tmp_path / "kept") == content(made)
    again = tree(tmp_path / "kept")
    assert all(run.left == "is there to 1 kimg" for run in archive_runs(made, tmp_path / "kept"))
    assert tree(tmp_path / "kept") == again


def test_an_adopted_run_of_any_name_is_archived(made, tmp_path):
    """A link under a planned name to a folder that is called otherwise."""
    linked, elsewhere = shutil.copytree(made, tmp_path / "linked"), tmp_path / "my best run"
    (folder,) = (linked / "runs" / "smoke-noaug-stylegan2-seed0").glob("00000-*")
    folder.rename(elsewhere)
    (folder.parent / "00000-my best run").symlink_to(elsewhere)
    for _ in range(2):
        archive_runs(linked, tmp_path / "kept")
        assert [[len(row.runs) for row in table.rows] for table in load_tables(tmp_path / "kept")] == [[3, 3, 3]]


def test_an_archive_of_an_archive_is_the_same(kept, tmp_path):
    archive_runs(kept, tmp_path / "again")
    lines = {name: data for name, data in tree(kept).items() if not name.endswith(".webp")}
    assert {name: data for name, data in tree(tmp_path / "again").items() if not name.endswith(".webp")} == lines
    assert content(tmp_path / "again") == content(kept)


def test_the_longer_and_better_measured_run_stays(made, kept, tmp_path):
    key = "smoke-noaug-stylegan2-seed0"
    folder = shutil.copytree(made, tmp_path / "out") / "runs" / key / "00000-made-here"
    lines = folder / "metric-prdc10k5_embedded.jsonl"
    whole = lines.read_text()
    lines.write_text(whole.splitlines()[-1] + "\n")
    before = tree(kept)
    assert archive_runs(tmp_path / "out", kept)[-1].left  # fewer measurements
    assert tree(kept) == before
    last = json.loads(whole.splitlines()[-1]) | {"snapshot_pkl": "network-snapshot-000002.safetensors"}
    lines.write_text(whole + json.dumps(last) + "\n")
    (folder / "network-snapshot-000002.safetensors").write_text("")
    assert [run.key for run in archive_runs(tmp_path / "out", kept) if not run.left] == [key]
    assert archived_snapshots(kept / "runs" / key / "00000-made-here") == [0, 1, 2]


def test_a_shorter_one_than_planned_says_that_it_cannot_go_on(kept, tmp_path):
    plan = smoke_plan(kept, "table3", seeds=1, data=read_plans(kept)["smoke"]["data"])
    run = plan.runs[0]
    (run.look().path / "archive.json").write_text('{"snapshots": [0]}')
    assert str(run.look()) == "archived at 0 kimg" and not run.look().is_measured
    outcome = work.make_run(run)
    assert "is archived at 0 kimg, without the weights to go on from; move it away to train the run anew" in outcome.error
    (run.look().path / "archive.json").write_text('{"snapshots": ["0"]}')
    with pytest.raises(UserError, match=r"archive\.json is damaged"):
        run.look()


def test_what_must_not_be_mixed_is_refused_before_anything_is_written(made, kept, tmp_path):
    other = shutil.copytree(made, tmp_path / "other")
    path = next((other / "runs").glob("*pairing-gan-seed0")) / "00000-made-here" / "training_options.json"
    options = json.loads(path.read_text())
    options["batch_size"] += 16
    path.write_text(json.dumps(options))
    before = tree(kept)
    with pytest.raises(UserError, match=r"is a run with other settings than .*batch_size 32 instead of 48.*--to"):
        archive_runs(other, kept)
    with pytest.raises(UserError, match="is a run with weights, which no archive may replace"):
        archive_runs(made, other)
    plans = json.loads(plan_path(other).read_text())
    plans["budgets"]["smoke"]["precision"] = "bf16"
    plan_path(other).write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"--precision=bf16: .* has a plan of this budget with --precision=fp32"):
        archive_runs(other, kept)
    with pytest.raises(UserError, match="is the folder of the results itself"):
        archive_runs(made, made)
    with pytest.raises(UserError, match="it is no folder of image experiments"):
        archive_runs(tmp_path / "nowhere", kept)
    assert tree(kept) == before and not (tmp_path / "nowhere").exists()


def test_statistics_are_thinned_and_otherwise_the_same(made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    folder = out / "runs" / "smoke-noaug-stylegan2-seed0" / "00000-made-here"
    ticks = range(5 * MOST_LINES + 3)
    with open(folder / "stats.jsonl", "w") as handle:
        for tick in ticks:
            line = {"Progress/kimg": tick / 3, "Loss/G/loss": 1 / (tick + 1), "Timing/total_sec": 2.0 * tick, "Resources/peak_gpu_mem_gb": 1.0}
            handle.write(json.dumps({name: {"num": 1, "mean": value, "std": 0.0} for name, value in line.items()}) + "\n")
    archive_runs(out, tmp_path / "kept")
    before, after = read_signals(folder), read_signals(tmp_path / "kept" / folder.relative_to(out))
    assert set(after) == {"Progress/kimg", "Loss/G/loss", "Timing/total_sec"}
    assert MOST_LINES / 2 < len(after["Loss/G/loss"]) <= MOST_LINES
    assert after["Timing/total_sec"][-1][1] == before["Timing/total_sec"][-1][1]
    known = dict(before["Loss/G/loss"])
    nearest = [min(known, key=lambda kimg, at=at: abs(kimg - at)) for at, _ in after["Loss/G/loss"]]
    assert [value for _, value in after["Loss/G/loss"]] == pytest.approx([known[kimg] for kimg in nearest], rel=1e-5)


@pytest.mark.parametrize("edge", [16, 4 * CELL])
def test_small_pictures_are_cut_once(tmp_path, edge):
    """Cells that a page shows smaller than they are too: what an archive keeps is shown as it is."""
    run = write_run(tmp_path / "00000-run", "StyleGAN2", 0, kimg=())
    Image.effect_noise((6 * edge, 3 * edge), 50).convert("RGB").save(run.path / "fakes000000.png")
    options = {"training_set_kwargs.resolution": edge}
    block = read_block(run.path / "fakes000000.png", options)
    block.image.save(run.path / "fakes000000.webp", lossless=True)
    again = read_block(run.path / "fakes000000.webp", options)
    assert (again.rows, again.columns) == (block.rows, block.columns) and again.image.tobytes() == block.image.tobytes()


def test_the_command(made, tmp_path, command):
    code, printed, _ = command("archive", f"--out={made}", f"--to={tmp_path / 'kept'}")
    assert code == 0 and "smoke-noaug-pairing-gan-seed1: taken at 1 kimg" in printed and len(printed.splitlines()) == 9
    assert command("archive", f"--out={tmp_path}", f"--to={tmp_path / 'kept'}")[0] == 2
    assert command("report", f"--out={tmp_path / 'kept'}")[0] == 0 and (tmp_path / "kept" / "report.html").is_file()


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob(f"*/{PLAN_FILE}")), ids=lambda folder: folder.name)
def test_the_committed_pages_are_those_of_the_committed_runs(folder):
    page = (folder / "report.md").read_text(encoding="utf-8")
    tables = load_tables(folder)
    assert tables and all(table_text(table) in page for table in tables)
    assert {archived_snapshots(run.path) is None for table in tables for row in table.rows for run in row.runs} == {False}
