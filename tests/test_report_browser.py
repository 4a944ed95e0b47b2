"""The report in a real browser: it renders, moves through training time, needs no network, no mouse and no pictures, and fits a phone.

Without a Chromium or Chrome these tests are skipped. On Debian and Ubuntu: apt install chromium-headless-shell
"""

import math
import pathlib

import pytest
from headless_browser import Browser, complaints, find_browser
from report_runs import CLAIMS, FIGURES, KIMG, make_table, write_run, write_runs

from experiments.report.page import make_page

PROGRAM = find_browser()
RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results"
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome here; set BROWSER_FOR_TESTS to the path of one")

# Expressions for `look`, which gives them all(selector, root), seen(element) and middle(element).
SHOWN = "all('.stack').map(stack => all('img', stack).filter(seen).map(image => image.alt))"
POINTS = "all('.plane .now').map(middle)"
DOTS = "all('.plane .series').map(series => all('.dot', series).map(middle))"
# What is wider than the window although nothing around it scrolls by itself.
TOO_WIDE = "all('body *').filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, svg')).map(e => e.outerHTML)"
FOCUS = "(e => e === document.body ? '' : `${e.tagName}#${e.id || e.className || e.textContent.trim()}`)(document.activeElement)"
OUTLINE = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
REACHABLE = """all('a[href], button, input, select, summary, [tabindex="0"]').filter(seen).length"""
HELPERS = """{
  all: (selector, root = document) => [...root.querySelectorAll(selector)],
  seen: element => element.checkVisibility(),
  middle: element => (box => [box.x + box.width / 2, box.y + box.height / 2])(element.getBoundingClientRect()),
}"""


def look(browser, expression):
    """The value of an expression with the helpers at hand."""
    return browser.evaluate(f"(({{ all, seen, middle }}) => ({expression}))({HELPERS})")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    runs = write_runs(out / "runs", methods=("StyleGAN2", "Pairing-GAN", "MS-GAN(+R1)"))
    return make_page([make_table(runs, claims=CLAIMS)], [], out)


@pytest.fixture(scope="module")
def browser():
    browser = start()
    yield browser
    browser.close()


def start(images=True):
    """A browser; skips the test where it cannot be driven."""
    try:
        return Browser(PROGRAM, images)
    except (OSError, RuntimeError) as error:  # a timeout is an OSError
        pytest.skip(f"{PROGRAM} cannot be driven here: {error}")


@pytest.fixture(autouse=True)
def quiet(request):
    """After every test: the page said nothing on the console and asked for nothing but itself."""
    yield
    if {"browser", "page"} <= set(request.fixturenames):
        browser, path = request.getfixturevalue("browser"), request.getfixturevalue("page")
        assert browser.console == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [path.resolve().as_uri()]


def set_slider(browser, name, index):
    """Moves a slider as a hand would: the value, then its event."""
    browser.evaluate(f"(s => {{ s.value = {index}; s.dispatchEvent(new Event('input')) }})(document.getElementById('{name}'))")


def test_any_runs_make_a_page_that_works(browser, tmp_path):
    """Two studies, a run without measurements, one without pictures, one of a single snapshot."""
    runs = [*write_runs(tmp_path / "a", setting="noaug"), *write_runs(tmp_path / "b", setting="ada", seeds=1)]
    runs.append(write_run(tmp_path / "bare", "bare", 0, values={}))
    runs.append(write_run(tmp_path / "blind", "blind", 0, kimg=()))
    runs.append(write_run(tmp_path / "short", "short", 0, values={figure: {20: 0.5} for figure in FIGURES}, kimg=(20,)))
    path = make_page([], runs, tmp_path / "out")
    assert complaints(browser, path) == []
    assert look(browser, "all('.controls').map(c => c.hidden)") == [False] * 6
    set_slider(browser, "samples-2-time", 0)
    assert "at 0 kimg" in look(browser, SHOWN)[4][0]
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("dark", [False, True])
def test_it_renders(browser, page, dark):
    browser.open(page, dark=dark)
    assert browser.evaluate("document.querySelector('h2').getBoundingClientRect().height") > 10
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 128) == dark
    assert browser.evaluate("[...document.images].every(i => i.hidden || i.naturalWidth > 0)")
    assert look(browser, "all('.chart').every(c => c.getBoundingClientRect().width > 200)")
    assert browser.evaluate("document.querySelectorAll('.chart').length") == 6
    assert look(browser, "all('.controls').every(c => !c.hidden)")


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser, page, dark):
    """Contrast of at least 4.5 between text and what is behind it (WCAG 2.1 AA), method names in charts among them."""
    browser.open(page, dark=dark)
    colours = look(browser, """all('p, li, dt, dd, th, td, a, code, small, label, output, strong, span, text').filter(
        e => e.getClientRects().length && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
          let ground = e;
          while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
          const style = getComputedStyle(e);
          return [e instanceof SVGElement ? style.fill : style.color, getComputedStyle(ground).backgroundColor, e.textContent.trim().slice(0, 30)];
        })""")
    assert len(colours) > 100
    assert [row for row in colours if contrast(row[0], row[1]) < 4.5] == []


def contrast(first, second):
    """Contrast ratio of two CSS colours as browsers write them, "rgb(r, g, b)"."""
    lights = []
    for colour in (first, second):
        shares = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_the_slider_changes_the_pictures(browser, page):
    browser.open(page)
    last = look(browser, SHOWN)
    assert [len(stack) for stack in last] == [1, 1, 1, 1] and all("at 60 kimg" in stack[0] for stack in last[1:])
    for index, kimg in enumerate(KIMG):
        set_slider(browser, "samples-1-time", index)
        assert all(f"seed 0, at {kimg} kimg" in stack[0] for stack in look(browser, SHOWN)[1:])
    browser.evaluate("(s => { s.value = '2'; s.dispatchEvent(new Event('change')) })(document.getElementById('samples-1-seed'))")
    shown = look(browser, SHOWN)
    assert all("seed 2, at 60 kimg" in stack[0] for stack in shown[1:]) and shown[0] == last[0]


def test_time_moves_the_points_along_their_paths(browser, page):
    browser.open(page)
    dots = look(browser, DOTS)
    for index, kimg in enumerate(KIMG):
        set_slider(browser, "training-1-time", index)
        for point, places in zip(look(browser, POINTS), dots, strict=True):
            assert math.dist(point, places[index]) < 1.0
        later = browser.evaluate("document.querySelectorAll('.plane .leg.later').length")
        assert later == 6 * (len(KIMG) - 1 - index)
        assert browser.evaluate("document.querySelector('#training-1-time ~ output').textContent") == f"{kimg} kimg"
    start, end = dots[0][0], dots[0][-1]
    assert math.dist(start, end) > 50


def test_figures_at_the_chosen_time_are_those_of_the_table(browser, page):
    browser.open(page)
    rows = look(browser, "all('table.numbers tbody tr').map(r => [...r.children].map(c => c.textContent))")
    set_slider(browser, "training-1-time", 1)
    shown = look(browser, "all('table.readout tbody tr').map(r => [...r.children].map(c => c.textContent))")
    assert len(shown) == 3
    # Without the number of seeds, which all are; of the numbers of classes, say, there are other tables.
    told = [[*row[:2], *(cell.partition(" [")[0] for cell in row[3:])] for row in rows]  # the table has the lowest and the highest seed, too
    assert shown == [cells for cells, row in zip(told, rows) if row[1] == str(KIMG[1]) and row[2] == "3" and "±" in row[3]]


def test_play_walks_to_the_end_and_stops(browser, page):
    browser.open(page)
    browser.evaluate("window.setInterval = (f => (call, _) => f(call, 5))(window.setInterval)")
    set_slider(browser, "training-1-time", 1)
    browser.evaluate("document.querySelector('.play').click()")
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    assert browser.evaluate("[document.getElementById('training-1-time').value, document.querySelector('.play').textContent]") == ["3", "Play"]


def test_the_pointer_shows_the_words_of_the_nearest_measurement(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelector('.plane').scrollIntoView({block: 'center', behavior: 'instant'})")
    browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # scrolling hides the words, but later
    x, y = look(browser, DOTS)[0][1]
    browser.move_mouse(x + 2, y + 2)
    tip = browser.evaluate("(t => t.hidden ? '' : t.textContent)(document.querySelector('.tip'))")
    assert "kimg: precision" in tip and " to " in tip
    browser.move_mouse(2, 2)
    assert browser.evaluate("document.querySelector('.tip').hidden")


@pytest.mark.parametrize("width", [390, 320, 768])
def test_it_fits_a_narrow_window(browser, page, width):
    browser.open(page, width=width, height=844)
    browser.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert look(browser, "Math.max(...all('tr').map(row => row.getBoundingClientRect().height))") < 200  # no cell is squeezed
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert look(browser, TOO_WIDE) == []
    sizes = look(browser, """all('.chart text').map(
        t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width)""")
    assert min(sizes) > (7 if width < 390 else 9)
    if width < 600:
        assert look(browser, "Math.min(...all('button, select').map(b => b.getBoundingClientRect().height))") >= 30


def test_the_keyboard_reaches_and_works_every_control(browser, page):
    browser.open(page)
    wanted, seen = look(browser, REACHABLE), []
    while len(seen) <= wanted:
        browser.press("Tab")
        focus = browser.evaluate(FOCUS)
        if not focus:
            break
        assert browser.evaluate(OUTLINE), focus
        seen.append(focus)
    assert len(seen) == wanted
    assert {"INPUT#training-1-time", "BUTTON#play", "INPUT#samples-1-time", "SELECT#samples-1-seed"} <= set(seen)


def test_arrow_keys_step_through_time(browser, page):
    browser.open(page)
    browser.evaluate("document.getElementById('samples-1-time').focus()")
    browser.press("ArrowLeft")
    assert "at 40 kimg" in look(browser, SHOWN)[1][0]
    assert browser.evaluate("document.getElementById('samples-1-time').getAttribute('aria-valuetext')") == "40 kimg"
    browser.press("Home")
    assert "at 0 kimg" in look(browser, SHOWN)[1][0]


def test_a_figure_leads_to_its_run(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelector('.figures .seeds a').focus()")
    browser.press("Enter")
    browser.evaluate("new Promise(done => setTimeout(done, 100))")
    opened = "all('details.run').map(d => d.open)"
    assert look(browser, opened) == [True] + [False] * 8
    browser.evaluate("document.querySelector('details.run').open = false")
    browser.evaluate("document.querySelector('.figures .seeds a').click()")  # once more: the address is the same
    assert look(browser, opened) == [True] + [False] * 8
    assert browser.evaluate("document.querySelector('details.run').getBoundingClientRect().top < innerHeight")


def test_it_stands_without_a_script(browser, page):
    browser.open(page, script=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert look(browser, "all('.controls').every(c => c.hidden)")
    assert [len(stack) for stack in look(browser, SHOWN)] == [1, 1, 1, 1]
    assert look(browser, "all('.plane .dot title').length") == 2 * 3 * len(KIMG)
    for point, dots in zip(look(browser, POINTS), look(browser, DOTS), strict=True):
        assert math.dist(point, dots[-1]) < 1.0


@pytest.mark.parametrize("name", ["cifar10", "cifar10-fp32"])
def test_no_table_of_our_own_pages_is_cut_in_print(browser, name):
    browser.open(RESULTS / name / "report.html", width=718)  # an A4 page without its margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert look(browser, "all('table.numbers').length") > 0
        assert look(browser, "all('table').filter(t => t.getBoundingClientRect().right > innerWidth).map(t => t.outerHTML.slice(0, 300))") == []
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_it_says_everything_with_images_off(page):
    browser = start(images=False)
    try:
        browser.open(page, width=390)
        assert browser.evaluate("[...document.images].every(i => i.naturalWidth === 0 && i.alt.length > 20)")
        assert look(browser, "all('.chart').every(c => c.getBoundingClientRect().height > 100)")
        set_slider(browser, "samples-1-time", 0)
        assert all("at 0 kimg" in stack[0] for stack in look(browser, SHOWN)[1:])
        assert browser.console == []
    finally:
        browser.close()
