"""A headless Chromium or Chrome driven over its debugging pipe with the standard library alone, and where to find one."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import signal
import tempfile
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PLACES = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--disable-extensions")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--metrics-recording-only", "--remote-debugging-pipe")
TIMEOUT = 30.0


def find_browser():
    """Path of a browser of this family, that of $BROWSER_FOR_TESTS if it is set; None where there is none, or no POSIX to drive it by."""
    if os.name != "posix":
        return None
    wanted = os.environ.get("BROWSER_FOR_TESTS")
    found = [shutil.which(wanted)] if wanted else [*map(shutil.which, NAMES), *(place for place in PLACES if os.path.exists(place))]
    return next(filter(None, found), None)


def _pipe():
    """A pipe whose descriptors are none of the low numbers that a browser's own end gets."""
    import fcntl  # which not every system has

    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return high


def complaints(browser, path):
    """Opens a page: what it says on the console, asks the network for besides itself, and shows no picture for."""
    browser.open(path)
    broken = browser.evaluate("[...document.images].filter(image => !image.hidden && !image.naturalWidth).map(image => image.alt)")
    own = pathlib.Path(path).resolve().as_uri()
    return [*browser.console, *(url for url in browser.requests if url != own and not url.startswith("data:")), *broken]


class Browser:
    """One page in one browser. What the page logged is in `console`, what it asked the network for in `requests`.

    Args:
        program: of `find_browser`.
        images: whether pictures are shown.
    """

    def __init__(self, program, images=True):
        self.session = None
        self.profile = tempfile.mkdtemp(prefix="browser-")
        self.console, self.requests, self.buffer, self.numbers = [], [], b"", itertools.count(1)
        switches = [] if images else ["--blink-settings=imagesEnabled=false"]
        self._start([program, *FLAGS, *QUIET, f"--user-data-dir={self.profile}", *switches, "about:blank"])
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self):
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _start(self, command):
        """The browser reads commands on its descriptor 3 and answers on 4."""
        read, self.write = _pipe()
        self.read, write = _pipe()
        nowhere = os.open(os.devnull, os.O_RDWR)
        ends = [(os.POSIX_SPAWN_DUP2, read, 3), (os.POSIX_SPAWN_DUP2, write, 4), *((os.POSIX_SPAWN_DUP2, nowhere, end) for end in (0, 1, 2))]
        self.pid = os.posix_spawn(command[0], command, os.environ, file_actions=ends, setpgroup=0)
        for end in (read, write, nowhere):
            os.close(end)

    def call(self, method, **arguments):
        """Sends a command of the protocol and returns its result; events that come before it are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": arguments} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _until(self, wanted):
        """Reads messages up to the wanted one, which it returns."""
        end = time.monotonic() + TIMEOUT
        while True:
            while b"\0" in self.buffer:
                text, _, self.buffer = self.buffer.partition(b"\0")
                message = json.loads(text)
                self._keep(message)
                if wanted(message):
                    return message
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            if not (data := os.read(self.read, 1 << 20)):
                raise RuntimeError("the browser is gone")
            self.buffer += data

    def _keep(self, message):
        method, values = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.console.append(values["exceptionDetails"]["text"] + str(values["exceptionDetails"].get("exception", {}).get("description")))
        elif method == "Log.entryAdded":
            self.console.append(values["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.console.append(f"{values['type']}: {[part.get('value') for part in values['args']]}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])

    def open(self, path, width=1280, height=900, dark=False, script=True):
        """Shows a file in a window of this size in CSS pixels; narrow ones are phones."""
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}, {"name": "prefers-reduced-motion", "value": "reduce"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.console.clear()
        self.requests.clear()
        self.call("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key, code=None):
        """Presses and releases a key, as "Tab" or "ArrowLeft"."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35}
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        common = {"key": key, "code": code or key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def move_mouse(self, x, y):
        """Moves the pointer to a place in the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path, whole=False):
        """Writes a PNG of the window, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **({"clip": self._everything()} if whole else {}))
        pathlib.Path(path).write_bytes(base64.b64decode(data["data"]))

    def _everything(self):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def close(self):
        """Ends the browser and its helpers, and removes its profile."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(self.pid, 0)
        for end in (self.read, self.write):
            os.close(end)
        shutil.rmtree(self.profile, ignore_errors=True)
