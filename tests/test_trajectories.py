"""Runs over training: points, bands and groups are those of the lines; different protocols are refused; pictures and numbers are written whole."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dnnlib import UserError
from metrics import report, runs, trajectories, trajectory_figures

PROTOCOL = {"detector": "vgg16", "detector_digest": "ab" * 32, "n_real": 50000, "n_fake": 50000, "k": 3, "seed": 0, "dataset": "cd" * 32}
OPTIONS = {"random_seed": 0, "run_dir": "runs/a", "metrics": [], "G_opt_kwargs": {"lr": 0.002}, "D_opt_kwargs": {"lr": 0.002}, "batch_size": 32}


def write_run(folder, curves, options=None, protocol=PROTOCOL, metric="prdc50k3"):
    """A run directory with one file: curves {figure: {kimg: value}}, all of one metric."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for kimg in dict.fromkeys(kimg for curve in curves.values() for kimg in curve):
        results = {figure: curve[kimg] for figure, curve in curves.items() if kimg in curve}
        line = {"results": results, "metric": metric, "snapshot_pkl": f"network-snapshot-{kimg:06d}.safetensors"}
        lines.append(line if protocol is None else {**line, "protocol": protocol})
    append(folder, metric, lines)
    if options is not None:
        (folder / "training_options.json").write_text(json.dumps(options))
    return folder


def append(folder, metric, lines):
    with open(folder / f"metric-{metric}.jsonl", "a") as handle:
        handle.writelines(json.dumps(line) + "\n" for line in lines)


def write_seeds(root, name, values, **options):
    """Runs with seeds 0, 1, ... whose coverage at 0 and 100 kimg is given."""
    return [
        write_run(root / f"{name}{seed}", {"prdc50k3_coverage": dict(zip((0, 100), pair))}, {**OPTIONS, "random_seed": seed, **options})
        for seed, pair in enumerate(values)
    ]


def values_of(run, figure):
    return {kimg: point.value for kimg, point in run.points[figure].items()}


def test_points_rise_in_kimg_and_the_last_measurement_counts(tmp_path):
    folder = write_run(tmp_path / "a", {"fid50k": {20: 3.0, 0: 9.0, 10: 7.0}}, metric="fid50k")
    write_run(folder, {"fid50k": {10: 6.0}}, metric="fid50k")
    (run,) = runs.load_runs([folder, str(folder), tmp_path / "a" / ".." / "a"])
    assert list(values_of(run, "fid50k").items()) == [(0, 9.0), (10, 6.0), (20, 3.0)]


@pytest.mark.parametrize(
    "damage",
    [
        '{"results": {"fid50k": 1.0',
        "",
        "[]",
        '{"results": {"fid50k": 1.0}}',
        '{"results": {"fid50k": 1.0}, "snapshot_pkl": null}',
        '{"results": {"fid50k": "x"}, "snapshot_pkl": "network-snapshot-000001.pkl"}',
        '{"results": {"fid50k": 1.0}, "snapshot_pkl": "network-snapshot-000001.pkl", "protocol": "mine"}',
        "\udcff",
        '{"results": {"fid50k": 1' + 400 * "0" + '}, "snapshot_pkl": "network-snapshot-000001.pkl"}',
    ],
)
def test_damaged_lines_are_named_by_file_and_number(tmp_path, damage):
    folder = write_run(tmp_path / "a", {"fid50k": {0: 9.0}}, metric="fid50k")
    with open(folder / "metric-fid50k.jsonl", "a", errors="surrogateescape") as handle:
        handle.write(damage + "\n")
    with pytest.raises(UserError, match=r"metric-fid50k\.jsonl, line 2"):
        runs.load_runs([folder])


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999"])
def test_a_figure_that_is_not_finite_is_no_measurement(tmp_path, value):
    folder = write_run(tmp_path / "a", {"fid50k": {0: 9.0}}, metric="fid50k")
    with open(folder / "metric-fid50k.jsonl", "a") as handle:
        for snapshot in (0, 1):
            handle.write(f'{{"results": {{"fid50k": {value}}}, "snapshot_pkl": "network-snapshot-{snapshot:06d}.pkl"}}\n')
    (run,) = runs.load_runs([folder])
    assert values_of(run, "fid50k") == {0: 9.0}


def test_a_network_that_tells_no_moment_has_no_place_in_curves(tmp_path):
    folder = write_run(tmp_path / "a", {"fid50k": {0: 9.0, 5: 8.0}}, metric="fid50k")
    line = {"results": {"fid50k": 1.0}, "metric": "fid50k", "snapshot_pkl": "network-snapshot-best.safetensors", "protocol": PROTOCOL}
    append(folder, "fid50k", [line])
    (run,) = runs.load_runs([folder])
    assert {kimg: point.value for kimg, point in run.points["fid50k"].items()} == {0: 9.0, 5: 8.0}


def test_what_is_missing_or_unreadable_is_named(tmp_path):
    with pytest.raises(UserError, match="no run is given"):
        runs.load_runs([])
    with pytest.raises(UserError, match=r"holds no measurements \(metric-\*\.jsonl\)"):
        runs.load_runs([tmp_path])
    folder = write_run(tmp_path / "a", {"fid50k": {0: 9.0}}, metric="fid50k")
    for text in ("{", "[1]"):
        (folder / "training_options.json").write_text(text)
        with pytest.raises(UserError, match=r"training_options\.json"):
            runs.load_runs([folder])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_fake": 10000}, "n_fake is 50000 in the first and 10000 in the second"),
        ({"k": 5}, "k is 3 in the first and 5"),
        ({"detector_digest": "ef" * 32}, r"detector_digest is abababababab\.\.\. in the first and efefefefefef\.\.\."),
        ({"dataset": "00" * 32}, "dataset is"),
        ({"code_version": "0.2"}, "code_version is absent in the first and 0.2"),
        ({"seed": 1, "k": 5}, "k is 3 .*; seed is 0 in the first and 1"),
    ],
)
def test_figures_measured_in_two_ways_are_refused_with_the_difference(tmp_path, change, said):
    a = write_run(tmp_path / "a", {"coverage": {0: 0.1}}, metric="coverage")
    b = write_run(tmp_path / "b", {"coverage": {0: 0.1}}, metric="coverage", protocol={**PROTOCOL, **change})
    with pytest.raises(UserError, match=f"coverage of .*a.*line 1, and of .*b.*line 1, cannot be compared: .*{said}"):
        runs.load_runs([a, b])
    write_run(a, {"coverage": {5: 0.1}}, metric="coverage", protocol={**PROTOCOL, **change})
    with pytest.raises(UserError, match=f"line 1, and of .*line 2, cannot be compared: .*{said}"):
        runs.load_runs([a])


def test_an_old_measurement_that_was_repeated_by_another_protocol_does_no_harm(tmp_path):
    folder = write_run(tmp_path / "a", {"coverage": {0: 0.1, 5: 0.2}}, metric="coverage", protocol={**PROTOCOL, "code_version": "0"})
    write_run(folder, {"coverage": {0: 0.3, 5: 0.4}}, metric="coverage")
    assert values_of(runs.load_runs([folder])[0], "coverage") == {0: 0.3, 5: 0.4}


def test_what_a_figure_is_read_against_is_no_part_of_how_it_was_measured(tmp_path):
    """Older lines of collision say by chance, newer ones among real images."""
    notes = [{}, {"chance": 0.0003}, {"among_real": 0.001}, {"among_real": 0.002}]
    protocols = [{**PROTOCOL, **note} for note in notes]
    folders = [write_run(tmp_path / str(i), {"collision": {0: 0.1}}, metric="collision", protocol=own) for i, own in enumerate(protocols)]
    assert len(runs.load_runs(folders)) == 4
    for folder in folders:
        for own in protocols:
            assert report.is_measured(folder, "collision", "network-snapshot-000000.safetensors", own)
        assert not report.is_measured(folder, "collision", "network-snapshot-000000.safetensors", {**PROTOCOL, "k": 5})


def test_lines_without_a_protocol_stand_only_beside_each_other(tmp_path):
    old = [write_run(tmp_path / name, {"fid50k": {0: 9.0}}, metric="fid50k", protocol=None) for name in "ab"]
    assert len(runs.load_runs(old)) == 2
    new = write_run(tmp_path / "c", {"fid50k": {0: 9.0}}, metric="fid50k")
    with pytest.raises(UserError, match="protocol is not recorded in the first and recorded in the second"):
        runs.load_runs([*old, new])


def test_runs_that_differ_by_seed_and_folder_only_are_one_group_with_a_band(tmp_path):
    folders = write_seeds(tmp_path, "a", [(0.1, 0.5), (0.2, 0.7), (0.3, 0.6)])
    (group,) = runs.group_runs(runs.load_runs(folders))
    (band,) = group.bands("prdc50k3_coverage")
    assert band.kimg.tolist() == [0, 100]
    np.testing.assert_allclose(band.mean, [0.2, 0.6])
    assert (band.values.min(axis=0).tolist(), band.values.max(axis=0).tolist()) == ([0.1, 0.5], [0.3, 0.7])
    assert [run.seed for run in group.runs] == [0, 1, 2]


def test_runs_of_several_lengths_are_one_group_over_what_they_share(tmp_path):
    """The ticks of a run that was taken further lie a little elsewhere; what lies further apart is not put together."""
    curves = [{0: 0.1, 150: 0.2, 300: 0.3}, {0: 0.3, 152: 0.4, 305: 0.5}, {0: 0.5, 150: 0.6}]
    folders = [
        write_run(tmp_path / f"a{seed}", {"prdc50k3_coverage": curve}, {**OPTIONS, "random_seed": seed, "total_kimg": max(curve)})
        for seed, curve in enumerate(curves)
    ]
    (group,) = runs.group_runs(runs.load_runs(folders))
    (band,) = group.bands("prdc50k3_coverage")
    assert band.kimg.tolist() == [0, 150] and band.values.tolist() == [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    (band,) = dataclasses.replace(group, runs=group.runs[:2]).bands("prdc50k3_coverage")
    assert band.kimg.tolist() == [0, 150]
    ((first,),) = group.stretches("prdc50k3_coverage")  # 300 and 305 are not one place, so nobody goes on with another
    assert not first.is_of_fewer and first.values.shape == (3, 2)


def test_runs_that_go_on_alone_begin_where_the_others_end(tmp_path):
    ends = {0: 300, 1: 200, 2: 100, 3: 200}
    curves = [{kimg: 0.1 * seed + 0.001 * kimg for kimg in (0, 50, 100, 200, 300) if kimg <= end} for seed, end in ends.items()]
    folders = [
        write_run(tmp_path / f"a{seed}", {"prdc50k3_coverage": curve}, {**OPTIONS, "random_seed": seed, "total_kimg": max(curve)})
        for seed, curve in enumerate(curves)
    ]
    (group,) = runs.group_runs(runs.load_runs(folders))
    found = [band for (band,) in group.stretches("prdc50k3_coverage")]
    assert [band.kimg.tolist() for band in found] == [[0, 50, 100], [100, 200], [200, 300]]
    assert [len(band.values) for band in found] == [4, 3, 1] and [band.of for band in found] == [4] * 3
    np.testing.assert_allclose(found[1].mean, [(0 + 0.1 + 0.3) / 3 + 0.1, (0 + 0.1 + 0.3) / 3 + 0.2])
    np.testing.assert_array_equal(found[0].values, group.bands("prdc50k3_coverage")[0].values)
    assert group.stretches("fid50k") == []
    table = trajectories.markdown_tables(group.runs).splitlines()
    assert table[2] == "| kimg | runs | prdc50k3_coverage |" and [row.split(" | ")[:2] for row in table[4:]] == [
        ["| 0", "4"],
        ["| 50", "4"],
        ["| 100", "4"],
        ["| 200", "3"],
        ["| 300", "1"],
    ]


def test_bands_are_over_what_all_runs_of_the_group_were_measured_at(tmp_path):
    folders = write_seeds(tmp_path, "a", [(0.1, 0.5), (0.2, 0.7)])
    write_run(folders[0], {"prdc50k3_coverage": {200: 0.9}, "prdc50k3_precision": {100: 0.8}})
    (group,) = runs.group_runs(runs.load_runs(folders))
    assert group.bands("prdc50k3_coverage")[0].kimg.tolist() == [0, 100]
    x, y = group.bands("prdc50k3_precision", "prdc50k3_coverage")
    assert (x.values.tolist(), y.values.tolist()) == ([[0.8]], [[0.5]])
    assert [band.values.shape for band in group.bands("fid50k")] == [(0, 0)]


def test_labels_say_what_differs_between_groups(tmp_path):
    pairing = {"loss_kwargs": {"r1_gamma": 10, "pairing_weight": 0.05, "pairing_tau": 0.1}, "P_kwargs": {"embed_dim": 128}}
    stronger = {"loss_kwargs": {**pairing["loss_kwargs"], "pairing_weight": 0.1}, "P_kwargs": {"embed_dim": 128}}
    plain = {"loss_kwargs": {"r1_gamma": 10}}
    folders = [*write_seeds(tmp_path, "p", [(0, 1)] * 2, **pairing), *write_seeds(tmp_path, "n", [(0, 1)], **plain)]
    assert [group.label for group in runs.group_runs(runs.load_runs(folders))] == ["pairing_weight 0.05", "without pairing_weight"]
    folders += write_seeds(tmp_path, "s", [(0, 1)], **stronger)
    labels = [group.label for group in runs.group_runs(runs.load_runs(folders))]
    assert labels == ["pairing_weight 0.05", "without pairing_weight", "pairing_weight 0.1"]


def test_labels_name_the_part_only_where_the_option_alone_would_not_do(tmp_path):
    faster = {name: {"lr": 0.004} for name in ("G_opt_kwargs", "D_opt_kwargs")}
    folders = [*write_seeds(tmp_path, "a", [(0, 1)]), *write_seeds(tmp_path, "b", [(0, 1)], **faster)]
    assert [group.label for group in runs.group_runs(runs.load_runs(folders))] == ["lr 0.002", "lr 0.004"]
    folders += write_seeds(tmp_path, "c", [(0, 1)], G_opt_kwargs={"lr": 0.004})
    labels = [group.label for group in runs.group_runs(runs.load_runs(folders))]
    assert labels[2] == "G_opt_kwargs.lr 0.004, D_opt_kwargs.lr 0.002"


def test_data_that_lie_elsewhere_are_the_same_data(tmp_path):
    """Where the lines say what was measured against. Another name is another set, and where nothing is said a path is all there is."""
    for protocol, path, groups in ((PROTOCOL, "b/c/x.zip", 1), (PROTOCOL, "D:\\x.zip", 1), (PROTOCOL, "a/y.zip", 2), (None, "b/x.zip", 2)):
        folders = [tmp_path / f"{groups}{len(path)}{protocol is None}-{seed}" for seed in range(2)]
        for seed, (folder, data) in enumerate(zip(folders, ("a/x.zip", path))):
            write_run(folder, {"fid50k": {0: 9.0}}, {**OPTIONS, "random_seed": seed, "training_set_kwargs": {"path": data}}, protocol, "fid50k")
        assert len(runs.group_runs(runs.load_runs(folders))) == groups, path


def test_runs_without_known_settings_stand_alone_under_their_names(tmp_path):
    folders = [write_run(tmp_path / name, {"fid50k": {0: 9.0}}, metric="fid50k") for name in ("x", "y")]
    assert [group.label for group in runs.group_runs(runs.load_runs(folders))] == ["x", "y"]


def test_planes_pair_figures_of_one_metric_or_else_of_one_detector_and_k(tmp_path):
    own = {f"prdc50k3_{name}": {0: 0.5} for name in ("precision", "recall", "density", "coverage")}
    folder = write_run(tmp_path / "a", own)
    found = trajectories.find_planes(runs.load_runs([folder]))
    assert [(plane.x, plane.y) for plane in found] == [("prdc50k3_precision", f"prdc50k3_{name}") for name in ("recall", "coverage")]
    folder = write_run(tmp_path / "b", {f"pr50k3_{name}": {0: 0.5} for name in ("precision", "recall")}, metric="pr50k3")
    write_run(folder, {"coverage": {0: 0.5}}, metric="coverage")
    write_run(folder, {"coverage_embedded": {0: 0.5}}, metric="coverage_embedded", protocol={**PROTOCOL, "detector_digest": "e" * 64})
    write_run(folder, {"prdc10k5_coverage": {0: 0.5}}, metric="prdc10k5", protocol={**PROTOCOL, "k": 5})
    found = trajectories.find_planes(runs.load_runs([folder]))
    assert [(plane.x, plane.y) for plane in found] == [("pr50k3_precision", "pr50k3_recall"), ("pr50k3_precision", "coverage")]


def two_groups(root):
    curve = {f"prdc50k3_{name}": {kimg: 0.1 + 0.008 * kimg for kimg in (0, 50, 100)} for name in ("precision", "recall", "coverage")}
    folders = []
    for seed in range(3):
        shifted = {figure: {kimg: value + 0.01 * seed for kimg, value in points.items()} for figure, points in curve.items()}
        folders.append(write_run(root / f"{seed}", shifted, {**OPTIONS, "random_seed": seed}, {**PROTOCOL, "coverage_ceiling": 0.875}))
    single = write_run(root / "one", {"fid50k": {100: 3.0}}, {**OPTIONS, "batch_size": 64}, metric="fid50k")
    return runs.load_runs([*folders, single])


def as_json(found):
    """What plot writes, without the pictures."""
    points = {figure: next(iter(curve.values())) for run in found for figure, curve in run.points.items()}
    return trajectories.as_json(runs.group_runs(found), trajectories.find_planes(found), points)


def test_pictures_and_numbers_are_written_and_do_not_depend_on_the_day(tmp_path):
    found = two_groups(tmp_path / "runs")
    written = trajectories.plot(found, tmp_path / "new" / "weight0.05")
    names = ["weight0.05-planes.png", "weight0.05-planes.svg", "weight0.05-curves.png", "weight0.05-curves.svg", "weight0.05.json"]
    assert written == [tmp_path / "new" / name for name in names]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    for path in written[:3:2]:
        with Image.open(path) as image:
            assert image.width > 700 and len(np.unique(np.asarray(image.convert("L")))) > 10
    again = trajectories.plot(found, tmp_path / "again.svg")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]
    assert again[0].name == "again-planes.png"
    assert json.loads(written[-1].read_text()) == as_json(found)


def test_lines_may_be_given_names(tmp_path):
    found = two_groups(tmp_path)
    trajectories.plot(found, tmp_path / "drawn", names=["with", "without"])
    assert [group["label"] for group in json.loads((tmp_path / "drawn.json").read_text())["groups"]] == ["with", "without"]
    assert "with (3 runs)" in trajectories.markdown_tables(found, ["with", "without"])
    with pytest.raises(UserError, match=r"--names has 1 names for 2 lines \(.+; .+\)"):
        trajectories.plot(found, tmp_path / "drawn", names=["one"])


def test_the_json_holds_what_is_drawn(tmp_path):
    found = two_groups(tmp_path)
    record = as_json(found)
    assert record["planes"] == [{"x": "prdc50k3_precision", "y": f"prdc50k3_{name}"} for name in ("recall", "coverage")]
    assert record["protocols"]["prdc50k3_recall"] == {**PROTOCOL, "coverage_ceiling": 0.875}
    first, second = record["groups"]
    assert (first["label"], second["label"]) == ("batch_size 32", "batch_size 64")
    band = first["figures"]["prdc50k3_coverage"]
    assert (band["num_runs"], band["kimg"]) == (3, [0, 50, 100])
    np.testing.assert_allclose([band["low"], band["mean"], band["high"]], np.add.outer([0.1, 0.11, 0.12], [0, 0.4, 0.8]))
    assert [run["seed"] for run in first["runs"]] == [0, 1, 2]
    assert second["figures"] == {"fid50k": {"num_runs": 1, "kimg": [100], "mean": [3.0], "low": [3.0], "high": [3.0]}}


def test_runs_without_a_common_snapshot_are_drawn_all_the_same(tmp_path):
    curves = [{f"prdc50k3_{name}": {kimg: 0.5} for name in ("precision", "recall")} for kimg in (0, 10)]
    folders = [write_run(tmp_path / str(seed), curve, {**OPTIONS, "random_seed": seed}) for seed, curve in enumerate(curves)]
    record = json.loads(trajectories.plot(runs.load_runs(folders), tmp_path / "x")[-1].read_text())
    assert record["groups"][0]["figures"]["prdc50k3_recall"]["kimg"] == []


def test_single_classes_are_in_the_numbers_and_not_in_tables(tmp_path):
    figures = {f"fid10k_classwise_{name}": {0: 1.0} for name in ("class0", "class1", "mean")}
    found = runs.load_runs([write_run(tmp_path / "a", figures, metric="fid10k_classwise")])
    assert trajectories.markdown_tables(found).splitlines()[2] == "| kimg | fid10k_classwise_mean |"
    written = trajectories.plot(found, tmp_path / "x")
    assert [path.name for path in written] == ["x-curves.png", "x-curves.svg", "x.json"]
    assert set(json.loads(written[-1].read_text())["groups"][0]["figures"]) == set(figures)


def test_a_figure_without_a_course_has_no_panel_beside_curves_and_is_in_the_numbers(tmp_path, monkeypatch):
    drawn, draw = [], trajectory_figures.draw_curves
    monkeypatch.setattr(trajectory_figures, "draw_curves", lambda groups, points, *texts: drawn.append(list(points)) or draw(groups, points, *texts))
    once = write_run(tmp_path / "once", {"prdc50k3_recall": {100: 0.2}})
    both = write_run(tmp_path / "both", {"prdc50k3_coverage": {0: 0.1, 100: 0.5}, "prdc50k3_recall": {100: 0.3}})
    numbers = json.loads(trajectories.plot(runs.load_runs([once, both]), tmp_path / "curves")[-1].read_text())
    trajectories.plot(runs.load_runs([once]), tmp_path / "dots")
    assert drawn == [["prdc50k3_coverage"], ["prdc50k3_recall"]]
    assert [[group["runs"][0]["figures"]["prdc50k3_recall"]["value"]] for group in numbers["groups"]] == [[[0.2]], [[0.3]]]


def test_the_table_holds_means_over_the_seeds(tmp_path):
    text = trajectories.markdown_tables(runs.load_runs(write_seeds(tmp_path, "a", [(0.1, 0.5), (0.2, 0.7)])))
    assert text.splitlines()[0].endswith("(2 runs)")
    assert text.splitlines()[-2:] == ["| 0 | 0.15 |", "| 100 | 0.6 |"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    found = runs.load_runs([write_run(tmp_path / "a", {"fid50k": {0: 9.0}}, metric="fid50k")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        trajectories.plot(found, tmp_path / "file" / "x")


def test_hulls_hold_all_points_and_nothing_else():
    points = np.random.RandomState(0).randint(0, 6, size=[60, 2]).astype(float)
    hull = trajectory_figures.convex_hull(points)
    sides = np.roll(hull, -1, axis=0) - hull
    reach = points[None] - hull[:, None]
    assert (sides[:, :1] * reach[..., 1] - sides[:, 1:] * reach[..., 0] >= 0).all()  # every point lies to the left of every side
    assert {tuple(corner) for corner in hull} <= {tuple(point) for point in points}
    assert trajectory_figures.convex_hull(np.ones([5, 2])).tolist() == [[1, 1]]
    assert len(trajectory_figures.convex_hull(np.array([[0.0, 0], [1, 1], [2, 2]]))) == 2
