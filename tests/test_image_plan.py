"""Image experiments as data, plans of them, what is found of runs, runs from elsewhere that are adopted, and estimates of time and space."""

import dataclasses
import json
import pathlib
import re
import shutil

import pytest
from image_plans import fake_run, smoke_plan

from dnnlib import UserError
from experiments.images import show, speed
from experiments.images.adopt import _counterpart, adopt
from experiments.images.budgets import BUDGETS
from experiments.images.claims import CLAIMS
from experiments.images.disk import needed_bytes
from experiments.images.experiments import EXPERIMENTS, choose
from experiments.images.methods import METHODS, recognise
from experiments.images.plan import Choice, make_plan, read_plans, remember_plan, run_key
from experiments.images.planned_config import configuration, difference, inspect_data
from experiments.images.results import load_tables
from experiments.images.run_state import SHEET, SHEET_NUMBERS, RunState
from experiments.images.speed import Speed, cost_class, schedule
from experiments.paper import numbers
from experiments.paper.toy_experiments import EXPERIMENTS as TOY_EXPERIMENTS
from training.dataset_sources import open_source
from training.dataset_writer import convert_dataset, make_transform

PAPER = ("table3", "table4", "tableB", "tableC", "figure4", "figure5")


@pytest.fixture
def plan(tmp_path):
    return smoke_plan(tmp_path / "out")


# Data.


def test_every_experiment_names_what_there_is():
    for experiment in EXPERIMENTS.values():
        for row in experiment.rows:
            if not row.method:
                assert row.paper and row.label
                continue
            assert row.method in METHODS
            for budget in BUDGETS.values():
                regime = budget.regimes[budget.setting(row.setting)]
                assert -1 <= row.mark < len(regime.all_marks)
                assert budget.r1_weight(budget.setting(row.setting), METHODS[row.method].augmentation).reason
        for claim in experiment.claims:
            assert set(CLAIMS[claim].methods) <= {row.method for row in experiment.rows}


def test_the_papers_tables_are_there_with_their_figures():
    assert tuple(experiment.name for experiment in choose(("all",))) == PAPER
    published = {row.method: row.paper for row in EXPERIMENTS["table3"].rows}
    assert published == numbers.TABLE3 and published["Pairing-GAN"]["FID"] == 8.597 and published["MS-GAN(+R1)"]["recall"] == 0.276
    assert {row.method: row.paper for row in EXPERIMENTS["table4"].rows} == numbers.TABLE4
    unassigned = [row for row in EXPERIMENTS["tableB"].rows if not row.method]
    assert [row.paper["recall"] for row in unassigned] == [0.425, 0.422]
    assert all("unassigned" in row.label for row in unassigned)
    weights = [METHODS[row.method].options[1] for row in EXPERIMENTS["tableC"].rows[1:]]
    assert weights == [f"--pairing-weight={weight}" for weight in (0.01, 0.05, 0.1)]


def test_names_are_told_apart():
    assert not set(EXPERIMENTS) & set(TOY_EXPERIMENTS)
    assert len({method.slug for method in METHODS.values()}) == len(METHODS)
    assert all(re.fullmatch(r"[a-z0-9.-]+", method.slug) for method in METHODS.values())
    regimes = {(budget.name, setting) for budget in BUDGETS.values() for setting in budget.regimes}
    keys = [run_key(budget, setting, method, 0) for budget, setting in regimes for method in METHODS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("names", [("table9",), (), ("table1",)])
def test_an_unknown_experiment_is_refused(names):
    with pytest.raises(UserError, match="choose among table3, "):
        choose(names)


def test_the_smoke_budget_is_no_stand_in_for_the_paper():
    smoke, paper = BUDGETS["smoke"], BUDGETS["paper"]
    assert "no result" in smoke.title
    assert not {smoke.figure(column) for column in smoke.columns} & {paper.figure(column) for column in paper.columns}
    assert paper.figure("coverage") == "prdc50k3_coverage" and paper.figure("FID") == "fid50k_full"
    assert BUDGETS["short"].figure("FID") == "fid10k_embedded" and smoke.figure("FID") is None


# Plans.


def test_every_run_of_every_experiment_is_a_command_that_train_py_takes(tmp_path):
    plan = smoke_plan(tmp_path, *EXPERIMENTS, seeds=2)
    assert len({run.key for run in plan.runs}) == len(plan.runs) and {run.seed for run in plan.runs} == {0, 1}
    for run in plan.runs:
        assert run.options["total_kimg"] == run.kimg and run.options["random_seed"] == run.seed
        assert recognise(run.options) == run.method
        augmentation = "ada" if "ada_target" in run.options else "noaug"
        assert augmentation == METHODS[run.method].augmentation
        assert run.command.startswith(f"python train.py --outdir={run.parent.as_posix()} ")
    pairing = next(run for run in plan.runs if run.method == "Pairing-GAN").options
    slower = recognise(pairing | {"P_opt_kwargs": {"lr": 0.001}})
    assert slower.startswith("StyleGAN2, pairing weight 0.05") and slower.endswith("pairing lr 0.001")
    own_term = recognise(pairing | {"loss_kwargs": pairing["loss_kwargs"] | {"other_weight": 0.3}})
    assert ", other weight 0.3, " in own_term and own_term not in METHODS
    r3gan = next(run for run in plan.runs if run.method == "R3GAN")
    assert r3gan.options["loss_kwargs"]["r2_gamma"] == r3gan.options["loss_kwargs"]["r1_gamma"] == 0.1


def test_tables_share_their_runs(tmp_path):
    alone = smoke_plan(tmp_path, "table3")
    both = smoke_plan(tmp_path, "table3", "figure4", "tableB")
    assert set(alone.runs[0].experiments) == {"table3"} and {run.key for run in alone.runs} < {run.key for run in both.runs}
    assert both.runs[0].experiments == ("table3", "figure4", "tableB") and len(both.runs) == 5


def test_columns_that_only_the_end_has_are_measured_for_tables_that_show_them(tmp_path):
    choice = Choice(("table3", "latents"), "short", tmp_path, smoke_plan(tmp_path).data)
    assert {run.end_metrics for run in make_plan(choice).runs} == {("coverage_classwise", "collision", "pairing_acc")}
    assert {run.end_metrics for run in make_plan(dataclasses.replace(choice, names=("table3",))).runs} == {()}
    assert {run.end_metrics for run in smoke_plan(tmp_path, "collapse-2000", "nearest-2000").runs} == {("nearest10k",)}
    (smoke,) = {run.end_metrics for run in smoke_plan(tmp_path, "latents").runs}
    assert smoke == ("coverage_classwise",)  # minutes of a probe are no test of the machinery


def test_subsets_are_measured_against_all_images(tmp_path):
    for run in smoke_plan(tmp_path, "collapse-500").runs:
        assert run.options["training_set_kwargs"]["max_size"] == 20 and f"--data={tmp_path.as_posix()}/data/digits.zip" in run.measuring


def test_the_short_budget_is_what_the_notes_prescribe(plan, tmp_path):
    choice = Choice(("table3", "table4"), "short", tmp_path, plan.data)  # a stand-in for CIFAR-10
    runs = {(run.method, run.seed): run for run in make_plan(choice).runs}
    assert {seed for _, seed in runs} == {0, 1, 2} and len(runs) == 18
    command = runs["Pairing-GAN", 2].command
    for option in ("cfg=cifar-small", "aug=noaug", "gamma=0.1", "kimg=60", "tick=5", "snap=3", "pairing-weight=0.05", "seed=2", "metrics=none"):
        assert f"--{option}" in command.split()
    assert runs["MS-GAN(+R1)", 0].metrics == ("fid10k", "prdc10k5") and runs["MS-GAN(+R1)", 0].measuring[0] == "--detector=embedded"
    assert runs["StyleGAN2-ADA", 0].options["loss_kwargs"]["r1_gamma"] == 0.01


def test_data_that_are_not_there_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no such file or folder; make it with"):
        make_plan(Choice(("table3",), "short", tmp_path, str(tmp_path / "absent.zip")))


def test_plans_of_a_folder_add_up(plan, tmp_path):
    remember_plan(plan, None)
    remember_plan(smoke_plan(plan.choice.out, "table4", seeds=2), 12.0)
    saved = read_plans(plan.choice.out)["smoke"]
    assert saved["experiments"] == ["figure4", "table4"] and saved["seeds"] == 2 and saved["costed"] == ["table4"] and len(saved["runs"]) == 9
    assert saved["seeds_of"] == {"figure4": 1, "table4": 2}
    notes = {table.name: table.note for table in load_tables(plan.choice.out)}
    assert "Planned runs that are not there: 3." in notes["figure4"] and "Planned runs that are not there: 6." in notes["table4"]
    del saved["seeds_of"]  # as plans had it once
    (plan.choice.out / "plan.json").write_text(json.dumps({"budgets": {"smoke": {**saved, "seeds": 1}}}))
    remember_plan(smoke_plan(plan.choice.out, "tableC", seeds=3), None)
    assert read_plans(plan.choice.out)["smoke"]["seeds_of"] == {"figure4": 1, "table4": 1, "tableC": 3}
    (plan.choice.out / "plan.json").write_text('{"budgets": {"smoke": {}}}')
    with pytest.raises(UserError, match="is no plan"):
        read_plans(plan.choice.out)


DAMAGED = [{"seeds": "3"}, {"seeds": 0}, {"seeds_of": {"a": "2"}}, {"data": None}, {"gpus": 1.5}, {"device": 7}, {"precision": []}, {"runs": []}]


@pytest.mark.parametrize("change", DAMAGED)
def test_a_plan_with_damaged_fields_is_one_sentence(plan, change):
    remember_plan(plan, None)
    path = plan.choice.out / "plan.json"
    saved = json.loads(path.read_text())
    saved["budgets"]["smoke"] |= change
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"plan\.json is no plan"):
        read_plans(plan.choice.out)


def test_runs_of_other_machines_fit_the_same_plan(plan, tmp_path):
    assert all("--precision=fp32" in run.arguments and run.options["G_kwargs"]["synthesis_kwargs"]["num_fp16_res"] == 0 for run in plan.runs)
    low = smoke_plan(tmp_path / "low", precision="bf16").runs[0]
    assert low.options["D_kwargs"]["low_precision"] == "bfloat16" and cost_class(low) != cost_class(plan.runs[0])
    fake_run(dataclasses.replace(plan.runs[0], parent=low.parent))
    with pytest.raises(UserError, match=r"low_precision absent instead of bfloat16"):
        low.look()


# What exists.


def test_a_run_is_found_by_its_files(plan):
    run = plan.runs[0]
    assert str(run.look()) == "missing"
    (run.parent / "00000-begun").mkdir(parents=True)  # killed before it wrote its options
    assert str(run.look()) == "missing"
    folder = fake_run(run)
    assert str(run.look()) == "finished, 0 of 2 snapshots measured, sheets missing" and run.look().path == folder
    lines = [json.dumps({"snapshot_pkl": f"network-snapshot-{kimg:06d}.safetensors", "results": {}}) for kimg in (0, run.kimg)]
    (folder / "metric-prdc10k5_embedded.jsonl").write_text("\n".join(lines))
    assert not run.look().is_measured
    (folder / SHEET).touch()
    for name, looked_at in ((None, False), ("network-snapshot-000000.safetensors", False), (f"network-snapshot-{run.kimg:06d}.safetensors", True)):
        (folder / SHEET_NUMBERS).write_text(json.dumps({"fake": name}))
        assert run.look().is_measured == looked_at
    (folder / f"network-snapshot-{run.kimg:06d}.safetensors").unlink()
    (folder / "training-state-000000.pt").write_text("")
    assert str(run.look()) == "partial at 0 kimg"


@pytest.mark.parametrize("place", ["device", "precision", "ops", "graphs", "metrics", "keep_snapshots", "run_dir", "image_snapshot_ticks"])
def test_where_a_run_was_made_does_not_matter(plan, place):
    fake_run(plan.runs[0], **{place: "elsewhere"})
    assert plan.runs[0].look().finished


@pytest.mark.parametrize("place", ["batch_size", "loss_kwargs__r1_gamma", "G_kwargs__z_dim", "random_seed", "network_snapshot_ticks"])
def test_other_settings_are_refused_by_name(plan, place):
    fake_run(plan.runs[0], **{place: 12345})
    with pytest.raises(UserError, match=rf"other settings \({place.replace('__', '.')} 12345 instead of "):
        plan.runs[0].look()


def test_damaged_options_are_one_sentence(plan):
    (fake_run(plan.runs[0]) / "training_options.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        plan.runs[0].look()


def test_data_may_move_but_not_change(plan, tmp_path):
    moved = tmp_path / "elsewhere.zip"
    moved.write_bytes(pathlib.Path(plan.data).read_bytes())
    folder = fake_run(plan.runs[0], training_set_kwargs__path=str(moved))
    assert plan.runs[0].look().finished
    other = smoke_plan(tmp_path / "other").data
    moved.write_bytes(pathlib.Path(other).read_bytes()[:-1000])
    with pytest.raises(UserError):
        plan.runs[0].look()
    assert folder.exists()


def test_differences_are_of_settings_alone():
    assert difference({"a": 1, "run_dir": "x"}, {"a": 1, "run_dir": "y"}) == ""
    assert difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b 1 instead of 2"
    assert difference({}, {"a": 2}) == "a absent instead of 2"


# Runs made by hand.


def by_hand(plan, tmp_path, index=0, **changes):
    """A run of the plan in a folder of its own."""
    run = plan.runs[index]
    return fake_run(dataclasses.replace(run, parent=tmp_path / f"hand{index}"), **changes)


@pytest.mark.parametrize("copy", [False, True])
def test_runs_that_fit_are_adopted(plan, tmp_path, copy):
    choice = dataclasses.replace(plan.choice, names=("figure4",))
    paths = [by_hand(plan, tmp_path, 0, ops="reference"), by_hand(plan, tmp_path, 2).parent]
    taken = adopt(paths, choice, copy)
    assert [run.key for run in taken] == [plan.runs[0].key, plan.runs[2].key] and all(run.look().finished for run in taken)
    assert [run.look().path.is_symlink() for run in taken] == [not copy] * 2
    assert adopt(paths, choice, copy) == taken if not copy else True  # again changes nothing


def test_a_run_of_a_further_seed_is_adopted(plan, tmp_path):
    assert adopt([by_hand(plan, tmp_path, random_seed=4)], dataclasses.replace(plan.choice, names=("figure4", "table4")))[0].seed == 4
    (saved,) = read_plans(plan.choice.out).values()  # so that tables look for it
    assert saved["seeds_of"] == {"figure4": 5} and saved["experiments"] == ["figure4"]


def test_adopting_leaves_device_and_processes_as_they_were_planned(plan, tmp_path):
    several = smoke_plan(tmp_path / "several", gpus=2, device="cpu")
    remember_plan(several, None)
    (run,) = adopt([by_hand(several, tmp_path)], dataclasses.replace(several.choice, gpus=1, device="auto"))
    (saved,) = read_plans(tmp_path / "several").values()
    assert (saved["gpus"], saved["device"], run.gpus) == (2, "cpu", 2) and run.look().finished


@pytest.mark.parametrize("seed", [None, "0", -1, 100, True])
def test_a_run_without_a_seed_of_plans_is_not_adopted(plan, tmp_path, seed):
    with pytest.raises(UserError, match=rf"has the seed {seed!r}, and plans count"):
        adopt([by_hand(plan, tmp_path, random_seed=seed)], plan.choice)


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_of_any_name_is_adopted(plan, tmp_path, copy):
    named = by_hand(plan, tmp_path).rename(tmp_path / "my best run")
    (run,) = adopt([named], plan.choice, copy)
    assert run.look().finished and run.look().path.name == "00000-my best run"


@pytest.mark.parametrize(("reached", "taken"), [(7, 1), (10, 0), (1, 1)])
def test_a_run_is_adopted_for_the_longest_plan_that_it_is_finished_for(plan, tmp_path, reached, taken):
    short = plan.runs[0]
    long = dataclasses.replace(short, key="longer", kimg=10, parent=tmp_path / "longer")
    hand = by_hand(plan, tmp_path, total_kimg=reached)
    (hand / f"network-snapshot-{reached:06d}.safetensors").write_text("")
    assert _counterpart(hand, dataclasses.replace(plan, runs=(short, long))) is (long, short)[taken]


def test_a_longer_run_is_adopted(plan, tmp_path):
    """It holds what the plan wants; tables look at the plan's kimg."""
    (run,) = adopt([by_hand(plan, tmp_path, 0, total_kimg=7)], plan.choice)
    assert run.key == plan.runs[0].key and run.look().finished


def test_runs_that_do_not_fit_are_refused_by_name_and_none_is_taken(plan, tmp_path):
    good = by_hand(plan, tmp_path, 0)
    for found, changes in (("ema_kimg 7 instead of ", {"ema_kimg": 7}), ("batch_size 8 instead of 32", {"batch_size": 8})):
        bad = fake_run(dataclasses.replace(plan.runs[1], parent=tmp_path / found), **changes)
        with pytest.raises(UserError, match=found):
            adopt([good, bad], plan.choice)
    other = fake_run(dataclasses.replace(plan.runs[1], parent=tmp_path / "other"), loss_kwargs__pairing_weight=0.3)
    with pytest.raises(UserError, match=r"pairing weight 0\.3.* is no method of this project"):
        adopt([good, other], plan.choice)
    with pytest.raises(UserError, match="is no run folder"):
        adopt([good, tmp_path / "nowhere"], plan.choice)
    (good / f"network-snapshot-{plan.runs[0].kimg:06d}.safetensors").unlink()
    with pytest.raises(UserError, match="is not finished"):
        adopt([good], plan.choice)
    assert not any(run.look().path for run in plan.runs)


def test_the_plans_of_a_folder_are_on_one_set_in_one_precision(plan, tmp_path):
    remember_plan(plan, None)
    other = tmp_path / "other" / "digits.zip"
    other.parent.mkdir()
    convert_dataset(open_source("digits", max_images=50), str(other), make_transform(None, 16, 16, "box"))
    with pytest.raises(UserError, match=r"other.digits\.zip: .*plan\.json has a plan of this budget with --data=.*digits\.zip"):
        smoke_plan(plan.choice.out, "table3", data=str(other))
    with pytest.raises(UserError, match=r"--precision=bf16: .* with --precision=fp32.* or remove .*plan\.json"):
        smoke_plan(plan.choice.out, precision="bf16")
    moved = shutil.copy(plan.data, tmp_path / "renamed.zip")
    assert smoke_plan(plan.choice.out, "table3", data=str(moved), precision="fp32").data == str(moved)  # the same in other words
    (plan.choice.out / "plan.json").unlink()
    assert smoke_plan(plan.choice.out, data=str(other)).data == str(other)


# Time and space.


def test_time_is_what_is_left_at_the_measured_speed(plan):
    measured = Speed(plan.choice.out)
    first, *others = plan.runs
    assert measured.left(first).total is None
    measured.training.update({cost_class(run): 3.0 for run in plan.runs})
    assert (measured.left(first).training, measured.left(first).measuring) == (3.0 * first.kimg, None)
    measured.measuring[speed.metric_class(first, first.metrics)] = 0.5
    assert measured.left(first).total == 3.0 * first.kimg + 0.5 * first.snapshots
    fake_run(first)
    assert measured.left(first).total == 1.0
    measured.save()
    assert Speed(plan.choice.out).left(others[0]).total == 3.0 * first.kimg + 0.5 * first.snapshots
    text = show.show_plan(plan, measured, slots=2)
    assert "3 runs: 0 measured, 1 begun, 2 missing. About 5s on" in text and "[missing]" in text and f"    {first.command}\n" in text


def test_speeds_of_a_machine_that_are_known_in_two_places_are_joined(tmp_path):
    for folder, kinds in (("a", {"small": 1.0, "both": 2.0}), ("b", {"large": 9.0, "both": 3.0})):
        measured = Speed(tmp_path / folder)
        measured.training.update(kinds)
        measured.save()
    speed.join_speeds(tmp_path / "a", tmp_path / "b")
    assert Speed(tmp_path / "b").training == {"small": 1.0, "both": 2.0, "large": 9.0}


def test_a_run_that_is_archived_before_its_end_has_to_be_made_anew(plan, monkeypatch):
    measured = Speed(plan.choice.out)
    run = plan.runs[0]
    measured.training[cost_class(run)] = 3.0
    measured.measuring[speed.metric_class(run, run.metrics)] = 0.5
    whole = measured.left(run).total
    monkeypatch.setattr(type(run), "look", lambda self: RunState(plan.choice.out, kimg=1, snapshots=1, measured=1, archived=True))
    assert measured.left(run).total == whole


def test_metrics_of_the_end_take_their_own_time(tmp_path):
    run = smoke_plan(tmp_path, "latents").runs[0]
    measured = Speed(tmp_path)
    measured.training[cost_class(run)], (every, end) = 3.0, speed.metric_classes(run)
    measured.measuring[every] = 0.5
    assert measured.left(run).measuring is None
    measured.measuring[end] = 7.0
    assert measured.left(run).measuring == 0.5 * run.snapshots + 7.0
    fake_run(run)
    assert measured.left(run).total == 2 * 0.5 + 7.0


def test_two_processes_keep_each_others_speeds(plan):
    one, other = Speed(plan.choice.out), Speed(plan.choice.out)
    one.training["a"] = 1.0
    one.save()
    other.training |= {"b": 2.0}
    other.measuring["m"] = 3.0
    other.save()
    assert other.training == {"a": 1.0, "b": 2.0}
    other.training["a"] = 4.0
    other.save()
    one.training["c"] = 5.0
    one.save()  # knows an older "a"
    assert Speed(plan.choice.out).training == {"a": 4.0, "b": 2.0, "c": 5.0} and Speed(plan.choice.out).measuring == {"m": 3.0}


def test_weights_do_not_change_the_cost_class(tmp_path):
    runs = {run.method: run for run in smoke_plan(tmp_path, "tableC", "larger-embedding", "larger-towers", "table4").runs}
    assert cost_class(runs["Pairing-GAN"]) == cost_class(runs["Pairing-GAN(.10)"]) != cost_class(runs["StyleGAN2"])
    others = ("Pairing-GAN", "Pairing-GAN(512)", "Pairing-GAN(wide)", "Pairing-GAN-ADA", "MS-GAN(+R1)-ADA")
    assert len({cost_class(runs[name]) for name in others}) == 5


def test_runs_are_handed_out_in_order():
    assert schedule([3, 1, 1, 1], 2) == 3 and schedule([1, 1, 1], 1) == 3 and schedule([], 2) == 0


def test_a_damaged_speed_file_is_one_sentence(plan):
    for text in ("{", '{"machines": {"here": {}}}'):
        (plan.choice.out / "speed.json").write_text(text)
        with pytest.raises(UserError, match="speeds are measured again"):
            Speed(plan.choice.out)


def test_space_follows_the_networks(plan, tmp_path):
    small = needed_bytes(dataclasses.replace(plan, runs=plan.runs[:1]))
    assert needed_bytes(plan) > 2 * small
    arguments = [argument.replace("cfg=demo", "cfg=cifar") for argument in plan.runs[0].arguments]
    large = dataclasses.replace(plan.runs[0], options=configuration(arguments, inspect_data(plan.data)))
    assert needed_bytes(dataclasses.replace(plan, runs=(large,))) > 10 * small
    fake_run(plan.runs[0])
    assert needed_bytes(dataclasses.replace(plan, runs=plan.runs[:1])) == 0
