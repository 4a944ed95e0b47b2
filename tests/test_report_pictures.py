"""Pictures of the report: what of the sheets is shown, what it is called, and that all of it fits into one file."""

import base64
import json
import re

import numpy as np
from PIL import Image
from report_runs import make_table, write_run, write_runs, write_sheet

from experiments.report import run_pictures, samples
from experiments.report.page import make_page
from experiments.report.studies import find_studies


def test_a_page_of_many_runs_has_room_for_its_pictures(tmp_path):
    """What the rest of the page takes is not there for pictures; those of noise shrink least."""
    runs = write_runs(tmp_path / "runs", methods=[f"method {number}" for number in range(12)])
    for run in runs:
        (run.path / "training_options.json").write_text(json.dumps({"random_seed": run.seed, "wandb": run.path.name + "x" * 70_000 + run.method}))
        for name in ("fakes000000.png", "fakes000060.png", "look-uncovered.png"):
            pixels = np.random.RandomState(run.seed).randint(0, 256, [320, 256, 3], dtype=np.uint8)
            Image.fromarray(pixels).save(run.path / name)
    html = make_page([make_table(runs)], [], tmp_path).read_text(encoding="utf-8")
    pictures = sum(map(len, re.findall(r'src="(data:image/webp[^"]+)"', html)))
    assert len(html.encode("utf-8")) < samples.PAGE_BYTES + 100 and pictures > 400_000 and len(html) - pictures > 2_500_000


def test_a_sheet_of_uncovered_reals_says_when_it_was_made(tmp_path):
    runs = [write_run(tmp_path / "runs" / name, name, 0, number) for number, name in enumerate("ab")]
    for run, named in zip(runs, ({}, {"fake": "network-snapshot-000020.safetensors"})):
        write_sheet(run.path / "look-uncovered.png", 9)
        (run.path / "look.json").write_text(json.dumps({"num_uncovered": 1234, "num_real": 5000, "k": 5} | named))
    html = make_page([], runs, tmp_path).read_text(encoding="utf-8")
    assert "seed 0: 1,234 of 5,000 real images" in html and "seed 0 at 20 kimg: 1,234 of 5,000 real images" in html
    assert html.count("left a real one that") == 2 and html.count("left a real one that b does not cover at 20 kimg, right") == 1


def test_pictures_fit_the_room_they_are_given(tmp_path):
    (study,), _ = find_studies(write_runs(tmp_path))
    (gallery,) = samples.make_galleries([study], [])
    assert not any(picture.source for picture in gallery.pictures)
    size = 10**9
    for _ in range(6):
        samples.encode(gallery.pictures, limit := int(size * 0.96))
        size = sum(len(base64.b64decode(picture.source.partition(",")[2])) for picture in gallery.pictures)
        assert 0 < size <= limit


def test_few_snapshots_of_many_are_shown_the_ends_among_them(tmp_path):
    run = write_run(tmp_path / "run", "a", 0, kimg=range(0, 400, 10))
    (study,), _ = find_studies([run])
    (gallery,) = samples.make_galleries([study], [])
    shown = [picture.kimg for picture in next(iter(gallery.samples.values()))]
    assert len(shown) == run_pictures.MOST_SNAPSHOTS and shown[0] == 0 and shown[-1] == 390 and np.ptp(np.diff(shown)) <= 10


def test_blocks_are_whole_cells_of_the_sheet(tmp_path):
    (study,), _ = find_studies([write_run(tmp_path / "run", "a", 0)])
    (gallery,) = samples.make_galleries([study], [])
    assert gallery.reals[0].image.size == (8 * 16, 6 * 16) and "6 rows of 8 images, a class per row" in gallery.reals[0].alt


def test_pictures_that_are_stored_smaller_say_so(tmp_path):
    (study,), _ = find_studies([write_run(tmp_path / "run", "a", 0)])
    galleries = samples.make_galleries([study], [])
    assert samples.reduced_words(galleries) is None and samples.reduced_words([]) is None
    for picture in galleries[0].pictures:
        picture.scale = 0.5
    assert "at 50% of their resolution (8 pixels for 16) and drawn larger" in samples.reduced_words(galleries)


def test_what_is_written_under_pairs_is_text_on_the_page(tmp_path):
    run = write_run(tmp_path / "runs" / "one", "one", 0)
    write_sheet(run.path / "look-uncovered.png", 9)
    pair = {"real": 1359, "fake": 1214, "distance": 8.1678, "scale": 2.0229, "stands_for": 429, "ratio": None}
    (run.path / "look.json").write_text(json.dumps({"num_uncovered": 1, "num_real": 2, "k": 5, "uncovered": [pair, pair | {"ratio": 4.0377}]}))
    html = make_page([], [run], tmp_path).read_text(encoding="utf-8")
    told = [f"real 1359, generated 1214: 8.168, {ratio} radii; 1 of 429 like it" for ratio in ("–", "4.038")]
    assert all(f"<li>{words}</li>" in html for words in told)
