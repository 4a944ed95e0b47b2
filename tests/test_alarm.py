"""Alarms: what begins one, what ends it, what is not enough for one, and that a run tells each once, however often it is continued."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_runs import tiny_args, train, write_data

import train as train_command
from training import alarm
from training.alarm import Setting, find_events, open_alarms
from training.history import History, is_finite, read_history, snapshot_moments, window_means
from training.run_files import RunDir
from training.run_lines import mark_lines, restore_lines

PLAIN = Setting(snapshot_ticks=1)
COMMITTED = pathlib.Path(__file__).parent.parent / "docs" / "results" / "cifar10-small"


def past(images=50_000, **columns):
    """A history with one value per evaluation, at 0, 100, 200, ... kimg, after one of the untrained network; names with a double underscore are
    statistics."""
    figures, signals, length = {}, {}, max(map(len, columns.values()))
    for name, values in columns.items():
        if "__" in name:
            signals[name.replace("__", "/")] = [(100 * i + 0.5, value) for i, value in enumerate(values)]
        else:
            figures[name] = {100 * i: value for i, value in enumerate(values)}
    return History(figures, dict.fromkeys(figures, images), signals), [-100] + [100 * i for i in range(length)]


def told(setting=PLAIN, **columns):
    """(kimg, kind, raised) of every event."""
    return [(event.kimg, event.kind, event.raised) for event in find_events(*past(**columns), setting)]


# Variety.


@pytest.mark.parametrize("name", ["coverage", "prdc10k5_embedded_coverage", "pr50k3_full_recall", "pairing_acc"])
def test_variety_that_falls_while_fid_falls_is_an_alarm_at_the_second_evaluation(name):
    falling = {name: [0.2, 0.6, 0.5, 0.38, 0.35, 0.3], "fid50k_full": [30, 28, 26, 20, 18, 16]}
    assert told(**falling) == [(400, "collapse", True)]
    (event,) = find_events(*past(**falling), PLAIN)
    assert event.since == 200 and event.numbers == {name: 0.35, f"best {name}": 0.5, "fid50k_full": 18, "fid50k_full then": 26}
    assert f"{name} fell from 0.500 at 200 kimg to 0.350 at 400 kimg while fid50k_full went from 26 to 18" in event.text
    assert "a higher --gamma, --pairing-weight=0.05, --aug=ada, more data, or an end at the snapshot of 200 kimg" in event.text


def test_collision_that_grows_is_an_alarm():
    assert told(collision=[0.9, 0.05, 0.06, 0.12, 0.15], fid10k=[50, 30, 25, 20, 18]) == [(400, "collapse", True)]
    (event,) = find_events(*past(collision=[0.9, 0.05, 0.06, 0.12, 0.15], pr50k3_precision=[0.5] * 5), PLAIN)
    assert "collision grew from 0.060 at 200 kimg to 0.150 at 400 kimg: " in event.text
    assert told(collision=[0.9, 0.05, 0.06, 0.04, 0.06], fid10k=[50, 30, 25, 20, 18]) == []


def test_a_run_that_gets_worse_in_every_figure_is_an_alarm():
    """As three of docs/results/cifar10-500.md on 500 images did."""
    worse = dict(fid10k=[20, 12, 10, 10, 15, 13, 10.5], coverage=[0.2, 0.25, 0.25, 0.24, 0.12, 0.13, 0.2])
    assert told(**worse) == [(500, "decline", True), (600, "decline", False)]
    (event, _) = find_events(*past(**worse), PLAIN)
    assert event.since == 300 and event.numbers == {"fid10k": 13, "best fid10k": 10}
    assert event.text.startswith("fid10k rose from 10 at 300 kimg to 13 at 500 kimg: the images get worse; --aug=ada, more data, or an end at")
    assert told(fid10k=[20, 12, 10, 10, 15, 11.5, 14, 10]) == []  # never twice in a row
    assert told(fid10k=[20, 10, 13, 13, 13]) == []  # how well it stood was seen once only


def test_accuracy_of_the_training_counts_unless_its_weight_follows_it():
    falling = dict(Loss__pairing__accuracy=[0.02, 0.02, 0.7, 0.7, 0.5, 0.45], fid10k=[50, 30, 25, 20, 18, 16])
    assert told(Setting(1, pairing=True), **falling) == [(500, "collapse", True)]
    assert told(Setting(1, pairing=True, steered=True), **falling) == []
    (event,) = find_events(*past(**falling), Setting(1, pairing=True, augmentation="ada"))
    assert "the pairing accuracy fell" in event.text and "; a higher --gamma, a higher --pairing-weight, more data" in event.text


@pytest.mark.parametrize(
    "columns",
    [
        dict(coverage=[0.2, 0.5, 0.5, 0.38, 0.35], fid=[50, 30, 31, 35, 40]),  # everything gets worse: no secret
        dict(coverage=[0.5, 0.5, 0.3, 0.49, 0.3, 0.5], fid=[50, 30, 25, 20, 18, 16]),  # never twice in a row
        dict(coverage=[0.5, 0.5, 0.42, 0.44, 0.41], fid=[50, 30, 25, 20, 18]),  # by less than a fifth
        dict(coverage=[0.04, 0.04, 0.02, 0.02, 0.02], fid=[50, 30, 25, 20, 18]),  # by half, but of next to nothing
        dict(precision=[0.5, 0.5, 0.4, 0.3, 0.2], fid=[50, 30, 25, 20, 18]),  # no figure of variety
        dict(coverage_classwise_class3=[0.5, 0.5, 0.3, 0.2, 0.2], fid=[50, 30, 25, 20, 18]),  # one class among many
        dict(coverage=[0.5, 0.5, 0.35, 0.36, 0.35], fid=[50, 30, 25, 20, 18], images=60),  # chance, with so few images
        dict(coverage=[0.5, 0.7, 0.2, 0.2][1:], fid=[50, 30, 20]),  # how high it stood was seen once only
    ],
)
def test_what_is_no_collapse(columns):
    assert told(**columns) == []


@pytest.mark.parametrize(
    "columns",
    [
        dict(x_recall=[1, 1, 0.8, 0.2, 0.1], x_precision=[0, 0.01, 0.1, 0.5, 0.6]),
        dict(collision=[0, 0, 0, 0.05, 0.06], fid=[90, 80, 50, 25, 20]),
        dict(pairing_acc=[0.9, 0.9, 0.8, 0.5, 0.4]),
    ],
)
def test_noise_that_covers_everything_and_never_collides_is_no_better(columns):
    """Images of an untrained generator lie far from each other and from the data, so these figures start at their best."""
    assert told(**columns) == []


def test_the_untrained_network_is_not_what_later_ones_are_held_against():
    history, moments = past(coverage=[0.6, 0.6, 0.3, 0.3])
    assert find_events(history, moments, PLAIN) and not find_events(history, moments[1:], PLAIN)


def test_without_fid_a_fall_is_an_alarm_too():
    assert told(coverage=[0.2, 0.5, 0.5, 0.38, 0.35]) == [(400, "collapse", True)]


def test_an_alarm_is_told_once_until_it_is_over_and_again_after_that():
    coverage = [0.5, 0.5, 0.3, 0.3, 0.25, 0.3, 0.42, 0.46, 0.46, 0.3, 0.3]
    events = find_events(*past(coverage=coverage, fid=[10] * 11), PLAIN)
    assert [(event.kimg, event.raised) for event in events] == [(300, True), (700, False), (1000, True)]
    assert events[1].text == "what was seen at 300 kimg is over"
    assert [event.kimg for event in open_alarms(events)] == [1000] and open_alarms(events[:2]) == []


def test_an_alarm_is_told_when_it_is_seen_whatever_comes_later():
    """Events up to a moment do not depend on what follows it, so a run that is continued tells the same."""
    rng = np.random.default_rng(0)
    raised = 0
    for _ in range(50):
        history, moments = past(coverage=list(rng.uniform(0.1, 0.6, 12)), fid=list(rng.uniform(10, 12, 12)))
        whole = find_events(history, moments, PLAIN)
        raised += len(whole)
        for cut in range(len(moments)):
            figures = {name: {kimg: value for kimg, value in values.items() if kimg <= moments[cut]} for name, values in history.figures.items()}
            shorter = find_events(History(figures, history.images, {}), moments[: cut + 1], PLAIN)
            assert shorter == [event for event in whole if event.kimg <= moments[cut]]
    assert raised > 20


def test_noise_raises_no_alarm():
    """Figures that wander by a twentieth around a rising curve, over 200 runs of 40 evaluations."""
    rng, count = np.random.default_rng(0), 0
    for _ in range(200):
        time = np.arange(40)
        coverage = 0.6 * (1 - np.exp(-time / 8)) * rng.normal(1, 0.05, 40)
        fid = (5 + 50 * np.exp(-time / 8)) * rng.normal(1, 0.05, 40)
        signs = 0.35 + 0.4 * np.exp(-time / 4) + rng.normal(0, 0.05, 40)
        scores = 0.5 + 3 * np.exp(-time / 4) + rng.normal(0, 0.2, 40)
        columns = dict(coverage=coverage, fid=fid, Loss__signs__real=signs, Loss__scores__real=scores, Loss__scores__fake=-scores)
        count += len(told(**{name: list(values) for name, values in columns.items()}))
    assert count == 0


def test_no_alarm_in_the_runs_of_this_repository():
    history = read_history(COMMITTED)
    moments = snapshot_moments(history, 50)
    assert len(moments) == 11 and find_events(history, moments, Setting(50, pairing=True, augmentation="ada")) == []


# The discriminator.

RISING = dict(Loss__signs__real=[0.9, 0.8, 0.5, 0.4, 0.92, 0.95, 0.97, 0.7])


def test_a_discriminator_that_learns_by_heart_is_an_alarm_where_nothing_stops_it():
    assert told(**RISING) == [(500, "overfitting", True), (700, "overfitting", False)]
    assert told(Setting(1, augmentation="fixed"), **RISING) == told(**RISING)
    ada = Setting(1, augmentation="ada")
    assert told(ada, **RISING, Progress__augment=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) == []
    assert told(ada, **RISING, Progress__augment=[0, 0.1, 0.2, 0.3, 0.4, 0.99, 1, 1])[0] == (500, "overfitting", True)
    (event, _) = find_events(*past(**RISING), PLAIN)
    assert (
        "rose from 0.40 at 300 kimg to 0.95 at 500: D learns" in event.text
        and "; --aug=ada, more data, or an end at the snapshot of 300" in event.text
    )


def test_a_discriminator_that_is_ahead_from_the_start_is_none():
    assert told(Loss__signs__real=[0.97, 0.98, 0.95, 0.95, 0.92, 0.8, 0.6]) == []
    high = [15, 14, 13, 12, 11, 8, 4]
    assert told(Loss__scores__real=high, Loss__scores__fake=[0] * 7) == []


def test_a_discriminator_that_is_the_first_to_learn_is_none():
    """It rises in the first thousands of images of every run, before there is a generator to speak of."""
    for kimg, alarms in ((1, 0), (100, 1)):
        signal = [(kimg * i + 0.5, value) for i, value in enumerate([0.1, 0.2, 0.8, 0.97, 0.98, 0.97])]
        history = History({}, {}, {"Loss/signs/real": signal})
        assert len(find_events(history, [kimg * i for i in range(6)], PLAIN)) == alarms


def test_scores_that_drift_apart_are_an_alarm():
    scores = dict(Loss__scores__real=[2, 3, 1, 1, 5, 7, 8, 3], Loss__scores__fake=[-3, -2, -1, -1, -6, -7, -9, -2])
    assert told(**scores) == [(500, "score gap", True), (700, "score gap", False)]
    (event, _) = find_events(*past(**scores), PLAIN)
    assert event.numbers == {"gap": 14, "lowest gap": 2} and "a higher --gamma, --aug=ada" in event.text


# Reading, and runs.


def test_histories_are_read_from_whatever_is_there(tmp_path):
    protocol = {"n_real": 60, "n_fake": 50}
    lines = [
        {"results": {"coverage": 0.5, "bad": float("nan"), "text": "x"}, "snapshot_pkl": "network-snapshot-000004.pkl", "protocol": protocol},
        {"results": {"coverage": 0.25}, "snapshot_pkl": "network-snapshot-000004.safetensors"},
        {"results": {"coverage": 0.125}, "snapshot_pkl": "network-snapshot-000002.safetensors"},
        {"results": {"coverage": 9}, "snapshot_pkl": None},
        {"results": 3, "snapshot_pkl": "network-snapshot-000006.safetensors"},
        [1],
    ]
    (tmp_path / "metric-coverage.jsonl").write_bytes(b"\n".join(json.dumps(line).encode() for line in lines) + b'\n{"results": {"cov\xff')
    stats = [{"Progress/kimg": {"mean": kimg}, "a": {"mean": kimg * 2}, "b": {"mean": None}, "timestamp": 1} for kimg in (1.5, 2.5)]
    (tmp_path / "stats.jsonl").write_text("\n".join(map(json.dumps, [*stats, {"a": {"mean": 3}}, "x"])) + '\n{"torn')
    history = read_history(tmp_path)
    assert history.figures == {"coverage": {2: 0.125, 4: 0.25}} and history.images == {"coverage": 50}
    assert history.signals == {"Progress/kimg": [(1.5, 1.5), (2.5, 2.5)], "a": [(1.5, 3.0), (2.5, 5.0)]}
    assert read_history(tmp_path / "absent") == History({}, {}, {})
    assert not any(map(is_finite, [True, None, "1", float("inf"), 10**400])) and is_finite(-3)


def test_moments_are_those_of_the_snapshots():
    ticks = [(0.1, 0), (4.1, 1), (8.2, 2), (12.3, 3), (16.4, 4)]
    history = History({"fid": {20: 1.0}}, {}, {"Progress/tick": ticks})
    assert snapshot_moments(history, 2) == [0, 8, 16, 20] and snapshot_moments(history, 3, now=17) == [0, 12, 17, 20]
    assert window_means([(0.1, 1), (4.1, 2), (8.2, 4), (30, 9)], [0, 8, 16]) == [1, 3, None]


@pytest.fixture(scope="module")
def seen():
    """An alarm in every training from 1 kimg on."""

    def look(past, active):
        return alarm._Finding(0, "something was seen", {"number": 1.0}) if past.now >= 1 else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(alarm.LOOKS, "score gap", look)
        yield


@pytest.fixture(scope="module")
def run(seen, tmp_path_factory):
    """A run of three snapshots, with an alarm at the second."""
    place = tmp_path_factory.mktemp("run")
    return train(write_data(place / "pics.zip"), place / "run", batch=252, kimg=2, tick=1, snap=1)


def alarms(run):
    return [json.loads(text) for text in (run / "alarms.jsonl").read_text().splitlines()]


def test_a_run_tells_an_alarm_once_and_writes_it_down(run):
    (line,) = alarms(run)
    assert (line["kind"], line["raised"], line["kimg"], line["numbers"]) == ("score gap", True, 1, {"number": 1.0})
    text = "Alarm (score gap): something was seen; a higher --gamma, more data, or an end at the snapshot of 0 kimg may help.\n"
    assert {"since", "text", "timestamp"} <= line.keys() and (run / "log.txt").read_text().count(text) == 1


def test_a_continued_run_neither_repeats_nor_loses_an_alarm(run, tmp_path):
    again = pathlib.Path(shutil.copytree(run, tmp_path / "again"))
    RunDir(again).state(2).unlink()
    assert CliRunner().invoke(train_command.main, [f"--continue-run={again}"], catch_exceptions=False).exit_code == 0
    assert alarms(again) == alarms(run) and RunDir(again).states() == [1, 2]


def test_a_state_from_before_the_alarm_takes_it_back_and_it_is_told_again(run, tmp_path):
    again = RunDir(shutil.copytree(run, tmp_path / "again"))
    args = json.loads((again / "training_options.json").read_text())
    assert alarm.watch(again, args, 1) == [] and alarms(again.path) == alarms(run)
    assert restore_lines(again.path, mark_lines(again.path), 0) == 0
    assert alarms(again.path) == []
    (line,) = alarm.watch(again, args, 1)
    assert line.startswith("Alarm (score gap): ") and len(alarms(again.path)) == 1


def test_alarms_that_cannot_be_written_are_told_all_the_same(run, tmp_path):
    again = RunDir(shutil.copytree(run, tmp_path / "again"))
    (again / "alarms.jsonl").unlink()
    (again / "alarms.jsonl").mkdir()
    first, second = alarm.watch(again, json.loads((again / "training_options.json").read_text()), 1)
    assert first.startswith("Alarm (score gap): ") and "alarms.jsonl cannot be written: Is a directory" in second


def test_the_setting_is_read_from_our_options_and_from_those_of_stylegan2_ada(tmp_path):
    data = write_data(tmp_path / "pics.zip")
    ours = tiny_args(data, tmp_path, pairing_weight=0.05, pairing_target=0.5, snap=7)
    assert Setting.of(ours) == Setting(7, True, True, "ada")
    assert Setting.of(tiny_args(data, tmp_path, aug="fixed", p=0.2)).augmentation == "fixed"
    assert Setting.of(tiny_args(data, tmp_path, aug="noaug")).augmentation == "noaug"
    theirs = {"network_snapshot_ticks": 50, "ada_target": 0.6, "augment_kwargs": {"class_name": "training.augment.AugmentPipe"}}
    assert Setting.of(theirs) == Setting(50, augmentation="ada") and Setting.of({}) == Setting(50)
