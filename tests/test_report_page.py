"""The report: one file that loads nothing, is well formed, cannot be broken by what runs are called, and says the numbers that the data hold."""

import html.parser
import json
import re
import types

import numpy as np
import pytest
from report_runs import CLAIMS, COLUMNS, FIGURES, KIMG, PAPER, cells_of, make_table, make_values, write_run, write_runs

from dnnlib import UserError
from experiments.report import axes
from experiments.report.figures import kind_of, title_of
from experiments.report.looks import style
from experiments.report.markup import VOID, Markup, element, join, number, with_spread
from experiments.report.page import HTML_FILE, JSON_FILE, MARKDOWN_FILE, make_page
from experiments.report.plain import numbers_of
from experiments.report.signals import MOST_POINTS, signals_of
from experiments.report.studies import collect, find_studies
from metrics.runs import direction

HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>&amp;</td>'
LOADS = {"src", "href", "data", "srcset", "poster", "action", "background", "xlink:href"}


class Reader(html.parser.HTMLParser):
    """Everything a test asks of a page; complains about tags that do not close what is open."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.errors, self.elements, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.errors.append(f"{tag} has an attribute twice")
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.errors.append(f"</{tag}> at {self.getpos()} closes {self.open[-1:] or 'nothing'}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1][0] not in ("script", "style"):
            self.texts.append((self.open[-1][1], data))

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(text for _, text in self.texts).split())


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.errors == [] and reader.open == []
    return reader


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """(path of report.html, runs, table) of two methods under three seeds."""
    out = tmp_path_factory.mktemp("report")
    runs = write_runs(out / "runs")
    table = make_table(runs, claims=CLAIMS)
    return make_page([table], [], out), runs, table


def test_the_page_is_well_formed_and_loads_nothing(example):
    page = read(example[0])
    for tag, attributes, _ in page.elements:
        for name in LOADS & attributes.keys():
            assert attributes[name].startswith(("#", "data:")), (tag, name)
        assert not any(name.startswith("on") or name == "style" for name in attributes)  # the policy would refuse them
    css = (example[0].read_text(encoding="utf-8")).split("<style>")[1].split("</style>")[0]
    assert "url(" not in css and "@import" not in css
    (policy,) = [attributes["content"] for attributes in page.all("meta") if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert [tag for tag, _, _ in page.elements].count("script") == 1


def test_ids_are_unique_and_every_link_leads_somewhere(example):
    page = read(example[0])
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for attributes in page.all("a")}
    labels = {attributes["for"] for tag in ("label", "output") for attributes in page.all(tag)}
    assert links | labels <= set(ids) and len(links) > 6 and labels


def test_sections_stand_in_order(example):
    page = read(example[0])
    names = [attributes["id"] for attributes in page.all("section") if attributes.get("class") == "part"]
    assert names == ["tables", "training", "samples", "cost", "runs"]


def test_pictures_have_words_and_controls_have_names(example):
    page = read(example[0])
    assert page.all("img") and all(attributes["alt"] for attributes in page.all("img"))
    assert all(attributes["aria-label"] for attributes in page.all("svg") if attributes.get("role") == "img")
    named = {attributes["for"] for attributes in page.all("label")}
    controls = [attributes for tag in ("input", "select") for attributes in page.all(tag)]
    assert len(controls) == 3 and all(attributes["id"] in named for attributes in controls)
    assert all(attributes.get("tabindex") == "0" for tag, attributes, _ in page.elements if attributes.get("class") == "scroll")


def test_tables_say_what_the_data_hold(example):
    path, _, table = example
    (_, _, *body) = cells_of(path, "figures")
    for cells, row in zip(body, table.rows, strict=True):
        assert cells[0] == row.method and cells[-1] == "0 1 2"
        for place, column in enumerate(COLUMNS):
            assert cells[1 + 2 * place] == with_spread(*row.ours[column])
            assert float(cells[2 + 2 * place]) == PAPER[column]
    values = [float(attributes["data-value"]) for attributes in read(path).all("td") if "data-value" in attributes]
    assert values == [row.ours[column][0] for row in table.rows for column in COLUMNS]


def test_numbers_over_training_are_means_of_the_runs(example):
    path, runs, _ = example
    rows = {(row[0], int(row[1])): row[3:] for row in cells_of(path, "numbers") if row[0] in ("StyleGAN2", "Pairing-GAN")}
    header = next(row for row in cells_of(path, "numbers") if row[:3] == ["Method", "kimg", "seeds"])
    assert len(rows) == 2 * len(KIMG)
    for (method, kimg), cells in rows.items():
        for name, text in zip(header[3:], cells, strict=True):
            values = [run.figures[name.split()[0]][kimg] for run in runs if run.method == method]
            mean = np.mean(values)
            lowest, highest = (number(value, like=mean) for value in (min(values), max(values)))
            assert text == f"{with_spread(mean, np.std(values, ddof=1))} [{lowest} to {highest}]"


def test_points_of_charts_lie_where_the_values_say(example):
    """Places are linear in the values: the residual of a fit over all points of a path is rounding."""
    path, runs, _ = example
    charts = re.findall(r"<svg[^>]*class=\"chart plane\".*?</svg>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert len(charts) == 2
    for chart, figure in zip(charts, ("recall", "coverage")):
        places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)]
        means = []
        for method in ("StyleGAN2", "Pairing-GAN"):
            for kimg in KIMG:
                own = [run.figures for run in runs if run.method == method]
                means.append([np.mean([f[f"prdc10k5_embedded_{name}"][kimg] for f in own]) for name in ("precision", figure)])
        for axis in (0, 1):
            values, found = np.array(means)[:, axis], np.array(places)[:, axis]
            assert np.abs(np.polyval(np.polyfit(values, found, 1), values) - found).max() < 0.11
            assert (np.polyfit(values, found, 1)[0] > 0) == (axis == 0)  # up is a smaller y


def test_a_short_budget_is_not_passed_off_for_the_published_one(tmp_path):
    runs = write_runs(tmp_path / "runs")
    short = read(make_page([make_table(runs)], [], tmp_path / "short"))
    assert "budget short: 60 kimg" in short.text and "detector embedded" in short.text and "compare the order of the rows" in short.text
    assert {text for _, text in short.texts if "paper" in text.lower()} == {"paper"}  # heads of published columns only
    full = make_page([make_table(runs, budget="paper: at the published lengths")], [], tmp_path / "full")
    assert "compare the order" not in read(full).text
    ticks = [path.read_text(encoding="utf-8").count('class="published"') for path in (tmp_path / "short" / HTML_FILE, full)]
    assert ticks == [0, 2 * len(COLUMNS)]
    own = read(make_page([make_table(runs, paper={})], [], tmp_path / "own"))
    assert "paper" not in own.text.lower()


def test_the_verdict_and_claims_are_told(example):
    text = read(example[0]).text
    assert "Holds: “Pairing raises coverage” (C4). Does not hold: “With ADA nothing changes” (C5). Undecided: “Mode seeking loses" in text
    assert "Budget short: 60 kimg; 60 kimg, where the published runs take 8,000." in text
    assert "coverage passes: +0.030 [0.020, 0.040]" in text


def test_hostile_names_stay_text(tmp_path):
    run = write_run(tmp_path / "a" / "00000-<b>&", HOSTILE, 0, options={HOSTILE: {HOSTILE: HOSTILE}})
    other = write_run(tmp_path / "b" / "00001-`x`|y", "plain", 1, options={HOSTILE: 1})
    (run.path / "<i>.txt").write_text("")
    out = tmp_path / "out"
    page = read(make_page([make_table([run, other], budget=HOSTILE, name="x<y>")], [], out))
    assert not any(attributes.get("onerror") for _, attributes, _ in page.elements)
    assert all(attributes["src"].startswith("data:image/webp;base64,") for attributes in page.all("img"))
    assert [tag for tag, _, _ in page.elements].count("script") == 1 and not page.all("b") and not page.all("i")
    assert page.text.count("<script>alert(1)</script>") > 10 and "<i>.txt" in page.text
    assert "<script>" not in (out / MARKDOWN_FILE).read_text(encoding="utf-8").replace("\\<script", "")


def test_any_runs_make_a_page_without_tables(tmp_path):
    runs = [write_run(tmp_path / name, name, seed, number) for number, (name, seed) in enumerate([("first", 0), ("second", 0)])]
    path = make_page([], runs, tmp_path / "deep" / "out")
    page = read(path)
    assert "Coverage at 60 kimg: 0.380 (first), 0.410 (second); one seed each." in page.text
    assert [attributes["id"] for attributes in page.all("section")] == ["training", "samples", "cost", "runs"]


def test_many_runs_with_long_names_are_numbered(tmp_path):
    runs = [write_run(tmp_path / str(number), "Pairing-GAN", 0, number) for number in range(5)]
    path = make_page([], runs, tmp_path / "out")
    text = read(path).text
    ends = [f"{value} (Pairing-GAN, pairing_weight {weight})" for value, weight in (("0.380", "0.0"), ("0.500", "0.2"))]
    assert f"Coverage at 60 kimg reaches from {' to '.join(ends)}; one seed each." in text
    labels = re.findall(r'<text [^>]*class="label [^>]*>([^<]*)<', path.read_text(encoding="utf-8"))
    assert {f"no. {number}" for number in range(1, 6)} == set(labels)
    assert all(f"no. {number}: Pairing-GAN, pairing_weight" in text for number in range(1, 6))


def test_a_run_without_measurements_or_pictures_is_shown(tmp_path):
    bare = write_run(tmp_path / "bare", "bare", 0, values={}, kimg=())
    (bare.path / "reals.png").unlink()
    (bare.path / "training_options.json").unlink()
    page = read(make_page([], [bare], tmp_path / "out"))
    assert "1 run of bare" in page.text
    assert [attributes["id"] for attributes in page.all("section")] == ["cost", "runs"]


def test_a_page_tells_names_of_files_and_no_folders_of_the_machine(tmp_path):
    data = {"path": "/mnt/somebody/digits.zip", "resolution": 16}
    path = make_page([], [write_run(tmp_path / "runs" / "one", "one", 0, options={"training_set_kwargs": data})], tmp_path)
    html = path.read_text(encoding="utf-8")
    assert "digits.zip" in html and "somebody" not in html and str(tmp_path) not in html


def test_damaged_files_are_told_and_cost_nothing_else(tmp_path):
    runs = [write_run(tmp_path / name, name, 0, number) for number, name in enumerate(("good", "torn"))]
    for run, ending in zip(runs, ("", "\n")):  # a torn last line is written over, any other stays
        with open(run.path / "metric-fid10k_embedded.jsonl", "a") as handle:
            handle.write('{"results": ' + ending)
    (runs[1].path / "fakes000020.png").write_bytes((runs[1].path / "fakes000020.png").read_bytes()[:200])
    path = make_page([], runs, tmp_path / "out")
    page = read(path)
    assert page.text.count("left out of the charts") == 1 and "torn are left out of the charts" in page.text
    assert "fakes000020.png is left out" in page.text and str(tmp_path) not in page.text
    assert sum("data-kimg" in attributes for attributes in page.all("img")) == 2 * len(KIMG) - 1


def test_nothing_to_show_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        make_page([], [], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        make_page([], [write_run(tmp_path / "run", "a", 0)], tmp_path / "file" / "out")


def test_markdown_and_json_say_the_same(example):
    path, runs, table = example
    data = json.loads((path.parent / JSON_FILE).read_text(encoding="utf-8"))
    for row, told in zip(table.rows, data["tables"][0]["rows"], strict=True):
        assert {name: (figure["mean"], figure["std"]) for name, figure in told["ours"].items()} == row.ours
    assert [run["seed"] for run in data["runs"]] == [0, 1, 2, 0, 1, 2] and len(data["studies"][0]["groups"]) == 2
    text = (path.parent / MARKDOWN_FILE).read_text(encoding="utf-8")
    assert all(with_spread(*row.ours[column]) in text for row in table.rows for column in COLUMNS)
    assert "**C5 does not hold.**" in text and all(run.path.name in text for run in runs)


def test_json_holds_no_number_that_json_has_not(tmp_path):
    make_page([make_table([write_run(tmp_path / "run", "one", 0)])], [], tmp_path / "out")
    data = json.loads((tmp_path / "out" / JSON_FILE).read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert data["tables"][0]["rows"][0]["ours"]["coverage"]["std"] is None


def test_the_same_data_give_the_same_bytes(tmp_path, example):
    table = example[2]
    pages = [make_page([table], [], tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_no_two_of_two_dozen_series_look_alike(tmp_path):
    styles = {style(types.SimpleNamespace(look=number)) for number in range(24)}
    assert len(styles) == 24
    page = make_page([], [write_run(tmp_path / "00000-run", "StyleGAN2", 0)], tmp_path / "out").read_text(encoding="utf-8")
    for name in {name for each in styles for name in each.split()[1:]}:
        assert f".{name} .leg, .{name} .line {{" in page


def test_a_run_that_was_made_twice_is_no_second_seed(tmp_path):
    runs = [write_run(tmp_path / name, "StyleGAN2", 0) for name in ("00000-first", "00001-again")]
    page = read(make_page([], runs, tmp_path / "out")).text
    assert "2 runs" in page and "2 seeds" not in page


def test_seeds_are_one_series_and_other_settings_another(tmp_path):
    runs = [write_run(tmp_path / f"a{seed}", "Pairing-GAN", seed) for seed in (2, 0)]
    runs += [write_run(tmp_path / "b", "Pairing-GAN", 0, options={"batch_size": 32}), write_run(tmp_path / "c", "Pairing-GAN", 1, values={}, kimg=())]
    (study,), problems = find_studies(runs)
    assert problems == []
    assert [[result.seed for result in series.results] for series in study.series] == [[0, 1, 2], [0]]
    assert [series.label for series in study.series] == ["Pairing-GAN, without batch_size", "Pairing-GAN, batch_size 32"]
    assert [series.band(FIGURES[0]).values.shape for series in study.series] == [(2, 4), (1, 4)]


def test_seeds_of_unequal_length_and_figures_are_drawn_where_they_agree(tmp_path):
    precision, _, coverage, _ = FIGURES
    whole = {0: 0.1, 20: 0.2, 40: 0.3}
    parts = [{precision: whole, coverage: whole}, {precision: {0: 0.2, 20: 0.4}}, {coverage: {0: 0.5}}]
    runs = [write_run(tmp_path / str(seed), "a", seed, values=values) for seed, values in enumerate(parts)]
    (study,), _ = find_studies(runs)
    (series,) = study.series
    assert series.band(precision).kimg.tolist() == [0, 20] and series.band(coverage).kimg.tolist() == [0] and study.steps == [0, 20, 40]
    assert read(make_page([], runs, tmp_path / "out")).text.count("Coverage against precision") == 1


def test_a_figure_of_fewer_seeds_than_its_neighbours_says_so(tmp_path):
    precision, recall, *_ = FIGURES
    parts = [{precision: {0: 0.1, 20: 0.2}, recall: {0: 0.1, 20: 0.2}}, {precision: {0: 0.2, 20: 0.4}}]
    (study,), _ = find_studies([write_run(tmp_path / str(seed), "a", seed, values=values) for seed, values in enumerate(parts)])
    for seeds, texts in numbers_of(study, study.series[0]).values():
        assert seeds == 2 and "of them" not in texts[precision] and texts[recall].endswith("(1 of them)")


def test_figures_that_seeds_share_at_no_time_are_left_out(tmp_path):
    precision, _, coverage, _ = FIGURES
    parts = [{precision: {0: 0.2, 20: 0.4}, coverage: {20: 0.2}}, {coverage: {0: 0.5}}]
    runs = [write_run(tmp_path / str(seed), "a", seed, values=values) for seed, values in enumerate(parts)]
    (study,), _ = find_studies(runs)
    assert list(study.points) == [precision] and study.planes == ()
    assert "Coverage" not in read(make_page([], runs, tmp_path / "out")).text
    assert find_studies([write_run(tmp_path / "b", "b", 0, values={precision: {0: 0.1}, coverage: {20: 0.1}})])[0][0].planes == ()


def test_figures_of_one_time_are_numbers_and_no_curves(tmp_path):
    precision, recall, *_ = FIGURES
    (study,), _ = find_studies([write_run(tmp_path / "a", "a", 0, values={precision: {0: 0.2, 20: 0.4}, recall: {20: 0.3}})])
    assert set(study.points) == {precision, recall} and study.curves == [precision]
    (study,), _ = find_studies([write_run(tmp_path / "b", "b", 0, values={precision: {20: 0.4}, recall: {20: 0.3}})])
    assert study.curves == list(study.points)  # nothing has more


def test_runs_measured_otherwise_are_not_in_one_chart(tmp_path):
    runs = [write_run(tmp_path / name, name, 0, number) for number, name in enumerate(("a", "b", "c"))]
    file = runs[1].path / "metric-fid10k_embedded.jsonl"
    file.write_text(file.read_text().replace('"n_fake": 1000', '"n_fake": 500'))
    studies, problems = find_studies(runs)
    assert problems == [] and [[series.label for series in study.series] for study in studies] == [["a", "c"], ["b"]]


def test_signals_of_a_training_are_drawn_with_its_seeds(tmp_path):
    runs = write_runs(tmp_path / "runs", seeds=2)
    for run in runs:
        lines = [{"Progress/kimg": {"mean": k + 0.4}, "Loss/scores/real": {"mean": k * (1 + run.seed)}} for k in range(200)]
        lines = [line | {"Progress/augment": {"mean": 0}} for line in lines]
        if run.method == "Pairing-GAN":
            lines = [line | {"Loss/pairing/accuracy": {"mean": k / 200}} for k, line in enumerate(lines)]
        (run.path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    (study,), _ = find_studies(runs)
    found = signals_of(study)
    assert list(found.points) == ["Loss/pairing/accuracy", "Loss/scores/real"]  # the augmentation never changes
    bands = [series.band("Loss/pairing/accuracy") for series in found.series]
    assert bands[0] is None and bands[1].values.shape[0] == 2 and MOST_POINTS / 2 < len(bands[1].kimg) <= MOST_POINTS
    band = found.series[0].band("Loss/scores/real")
    assert band.kimg[-1] == 199 and np.array_equal(band.mean, 1.5 * band.kimg)
    page = read(make_page([], runs, tmp_path / "out"))
    assert "Inside the training: pairing accuracy, D's score of real images" in page.text
    html = (tmp_path / "out" / HTML_FILE).read_text(encoding="utf-8")
    inside = html[html.index("Inside the training") :].partition("</details>")[0]
    assert inside.count('class="leg"') == 3 and "<title>" not in inside and "data-at" not in inside


def test_a_run_that_says_nothing_has_no_signals(tmp_path):
    (study,), _ = find_studies([write_run(tmp_path / "run", "a", 0)])
    assert signals_of(study) is None


def test_runs_of_tables_come_first_and_once(tmp_path):
    runs = write_runs(tmp_path, seeds=1)
    extra = write_run(tmp_path / "extra", "own", 0)
    assert [run.method for run in collect([make_table(runs), make_table(runs)], [extra, runs[0]])] == ["StyleGAN2", "Pairing-GAN", "own"]


def test_markup_escapes_all_but_itself():
    inner = element("b", "<&>", title='"')
    assert inner == '<b title="&quot;">&lt;&amp;&gt;</b>'
    assert element("p", inner, ["x", None, Markup("<br>")]) == f"<p>{inner}x<br></p>"
    assert join("\x00a\x1b", "b", by="<br>") == "�a�<br>b"
    assert element("input", hidden=True, value=None, disabled=False, data_x="1") == '<input hidden data-x="1">'
    for bad in ("a b", "x>", "", "1"):
        with pytest.raises(ValueError, match="no name"):
            element(bad)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4567, "0.457"), (9.9996, "10.00"), (19.954, "19.95"), (123.44, "123.4"), (12345.6, "12346"), (-0.5, "−0.500"), (np.nan, "–"), (None, "–")],
)
def test_numbers_have_the_digits_that_mean_something(value, text):
    assert number(value) == text


def test_a_spread_has_the_decimals_of_its_mean():
    assert with_spread(19.954, 0.1234) == "19.95 ± 0.12" and with_spread(0.5, float("nan")) == "0.500" and with_spread(None, 1.0) == "–"


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.7), (0.0, 60.0), (-3.0, 5.0), (0.4001, 0.4002), (0.0, 25000.0)])
def test_ticks_are_round_few_and_inside(low, high):
    ticks = axes.Axis(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 7 and low <= min(ticks) and max(ticks) <= high + 1e-9
    steps = np.diff(ticks) / 10 ** np.floor(np.log10(ticks[1] - ticks[0]) + 1e-9)
    assert np.allclose(steps, steps[0], atol=1e-6) and round(steps[0]) in (1, 2, 5)


def test_an_axis_of_distances_is_logarithmic_where_they_span_much():
    axis = axes.axis_of_heights([2.0, 300.0], 100, 0, distances=True)
    assert axis.log and axis.at(20) - axis.at(200) == pytest.approx(axis.at(2) - axis.at(20), abs=0.2)
    assert not axes.axis_of_heights([2.0, 30.0], 100, 0, distances=True).log and not axes.axis_of_heights([0.01, 0.9], 100, 0, distances=False).log


def test_labels_are_moved_apart_and_stay_inside():
    moved = axes.spread_out([50, 50, 51, 99, 0], 12, 0, 100)
    assert np.diff(sorted(moved)).min() >= 12 - 1e-6 and min(moved) >= 0 and max(moved) <= 100
    assert np.argsort(moved, kind="stable").tolist() == [4, 0, 1, 2, 3]
    assert len(set(axes.spread_out([5.0] * 30, 12, 0, 100))) == 30


@pytest.mark.parametrize(
    ("figure", "kind", "way"),
    [
        ("prdc10k5_embedded_recall", "recall", "higher"),
        ("coverage_embedded", "coverage", "higher"),
        ("fid50k_full", "fid", "lower"),
        ("FID", "FID", "lower"),
        ("prdc50k3_density", "density", ""),
        ("is50k_mean", "is", "higher"),
        ("collision", "collision", "lower"),
        ("nearest10k_embedded_gap", "gap", "lower"),
        ("gap", "gap", "lower"),
        ("nearest10k_spacing", "spacing", ""),
        ("spacing", "spacing", ""),
    ],
)
def test_figures_are_known_by_their_names(figure, kind, way):
    assert kind_of(figure) == kind and direction(figure) == way


def test_figures_of_classes_have_titles_of_their_own():
    figures = ("coverage_embedded", "coverage_classwise_embedded_mean", "coverage_classwise_embedded_worst", "is50k_mean")
    assert [title_of(figure) for figure in figures] == ["Coverage", "Coverage, mean of classes", "Coverage, worst class", "Inception Score"]


def test_values_of_the_example_differ():
    values = [value for number in (0, 1) for seed in (0, 1, 2) for points in make_values(number, seed).values() for value in points.values()]
    assert len(set(values)) > 60
