"""The explorer's server: what it answers and what it refuses, and its page in a real browser."""

import contextlib
import http.client
import math
import socket
import time
import urllib.request

import pytest
from explore_parts import LATENTS, REAL, SECONDS, ask, get, ready, serving, status, write_run
from headless_browser import Browser, find_browser

from experiments.explore.model import NEAREST_K
from experiments.explore.server import own_hosts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("explore") / "00003-run")


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as server:
        yield server


# What the server answers, and what not.


def test_pages_and_their_guards(server):
    for target, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css"), ("/about.json", "application/json")):
        headers, body = get(server, target)
        assert headers["Content-Type"].startswith(kind) and len(body) > 100
        assert "default-src 'none'" in headers["Content-Security-Policy"] and "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Access-Control-Allow-Origin"] is None
    about = ask(server, "/about.json")
    assert about["run"] == "00003-run" and about["network"] == "network-snapshot-000008.safetensors" and about["real"] == REAL
    head, body = status(server, "/", method="HEAD")
    assert head == 200 and body == b""


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with pytest.raises(OSError):
            socket.create_connection((address, server.server_port), timeout=2).close()


def test_requests_for_another_name_are_refused(server):
    port = server.server_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        assert status(server, "/about.json", host=host)[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        f"127.0.0.1:{port}.evil.example",
        "[::1]",
        f"127.0.0.2:{port}",
    ):
        assert status(server, "/about.json", host=host)[0] == 403
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as plain:
        plain.sendall(b"GET /about.json HTTP/1.1\r\n\r\n")
        assert b" 403 " in plain.recv(200)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as twice:
        twice.sendall(f"GET /about.json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n".encode())
        assert b" 403 " in twice.recv(200)


def test_the_address_of_port_80_comes_without_it(server, monkeypatch):
    assert own_hosts(8080) == {"127.0.0.1:8080", "localhost:8080"}
    monkeypatch.setattr(server, "hosts", own_hosts(80))
    codes = {"127.0.0.1": 200, "localhost:80": 200, "localhost": 200, "evil.example": 403, f"localhost:{server.server_port}": 403}
    for host, code in codes.items():
        assert status(server, "/about.json", headers={"Host": host, "Origin": f"http://{host}"})[0] == code


def test_requests_of_another_page_are_refused(server):
    own = f"http://127.0.0.1:{server.server_port}"
    assert status(server, "/about.json", headers={"Origin": own, "Sec-Fetch-Site": "same-origin"})[0] == 200
    assert status(server, "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to the page
    refused = [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
    assert [status(server, "/image.png", headers=headers)[0] for headers in refused] == [403] * 4


@pytest.mark.parametrize(
    "target",
    [
        "/nothing",
        "/page.html",
        "/../pyproject.toml",
        "/%2e%2e/x",
        "//etc/passwd",
        "/etc/passwd",
        "/data.zip",
        "/?x=1",
        "/page.js?v=1",
        "http://127.0.0.1/",
        "*",
    ],
)
def test_other_addresses_are_not_found(server, target):
    code, text = status(server, target)
    assert code == 404 and len(text) < 100


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/image.png?" + query
            for query in ("seed=-1", "seed=4294967296", "seed=1.5", "seed=", "seed=x", "seed=1&seed=2", "seed", "seed=%00", "seed=1e9")
        ),
        *(
            "/image.png?" + query
            for query in ("t=2", "t=-0.1", "t=nan", "t=1e-3", "t=0.1234567", "class=3", "class=-1", "trunc=3", "trunc=inf", "space=x")
        ),
        *("/image.png?" + query for query in ("path=/etc/passwd", "index=1", "seed=٣", "&&", "=", "seed=1;t=0")),
        *("/real.png?" + query for query in (f"index={REAL}", "index=-1", "index=../x", "index=0&seed=1")),
        *("/map.json?" + query for query in ("class=3", "trunc=-1", "seed=1", "latents=100000000")),
        *("/nearest.json?count=5", "/about.json?x=1"),
    ],
)
def test_wrong_parameters_are_refused(server, target):
    code, text = status(server, urllib.request.quote(target, safe="/?=&;%"))
    assert code == 400 and len(text) < 100 and text.count(b"\n") == 1


def test_nothing_can_be_sent(server):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"):
        assert status(server, "/about.json", method=method)[0] == 501
    assert status(server, "/about.json", headers={"Content-Length": "3"}, body=b"abc")[0] == 400
    assert status(server, "/about.json", headers={"Transfer-Encoding": "chunked"})[0] == 400
    assert status(server, "/about.json?" + "x" * 600)[0] == 414
    for junk in (b"\r\n\r\n", b"\x00\xff" * 50 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=SECONDS) as plain:
            plain.sendall(junk)
            plain.shutdown(socket.SHUT_WR)
            plain.recv(1000)
    assert status(server, "/about.json")[0] == 200


def test_connections_at_a_time_are_limited(folder, monkeypatch):
    monkeypatch.setattr("experiments.explore.server.MOST_REQUESTS", 3)
    with serving(folder) as server:
        idle = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(3)]
        with pytest.raises((http.client.HTTPException, OSError)):
            status(server, "/about.json")
        for connection in idle:
            connection.close()
        until, code = time.monotonic() + 10, None
        while code is None and time.monotonic() < until:
            with contextlib.suppress(http.client.HTTPException, OSError):  # until the server has seen that they are gone
                code = status(server, "/about.json")[0]
        assert code == 200


def test_nothing_is_written_beside_the_run(server, folder):
    before = sorted(folder.rglob("*"))
    ready(server, "/map.json")
    ready(server, "/nearest.json")
    assert sorted(folder.rglob("*")) == before


# The page itself.


class Page:
    """The page in a browser, with waiting and clicks."""

    def __init__(self, url):
        self.url, self.browser = url.partition("#")[0], Browser(find_browser())
        self.browser.call("Emulation.setDeviceMetricsOverride", width=1400, height=1300, deviceScaleFactor=1, mobile=False)
        self.browser.call("Page.navigate", url=url)
        self.run = self.browser.evaluate

    def wait(self, expression, seconds=SECONDS):
        until = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.05)

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, name, *keys):
        """Presses keys where an element has the focus."""
        self.run(f"document.getElementById('{name}').focus()")
        for key in keys:
            self.browser.press(key)

    def show(self, width, dark):
        """Another window and another colour scheme."""
        self.browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.wait(f"matchMedia('(prefers-color-scheme: {'dark' if dark else 'light'})').matches && innerWidth === {width}")

    def set(self, name, value):
        self.run(f"(input => {{ input.value = {value}; input.dispatchEvent(new Event('input')) }})(document.getElementById('{name}'))")


@pytest.fixture
def browse():
    """Opens the page; at the end nothing may have gone wrong in it, and nothing may have been asked of another server."""
    if find_browser() is None:
        pytest.skip("no Chromium here")
    pages = []

    def open_page(url):
        pages.append(Page(url))
        pages[-1].wait("document.body && document.body.dataset.state === 'ready'")
        return pages[-1]

    yield open_page
    for page in pages:
        page.browser.close()
        assert page.browser.console == []
        assert all(url.startswith(page.url) for url in page.browser.requests)


MAP_IS_THERE = "map && mapKey === query({})"


def test_the_page_in_a_browser(server, browse):
    page = browse(f"{server.url}#seed=3&to=4&t=0.5&class=2&layout=w&trunc=0.9")
    page.wait("document.body.dataset.nearest === 'ready'")
    assert page.run("document.body.dataset.points") == str(LATENTS)
    assert page.run("document.title") == "00003-run, network-snapshot-000008.safetensors"
    assert page.run("document.getElementById('picture').src").endswith("/image.png?class=2&trunc=0.9&seed=3&to=4&t=0.5&space=z")
    page.wait("[...document.images].length > 20 && [...document.images].every((image) => image.complete && image.naturalWidth === 16)")
    assert page.run("['strip', 'nearest'].map((name) => document.getElementById(name).querySelectorAll('img').length)") == [9, 8]
    for name, value, expected in (("trunc", 0.5, "trunc=0.5"), ("class", 1, "class=1"), ("seed-slider", 17, "seed=17"), ("t", 0.25, "t=0.25")):
        page.set(name, value)
        assert expected in page.run("document.getElementById('picture').src")
        page.wait(f"location.hash.includes('{expected}')")
    page.wait(MAP_IS_THERE)
    assert "have near images" in page.run("document.getElementById('map-note').textContent")
    canvas = "document.getElementById('map')"
    assert page.run(f"{canvas}.getContext('2d').getImageData(0, 0, 640, 640).data.filter((value) => value > 0).length") > 1000


def test_a_click_shows_a_latent_and_the_far_one_with_the_nearest_image(server, browse):
    page = browse(f"{server.url}#class=1")
    page.wait(MAP_IS_THERE)
    left, top, width = page.run("(({x, y, width}) => [x, y, width])(document.getElementById('map').getBoundingClientRect())")
    (x, y), partner = page.run("[places()[11], map.partners[11]]")
    page.click(left + x * width / 640, top + y * width / 640)
    page.wait(f"location.hash.includes('seed=11&to={partner}&t=0')")
    page.run("document.querySelector('#worst button').click()")
    first, second = page.run("map.worst[0].seeds")
    page.wait(f"location.hash.includes('seed={first}&to={second}&')")
    page.run("document.querySelector('input[name=layout][value=z]').click()")
    page.run("document.querySelector('input[name=space][value=w]').click()")
    page.wait("location.hash.includes('layout=z') && document.getElementById('picture').src.includes('space=w')")


KEY = "document.getElementById('map').dispatchEvent(new KeyboardEvent('keydown', { key: '%s', cancelable: true }))"


def test_keys_lead_over_the_map(server, browse):
    page = browse(f"{server.url}#class=1&seed=123456")
    page.wait(MAP_IS_THERE)
    assert "123456 is not on the map" in page.run("document.getElementById('map').ariaValueText")
    page.press("map", "Home")
    for key, axis, sign in (("ArrowRight", 0, 1), ("ArrowLeft", 0, -1), ("ArrowUp", 1, -1), ("ArrowDown", 1, 1)):
        before = page.run("view.seed")
        points = page.run("places()")
        page.press("map", key)
        moves = {seed: [to - at for to, at in zip(point, points[before], strict=True)] for seed, point in enumerate(points)}
        there = [seed for seed, move in moves.items() if move[axis] * sign > 0 and abs(move[1 - axis]) <= abs(move[axis])]
        assert page.run("view.seed") == min(there, key=lambda seed: math.hypot(*moves[seed]), default=before)
        assert page.run("view.to === map.partners[view.seed]")
    for key, seed in (("End", LATENTS - 1), ("PageUp", LATENTS - 1), ("PageDown", LATENTS - 2), ("Home", 0), ("PageDown", 0), ("PageUp", 1)):
        assert not page.run(KEY % key), "the page scrolls as well"
        assert page.run("(map => [map.ariaValueNow, map.ariaValueText.split(':')[0]])(document.getElementById('map'))") == [str(seed), f"Seed {seed}"]
    assert page.run(KEY % "Tab"), "there is no way out"


SLIDERS = "['seed', 'to'].map((name) => [name, name + '-slider'].map((id) => document.getElementById(id).value).join())"


def test_controls_say_what_they_are_and_where_they_stand(server, browse):
    page = browse(f"{server.url}#class=1&seed=123456&to=4294967295")
    nodes = page.browser.call("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node["name"]["value"].strip()) for node in nodes if node.get("role") and node.get("name")]
    controls = {kind: {name for role, name in named if role == kind} for kind in ("slider", "spinbutton", "radio", "button")}
    assert controls["slider"] == {"Seed A, slider", "Seed B, slider", "A to B", "Class", "Truncation", "Latent on the map"}
    assert controls["spinbutton"] == {"Seed A", "Seed B"} and "" not in controls["radio"] | controls["button"]
    assert page.run(SLIDERS) == ["123456,123456", "4294967295,4294967295"]
    page.press("seed-slider", "ArrowRight")
    page.press("to-slider", "ArrowLeft")
    assert page.run(SLIDERS) == ["123457,123457", "4294967294,4294967294"]
    page.run("location.hash = 'seed=7&class=1'")  # as pasted into the open page: what it does not say is as in a new one
    page.wait("location.hash.includes('seed=7&to=1&t=0&space=z&class=1&trunc=1')")
    assert page.run(SLIDERS) == ["7,7", "1,1"] and "seed=7&" in page.run("document.getElementById('picture').src")


CONTRASTS = """[...document.querySelectorAll('h1, .note, summary, dd, figcaption, button')].map((element) => {
  const light = (text) => text.match(/[0-9.]+/g).slice(0, 3).map((value) => value / 255)
    .reduce((sum, value, at) => sum + [0.2126, 0.7152, 0.0722][at] * (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4), 0.05);
  const pair = [light(getComputedStyle(element).color), light(getComputedStyle(document.body).backgroundColor)];
  return element.matches('#controls button') ? 21 : Math.max(...pair) / Math.min(...pair);  // those are the browser's own
})"""


def test_small_windows_dark_ones_and_those_without_a_script(server, browse):
    page = browse(f"{server.url}#class=1&seed=123456&to=4294967295&t=0.5")
    page.wait(MAP_IS_THERE)
    page.wait("document.body.dataset.nearest === 'ready'")
    assert NEAREST_K == 3 and "third nearest" in page.run("document.getElementById('words').textContent")
    page.run("document.getElementById('words').open = true")
    drawn = []
    for width, dark in ((1280, False), (375, True), (320, False)):
        page.show(width, dark)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert min(page.run(CONTRASTS)) >= 4.5
        drawn.append(page.run("new Promise(requestAnimationFrame).then(() => document.getElementById('map').toDataURL())"))
    assert drawn[0] == drawn[2] != drawn[1]
    page.browser.call("Emulation.setScriptExecutionDisabled", value=True)
    page.browser.call("Page.reload")
    page.wait("document.querySelector('noscript p')?.getBoundingClientRect().height > 0")
    assert page.run("document.getElementById('main').getBoundingClientRect().height") == 0


def test_a_broken_address_of_the_page_shows_the_page(server, browse):
    page = browse(f"{server.url}#seed=-5&to=x&t=7&class=99&trunc=NaN&layout=no&space=<script>&other=1&constructor=2")
    assert page.run("document.getElementById('picture').src").endswith("/image.png?class=2&trunc=0&seed=0&to=0&t=1&space=z")
