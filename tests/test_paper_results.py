"""Experiments as data, result files and their pages: consistent entries, strict JSON, read back as written or refused."""

import json
import math
import re
import statistics
import subprocess

import pytest

from dnnlib import UserError
from experiments.paper import numbers, results
from experiments.paper.checks import Contrast
from experiments.paper.claims import CLAIMS
from experiments.paper.results import build_result, read_result, result_path, rows_of, summarize, versions, write_result
from experiments.paper.run import make_protocol
from experiments.paper.tables import aligned, main_tables, page
from experiments.paper.toy_experiments import EXPERIMENTS, choose_experiments
from experiments.toy.measures import MEASURES
from experiments.toy.methods import METHODS
from experiments.toy.studies import STUDIES


def rows_for(experiment, num_seeds=4):
    """Figures that differ by method, metric and seed; published ones where they exist."""
    return {
        method: {
            metric: [experiment.paper.get(method, {}).get(metric, 0.5 + 0.01 * place) + 0.001 * seed * (place + 1) for seed in range(num_seeds)]
            for metric in MEASURES
        }
        for place, method in enumerate(experiment.methods)
    }


def result_for(name, num_seeds=4):
    experiment = EXPERIMENTS[name]
    return build_result(experiment, rows_for(experiment, num_seeds), make_protocol(experiment, range(num_seeds), f"python reproduce.py run {name}"))


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_an_entry_refers_to_what_exists(experiment):
    assert experiment.study in STUDIES and set(experiment.methods) <= set(METHODS) and set(experiment.columns) <= set(MEASURES)
    assert len(set(experiment.methods)) == len(experiment.methods) and len(set(experiment.columns)) == len(experiment.columns)
    assert set(experiment.paper) <= set(experiment.methods) and bool(experiment.paper) == bool(experiment.source)
    assert all(set(figures) <= set(experiment.columns) for figures in experiment.paper.values())
    assert all({one, other} <= set(experiment.methods) for one, other in experiment.comparisons)
    assert experiment.paper or not experiment.aims
    for name in experiment.claims:
        for check in CLAIMS[name].checks:
            methods = check.weights if isinstance(check, Contrast) else [check.method]
            assert set(methods) <= set(experiment.methods) and check.metric in experiment.columns
    assert re.fullmatch(r"[^.].*[^.]\.", experiment.title)


def test_every_claim_is_judged_somewhere_and_every_study_used():
    assert {name for experiment in EXPERIMENTS.values() for name in experiment.claims} == set(CLAIMS)
    assert {experiment.study for experiment in EXPERIMENTS.values()} == set(STUDIES)


def test_every_published_row_of_a_table_is_reproduced():
    for name, table in (("table1", numbers.TABLE1), ("table2", numbers.TABLE2), ("tableA", numbers.TABLE_A)):
        assert EXPERIMENTS[name].paper == table and EXPERIMENTS[name].aims


def test_names_choose_experiments():
    assert choose_experiments(("all",)) == list(EXPERIMENTS.values())
    assert [experiment.name for experiment in choose_experiments(("table2", "table1", "table2"))] == ["table2", "table1"]
    for names, found in ((("table9",), "'table9'"), ((), "no experiment"), (("table1", "all"), "'all'")):
        with pytest.raises(UserError, match=found):
            choose_experiments(names)


def test_a_summary_is_of_all_seeds():
    values = [0.1, 0.4, 0.7]
    assert summarize(values) == {"mean": pytest.approx(0.4), "std": pytest.approx(0.3), "seeds": values}
    assert summarize([0.5]) == {"mean": 0.5, "std": None, "seeds": [0.5]}
    assert summarize([0.5, math.nan, math.inf]) == {"mean": None, "std": None, "seeds": [0.5, None, None]}


@pytest.mark.parametrize("name", ["table1", "rpgan", "pacgan-ring"])
def test_results_are_read_back_as_written(name, tmp_path):
    result = result_for(name)
    path = result_path(tmp_path, name)
    write_result(result, path)
    back = read_result(path)
    assert back == result and list(back) == ["rows", "paper", "claims", "aims", "protocol"]
    assert list(back["rows"]) == list(EXPERIMENTS[name].methods)
    assert rows_of(back) == rows_for(EXPERIMENTS[name])
    first = path.read_bytes()
    write_result(back, path)
    assert path.read_bytes() == first


def test_figures_that_are_no_numbers_make_strict_json_and_no_verdict(tmp_path):
    experiment = EXPERIMENTS["table1"]
    rows = rows_for(experiment)
    rows["GAN"]["coverage"][2] = math.nan
    result = build_result(experiment, rows, make_protocol(experiment, range(4), ""))
    path = result_path(tmp_path, "table1")
    write_result(result, path)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    back = read_result(path)
    assert not back["claims"]["C1"]["holds"] and back["rows"]["GAN"]["coverage"]["mean"] is None
    assert math.isnan(rows_of(back)["GAN"]["coverage"][2])


def _drop(result, *keys):
    for key in keys[:-1]:
        result = result[key]
    del result[keys[-1]]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda r: _drop(r, "claims"), "sections"),
        (lambda r: r.update(extra=1), "sections"),
        (lambda r: r["rows"]["GAN"]["recall"]["seeds"].pop(), "3 values for 4 seeds"),
        (lambda r: r["rows"]["GAN"]["recall"].update(mean=0.9), "mean and std of recall of GAN"),
        (lambda r: r["rows"]["GAN"]["recall"].update(std=None), "mean and std of recall of GAN"),
        (lambda r: r["rows"]["GAN"]["recall"]["seeds"].__setitem__(0, "many"), "layout"),
        (lambda r: r["claims"]["C1"].update(holds="yes"), "C1"),
        (lambda r: _drop(r, "claims", "C1", "evidence"), "layout"),
        (lambda r: r["aims"][0].update(met=1), "aim"),
        (lambda r: _drop(r, "protocol", "seeds"), "layout"),
        (lambda r: r["protocol"].update(methods=[]), "protocol"),
        (lambda r: r["rows"].clear(), "no rows"),
    ],
)
def test_damaged_results_are_refused_by_name(damage, found, tmp_path):
    path = result_path(tmp_path, "table1")
    result = result_for("table1")
    damage(result)
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match=f"(?s)table1.json.*{found}"):
        read_result(path)


@pytest.mark.parametrize("text", ["", "{", '{"rows": {}', "[]", "null", "\x00\xff"])
def test_torn_results_are_refused_by_name(text, tmp_path):
    path = tmp_path / "table1.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"table1\.json is no"):
        read_result(path)
    with pytest.raises(UserError, match="cannot read"):
        read_result(tmp_path / "absent.json")


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_sets_ours_beside_the_published():
    experiment, result = EXPERIMENTS["table1"], result_for("table1")
    header, _, *body = cells(main_tables(experiment, result)[0])
    assert header[:7] == ["method", "precision", "published", "recall", "published", "coverage", "published"]
    assert [row[0] for row in body] == list(experiment.methods)
    ours = rows_for(experiment)
    for row in body:
        for place, metric in ((1, "precision"), (3, "recall"), (5, "coverage")):
            values = ours[row[0]][metric]
            assert row[place] == f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
            assert float(row[place + 1]) == numbers.TABLE1[row[0]][metric]


def test_rows_without_published_figures_have_a_dash():
    rows = {row[0]: row for row in cells(main_tables(EXPERIMENTS["tableA"], result_for("tableA"))[0])}
    assert rows["GAN+Pairing"][2] == "–" and rows["MS-GAN+R1"][2] == "0.354"


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("num_seeds", [1, 4])
def test_a_page_shows_every_seed_every_check_and_the_command(name, num_seeds):
    experiment, result = EXPERIMENTS[name], result_for(name, num_seeds)
    text = page(experiment, result, [f"{name}.png", f"{name}.svg"])
    assert f"]({name}.png)" in text and f"{name}.svg" not in text
    assert result["protocol"]["command"] in text and f"{num_seeds} seed" in text and "10,000 real" in text
    for claim in result["claims"].values():
        assert claim["evidence"]["claim"] in text
        assert all(check["check"] in text for check in claim["evidence"]["checks"])
    assert all(aim["aim"] in text for aim in result["aims"])
    seeds_table = text.split("## All seeds")[1].split("## Protocol")[0].strip()
    _, _, *body = cells(seeds_table)
    assert [(row[0], row[1]) for row in body] == [(method, str(seed)) for method in experiment.methods for seed in range(num_seeds)]
    assert "nan" not in text and "None" not in text


def test_columns_of_a_table_line_up():
    lines = aligned([["a", "b"], ["long name", "1"], ["x|y", "22.5"]]).splitlines()
    assert len({len(line) for line in lines}) == 1 and r"x\|y" in lines[3] and lines[2].endswith("    1 |")


def test_versions_need_no_checkout(monkeypatch, tmp_path):
    assert all(versions()[key] for key in ("torch", "python", "platform"))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert versions()["code"] is None
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)  # a checkout without a commit
    assert versions()["code"] is None
    monkeypatch.setenv("PATH", "")
    assert versions()["code"] is None
