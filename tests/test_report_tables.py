"""What the report says below its tables and of its runs: lengths, differences from the baseline, costs and options."""

import dataclasses
import json
import re

import pytest
from report_runs import cells_of, make_table, write_run, write_runs

from experiments.images.results import Difference
from experiments.report import classes
from experiments.report.classes import class_tables
from experiments.report.differences import difference_rows, glance_of
from experiments.report.page import HTML_FILE, JSON_FILE, MARKDOWN_FILE, make_page
from experiments.report.studies import find_studies


def text_of(path):
    return " ".join(re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8")).split())


def test_tables_of_two_budgets_have_ids_of_their_own_and_no_folders_of_the_machine(tmp_path):
    tables = [make_table(write_runs(tmp_path / name, seeds=1), budget=f"{name}: words") for name in ("short", "paper")]
    html = make_page([dataclasses.replace(tables[0], training="500 images, fp32"), tables[1]], [], tmp_path).read_text(encoding="utf-8")
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) and {"table-short-table3", "table-paper-table3"} <= set(ids)
    assert str(tmp_path) not in html and 'title="short/short-noaug-0-seed0/00000-digits"' in html
    assert "<dt>training</dt> <dd>500 images, fp32</dd>" in html


def test_differences_from_the_baseline_are_told_everywhere(tmp_path):
    table = make_table(write_runs(tmp_path / "runs", seeds=1))
    pair, place = ("Pairing-GAN", "StyleGAN2"), ("all images", 60)
    differences = Difference(*pair, "recall", -0.0123, (-0.03, 0.005), 3, *place), Difference(*pair, "FID", 1.5, None, 2, *place)
    path = make_page([dataclasses.replace(table, differences=differences)], [], tmp_path)
    wanted = ["Pairing-GAN − StyleGAN2", "–", "−0.012 [−0.030, 0.005]", "–", "+1.500", "2, 3"]
    assert cells_of(path, "numbers differences")[1] == wanted
    (line,) = [line for line in (tmp_path / MARKDOWN_FILE).read_text(encoding="utf-8").splitlines() if line.startswith("| Pairing-GAN − ")]
    assert [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")] == wanted
    told = json.loads((tmp_path / JSON_FILE).read_text(encoding="utf-8"))["tables"][0]["differences"]
    assert told == json.loads(json.dumps([dataclasses.asdict(one) for one in differences]))
    assert "Differences from the baseline" not in make_page([table], [], tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("column", "mean", "interval", "mark"),
    [
        ("recall", 0.02, (0.01, 0.03), "better"),
        ("recall", -0.02, (-0.03, -0.01), "worse"),
        ("FID", 1.5, (1.0, 2.0), "worse"),
        ("FID", -1.5, (-2.0, -1.0), "better"),
        ("FID", 1.5, (-1.0, 4.0), ""),
        ("FID", 1.5, None, ""),
    ],
)
def test_a_difference_whose_interval_leaves_out_0_is_marked_as_better_or_worse(tmp_path, column, mean, interval, mark):
    one = Difference("Pairing-GAN", "StyleGAN2", column, mean, interval, 3, "all images", 60)
    html = make_page([dataclasses.replace(make_table(write_runs(tmp_path / "runs", seeds=1)), differences=(one,))], [], tmp_path).read_text("utf-8")
    block = html[html.index('class="numbers differences"') :].partition("</table>")[0]
    assert re.findall(r'<td class="(\w+)"', block) == ([mark] if mark else [])
    assert re.findall(r'<span class="way">(\w+)<', block) == ([mark] if mark else [])  # said, too, for who sees no colours
    assert ("Bold: the interval leaves out 0, as in 1 of these 1," in html) == bool(mark) and ("Bold:" in html) == bool(mark)
    assert ("leaves out 0 in none of these 1," in html) == (interval is not None and not mark)
    (zero,) = re.findall(r'<line x1="([\d.]+)" x2="\1" [^>]*class="zero"', block)
    (dot,) = re.findall(r'<circle cx="([\d.]+)"', block)
    assert float(zero) == 48 and (float(dot) > 48) == (mean > 0)


def with_differences(table, *differences, lengths=()):
    """The table with differences, and with rows that look at other lengths of training."""
    rows = tuple(dataclasses.replace(table.rows[0], kimg=kimg) for kimg in lengths) or table.rows
    return dataclasses.replace(table, differences=differences, rows=rows)


def test_differences_say_their_length_where_a_table_has_several(tmp_path):
    table = make_table(write_runs(tmp_path / "runs", seeds=1))
    pair = [Difference("Pairing-GAN", "StyleGAN2", "recall", 0.1, (0.0, 0.2), 3, "500 images", kimg) for kimg in (150, 1300)]
    names = [[row[0] for row in difference_rows(with_differences(table, *pair, lengths=lengths))[1:]] for lengths in ((150, 1300), (150,))]
    assert names == [["Pairing-GAN − StyleGAN2, 150 kimg", "Pairing-GAN − StyleGAN2, 1,300 kimg"], ["Pairing-GAN − StyleGAN2"] * 2]


def test_the_glance_shows_every_method_once_at_its_longest_training(tmp_path):
    table = make_table(write_runs(tmp_path / "runs", seeds=1))

    def compared(images, kimg, seeds, *columns, method="Pairing-GAN"):
        return [Difference(method, "StyleGAN2", column, 0.1, (0.05, 0.15), seeds, images, kimg) for column in columns]

    few = with_differences(table, *compared("500 images", 150, 7, "recall", "FID"), *compared("500 images", 300, 2, "recall", "FID"))
    same = with_differences(table, *compared("500 images", 300, 3, "recall", "FID"), *compared("500 images", 150, 3, "FID", method="other"))
    latents = with_differences(table, *compared("all images", 60, 3, "recall", "collision"))
    columns, places = glance_of([few, same, latents])
    assert columns == ("coverage", "recall", "precision", "FID")
    assert list(places) == ["500 images, 150 kimg", "500 images, 300 kimg", "all images, 60 kimg"]
    assert [(row.method, row.seeds, list(row.found)) for rows in places.values() for row in rows] == [
        ("Pairing-GAN", (7,), ["recall", "FID"]),
        ("other", (3,), ["FID"]),
        ("Pairing-GAN", (3,), ["recall", "FID"]),
        ("Pairing-GAN", (3,), ["recall"]),
    ]
    path = make_page([few, same, latents], [], tmp_path)
    shown = cells_of(path, "numbers differences glance")
    cells = ["+0.100 [0.050, 0.150]", "–", "+0.100 [0.050, 0.150]"]
    better, _, worse = (f"{cell} {way}".strip() for cell, way in zip(cells, ("better", "", "worse"), strict=True))
    assert shown[1:3] == [["500 images, 150 kimg"], ["Pairing-GAN − StyleGAN2", "–", better, "–", worse, "7"]]
    told = (tmp_path / MARKDOWN_FILE).read_text(encoding="utf-8").partition("## At a glance")[2].partition("##")[0]
    line = [cell.strip().replace("\\", "") for cell in told.splitlines()[6].strip("|").split("|")]
    assert line == ["500 images, 150 kimg", shown[2][0], "–", *cells, "7"]


def test_the_glance_keeps_budgets_apart_and_leaves_a_single_place_to_its_table(tmp_path):
    one = make_table(write_runs(tmp_path / "runs", seeds=1))
    difference = Difference("Pairing-GAN", "StyleGAN2", "recall", 0.1, (0.05, 0.15), 3, "all images", 60)
    other = dataclasses.replace(make_table(write_runs(tmp_path / "more", seeds=1), budget="paper: words"), differences=(difference,))
    _, places = glance_of([with_differences(one, difference), other])
    assert list(places) == ["short budget, all images, 60 kimg", "paper budget, all images, 60 kimg"]
    alone = with_differences(one, difference)
    assert glance_of([alone]) == glance_of([alone, alone]) == ((), {})
    assert "At a glance" not in text_of(make_page([alone], [], tmp_path))
    assert "At a glance" not in (tmp_path / MARKDOWN_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize(("apart", "said"), [(None, "20s"), (1.0, "10s"), (100.0, "20s")])
def test_metrics_of_one_pass_count_once(tmp_path, apart, said):
    """Four snapshots, two metrics of 2.5 seconds each."""
    run = write_run(tmp_path / "run", "a", 0)
    for which, path in enumerate(sorted(run.path.glob("metric-*.jsonl"))):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        lines = [line if apart is None else line | {"timestamp": 1000.0 * place + apart * which} for place, line in enumerate(lines)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_page([], [run], tmp_path)
    (row,) = [row for row in cells_of(tmp_path / HTML_FILE, "numbers cost") if row[0] == "a"]
    assert row[5] == said


def test_the_length_is_where_the_figures_were_taken(tmp_path):
    runs = write_runs(tmp_path / "runs", seeds=1)
    table = make_table(runs)
    rows = tuple(dataclasses.replace(row, kimg=kimg) for row, kimg in zip(table.rows, (20, 40), strict=True))
    assert "length 20 to 40 kimg" in text_of(make_page([dataclasses.replace(table, rows=rows)], [], tmp_path))


def test_options_that_all_runs_share_are_told_once(tmp_path):
    runs = [write_run(tmp_path / "runs" / name, name, 0, number, options={"shared": "the same", "other": name}) for number, name in enumerate("ab")]
    path = make_page([], runs, tmp_path)
    html = path.read_text(encoding="utf-8")
    assert html.count("the same") == 1 and html.count('<tr class="differs"><th scope="row">other</th>') == 2
    assert "Options that all runs of this page share" in html


def test_single_classes_have_tables_of_the_worst(tmp_path, monkeypatch):
    def values(seed):
        return {f"fid10k_embedded_class{number}": {0: 99.0, 60: 10.0 + number + 2 * seed} for number in range(11)}

    runs = [write_run(tmp_path / f"{seed}", "StyleGAN2", seed, values=values(seed)) for seed in (0, 1)]
    (study,), _ = find_studies(runs)
    ((figure, words, (header, row)),) = class_tables(study)
    assert (figure, words) == ("fid10k_embedded", "FID of single classes")
    assert header[2:] == [f"class {number}" for number in range(11)] and row[:4] == ["StyleGAN2", "60", "11.00 ± 1.41", "12.00 ± 1.41"]
    monkeypatch.setattr(classes, "MOST_CLASSES", 3)
    ((_, words, (header, _)),) = class_tables(study)
    assert words == "FID of single classes, the 3 worst of 11" and header[2:] == ["class 8", "class 9", "class 10"]
    page = make_page([], runs, tmp_path / "out")
    assert "the 3 worst of 11" in page.read_text() and "11.00 ± 1.41" not in page.read_text()
    assert "the 3 worst of 11" in page.with_suffix(".md").read_text()
    assert class_tables(find_studies(write_runs(tmp_path / "others", seeds=1))[0][0]) == []


def test_runs_outside_of_the_page_are_named_without_the_folders_of_the_machine(tmp_path):
    make_page([], [write_run(tmp_path / "elsewhere" / "runs" / "one", "one", 0)], tmp_path / "out")
    for name in (HTML_FILE, MARKDOWN_FILE, JSON_FILE):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "runs/one" in text and str(tmp_path) not in text


def test_a_table_has_one_link_per_run(tmp_path):
    """Every further one is a stop of the keyboard on the way to what follows."""
    runs = write_runs(tmp_path / "runs")
    html = make_page([make_table(runs)], [], tmp_path).read_text(encoding="utf-8")
    table = html[html.index('class="figures"') :].partition("</table>")[0]
    assert re.findall(r'<a href="#(run-\d+)"', table) == [f"run-{number}" for number in range(1, len(runs) + 1)]


def test_the_figures_of_a_page_are_explained(tmp_path):
    html = make_page([make_table(write_runs(tmp_path / "runs", seeds=1))], [], tmp_path).read_text(encoding="utf-8")
    told = re.findall(r"<dt>(\w+)</dt> <dd>", html[html.index('class="glossary"') :].partition("</details>")[0])
    assert told == ["Coverage", "Precision", "Recall", "FID"]
