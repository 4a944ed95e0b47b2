"""Figures of runs as tables and verdicts: which snapshot a row looks at, what is missing, what a claim needs. Runs are stand-ins (image_plans)."""

import dataclasses
import json
import math
import re
import shutil
import statistics

import pytest
from image_plans import smoke_plan, stand_ins

from dnnlib import UserError
from experiments.images import results, work
from experiments.images.budgets import BUDGETS, Regime
from experiments.images.claims import CLAIMS, at_stage, judge
from experiments.images.experiments import EXPERIMENTS, LAST, Row
from experiments.images.plan import Choice, make_plan, remember_plan
from experiments.images.results import load_run, load_tables
from experiments.images.run import How, run_plan
from experiments.paper.checks import mean_interval
from experiments.report.tables import figure_text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tables 3, 4, B and C and both of R1's weight at the smoke budget under three seeds, made by stand-ins. Returns the results folder."""
    folder = tmp_path_factory.mktemp("made")
    plan = smoke_plan(folder / "out", "table3", "table4", "tableB", "tableC", "r1-weight", "r1-weight-2000", seeds=3)
    before, work.SCRIPTS = work.SCRIPTS, stand_ins(folder / "scripts", plan)
    try:
        assert run_plan(plan, How(workers=4)) == []
    finally:
        work.SCRIPTS = before
    return folder / "out"


@pytest.fixture
def out(made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "out")


def table(out, name):
    return next(table for table in load_tables(out) if table.name == name)


def run_folder(out, key):
    (folder,) = (out / "runs" / key).glob("00000-*")
    return folder


def test_rows_are_means_and_deviations_over_seeds(made):
    table3 = table(made, "table3")
    assert table3.columns == ("precision", "recall", "coverage") and table3.detector == "embedded" and table3.budget.startswith("smoke")
    plain, pairing, _ = table3.rows
    assert [row.method for row in table3.rows] == ["StyleGAN2", "Pairing-GAN", "MS-GAN(+R1)"]
    values = [0.2 + 0.001 + 0.001 * seed for seed in range(3)]
    assert plain.ours["coverage"] == pytest.approx((statistics.fmean(values), statistics.stdev(values)))
    assert pairing.ours["coverage"][0] == pytest.approx(plain.ours["coverage"][0] + 0.1)
    assert plain.paper == {"precision": 0.673, "recall": 0.425, "coverage": 0.637}  # no FID: this budget measures none
    assert [run.seed for run in plain.runs] == [0, 1, 2] and plain.runs[0].path == run_folder(made, "smoke-noaug-stylegan2-seed0")
    assert "R1 0.1 with noaug" in table3.note and "at the short budget .01 covers less" in table3.note
    assert "not measured" not in table3.note and "not there" not in table3.note


def test_a_figure_that_a_run_lacks_is_of_fewer_seeds_and_says_so(out):
    lines = run_folder(out, "smoke-noaug-pairing-gan-seed1") / "metric-prdc10k5_embedded.jsonl"
    kept = json.loads(lines.read_text().splitlines()[-1])
    del kept["results"]["prdc10k5_embedded_recall"]
    lines.write_text(json.dumps(kept) + "\n")
    row = table(out, "table3").rows[1]
    assert len(row.runs) == 3 and row.fewer == {"recall": 2}
    assert figure_text(row, "recall").endswith(" (2 of 3)") and "of" not in figure_text(row, "coverage")


def test_rows_are_set_against_their_baseline_within_seeds(out):
    """Baselines have the same augmentation and length; the seeds are those that both have."""
    lines = run_folder(out, "smoke-noaug-pairing-gan-seed0") / "metric-prdc10k5_embedded.jsonl"
    figures = json.loads(lines.read_text().splitlines()[-1])
    gain = figures["results"]["prdc10k5_embedded_recall"] - 0.01
    figures["results"]["prdc10k5_embedded_recall"] = gain
    lines.write_text(json.dumps(figures) + "\n")
    shutil.rmtree(out / "runs" / "smoke-noaug-ms-gan-r1-seed1")
    found = {(one.method, one.column): one for one in table(out, "table3").differences}
    assert {one.baseline for one in found.values()} == {"StyleGAN2"} and {method for method, _ in found} == {"Pairing-GAN", "MS-GAN(+R1)"}
    pairing = found["Pairing-GAN", "recall"]
    gains = [0.09, 0.1, 0.1]
    assert (pairing.seeds, pairing.mean) == (3, pytest.approx(statistics.fmean(gains))) and pairing.interval == pytest.approx(mean_interval(gains))
    assert found["MS-GAN(+R1)", "recall"].seeds == 2 and found["Pairing-GAN", "coverage"].interval is None  # no spread
    assert {one.baseline for one in table(out, "table4").differences} == {"StyleGAN2-ADA"}
    halves = {(one.method, one.baseline, one.images, one.kimg) for one in table(out, "tableB").differences}
    pairs = ("Pairing-GAN", "StyleGAN2"), ("Pairing-GAN-ADA", "StyleGAN2-ADA")
    assert halves == {(*pair, "all images", kimg) for pair in pairs for kimg in (0, 1)}


def test_rows_of_other_r1_weights_are_set_against_the_usual_one(out):
    found = table(out, "r1-weight").differences
    assert {(one.method, one.baseline) for one in found} == {("R1 .01", "R1 .1"), ("R1 1", "R1 .1")} and {one.seeds for one in found} == {3}
    few = table(out, "r1-weight-2000").differences
    assert {(one.method, one.baseline) for one in few} == {
        ("Pairing-GAN-ADA", "StyleGAN2-ADA"),
        ("StyleGAN2-ADA, R1 .1", "StyleGAN2-ADA, R1 .01"),
        ("Pairing-GAN-ADA, R1 .1", "StyleGAN2-ADA, R1 .1"),
    }


def test_tables_say_what_was_trained_on(out):
    assert table(out, "table3").training == "digits.zip, all images, fp32"
    path = run_folder(out, "smoke-noaug-stylegan2-seed1") / "training_options.json"
    options = json.loads(path.read_text())
    options["D_kwargs"] |= {"num_fp16_res": 4, "low_precision": "bfloat16"}
    assert results._precision(options) == "bf16"
    remember_plan(smoke_plan(out, "collapse-500"), None)
    assert table(out, "collapse-500").training == "digits.zip, 20 images"


def test_tables_stand_in_one_order_whatever_was_planned_first(tmp_path):
    for name in ("r1-weight", "tableC", "table3"):
        remember_plan(smoke_plan(tmp_path, name), None)
    assert [found.name for found in load_tables(tmp_path)] == ["table3", "tableC", "r1-weight"]


def test_published_figures_are_spoken_of_where_there_are_some(tmp_path):
    data = smoke_plan(tmp_path).data
    remember_plan(make_plan(Choice(("table3", "larger-lambda"), "short", tmp_path, data)), None)
    assert ["published" in table(tmp_path, name).note.partition("Measured at")[0] for name in ("table3", "larger-lambda")] == [True, False]


def test_one_seed_has_no_differences(out):
    for seed in (1, 2):
        shutil.rmtree(out / "runs" / f"smoke-noaug-stylegan2-seed{seed}")
    assert table(out, "table3").differences == ()


def test_appendix_b_looks_at_two_lengths_and_leaves_the_printed_rows_unassigned(made):
    rows = table(made, "tableB").rows
    early, late = (next(row for row in rows if row.method == f"StyleGAN2, no ADA, {kimg} kimg") for kimg in (0, 1))
    assert late.ours["recall"][0] - early.ours["recall"][0] == pytest.approx(0.001)
    assert [(row.method, row.ours, row.runs) for row in rows[-2:]] == [
        (f"{name}, as printed, unassigned", {}, ()) for name in ("StyleGAN2", "Pairing-GAN")
    ]


def test_a_run_says_what_it_is(made):
    run = load_run(run_folder(made, "smoke-noaug-pairing-gan-.10-seed2"))
    assert (run.method, run.seed, run.budget, run.setting, run.kimg, run.seconds) == ("Pairing-GAN(.10)", 2, "smoke", "noaug", 1, 2.0)
    assert set(run.figures) == {f"prdc10k5_embedded_{name}" for name in ("precision", "recall", "coverage")}
    assert run.figures["prdc10k5_embedded_recall"].keys() == {0, 1} and run.protocols["prdc10k5_embedded_recall"] == {"detector": "embedded"}


def test_a_run_from_elsewhere_is_read_too(out, tmp_path):
    elsewhere = tmp_path / "mine" / "run"
    shutil.copytree(run_folder(out, "smoke-ada-stylegan2-ada-seed1"), elsewhere)
    options = json.loads((elsewhere / "training_options.json").read_text())
    options["loss_kwargs"]["ms_weight"] = 0.25
    (elsewhere / "training_options.json").write_text(json.dumps(options))
    for path in elsewhere.glob("metric-*"):
        path.unlink()
    with open(elsewhere / "stats.jsonl", "a") as handle:
        handle.write('{"Progress/kimg": {"me')  # killed while it wrote
    run = load_run(elsewhere)
    assert run.method == "StyleGAN2, ms weight 0.25, augmentation ada" and (run.budget, run.setting) == ("", "")
    assert run.figures == {} and run.kimg == 1 and run.seconds == 2.0
    with pytest.raises(UserError, match="is no run folder"):
        load_run(tmp_path)


def test_what_is_measured_of_the_end_alone_is_not_missed_in_the_middle(out):
    """A table that looks at both: no run has the figure at its first mark, and none is missing it."""
    line = {"results": {"coverage_classwise_embedded_mean": 0.2, "coverage_classwise_embedded_worst": 0.1}, "metric": "coverage_classwise_embedded"}
    line |= {"snapshot_pkl": "network-snapshot-000001.safetensors", "protocol": {"detector": "embedded"}}
    rows = tuple(Row("StyleGAN2", "noaug", label=f"at {mark}", mark=mark) for mark in (0, LAST))
    experiment = dataclasses.replace(EXPERIMENTS["figure4"], rows=rows, columns=("coverage", "worst class"), claims=())
    shown = results._Loader(out, BUDGETS["smoke"], 3, "digits.zip").table(experiment)
    assert "not measured in all of their rows yet: 3 of 3." in shown.note
    for seed in range(3):
        (run_folder(out, f"smoke-noaug-stylegan2-seed{seed}") / "metric-coverage_classwise_embedded.jsonl").write_text(json.dumps(line) + "\n")
    shown = results._Loader(out, BUDGETS["smoke"], 3, "digits.zip").table(experiment)
    assert "not measured" not in shown.note
    assert [set(row.ours) for row in shown.rows] == [{"coverage"}, {"coverage", "worst class"}]


def test_a_claim_looks_no_further_than_its_table(out):
    """At runs that go on longer, as adopted ones may."""
    before = table(out, "table4").claims
    for folder in (out / "runs").glob("smoke-ada-*/00000-*"):
        lines = (folder / "metric-prdc10k5_embedded.jsonl").read_text().splitlines()
        further = json.loads(lines[-1]) | {"snapshot_pkl": "network-snapshot-000030.safetensors"}
        further["results"] = {name: 0.001 * len(folder.parent.name) for name in further["results"]}
        (folder / "metric-prdc10k5_embedded.jsonl").write_text("\n".join([*lines, json.dumps(further)]) + "\n")
    assert table(out, "table4").claims == before


def test_what_is_missing_is_said(out):
    shutil.rmtree(out / "runs" / "smoke-noaug-pairing-gan-seed1")
    shutil.rmtree(out / "runs" / "smoke-noaug-ms-gan-r1-seed0")
    (run_folder(out, "smoke-noaug-ms-gan-r1-seed1") / "metric-prdc10k5_embedded.jsonl").unlink()
    table3 = table(out, "table3")
    assert [len(row.runs) for row in table3.rows] == [3, 2, 1]
    assert "not measured in all of their rows yet: 1 of 7. Planned runs that are not there: 2." in table3.note
    assert table(out, "tableB").note.endswith(". Planned runs that are not there: 1.")  # its rows look at each run twice
    assert math.isnan(table3.rows[2].ours["recall"][1])
    c4, c4b = table3.claims
    assert c4.holds is None and "too few seeds: 2" in c4.text and c4b.holds is None and "too few seeds: 1" in c4b.text


def change_options(out, key, **changes):
    path = run_folder(out, key) / "training_options.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_runs_of_other_settings_are_left_out_of_their_row(out):
    """Each row has three seeds: most of them decide, and between two the first."""
    change_options(out, "smoke-noaug-pairing-gan-seed0", batch_size=8)
    shutil.rmtree(out / "runs" / "smoke-noaug-ms-gan-r1-seed2")
    change_options(out, "smoke-noaug-ms-gan-r1-seed1", ema_kimg=7)
    table3 = table(out, "table3")
    assert [[run.seed for run in row.runs] for row in table3.rows] == [[0, 1, 2], [1, 2], [0]]
    assert "Left out: smoke-noaug-pairing-gan-seed0 has other settings than smoke-noaug-pairing-gan-seed1 (batch_size 8 instead of 32)" in table3.note
    assert "Left out: smoke-noaug-ms-gan-r1-seed1 has other settings than smoke-noaug-ms-gan-r1-seed0 (ema_kimg 7 " in table3.note
    assert "Left out" not in table(out, "table4").note


def test_a_run_of_another_method_is_left_out_of_the_row(out):
    shutil.copy(run_folder(out, "smoke-noaug-stylegan2-seed1") / "training_options.json", run_folder(out, "smoke-noaug-pairing-gan-seed1"))
    table3 = table(out, "table3")
    assert [len(row.runs) for row in table3.rows] == [3, 2, 3] and "Left out: smoke-noaug-pairing-gan-seed1 is a run of StyleGAN2." in table3.note


def test_where_and_how_long_a_run_was_made_is_no_setting(out):
    change_options(out, "smoke-noaug-pairing-gan-seed0", device="elsewhere", total_kimg=9, network_snapshot_ticks=9)
    for seed in range(3):  # a subset's seed is the run's
        data = json.loads((run_folder(out, f"smoke-noaug-stylegan2-seed{seed}") / "training_options.json").read_text())["training_set_kwargs"]
        change_options(out, f"smoke-noaug-stylegan2-seed{seed}", training_set_kwargs=data | {"random_seed": seed})
    assert [len(row.runs) for row in table(out, "table3").rows] == [3, 3, 3]


def test_a_torn_line_is_no_line(out):
    path = run_folder(out, "smoke-noaug-stylegan2-seed1") / "metric-prdc10k5_embedded.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for text, seeds in ((lines[0] + lines[1] + b'{"resul', 3), (lines[0] + lines[1][:20], 2), (lines[0][:20], 2)):
        path.write_bytes(text)
        assert len(table(out, "table3").rows[0].runs) == seeds


def test_figures_of_different_protocols_are_not_averaged(out):
    path = run_folder(out, "smoke-noaug-stylegan2-seed1") / "metric-prdc10k5_embedded.jsonl"
    path.write_text(path.read_text().replace('"detector": "embedded"', '"detector": "other"'))
    with pytest.raises(UserError, match="cannot be compared: detector"):
        load_tables(out)


def test_a_folder_without_plans_has_no_tables(tmp_path):
    assert load_tables(tmp_path) == []


def test_a_planned_experiment_without_runs_is_an_empty_table(tmp_path):
    remember_plan(smoke_plan(tmp_path, "table4"), None)
    (empty,) = load_tables(tmp_path)
    assert all(not row.ours and not row.runs for row in empty.rows) and empty.claims[0].holds is None and empty.detector == "embedded"


# Claims.


def rows_of(**methods):
    """method -> figures from figures around a centre, three seeds; names as Python takes them."""
    names = {
        "plain": "StyleGAN2",
        "pairing": "Pairing-GAN",
        "seeking": "MS-GAN(+R1)",
        "low": "Pairing-GAN(.01)",
        "high": "Pairing-GAN(.10)",
        "ada": "StyleGAN2-ADA",
        "both": "Pairing-GAN-ADA",
    }
    wiggle = (-0.001, 0.0, 0.0012)
    return {
        names[name]: {column: [value + (index + 1) * d for d in wiggle] for index, (column, value) in enumerate(figures.items())}
        for name, figures in methods.items()
    }


def prcf(precision, recall, coverage, fid):
    return {"precision": precision, "recall": recall, "coverage": coverage, "FID": fid}


PLAIN, BETTER = prcf(0.673, 0.425, 0.637, 9.2), prcf(0.677, 0.423, 0.731, 8.6)


def paired(rows):
    """Seeds of the pairing rows reversed, so that differences spread."""
    return {name: {c: list(reversed(v)) for c, v in own.items()} if "Pairing" in name or "MS" in name else own for name, own in rows.items()}


def test_the_papers_own_figures_make_its_claims_hold():
    rows = paired(rows_of(plain=PLAIN, pairing=BETTER, seeking=prcf(0.664, 0.276, 0.46, 16.5)))
    assert judge("C4", rows).holds is True and judge("C4b", rows).holds is True
    # The last step of coverage, .7313 to .7364, is within the spread that these figures have; a larger one is seen.
    rows = rows_of(low=prcf(0.672, 0, 0.681, 0), pairing=BETTER, high=prcf(0.6495, 0, 0.736, 0))
    rows["Pairing-GAN"] = {column: values[::-1] for column, values in rows["Pairing-GAN"].items()}
    assert judge("C6", rows).holds is None
    rows["Pairing-GAN(.10)"]["coverage"] = [value + 0.04 for value in rows["Pairing-GAN(.10)"]["coverage"]]
    assert judge("C6", rows).holds is True


def test_the_opposite_is_contradicted():
    rows = paired(rows_of(plain=BETTER, pairing=PLAIN, seeking=BETTER))
    verdict = judge("C4", rows)
    assert verdict.holds is False and "coverage of Pairing-GAN above StyleGAN2 is contradicted: -0.094 [-0.1" in verdict.text
    assert "precision of Pairing-GAN within 0.02 of StyleGAN2 passes" in verdict.text


def test_noise_is_undecided():
    rows = rows_of(plain=PLAIN, pairing=PLAIN)
    rows = {**rows, "Pairing-GAN": {**rows["Pairing-GAN"], "coverage": [0.60, 0.64, 0.70]}}
    assert judge("C4", rows).holds is None


@pytest.mark.parametrize("seeds", [0, 1, 2])
@pytest.mark.parametrize("claim", list(CLAIMS))
def test_fewer_than_three_seeds_decide_nothing(claim, seeds):
    rows = paired(rows_of(plain=PLAIN, pairing=BETTER, seeking=PLAIN, low=PLAIN, high=BETTER, ada=PLAIN, both=BETTER))
    rows = {name: {column: values[:seeds] for column, values in own.items()} for name, own in rows.items()}
    assert judge(claim, rows).holds is None


def test_c5_looks_at_every_stage():
    stages = [5, 10]
    rows = paired(rows_of(ada=PLAIN | {at_stage("precision", k): 0.6 for k in stages}, both=PLAIN | {at_stage("precision", k): 0.65 for k in stages}))
    assert judge("C5", rows, stages).holds is True
    rows["Pairing-GAN-ADA"][at_stage("precision", 5)] = [0.54, 0.55, 0.56]
    verdict = judge("C5", rows, stages)
    assert verdict.holds is None and "precision at 5 kimg of Pairing-GAN-ADA above StyleGAN2-ADA is open" in verdict.text  # one of many
    rows["Pairing-GAN-ADA"][at_stage("precision", 10)] = [0.54, 0.55, 0.56]
    verdict = judge("C5", rows, stages)
    assert verdict.holds is False and "precision, mean over training, of Pairing-GAN-ADA above StyleGAN2-ADA is contradicted" in verdict.text


def test_c5_is_open_without_a_stage_that_all_have():
    rows = paired(rows_of(ada=PLAIN, both=PLAIN))
    verdict = judge("C5", rows, [])
    assert verdict.holds is None and "there is no precision, mean over training, of StyleGAN2-ADA" in verdict.text.replace("Pairing-GAN", "StyleGAN2")


def test_stages_are_matched_to_the_nearest(out, monkeypatch):
    """The ticks of a run that was taken further lie elsewhere, by up to a hundredth and a half."""
    smoke = BUDGETS["smoke"]
    monkeypatch.setitem(BUDGETS, "smoke", dataclasses.replace(smoke, spacing=60, regimes={**smoke.regimes, "ada": Regime(1000)}))
    for number, folder in enumerate((out / "runs").glob("smoke-ada-*/00000-*")):
        path = folder / "metric-prdc10k5_embedded.jsonl"
        first, last = map(json.loads, path.read_text().splitlines())
        lines = [first, last, last | {"snapshot_pkl": f"network-snapshot-{1000 + number:06d}.safetensors"}]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (verdict,) = table(out, "table4").claims
    assert "precision at 1 kimg of Pairing-GAN-ADA" in verdict.text
    assert len(re.findall(r"precision at 10\d\d kimg of Pairing-GAN-ADA above StyleGAN2-ADA is", verdict.text)) == 1


def test_a_missing_figure_decides_nothing():
    rows = paired(rows_of(plain=PLAIN, pairing=BETTER))
    del rows["Pairing-GAN"]["FID"]
    assert judge("C4", rows).holds is None and "there is no FID of Pairing-GAN" in judge("C4", rows).text
