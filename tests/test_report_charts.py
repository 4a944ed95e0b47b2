"""Looks and labels of the report's charts: whose mark is whose, also for people who see fewer colours."""

import itertools
import re

import numpy as np
import pytest
from report_runs import FIGURES, write_run, write_runs

from experiments.report.charts import MOST_BANDS, curve_chart, plane_chart
from experiments.report.differences import by_chance
from experiments.report.labels import MOVED, column_labels
from experiments.report.page import ASSETS, make_page
from experiments.report.strips import WIDTH, ruler_about_0, strip
from experiments.report.studies import COLOURS, LOOKS, SOLID, find_studies, looks_of

# What people with too few kinds of cones see of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHTS = {
    "all": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) / np.array([[0.9505], [1.0], [1.089]])
BOX = (0.0, 0.0, 200.0, 160.0)


def lab(colour, sight):
    """CIE Lab of "#rrggbb"."""
    shares = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    x, y, z = XYZ @ np.clip(SIGHTS[sight] @ linear, 0, 1)
    x, y, z = (np.cbrt(value) if value > 0.008856 else 7.787 * value + 16 / 116 for value in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("scheme", [0, 1])
def test_series_with_the_same_dashes_differ_in_colour_for_everyone(scheme, sight):
    colours = re.findall(r"--c\d: (#\w{6})", (ASSETS / "page.css").read_text())[scheme * COLOURS : (scheme + 1) * COLOURS]
    assert len(colours) == COLOURS
    for first in range(0, COLOURS, SOLID):
        for one, other in itertools.combinations(colours[first : first + SOLID], 2):
            assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > 10


def test_methods_look_the_same_in_every_study_and_no_two_of_a_study_alike():
    extra = [f"Pairing-GAN({number})" for number in range(12)]
    for labels in (["StyleGAN2", "MS-GAN(+R1)", *extra], [*extra, *LOOKS], ["Pairing-GAN-ADA", *extra]):
        looks = dict(zip(labels, looks_of(labels)))
        assert len(set(looks.values())) == len(labels)
        assert all(looks[label] == LOOKS[label] for label in labels if label in LOOKS)
    assert all(LOOKS[f"{method}-ADA"] % COLOURS == LOOKS[method] for method in ("StyleGAN2", "Pairing-GAN"))  # the same colour, dashed
    assert looks_of(["a", "b", "c"]) == [0, 1, 2]


def test_colours_begin_anew_in_every_study(tmp_path):
    runs = [write_run(tmp_path / str(n), f"method {n}", 0, n, setting=f"setting {n}") for n in range(3)]
    studies, _ = find_studies(runs)
    assert [series.look for study in studies for series in study.series] == [0, 0, 0]


def series_named(names, tmp_path):
    (study,), _ = find_studies([write_run(tmp_path / str(place), name, 0, place) for place, name in enumerate(names)])
    return study.series


def test_names_away_from_their_ends_are_tied_to_them(tmp_path):
    some = series_named(["a", "b", "c", "d"], tmp_path)
    ends = dict(zip(some, [(200.0, 50.0), (200.0, 51.0), (200.0, 120.0), (100.0, 51.0)]))
    crossed = [(92.0, 30.0, 108.0, 70.0), (60.0, 30.0, 140.0, 75.0)]  # no room beside the one that ends early
    html = "".join(column_labels(ends, BOX, crossed))
    ties = [tuple(map(float, found)) for found in re.findall(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', html)]
    heights = {words: float(y) - 4 for y, words in re.findall(r'<text x="[\d.]+" y="([\d.]+)"[^>]*>(\w)<', html)}
    assert {tie[:2] for tie in ties} >= {(100.0, 51.0)} and {tie[:2] for tie in ties} <= set(ends.values())
    for series, end in ends.items():
        tied = [tie for tie in ties if tie[:2] == end]
        assert tied or abs(heights[series.short] - end[1]) <= MOVED
        assert all(tie[3] == pytest.approx(heights[series.short], abs=0.2) for tie in tied)


def test_a_series_that_ends_early_is_named_at_its_end_where_there_is_room(tmp_path):
    one, other = series_named(["a", "b"], tmp_path)
    html = "".join(column_labels({one: (200.0, 50.0), other: (100.0, 120.0)}, BOX, []))
    assert re.search(r'<text x="110.0" y="124.0"[^>]*>b<', html) and "tie" not in html


def test_areas_of_many_series_are_left_out(tmp_path):
    for number in (MOST_BANDS, MOST_BANDS + 1):
        (study,), _ = find_studies(write_runs(tmp_path / str(number), methods=[f"m{place}" for place in range(number)], seeds=2))
        charts = curve_chart(study, FIGURES[0]), plane_chart(study, study.planes[0])
        assert ['class="band' in chart for chart in charts] == [number <= MOST_BANDS] * 2


def test_words_of_a_plane_say_which_figure_is_which(tmp_path):
    (study,), _ = find_studies([write_run(tmp_path / "a", "a", 0)])
    plane = study.planes[0]
    (words,) = re.findall(r'aria-label="([^"]*)"', plane_chart(study, plane))
    told = dict(re.findall(r"(precision|recall|coverage) (0\.\d+)", words.partition("Last snapshots")[2]))
    values = study.series[0].results[0].figures
    assert told == {name: f"{values[f'prdc10k5_embedded_{name}'][60]:.3f}" for name in ("precision", "recall")}


def test_figures_are_read_first_where_all_series_have_them(tmp_path):
    runs = write_runs(tmp_path / "runs", seeds=2)
    short = {figure: {0: 0.1, 39: 0.2} for figure in FIGURES}
    runs.append(write_run(tmp_path / "short", "short", 0, 2, values=short, budget="short", setting="noaug"))
    (study,), _ = find_studies(runs)
    assert study.steps[study.start] == 39
    html = make_page([], runs, tmp_path / "out").read_text("utf-8")
    assert re.findall(r'id="training-1-time" min="0" max="4" value="(\d)"', html) == ["2"]
    assert re.findall(r'data-measured="(\d+)"', html) == ["11011", "11011", "10100"]
    assert html.count('<tr class="earlier"') == 2
    assert find_studies(runs[:1] + [write_run(tmp_path / "near", "near", 0, 2, {}, {FIGURES[0]: {59: 0.2}}, (), "short", "noaug")])[0][0].start == 4
    assert "All images without augmentation · short budget" in study.title


def test_an_interval_beyond_the_scale_ends_in_an_arrowhead():
    ruler = ruler_about_0([1.0])
    heads = [strip(ruler, 0.0, ends, 0.0, "zero").count('class="beyond"') for ends in ((-1, 1), (-9, 1), (-1, 9), (-9, 9))]
    assert heads == [0, 1, 1, 2]
    (low, high) = re.findall(r'x1="([\d.]+)" x2="([\d.]+)"[^>]*class="spread"', strip(ruler, 0.0, (-9, 9), 0.0, "zero"))[0]
    assert 0 <= float(low) < float(high) <= WIDTH


def test_nothing_is_said_of_chance_without_intervals():
    assert by_chance([]) == ""
