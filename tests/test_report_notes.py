"""Notes of a results folder: they stand under the headings that they name, as text, and lead nowhere but to pages beside this one."""

import dataclasses
import json

import pytest
from report_runs import make_table, write_runs

from dnnlib import UserError
from experiments.images.results import Difference
from experiments.report.notes import NOTES_FILE, read_notes
from experiments.report.page import HTML_FILE, JSON_FILE, MARKDOWN_FILE, make_page

WORDS = "A <b>third</b> seed"
LINK = "../other/report.html"


def write_notes(folder, *notes):
    folder.mkdir(exist_ok=True)
    (folder / NOTES_FILE).write_text(json.dumps({"notes": notes}))


def page_with(tmp_path, at, **more):
    write_notes(tmp_path, {"at": at, "text": WORDS, **more})
    differences = [Difference("Pairing-GAN", "StyleGAN2", "recall", 0.1, (0.0, 0.2), 3, images, 60) for images in ("500 images", "all images")]
    table = dataclasses.replace(make_table(write_runs(tmp_path / "runs")), differences=tuple(differences))
    make_page([table], [], tmp_path)
    return (tmp_path / HTML_FILE).read_text("utf-8")


@pytest.mark.parametrize("at", ["noaug", "table3", "500 images", "glance", "samples"])
def test_a_note_stands_once_at_each_of_its_names_as_text(tmp_path, at):
    html = page_with(tmp_path, [at], link=LINK)
    assert html.count("A &lt;b&gt;third&lt;/b&gt; seed") == html.count(f'<a href="{LINK}">') == 1
    assert "not on this page" not in html
    assert f"[{LINK}]({LINK})" in (tmp_path / MARKDOWN_FILE).read_text("utf-8")
    assert json.loads((tmp_path / JSON_FILE).read_text("utf-8"))["notes"] == [{"at": [at], "text": WORDS, "link": LINK}]


def test_a_note_that_belongs_nowhere_is_told(tmp_path):
    assert "belongs to &#x27;subset-7&#x27;, which is not on this page" in page_with(tmp_path, ["subset-7", "noaug"])


def test_a_folder_without_notes_has_none(tmp_path):
    assert read_notes(tmp_path).of("noaug") == [] and read_notes(tmp_path).block("noaug") is None


@pytest.mark.parametrize("link", ["javascript:alert(1)", "//elsewhere/x", "https://elsewhere", "/etc/x", 'x"y'])
def test_links_lead_to_pages_beside_this_one_only(tmp_path, link):
    write_notes(tmp_path, {"at": ["noaug"], "text": "words", "link": link})
    with pytest.raises(UserError, match="a link is a path from the page"):
        read_notes(tmp_path)


@pytest.mark.parametrize("entry", [{}, {"at": "a", "text": ""}, {"at": [], "text": ""}, {"at": [1], "text": ""}, {"at": ["a"], "text": "", "b": 1}])
def test_other_forms_are_refused_in_one_sentence(tmp_path, entry):
    write_notes(tmp_path, entry)
    with pytest.raises(UserError, match="holds notes in no known form"):
        read_notes(tmp_path)
